"""Is it better? The verdicts on the final test loss, and every number beside them."""

from collections.abc import Collection, Sequence

from smolctl.analysis.alike import is_alike, is_control, size_changes
from smolctl.analysis.arms import Arm
from smolctl.analysis.comparison import SAME_BUDGET, Comparison, View
from smolctl.analysis.run_metrics import ACCURACY, BITS_PER_BYTE, LOSS, Metric
from smolctl.analysis.verdicts import Difference, Missing, Verdict
from smolctl.report.document import Block, Figure, Section, Table, bullets, paragraph
from smolctl.report.evidence import Evidence
from smolctl.report.figures.curves import losses_of, tradeoff_of
from smolctl.report.figures.forest import forest_of
from smolctl.report.sections.per_study import is_among, per_study, withdrawn
from smolctl.report.verdict_words import finds_nothing, verdict_text, what_is_missing
from smolctl.report.wording import (
    AXES,
    bounds_text,
    interval_text,
    interval_words,
    listed,
    mean_text,
    names_text,
    number,
    rates_text,
    runs_text,
    seeds_text,
    share,
)

OF_MODEL = (ACCURACY, BITS_PER_BYTE)
DETECTABLE = (
    "The minimum detectable effect is the true difference that would be found with 80 % power at "
    "the noise of these runs."
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
            paragraph(DETECTABLE) if study.others and study is evidence.main else None,
            verdicts_table(study),
            documents_table(study),
            arms_table(study),
            secondary_table(study, OF_MODEL),
            views_table(study) if study is evidence.main else None,
            tradeoff_figure(study) if study is evidence.main else None,
        ]

    return per_study(evidence, "Quality", blocks)


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
    return Figure(
        "differences.png",
        f"Final test losses of {study.study} beside {study.base.name}, with intervals",
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


# Tables


def arms_table(comparison: Comparison) -> Table:
    """A column per arm: what it is, and how well it does over its runs."""
    arms = comparison.arms
    counts = [arm.parameters for arm in arms]
    rows = [
        ("runs (seeds)", *(f"{len(arm.runs)} ({seeds_text(arm.seeds)})" for arm in arms)),
        ("parameters", *(f"{count['total']:,}" for count in counts)),
        ("active parameters", *(f"{count['active']:,}" for count in counts)),
        ("embedding parameters", *(f"{count['embedding']:,}" for count in counts)),
        ("training FLOPs per token", *(f"{arm.flops_per_token:.3g}" for arm in arms)),
        ("KV cache bytes per token", *(f"{arm.kv_bytes_per_token:,}" for arm in arms)),
        ("training tokens", *(f"{arm.runs[0].tokens:,}" for arm in arms)),
        ("training tokens per parameter", *(f"{arm.tokens_per_parameter:.3g}" for arm in arms)),
        ("learning rate", *(rates_text(arm) for arm in arms)),
    ]
    rows += [
        (metric.label, *(mean_text(arm.values(metric), metric) for arm in arms))
        for metric in (LOSS, *OF_MODEL)
    ]
    rows += [
        (f"test loss of a {name} of as many tokens", *(floor_text(arm, name) for arm in arms))
        for name in ("unigram", "trigram")
        if any(arm.floor(name) is not None for arm in arms)
    ]
    return Table(
        f"Arms, {comparison.scale} scale, equal {comparison.equal}: mean ± standard deviation",
        ("", *(arm.name for arm in arms)),
        rows,
    )


def floor_text(arm: Arm, name: str) -> str:
    """The loss of an n-gram model of the tokens that the arm has seen."""
    return number(arm.floor(name), LOSS)


def documents_table(comparison: Comparison) -> Table:
    """The differences for the documents of the test, and for documents like these."""
    rows = [
        (
            arm,
            str(found.documents),
            number(found.mean, LOSS, signed=True),
            bounds_text(found.these, "+.4f").strip(" ()") or "–",
            bounds_text(found.like_these, "+.4f").strip(" ()") or "–",
        )
        for arm, found in comparison.over_documents.items()
    ]
    return Table(
        f"Difference to {comparison.base.name} over seeds for the documents of the test, and over "
        "seeds and documents for documents like these",
        ("arm", "documents", "difference", "these documents", "documents like these"),
        rows,
    )


def verdicts_table(comparison: Comparison) -> Table:
    """Every arm against the first on the primary metric, with its verdict."""
    rows = [
        (
            arm,
            verdict_text(found),
            number(found.mean, LOSS, signed=True),
            interval_text(found, LOSS),
            number(found.tuning_gap, LOSS),
            number(found.minimum_detectable_effect, LOSS),
        )
        for arm, found in comparison.primary.items()
    ]
    return Table(
        f"Final test loss against {comparison.base.name}, the primary metric",
        ("arm", "verdict", "difference", "interval", "tuning gap", "minimum detectable effect"),
        rows,
        n_words=2,
    )


def secondary_table(comparison: Comparison, metrics: Sequence[Metric]) -> Table:
    """Other metrics against the first arm; no verdicts."""
    rows = [
        (
            metric.label,
            arm,
            number(difference.mean, metric, signed=True),
            interval_text(difference, metric),
        )
        for metric in metrics
        for arm, difference in comparison.secondary(metric).items()
    ]
    return Table(
        f"Secondary metrics against {comparison.base.name}: each by itself, no verdicts",
        ("metric", "arm", "difference", "interval"),
        rows,
        n_words=2,
    )


def views_table(comparison: Comparison) -> Table:
    """The losses of each arm and the first one where both have had the same of something."""
    base = comparison.base.name

    def cell(view: View, name: str) -> str:
        early = "" if view.ended[name] else " (before its end)"
        return mean_text(view.losses[name], LOSS) + early

    rows = [
        (
            view.arm,
            f"{view.axis} ({view.budget:.3g})",
            view.split,
            cell(view, base),
            cell(view, view.arm),
            verdict_text(comparison.primary[view.arm]) if view.is_fair else "not compared",
        )
        for view in comparison.views
    ]
    return Table(
        "At equal tokens, FLOPs and seconds: test losses, or validation losses of both where a "
        "schedule had not ended; the latter are not compared",
        ("arm", "equal", "split", f"loss of {base}", "loss of the arm", "verdict"),
        rows,
        n_words=3,
    )


# Sentences


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
                f"{names_text(arm.failed)} of {arm.name} failed and is in no number here: the "
                f"numbers of {arm.name} are those of the runs that finished, and may flatter it."
            )
    if len(study.others) > 1:
        sentences.append(
            f"The {len(study.others)} verdicts of the study hold together, and their intervals are "
            f"wider for it (Bonferroni's correction): if no arm differed from {study.base.name}, "
            "the chance of any false verdict would be at most 5 %."
        )
    return [*sentences, on_text(study)]


def why_exploratory(study: Comparison) -> list[str]:
    """Why verdicts are exploratory, if any is."""
    if not any(found.exploratory for found in study.primary.values()):
        return []
    if study.ledger is None:
        return ["No plan was written before the first result, so every verdict is exploratory."]
    return [
        "Arms or seeds beyond the plan, a run that was trained again, or another first arm than "
        "planned make a verdict exploratory."
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
    stands_on = f"its test loss is {amount} ({interval_words(difference)}, {runs})"
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
        return f"{text} No difference is found, as expected."
    return f"{text} The difference that is found is false, as one control in twenty may show."


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
        f"At equal {axis} {listed(open_)} against {base} is inconclusive: one schedule of each "
        "pair had not finished there, and the loss falls at its end."
        for axis, open_ in unfair.items()
    ]
    return sentences
