"""Dense against mixture of experts: how they start, and how they end."""

from smolctl.analysis.arms import Arm
from smolctl.analysis.comparison import Comparison, read_curve
from smolctl.analysis.run_metrics import LOSS
from smolctl.analysis.verdicts import Difference, differences
from smolctl.report.document import Figure, Section, Table, paragraph, section
from smolctl.report.evidence import Evidence
from smolctl.report.figures.curves import losses_of
from smolctl.report.sections.per_study import figure_name, source
from smolctl.report.wording import interval_text, mean_text, number

START = 0.1  # of the tokens


def experts_section(evidence: Evidence) -> Section | None:
    """By the first study with a dense first arm and mixtures of experts."""
    for study in evidence.studies:
        if pair := dense_against_experts(study):
            return section(
                "Dense against mixture of experts",
                [
                    *(paragraph(text) for text in source(evidence, study)),
                    pair_curves_figure(evidence, study, pair),
                    start_table(pair),
                ],
            )
    return None


def pair_curves_figure(evidence: Evidence, study: Comparison, pair: Comparison) -> Figure | None:
    """The curves of the pair; none where the study has no other arms, whose curves are the same."""
    if len(pair.arms) == len(study.arms):
        return None
    return Figure(
        figure_name(evidence, study, "dense-moe.png"),
        "Validation loss of the dense model and the mixture of experts, every run",
        lambda: losses_of(pair),
    )


def dense_against_experts(comparison: Comparison) -> Comparison | None:
    """The first arm, if it is dense, beside the mixtures of experts; None without."""
    if comparison.base.protocol.model.is_moe:
        return None
    return comparison.among([a.name for a in comparison.others if a.protocol.model.is_moe])


def start_tokens(pair: Comparison, arm: Arm) -> float:
    """The first `START` of what both arms were trained on."""
    return START * min(pair.base.mean_of("tokens"), arm.mean_of("tokens"))


def start_losses(pair: Comparison, arm: Arm) -> tuple[list[float], list[float]]:
    """The validation losses of the dense runs and of those of `arm` after `start_tokens`."""
    tokens = start_tokens(pair, arm)
    dense, sparse = (
        [read_curve(finished, "tokens", tokens) for finished in one.runs]
        for one in (pair.base, arm)
    )
    return dense, sparse


def start_difference(pair: Comparison, arm: Arm) -> Difference:
    """The difference of `start_losses`, with a 95 % interval."""
    dense, sparse = start_losses(pair, arm)
    return differences(dense, {arm.name: sparse})[arm.name]


def start_table(pair: Comparison) -> Table:
    """A row per mixture of experts: the losses at the start beside those of the dense model."""
    rows = []
    for arm in pair.others:
        dense, sparse = start_losses(pair, arm)
        found = start_difference(pair, arm)
        rows.append(
            (
                arm.name,
                f"{start_tokens(pair, arm):,.0f}",
                mean_text(dense, LOSS),
                mean_text(sparse, LOSS),
                number(found.mean, LOSS, signed=True),
                interval_text(found, LOSS),
            )
        )
    return Table(
        f"Validation loss after the first {100 * START:.0f} % of the tokens; each interval is by "
        "itself and carries no verdict",
        ("arm", "tokens", f"loss of {pair.base.name}", "loss of the arm", "difference", "interval"),
        rows,
    )
