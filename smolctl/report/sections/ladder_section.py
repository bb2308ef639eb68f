"""Does the difference hold at other sizes? The size ladder of which a study is a rung."""

import math

from smolctl.analysis.ladder_notes import TRANSFER, size_text
from smolctl.analysis.rungs import ArmTrend, SizeLadder, ladder_beside
from smolctl.analysis.size_ladder import Bounded, Lack, Trend
from smolctl.report.document import Block, Figure, Section, Table, bullets, section
from smolctl.report.evidence import Evidence
from smolctl.report.figures.size_trends import trends_of
from smolctl.report.wording import grouped, listed

LACKS = {
    Lack.SEEDS: "seeds that finished",
    Lack.TUNING: "learning rates that are known to be near their best",
    Lack.DOCUMENTS: "test documents",
    Lack.REGIME: "models that beat a trigram counted on as many tokens",
    Lack.SIZES: "finished runs of every arm",
    Lack.WITHDRAWN: "verdicts that are not withdrawn",
}
OF_LINE = {
    Lack.SEEDS: "the band is too wide: more seeds, or sizes further apart",
    Lack.TUNING: "better learning rates could turn it",
    Lack.SIZES: "beyond the measured sizes it takes at least three of them",
    Lack.LINE: "the differences do not lie on a line in the logarithm of the size",
}
MEANING = {
    Trend.PERSISTS: "it is there, and no slope is shown",
    Trend.SHRINKS: "it becomes smaller with size",
    Trend.GROWS: "it becomes larger with size",
}


def ladder_section(evidence: Evidence) -> Section | None:
    """The verdicts of the ladder of the first study, if it is a rung of one."""
    ladder = ladder_of(evidence)
    if ladder is None:
        return None
    figure: Block | None = None
    if any(one.line is not None for one in ladder.trends.values()):
        caption = f"Difference to {ladder.main.base.name} against the size of the models"
        figure = Figure("ladder.png", caption, lambda: trends_of(ladder))
    sentences = [trend_sentence(ladder, one) for one in ladder.trends.values()]
    return section(
        "Size ladder",
        [bullets([*sentences, *how_made(ladder)]), figure, trend_table(ladder)],
    )


def ladder_in_detail_section(evidence: Evidence) -> Section | None:
    """What was measured at each size of the ladder, and the check of its rates."""
    ladder = ladder_of(evidence)
    if ladder is None:
        return None
    return section("Sizes of the ladder", [rung_table(ladder), check_table(ladder)])


def ladder_of(evidence: Evidence) -> SizeLadder | None:
    """The ladder of the first study; None if it is no rung or has one arm."""
    return ladder_beside(evidence.main) if evidence.main.others else None


def trend_sentence(ladder: SizeLadder, one: ArmTrend) -> str:
    """What becomes of the difference of one arm, or what is missing to tell."""
    notes, base = ladder.notes, ladder.main.base.name
    how = ", extrapolated," if notes.is_extrapolated else ""
    start = f"At {notes.at}{how} the difference of {one.arm} to {base}"
    exploratory = " (exploratory)" if one.exploratory else ""
    if one.trend is Trend.UNKNOWN:
        return f"{start} is unknown{exploratory}: {'; '.join(lack_clauses(one))}."
    assert one.at is not None
    text = (
        f"{start} *{one.trend}*{exploratory}: {one.at.mean:+.4f} nats/token ({band_text(one.at)}); "
        f"{MEANING[one.trend]}."
    )
    assert one.line is not None
    ends = [one.line.at(size).mean for size in (one.line.smallest, one.line.largest)]
    if ends[0] * ends[1] < 0:
        return f"{text} Its sign changes within the measured sizes."
    if ends[1] * one.at.mean < 0:
        return f"{text} The line crosses zero where nothing was measured."
    return text


def lack_clauses(one: ArmTrend) -> list[str]:
    """What is missing, by size, or of the line."""
    texts = {
        size: listed([LACKS[lack] for lack in lacks]) for size, lacks in one.lacking.items() if size
    }
    clauses = [
        f"{listed(sizes)} {'lacks' if len(sizes) == 1 else 'lack'} {text}"
        for text, sizes in grouped(texts).items()
    ]
    return clauses + [OF_LINE[lack] for lack in one.lacking.get("", ())]


def how_made(ladder: SizeLadder) -> list[str]:
    """How the sizes follow from each other."""
    notes = ladder.notes
    totals = listed(
        [
            f"{size_text(min(one.parameters['total'] for one in study.arms))} at {size}"
            for size, study in ladder.studies.items()
        ]
    )
    rates = "Every size is tuned by itself"
    if not any(study.grids for study in ladder.studies.values()):
        rates = "No learning rate was tuned"
    elif notes.rate == TRANSFER:
        rates = (
            f"Learning rates are tuned at {notes.smallest} and {notes.check}; elsewhere they are "
            f"those of {notes.smallest}, scaled by 1 / d_model (muP) and rounded to factors of √2"
        )
    sentences = [
        f"Sizes are non-embedding parameters, within 5 %, at constant ratios of width, depth, d_ff "
        f"and heads; with the embedding the smallest arm has {totals}. Each was trained on "
        f"{notes.tokens_per_parameter:g} tokens per non-embedding parameter. {rates}.",
    ]
    for arm, check in ladder.checks.items():
        low, high = check.best
        sentences.append(
            f"The rule gives {arm} at {notes.check} a rate of {check.rate:g}, "
            f"{'among' if check.holds else 'not among'} its best rates there ({low:.3g} to "
            f"{high:.3g})."
        )
    if notes.is_extrapolated:
        sentences.append(
            f"No model of {notes.at} was trained: that the line goes on beyond the measured sizes "
            "is an assumption."
        )
    return sentences


def trend_table(ladder: SizeLadder) -> Table:
    """A row per arm: its verdict, the difference there and the slope."""
    notes = ladder.notes
    confidence = 100 * (1 - ladder.level)
    where = f"{notes.at}, {'extrapolated' if notes.is_extrapolated else 'within the sizes'}"
    rows = [
        (
            one.arm,
            str(one.trend),
            ", ".join(one.missing) or "–",
            bounded_text(one.at),
            bounded_text(one.slope),
        )
        for one in ladder.trends.values()
    ]
    return Table(
        f"Difference to {ladder.main.base.name} at {where}, nats/token; {confidence:.4g} % "
        "intervals, with what better rates could gain",
        ("arm", "with size it", "missing", f"at {notes.at}", "per factor e of size"),
        rows,
        n_words=3,
    )


def rung_table(ladder: SizeLadder) -> Table:
    """A row per size and arm: what was measured there."""
    rows = []
    for size, study in ladder.studies.items():
        for arm in study.others:
            found = study.primary[arm.name]
            model = arm.protocol.model
            heads = f"{model.n_heads}/{model.n_kv_heads}"
            rows.append(
                (
                    size,
                    arm.name,
                    f"{model.d_model} / {heads} / {model.n_layers} / {model.d_ff}",
                    f"{arm.protocol.steps * arm.protocol.tokens_per_step:,}",
                    f"{len(study.base.runs)} and {len(arm.runs)}",
                    f"{arm.rates[0]:g}",
                    bounded_text(
                        found.interval and Bounded(found.mean, *found.interval),
                    ),
                    str(found.verdict),
                )
            )
    return Table(
        "The sizes: d_model / heads / layers / d_ff, and the difference over seeds, each a study "
        "of its own",
        ("size", "arm", "shape", "tokens", "runs", "rate", "difference", "verdict"),
        rows,
        n_words=3,
    )


def check_table(ladder: SizeLadder) -> Table:
    """A row per arm: the transferred rate beside the tuned one."""
    return Table(
        f"The rule for rates, checked at {ladder.notes.check}",
        ("arm", "by the rule", "tuned", "best rates", "gap at most, nats/token"),
        [
            (
                arm,
                f"{one.rate:g}",
                "–" if one.tuned is None else f"{one.tuned:g}",
                f"{one.best[0]:.3g} to {one.best[1]:.3g}",
                f"{one.gap:.4f}" if math.isfinite(one.gap) else "–",
            )
            for arm, one in ladder.checks.items()
        ],
    )


def bounded_text(found: Bounded | None) -> str:
    """`-0.0120 (-0.0200 to -0.0040)`; `–` without an interval."""
    return "–" if found is None else f"{found.mean:+.4f} ({band_text(found)})"


def band_text(found: Bounded) -> str:
    """`-0.0200 to -0.0040`."""
    return f"{found.low:+.4f} to {found.high:+.4f}"
