"""Every run with its numbers."""

from smolctl.analysis.comparison import Comparison
from smolctl.analysis.run_metrics import METRICS
from smolctl.report.document import Block, Section, Table
from smolctl.report.evidence import Evidence
from smolctl.report.sections.per_study import per_study
from smolctl.report.wording import number


def runs_section(evidence: Evidence) -> Section | None:
    """A row per run of every study."""

    def blocks(study: Comparison) -> list[Block | None]:
        return [runs_table(study)]

    return per_study(evidence, "Every run", blocks)


def runs_table(comparison: Comparison) -> Table:
    """A row per run."""
    return Table(
        f"Runs of {comparison.study}",
        ("run", "arm", "seed", *(metric.label for metric in METRICS)),
        [
            (
                finished.name,
                arm.name,
                str(finished.protocol.seed),
                *(number(finished.values[metric.name], metric) for metric in METRICS),
            )
            for arm in comparison.arms
            for finished in arm.runs
        ],
        n_words=2,
    )
