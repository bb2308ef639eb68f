"""Were the arms tuned equally well? The grids of learning rates."""

from smolctl.analysis.comparison import Comparison
from smolctl.analysis.learning_rates import best_rate
from smolctl.analysis.run_metrics import LOSS
from smolctl.analysis.tuning_gap import open_edges
from smolctl.report.document import Block, Section, Table, bullets
from smolctl.report.evidence import Evidence
from smolctl.report.sections.per_study import per_study
from smolctl.report.wording import listed, mean_text, rates_text


def tuning_section(evidence: Evidence) -> Section | None:
    """The tuning of every study that has one, and what it leaves open."""

    def blocks(study: Comparison) -> list[Block | None]:
        return [bullets(tuning_findings(study)), tuning_table(study)]

    return per_study(evidence, "Learning rates", blocks)


def tuning_table(comparison: Comparison) -> Table:
    """The validation losses of the tuning: a row per model, a column per rate."""
    found = comparison.grids
    rates = sorted({rate for by_rate in found.values() for rate in by_rate})
    rows = []
    for arm, by_rate in found.items():
        same = [other for other in found if found[other] == by_rate]
        if arm != same[0]:
            continue
        cells = [
            f"{mean_text([*by_rate[rate].values()], LOSS)}{' *' * (rate == best_rate(by_rate))}"
            if rate in by_rate
            else "–"
            for rate in rates
        ]
        rows.append((", ".join(same), *cells))
    return Table(
        "Tuning of the learning rate: final validation loss, the best marked *",
        ("arm", *(f"{rate:g}" for rate in rates)),
        rows,
    )


def tuning_findings(comparison: Comparison) -> list[str]:
    """Whether the learning rates are a reason of their own for a verdict."""
    if comparison.superseded is not None:
        return []
    if comparison.is_swept:
        beyond = [
            arm.name for arm in comparison.arms if any(open_edges(comparison.grids[arm.name]))
        ]
        if not beyond:
            return []
        return [f"The best learning rate of {listed(beyond)} may lie beyond the edge of the grid."]
    if len({arm.rates for arm in comparison.arms}) == 1:
        return []
    rates = (f"{rates_text(arm)} for {arm.name}" for arm in comparison.arms)
    return [
        f"The learning rates differ ({', '.join(rates)}) and were not chosen by a tuning of "
        "this study: the verdict is on model and rate together."
    ]


def tuning_limit(comparison: Comparison) -> str:
    """What the choice of the learning rate limits."""
    if comparison.is_swept:
        return (
            "Learning rates were chosen by the study's tuning, on validation with other seeds; a "
            "finer grid may find better ones."
        )
    return (
        "The learning rate was not chosen for each arm by a tuning with other seeds: an arm may be "
        "better at another rate."
    )
