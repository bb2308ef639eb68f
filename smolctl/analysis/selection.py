"""Which runs are compared: those of one protocol, one per arm and seed."""

import dataclasses
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from smolctl.analysis.arms import Arm, floor_problems
from smolctl.analysis.comparison import SAME_BUDGET, Comparison
from smolctl.analysis.kept_study import continue_command
from smolctl.analysis.quantized_arms import quantized
from smolctl.analysis.run_metrics import (
    FinishedRun,
    read_finished,
    read_imported,
    readable_runs,
)
from smolctl.analysis.study_notes import read_notes
from smolctl.analysis.study_plan import ledger_problems, read_ledger
from smollm2.errors import UserError
from smollm2.runs.manifest import Role, RunState

if TYPE_CHECKING:
    from smollm2.runs.run import Run


def compare_arms(
    study: str, arms: "dict[str, list[Run]]", excluded: Sequence[str] = ()
) -> Comparison:
    """The runs that share the controlled fields and the horizon of the first arm's newest run.

    A run that is broken, unfinished, repeated or of another protocol is excluded.

    Args:
        excluded: sentences on runs excluded before; this selection appends its own.

    Raises:
        UserError: a run is in two arms, an arm has no run left, or the study file is wrong.
    """
    reasons = list(excluded)
    by_arm = {arm: readable(runs, reasons) for arm, runs in arms.items()}
    return compare_finished(study, by_arm, reasons)


def compare_finished(
    study: str, by_arm: dict[str, list[FinishedRun]], reasons: list[str]
) -> Comparison:
    """`compare_arms` of runs that are read."""
    for arm, found in by_arm.items():
        if not found:
            raise UserError(f"{' '.join(reasons)} No run of {arm!r} is left.")
    refuse_shared(by_arm)
    runs_in = cache(readable_runs)  # the arms are mostly of one study
    base = max(by_arm[next(iter(by_arm))], key=finished_at)
    kept = []
    for arm, found in by_arm.items():
        common = [run for run in found if not noted(mismatch(base, run), run, reasons)]
        if not common:
            raise UserError(
                f"{reasons[-1]} No run of {arm!r} shares the protocol of {base.name}; train one "
                "with the same settings."
            )
        runs = one_of_each_seed(common, reasons)
        failed = unfinished_of(found, arm, runs_in(found[0].run.study_path), reasons)
        kept.append(
            Arm(
                arm,
                tuple(sorted(runs, key=seeds_of)),
                tuple(run.name for run in failed),
                tuple(run.protocol.seed for run in failed if run.has_diverged),
            )
        )
    notes, ledger = read_notes(base.run.study_path), read_ledger(base.run.study_path)
    if ledger is not None:
        reasons += ledger_problems(ledger, runs_in(base.run.study_path))
    reasons += floor_problems(kept)
    return Comparison(
        study,
        tuple(kept),
        tuple(reasons),
        superseded=notes.superseded,
        margin=ledger.binding.margin if ledger else notes.margin,
    )


def study_comparison(study: str, runs: "list[Run]", like: str | None = None) -> Comparison:
    """Every arm of a study that has the protocol of the run `like`, by default of the newest; the
    first arm is the one that began first.

    Raises:
        UserError: no run can be read, or `like` cannot.
    """
    excluded: list[str] = []
    facts = readable(runs, excluded)
    wanted = [found for found in facts if like in (found.name, None)]
    if not wanted:
        raise UserError(f"{' '.join(excluded)} Nothing is left of study {study!r}.")
    base = max(wanted, key=finished_at)
    by_arm: dict[str, list[FinishedRun]] = {}
    for found in sorted(facts, key=lambda found: str(found.run.manifest["created_at"])):
        if not noted(mismatch(base, found), found, excluded):
            by_arm.setdefault(found.run.arm, []).append(found)
    ledger = read_ledger(facts[0].run.study_path)
    if ledger is not None:  # the plan's first arm is the first, whichever began first
        planned = [arm for arm in ledger.binding.seeds if arm in by_arm]
        by_arm = {arm: by_arm[arm] for arm in (*planned, *by_arm)}
        for arm in ledger.binding.seeds.keys() - by_arm.keys():
            excluded.append(f"Arm {arm!r} of the plan has no finished run.")
    comparison = compare_finished(study, by_arm, excluded)
    broken = quantized(comparison).excluded
    return dataclasses.replace(comparison, excluded=(*comparison.excluded, *broken))


def only(run: "Run") -> Comparison:
    """An imported run by itself."""
    return Comparison(run.study, (Arm(run.name, (read_imported(run),)),), ())


def readable(runs: "list[Run]", excluded: list[str]) -> list[FinishedRun]:
    found = []
    for run in runs:
        try:
            found.append(read_finished(run))
        except UserError as error:
            excluded.append(f"{error} {run.name} is excluded.")
    return found


def noted(reason: str, finished: FinishedRun, excluded: list[str]) -> bool:
    """Whether there is a reason to exclude a run; if so, a sentence is added to `excluded`.

    Args:
        reason: the predicate of a sentence on the run; empty for none.
    """
    if reason:
        excluded.append(f"{finished.name} is excluded: it {reason}.")
    return bool(reason)


def one_of_each_seed(found: list[FinishedRun], excluded: list[str]) -> list[FinishedRun]:
    """The runs of an arm that are like its newest one; per seed only the first, as a repeated seed
    is not a second sample, and a result that was seen must not be replaced by another."""
    newest = max(found, key=finished_at)
    kept: dict[int, FinishedRun] = {}
    for run in sorted(found, key=finished_at):
        twin = kept.get(run.protocol.seed)
        reason = unlike(newest, run)
        if not reason and twin is not None:
            reason = f"has the seed of {twin.name}"
        if not noted(reason, run, excluded):
            kept[run.protocol.seed] = run
    return list(kept.values())


def unlike(newest: FinishedRun, other: FinishedRun) -> str:
    """Why `other` is another treatment than the newest run of its arm, as a predicate of it; empty
    if it is not."""
    one, two = newest.protocol, other.protocol
    if one.model != two.model:
        return f"has another architecture than {newest.name}"
    for name, rate in one.recipe.rates.items():
        if (other_rate := getattr(two.recipe, name)) != rate:
            return f"has {name} {other_rate:g}, {newest.name} {rate:g}"
    if one.steps != two.steps:
        return f"has {two.steps} steps, {newest.name} {one.steps}"
    return ""


def unfinished_of(
    found: list[FinishedRun], arm: str, there: "list[Run]", excluded: list[str]
) -> "list[Run]":
    """Adds a sentence per run of an arm that has not ended to `excluded`; returns those that
    failed.

    Args:
        there: the runs of its study.
    """
    arms = {finished.run.arm for finished in found}
    failed = []
    for run in there:
        if run.is_finished or run.role is not Role.FINAL or run.arm not in arms:
            continue
        if run.state is RunState.FAILED:
            failed.append(run)
            excluded.append(f"{run.name} is excluded: it failed. {run.manifest['error']}")
        else:
            go_on = f"Continue it: {continue_command(run)}"
            if run.is_being_written:
                go_on = "Another process is training it."
            excluded.append(f"{run.name} is excluded: it is not finished. {go_on}")
    return failed


def refuse_shared(by_arm: dict[str, list[FinishedRun]]) -> None:
    """Raise `UserError` if a run is in two arms."""
    seen: dict[Any, str] = {}
    for arm, found in by_arm.items():
        for run in found:
            other = seen.setdefault(run.run.path.resolve(), arm)
            if other != arm:
                raise UserError(f"{run.name} is in both {other!r} and {arm!r}.")


def finished_at(finished: FinishedRun) -> str:
    return str(finished.run.manifest["finished_at"])


def seeds_of(finished: FinishedRun) -> tuple[int, int]:
    return finished.protocol.seed, finished.protocol.data_seed


def mismatch(base: FinishedRun, other: FinishedRun) -> str:
    """Why `other` cannot be compared, as a predicate of it; empty if it can."""
    from smollm2.protocol.run_config import differing

    manifests = [finished.run.manifest for finished in (base, other)]
    # Manifests of older versions have only the name of the run or model they started from.
    has_weights = all(manifest.get("started_from_sha256") for manifest in manifests)

    def shared(finished: FinishedRun) -> dict[str, Any]:
        manifest = finished.run.manifest
        fields = {"equal": manifest["equal"], "started from": manifest["started_from"]}
        if has_weights:
            fields["weights started from"] = manifest["started_from_sha256"]
        # Only a study that gives its arms equal FLOPs or seconds lets their steps differ.
        if manifest["equal"] == "tokens":
            fields["steps"] = finished.protocol.steps
        return fields | finished.protocol.controlled()

    one, two = shared(base), shared(other)
    if one["data"] != two["data"]:  # fingerprints alone; a reader needs the names too
        one["data"], two["data"] = (
            data and f"{data.source} ({data.fingerprint})"
            for data in (base.protocol.data, other.protocol.data)
        )
    if fields := differing(one, two, names=("there", "here")):
        first, more = fields.split("; ")[:3], fields.count("; ") - 2
        return f"differs from {base.name} ({'; '.join(first)}{f'; {more} more' * (more > 0)})"
    if base.run.manifest["equal"] == "flops":
        ratio = other.flops / base.flops
        # FLOPs come in whole steps.
        steps = min(base.protocol.steps, other.protocol.steps)
        if abs(ratio - 1) > max(SAME_BUDGET["flops"], 1 / steps):
            return f"had {ratio:.2f} times the FLOPs of {base.name}"
    return ""
