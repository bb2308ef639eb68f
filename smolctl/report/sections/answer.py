"""The answer: a sentence per question with its regime, one forest plot, one table."""

from smolctl.analysis.alike import is_of_controls
from smolctl.analysis.comparison import Comparison
from smolctl.analysis.quantized_arms import Quantized
from smolctl.analysis.run_metrics import LOSS, TOKENS_PER_SECOND
from smolctl.analysis.stats import Interval
from smolctl.analysis.verdicts import Difference, Verdict
from smolctl.report.document import Figure, Section, Table, bullets, section
from smolctl.report.evidence import Evidence
from smolctl.report.figures.forest import overview_of
from smolctl.report.figures.quantized import quantized_headline
from smolctl.report.sections.architecture import size_rows
from smolctl.report.sections.per_study import row_of, withdrawn
from smolctl.report.sections.quality import differences_figure, verdict_sentence
from smolctl.report.sections.quantization import COMPUTE_OPTIMAL, undivided
from smolctl.report.sections.speed import by_cause
from smolctl.report.verdict_words import (
    ends_text,
    false_share,
    finds_nothing,
    floors_text,
    gap_text,
    verdict_text,
)
from smolctl.report.wording import (
    AXES,
    bounds_text,
    grouped,
    interval_words,
    listed,
    machine,
    mean_text,
    number,
    size_words,
)
from smollm2.quantize.dimensions import GROUP_SIZES, weights


def answer_section(evidence: Evidence) -> Section | None:
    """The first section of a card: sentences, one figure, one table."""
    return section(
        "Answer",
        [
            bullets(
                [
                    *withdrawn_verdicts(evidence),
                    *quality_sentences(evidence),
                    *speed_sentences(evidence),
                    *quantization_sentences(evidence),
                    *control_sentences(evidence),
                    regime(evidence.main),
                ]
            ),
            forest_figure(evidence),
            answer_table(evidence),
        ],
    )


def forest_figure(evidence: Evidence) -> Figure | None:
    """Every study that is part of the answer, or the first one by itself."""
    timed = evidence.timed_further
    if timed is None:
        return differences_figure(evidence)
    losses = [*evidence.of_quality, *evidence.controls_beside]
    return Figure(
        "overview.png",
        f"Final test losses, and training speeds {size_words(timed)}, beside the first arm",
        lambda: overview_of(losses, timed, evidence.in_time),
    )


# Sentences


def withdrawn_verdicts(evidence: Evidence) -> list[str]:
    """One sentence for all superseded studies."""
    studies = [study for study in evidence.studies if study.superseded is not None]
    return [withdrawn(studies)] if studies else []


def quality_sentences(evidence: Evidence) -> list[str]:
    """The verdicts of each study that compares models, a sentence per study."""
    studies = [one for one in evidence.of_quality if not is_of_controls(one)]
    studies += evidence.in_time
    return [verdicts(study) for study in studies if study.superseded is None]


def verdicts(study: Comparison) -> str:
    """`At equal tokens, against orig, in nats/token: pow2 (-0.0140) better; wide (+0.1) worse.`"""
    if len(study.others) == 1:
        return verdict_sentence(study, study.others[0])
    texts = {
        f"{arm} ({number(found.mean, LOSS, signed=True)})": verdict_text(found)
        for arm, found in study.primary.items()
    }
    parts = [f"{listed(arms)} {verdict}" for verdict, arms in grouped(texts).items()]
    planned = "With steps planned for" if study.equal == "seconds" else "At"
    return (
        f"{planned} equal {AXES[study.equal]}, against {study.base.name}, in nats/token: "
        f"{'; '.join(parts)}."
    )


def speed_sentences(evidence: Evidence) -> list[str]:
    """Tokens per second beside the first arm."""
    timed = evidence.timed
    if timed is None or timed.superseded is not None:
        return []
    assert timed.speeds is not None
    found = timed.speeds.ratios.items()
    ratios = listed([f"{arm} {ratio_cell(one.tokens)}{by_cause(one)}" for arm, one in found])
    return [
        f"Tokens per second in training {size_words(timed)}, beside {timed.base.name} on "
        f"{machine(timed)}: {ratios}."
    ]


def quantization_sentences(evidence: Evidence) -> list[str]:
    """What quantizing did to the arms, where they can be compared."""
    found = evidence.quantized
    if not (found.is_measured and found.is_judged and found.comparison.others):
        return []
    unequal = [pair for pair in found.pairs if pair.has_unequal_shares]
    return [f"{quantized_headline(found)}.", *undivided(found, unequal)]


def control_sentences(evidence: Evidence) -> list[str]:
    """Whether a difference is found where there is none."""
    sentences = []
    for study in evidence.studies:
        if not is_of_controls(study) or study.superseded is not None:
            continue
        for arm, found in study.primary.items():
            if found.interval is None:
                continue
            end = (
                "as expected"
                if finds_nothing(found)
                else f"a false difference, as {false_share(found)} may show"
            )
            sentences.append(
                f"{arm} is a control, {study.base.name} under another name: its difference of "
                f"{found.mean:+.4f} nats/token ({interval_words(found)}) is "
                f"{verdict_text(found)}, {end}."
            )
    return sentences


def regime(study: Comparison) -> str:
    """How far the models were trained."""
    base = study.base
    tokens, parameters = base.runs[0].tokens, base.parameters["total"]
    return (
        f"Regime: {study.scale} scale, {tokens:,} training tokens per run, "
        f"{tokens / parameters:.2g} per parameter of {base.name} (compute-optimal: about "
        f"{COMPUTE_OPTIMAL}){floors_text(study)}."
    )


# Table


def answer_table(evidence: Evidence) -> Table:
    """A column per arm of the first study, the first arm as it is and the others beside it; without
    the rows that say nothing about another arm."""
    main = evidence.main
    total, *_, flops = size_rows(main, main)
    rows = [total, flops]
    for study in (*evidence.of_quality, *evidence.in_time):
        rows += [loss_row(study, main), *gap_rows(study, main), effect_row(study, main)]
    if evidence.timed:
        rows.append(speed_row(evidence.timed, main))
    if evidence.quantized.is_judged:
        rows += quantization_rows(evidence.quantized, main)
    is_alternated = evidence.timed and evidence.timed.speeds and evidence.timed.speeds.is_alternated
    over = "runs, of speeds over rounds" if is_alternated else "runs"
    brackets = (
        "; in brackets intervals (of losses at best rates, corrected for the number of arms; of "
        f"speeds {speed_confidence(evidence)})"
    )
    has_intervals = any(" to " in cell for row in rows for cell in row[2:])
    return Table(
        f"Every arm against {main.base.name}: mean ± standard deviation over {over}"
        f"{brackets if has_intervals else ''}",
        ("", *(arm.name for arm in main.arms)),
        [row for row in rows if any(cell != "–" for cell in row[2:])],
    )


def speed_confidence(evidence: Evidence) -> str:
    """`95 %`, the confidence of the intervals of speeds."""
    found = evidence.timed and evidence.timed.speeds
    return f"{100 * next(iter(found.ratios.values())).confidence:.4g} %" if found else "95 %"


def loss_row(study: Comparison, main: Comparison) -> tuple[str, ...]:
    """The verdicts of a study; seconds may come out otherwise than they were planned."""
    planned = "planned for " if study.equal == "seconds" else ""
    cells = {arm: verdict_cell(found) for arm, found in study.primary.items()}
    first = mean_text(study.base.values(LOSS), LOSS)
    return row_of(f"test loss, {planned}equal {AXES[study.equal]}", study, main, first, cells)


def gap_rows(study: Comparison, main: Comparison) -> list[tuple[str, ...]]:
    """What better rates could still gain in each arm; none where nothing is known."""
    cells = {arm: gap_text(found, 1) for arm, found in study.primary.items()}
    base = {gap_text(found, 0) for found in study.primary.values()} - {"–"}
    if not any(cell.strip("–") not in ("", "no bound") for cell in (*cells.values(), *base)):
        return []
    label = f"tuning gap at most, equal {AXES[study.equal]}"
    return [row_of(label, study, main, min(base, default="–"), cells)]


def effect_row(study: Comparison, main: Comparison) -> tuple[str, ...]:
    """The true difference that a study would find at the rates that its runs had."""
    cells = {
        arm: number(found.minimum_detectable_effect, LOSS) for arm, found in study.primary.items()
    }
    label = f"minimum detectable at these rates, equal {AXES[study.equal]}"
    return row_of(label, study, main, "–", cells)


def verdict_cell(found: Difference) -> str:
    """`better: -0.0140 (-0.0426 to -0.0045; seeds alone -0.0326 to -0.0055)`; a withdrawn
    verdict has no interval."""
    start = f"{verdict_text(found)}: {number(found.mean, LOSS, signed=True)}"
    if found.interval is None:
        return start
    best = [ends_text(found.widened)] if found.widened else []
    alone = [f"seeds alone {ends_text(found.interval)}"]
    return f"{start} ({'; '.join(best if found.widened == found.interval else best + alone)})"


def speed_row(timed: Comparison, main: Comparison) -> tuple[str, ...]:
    """The first arm's tokens per second, and the ratios of the others."""
    assert timed.speeds is not None
    found = timed.speeds.ratios
    cells = {arm: ratio_cell(one.tokens) for arm, one in found.items()}
    if timed.superseded is not None:
        cells = {arm: f"{Verdict.WITHDRAWN}: {one.tokens.mean:.2f} ×" for arm, one in found.items()}
    first = mean_text(timed.speeds.tokens_per_second[timed.base.name], TOKENS_PER_SECOND)
    return row_of("training, tokens per second", timed, main, first, cells)


def ratio_cell(found: Interval) -> str:
    """`0.91 × (0.84 to 1.00)`."""
    return f"{found.mean:.2f} ×{bounds_text(found.interval, '.2f')}"


def quantization_rows(found: Quantized, main: Comparison) -> list[tuple[str, ...]]:
    """Which groups fit the widths, and how small an arm becomes at 4 bits."""
    groups = {}
    for arm in found.comparison.arms:
        fitting = set(GROUP_SIZES).intersection(
            *(weight.dividing_groups() for weight in weights(arm.protocol.model))
        )
        groups[arm.name] = ", ".join(map(str, sorted(fitting))) or "none"
    smallest = {
        arm: f"{size:.3f} ({name})" for arm, (name, size) in found.smallest_at_4_bits.items()
    }
    labels = {
        "group sizes that divide all widths": groups,
        "fewest bytes per parameter at 4 bits, without the embedding": smallest,
    }
    return [
        row_of(label, found.comparison, main, cells.get(main.base.name, "–"), cells)
        for label, cells in labels.items()
    ]
