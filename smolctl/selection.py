"""Which runs stand together: those of one protocol, each seed of an arm once."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from smolctl.comparison import SAME_BUDGET, Arm, Comparison
from smolctl.facts import RunFacts, imported_facts, read_facts, siblings
from smollm2.errors import UserError

if TYPE_CHECKING:
    from smollm2.runs import Run


def compare_arms(
    study: str, arms: "dict[str, list[Run]]", left_out: Sequence[str] = ()
) -> Comparison:
    """The runs that share the controlled fields and the horizon of the first arm's newest run.

    A run that is broken, unfinished, a repetition or of another protocol is left out, and
    `left_out` says so, after what it begins with.

    Raises:
        UserError: a run stands in two arms, or an arm has no run left.
    """
    reasons = list(left_out)
    facts = {arm: readable(runs, reasons) for arm, runs in arms.items()}
    for arm, found in facts.items():
        if not found:
            raise UserError(f"{' '.join(reasons)} Nothing is left of {arm!r}.")
    refuse_shared(facts)
    base = max(facts[next(iter(arms))], key=finished_at)
    kept = []
    for arm, found in facts.items():
        common = [run for run in found if not noted(mismatch(base, run), run, reasons)]
        if not common:
            raise UserError(
                f"{reasons[-1]} No run of {arm!r} shares the protocol of {base.name}; train one "
                "with the same settings."
            )
        runs = one_of_each_seed(common, reasons)
        failed = unfinished_of(found, arm, reasons)
        kept.append(Arm(arm, tuple(sorted(runs, key=seeds_of)), tuple(failed)))
    return Comparison(study, tuple(kept), tuple(reasons))


def only(run: "Run") -> Comparison:
    """An imported run by itself."""
    return Comparison(run.study, (Arm(run.name, (imported_facts(run),)),), ())


def readable(runs: "list[Run]", left_out: list[str]) -> list[RunFacts]:
    found = []
    for run in runs:
        try:
            found.append(read_facts(run))
        except UserError as error:
            left_out.append(f"{error} {run.name} is left out.")
    return found


def noted(reason: str, facts: RunFacts, left_out: list[str]) -> bool:
    """Whether there is a reason to leave a run out, which is then added.

    Args:
        reason: what the run is or has, as the predicate of a sentence; empty for none.
    """
    if reason:
        left_out.append(f"{facts.name} {reason}, and is left out.")
    return bool(reason)


def one_of_each_seed(found: list[RunFacts], left_out: list[str]) -> list[RunFacts]:
    """Of the runs of an arm those like the newest one, and of each seed the newest: the same seed
    once more is no second sample."""
    newest = max(found, key=finished_at)
    kept: dict[tuple[int, int], RunFacts] = {}
    for run in sorted(found, key=finished_at, reverse=True):
        twin = kept.get(seeds_of(run))
        reason = unlike(newest, run)
        if not reason and twin is not None:
            reason = f"has the seed of {twin.name}"
        if not noted(reason, run, left_out):
            kept[seeds_of(run)] = run
    return list(kept.values())


def unlike(newest: RunFacts, other: RunFacts) -> str:
    """In what two runs of one arm are not the same treatment, as a predicate of the other."""
    one, two = newest.protocol, other.protocol
    if one.model != two.model:
        return f"has another architecture than {newest.name}"
    for name in ("lr", "muon_lr"):
        if (rate := getattr(two.recipe, name)) != getattr(one.recipe, name):
            return f"has {name} {rate:g}, {newest.name} {getattr(one.recipe, name):g}"
    if one.steps != two.steps:
        return f"has {two.steps} steps, {newest.name} {one.steps}"
    return ""


def unfinished_of(found: list[RunFacts], arm: str, left_out: list[str]) -> list[str]:
    """Notes the runs of an arm that have not ended; returns the names of those that failed."""
    arms = {facts.run.arm for facts in found}
    failed = []
    for run in siblings(found[0].run):
        if run.is_finished or run.manifest["role"] != "final" or run.arm not in arms:
            continue
        if run.manifest["state"] == "failed":
            failed.append(run.name)
            left_out.append(f"{run.name} failed, and is left out. {run.manifest['error']}")
        else:
            left_out.append(
                f"{run.name} is not finished, and is left out. Go on with it: "
                f"smolctl train --resume {run.name} --study {run.study}"
            )
    return failed


def refuse_shared(facts: dict[str, list[RunFacts]]) -> None:
    """Raise `UserError` if a run stands in two arms."""
    seen: dict[Any, str] = {}
    for arm, found in facts.items():
        for run in found:
            other = seen.setdefault(run.run.path.resolve(), arm)
            if other != arm:
                raise UserError(f"{run.name} stands in both {other!r} and {arm!r}.")


def finished_at(facts: RunFacts) -> str:
    return str(facts.run.manifest["finished_at"])


def seeds_of(facts: RunFacts) -> tuple[int, int]:
    return facts.protocol.seed, facts.protocol.data_seed


def mismatch(base: RunFacts, other: RunFacts) -> str:
    """What keeps `other` from being compared, as a predicate of it; empty if nothing does."""
    from smollm2.protocol import differing

    manifests = [facts.run.manifest for facts in (base, other)]
    # Older ones only name what they started from.
    has_weights = all(manifest.get("started_from_sha256") for manifest in manifests)

    def shared(facts: RunFacts) -> dict[str, Any]:
        manifest = facts.run.manifest
        fields = {"equal": manifest["equal"], "started from": manifest["started_from"]}
        if has_weights:
            fields["weights started from"] = manifest["started_from_sha256"]
        # Only a study that gives its arms equal FLOPs or seconds lets their steps differ.
        if manifest["equal"] == "tokens":
            fields["steps"] = facts.protocol.steps
        return fields | facts.protocol.controlled()

    one, two = shared(base), shared(other)
    if one["data"] != two["data"]:  # fingerprints, which tell a reader nothing
        one["data"], two["data"] = (
            data and f"{data.source} ({data.fingerprint})"
            for data in (base.protocol.data, other.protocol.data)
        )
    if fields := differing(one, two, names=("there", "here")):
        first, more = fields.split("; ")[:3], fields.count("; ") - 2
        return f"differs from {base.name} ({'; '.join(first)}{f'; {more} more' * (more > 0)})"
    if base.run.manifest["equal"] == "flops":
        ratio = other.flops / base.flops
        # A step is the least by which FLOPs can differ.
        steps = min(base.protocol.steps, other.protocol.steps)
        if abs(ratio - 1) > max(SAME_BUDGET["flops"], 1 / steps):
            return f"had {ratio:.2f} times the FLOPs of {base.name}"
    return ""
