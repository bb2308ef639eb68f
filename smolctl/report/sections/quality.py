"""Is it better? The verdicts on the final test loss, in sentences and figures."""

from collections.abc import Collection, Sequence

from smolctl.analysis.alike import is_alike, is_control, size_changes
from smolctl.analysis.arms import Arm
from smolctl.analysis.comparison import SAME_BUDGET, Comparison
from smolctl.analysis.run_metrics import ACCURACY
from smolctl.analysis.verdicts import Difference, Missing, Verdict
from smolctl.report.document import Block, Figure, Section, bullets, paragraph
from smolctl.report.evidence import Evidence
from smolctl.report.figures.curves import losses_of, tradeoff_of
from smolctl.report.figures.forest import forest_of
from smolctl.report.sections.per_study import is_among, per_study, withdrawn
from smolctl.report.sections.quality_tables import (
    arms_table,
    basis_table,
    documents_table,
    secondary_table,
    verdicts_table,
    views_table,
)
from smolctl.report.verdict_words import (
    false_share,
    finds_nothing,
    intervals_words,
    verdict_text,
    what_is_missing,
)
from smolctl.report.wording import (
    AXES,
    listed,
    names_text,
    runs_text,
    share,
)

DETECTABLE = (
    "At each arm's own best learning rate the difference may be higher by the tuning gap of the "
    "first arm and lower by that of the other: so much could better rates still gain. The minimum "
    "detectable effect is the true difference that would be found with 80 % power at the noise of "
    "these runs, without these gaps."
)
ACROSS_STUDIES = (
    "Error is controlled within each study, not across studies: each study's verdicts are a family "
    "of their own."
)


def quality_section(evidence: Evidence) -> Section | None:
    """Every study; sentences of those whose verdicts are part of the answer."""

    def blocks(study: Comparison) -> list[Block | None]:
        return [
            bullets(told(evidence, study)),
            differences_figure(evidence) if study is evidence.main else None,
            curves_figure(study) if study is evidence.main else None,
            paragraph(DETECTABLE) if explains_detectable(evidence, study) else None,
            verdicts_table(study),
            basis_table(study),
            documents_table(study),
            arms_table(study),
            secondary_table(study, [ACCURACY]),
            views_table(study) if study is evidence.main else None,
            tradeoff_figure(study) if study is evidence.main else None,
        ]

    return per_study(evidence, "Quality", blocks)


def explains_detectable(evidence: Evidence, study: Comparison) -> bool:
    """Whether the minimum detectable effect is explained: once, where there is one."""
    return bool(study.others) and study is evidence.main and study.superseded is None


def told(evidence: Evidence, study: Comparison) -> list[str]:
    """What a study says; nothing where its verdicts are no part of the answer."""
    if not is_among(study, [evidence.main, *evidence.judged]):
        return []
    sentences = quality_findings(study, evidence.answered_elsewhere(study))
    if len(evidence.of_quality) > 1 and study is evidence.of_quality[-1]:
        sentences.append(ACROSS_STUDIES)
    return sentences


def differences_figure(evidence: Evidence) -> Figure | None:
    """The forest plot of the first study, unless the overview shows it."""
    study = evidence.main
    if not study.others or evidence.timed_further:
        return None
    how = ", with intervals" if study.superseded is None else ""
    return Figure(
        "differences.png",
        f"Final test losses of {study.study} beside {study.base.name}{how}",
        lambda: forest_of(study),
    )


def curves_figure(study: Comparison) -> Figure:
    return Figure(
        "loss.png",
        f"Validation loss against steps, FLOPs and seconds, every run of {study.study}",
        lambda: losses_of(study),
    )


def tradeoff_figure(study: Comparison) -> Figure | None:
    """Only where the arms have at least three sizes of KV cache per token."""
    if len({arm.kv_bytes_per_token for arm in study.arms}) < 3:
        return None
    return Figure(
        "tradeoff.png",
        "Final test loss against the KV cache per token",
        lambda: tradeoff_of(study),
    )


def quality_findings(study: Comparison, answered: Collection[tuple[str, str]] = ()) -> list[str]:
    """The verdict on each arm against the first, then what holds for several.

    Args:
        answered: arms, each with what of `tokens`, `flops` and `seconds` another study has made
            equal for it: there that one's verdict holds.
    """
    if study.superseded is not None:
        return [withdrawn([study]), on_text(study)]
    models = [arm for arm in study.others if not is_control(study.base, arm)]
    sentences = verdict_sentences(study)
    sentences += why_exploratory(study)
    sentences += [control(study, arm) for arm in study.others if arm not in models]
    sentences += detectable(study, models)
    sentences += size_sentences(study.base, models)
    sentences += other_views(study, models, answered)
    for arm in study.arms:
        if arm.failed:
            sentences.append(
                f"{names_text(arm.failed)} failed: the numbers of {arm.name} are those of the runs "
                "that finished, and may flatter it."
            )
    return [*sentences, *family_sentence(study), on_text(study)]


def family_sentence(study: Comparison) -> list[str]:
    """Why the intervals of verdicts that follow a plan are wider than those of one comparison."""
    plan = study.ledger.binding if study.ledger else None
    verdicts, looks = len(plan.seeds) - 1 if plan else 0, len(plan.looks) if plan else 1
    found = study.primary.values()
    if not found or verdicts * looks < 2 or any(one.exploratory for one in found):
        return []
    count = f"The {verdicts} verdicts of the study" if verdicts > 1 else "The verdict of the study"
    at = f" at {looks} looks" if looks > 1 else ""
    hold, their = ("hold together", "their") if verdicts > 1 else ("holds", "its")
    return [
        f"{count}{at} {hold}, and {their} intervals are wider for it (Bonferroni's correction): if "
        f"no arm differed from {study.base.name}, the chance of any false verdict would be at most "
        "5 %."
    ]


def why_exploratory(study: Comparison) -> list[str]:
    """Why verdicts are exploratory, if any is."""
    if not any(found.exploratory for found in study.primary.values()):
        return []
    if study.ledger is None:
        return ["No plan was written before the first result, so every verdict is exploratory."]
    return [
        "Arms or seeds beyond the plan, a run that was trained again or is older than the plan, "
        "another tuning than planned, or another first arm make a verdict exploratory."
    ]


def verdict_sentences(comparison: Comparison) -> list[str]:
    """A sentence per arm."""
    return [verdict_sentence(comparison, arm) for arm in comparison.others]


def on_text(comparison: Comparison) -> str:
    """How much text the verdicts stand on."""
    tokens, documents = comparison.base.protocol.test_tokens, comparison.base.runs[0].test_documents
    return (
        f"The test loss covers {tokens:,} tokens of {documents} held-out "
        f"document{'' if documents == 1 else 's'}; other text may give another answer."
    )


def verdict_sentence(comparison: Comparison, arm: Arm) -> str:
    """The verdict on the primary metric, with what it stands on."""
    base, difference = comparison.base, comparison.primary[arm.name]
    start = f"{horizon(comparison, arm)} {arm.name}"
    runs = f"{runs_text(len(arm.runs))} against {runs_text(len(base.runs))}"
    amount = distance(difference, base)
    if difference.interval is None:
        return (
            f"{start} ended {amount} on the test split ({runs}): inconclusive. The noise between "
            "runs is known only from several runs per arm; add seeds."
        )
    stands_on = f"its test loss is {amount} ({intervals_words(difference)}; {runs})"
    text = verdict_text(difference)
    if difference.verdict is Verdict.EQUIVALENT:
        within = f"to {base.name} within {comparison.margin:g} nats/token"
        return f"{start} is {text} {within}: {stands_on}."
    if difference.verdict is not Verdict.INCONCLUSIVE:
        return f"{start} is {text} than {base.name}: {stands_on}."
    missing = "".join(f"; {clause}" for clause in what_is_missing(comparison, arm))
    return f"{start} against {base.name} is {text}: {stands_on}{missing}."


def horizon(comparison: Comparison, arm: Arm) -> str:
    """`At equal tokens`; it says so if planned seconds came out unequal."""
    if comparison.equal != "seconds":
        return f"At equal {AXES[comparison.equal]}"
    ours, theirs = arm.mean_of("seconds"), comparison.base.mean_of("seconds")
    if max(ours, theirs) <= min(ours, theirs) * (1 + SAME_BUDGET["seconds"]):
        return f"At equal {AXES['seconds']}"
    return (
        f"With steps planned for equal {AXES['seconds']}, which came out as {ours:.0f} s against "
        f"{theirs:.0f} s,"
    )


def distance(difference: Difference, base: Arm) -> str:
    """`0.0123 nats/token below that of orig`."""
    if abs(difference.mean) < 0.00005:
        return f"within 0.0001 nats/token of that of {base.name}"
    side = "below" if difference.mean < 0 else "above"
    return f"{abs(difference.mean):.4f} nats/token {side} that of {base.name}"


def control(comparison: Comparison, arm: Arm) -> str:
    """What the verdict on a control says of the method."""
    text = f"{arm.name} is a control: {comparison.base.name} under another name, with other seeds."
    difference = comparison.primary[arm.name]
    if difference.interval is None:  # nothing else could have come out
        return text
    if finds_nothing(difference):
        margin, low, high = comparison.margin, *difference.interval
        found = f"{text} No difference is found, as expected"
        if margin is not None and max(-low, high) >= margin:
            return f"{found}, but these runs could miss one as large as the margin of {margin:g}."
        return f"{found}."
    return f"{text} The difference that is found is false, as {false_share(difference)} may show."


def detectable(comparison: Comparison, arms: Sequence[Arm]) -> list[str]:
    """How small a difference the runs could have found, for the arms where they found none."""
    found = ((arm.name, comparison.primary[arm.name]) for arm in arms)
    texts = [
        f"{difference.minimum_detectable_effect:.4f} ({name})"
        for name, difference in found
        if Missing.SEEDS in difference.missing
        if difference.minimum_detectable_effect is not None
    ]
    if not texts:
        return []
    return [
        f"The minimum detectable effect is {listed(texts)} nats/token; a smaller difference takes "
        "more seeds."
    ]


def size_sentences(base: Arm, arms: Sequence[Arm]) -> list[str]:
    """How parameters and FLOPs compare, and so what the verdicts are not about."""
    alike, unlike = list[str](), list[str]()
    for arm in arms:
        total, active, flops = size_changes(base, arm)
        parts = [f"{share(total)} parameters"]
        if abs(active - total) > 0.005:
            parts.append(f"{share(active)} active ones")
        parts.append(f"{share(flops)} FLOPs per token")
        (alike if is_alike(base, arm) else unlike).append(f"{arm.name} has {listed(parts)}")
    sentences = []
    if alike:
        sentences.append(f"Of equal size and cost with {base.name}: {'; '.join(alike)}.")
    if unlike:
        sentences.append(f"Not of equal size and cost with {base.name}: {'; '.join(unlike)}.")
    return sentences


def other_views(
    comparison: Comparison, arms: Sequence[Arm], answered: Collection[tuple[str, str]]
) -> list[str]:
    """Whether the verdicts also hold at equal tokens, FLOPs or time."""
    names, base = {arm.name for arm in arms}, comparison.base.name
    fair, unfair = dict[str, list[str]](), dict[str, list[str]]()
    for view in comparison.views:
        is_told = view.axis == comparison.equal or (view.arm, view.axis) in answered
        if view.arm in names and not is_told:
            found = fair if view.is_fair else unfair
            found.setdefault(AXES[view.axis], []).append(view.arm)
    sentences = [
        f"{listed(equal)} also had equal {axis} with {base}, so the same verdict holds there."
        for axis, equal in fair.items()
    ]
    sentences += [
        f"At equal {axis} there is no verdict on {listed(open_)} against {base}: one schedule of "
        "each pair had not finished there, and the loss falls at its end."
        for axis, open_ in unfair.items()
    ]
    return sentences
