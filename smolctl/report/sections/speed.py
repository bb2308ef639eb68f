"""Is it faster? Tokens per second, seconds and memory: numbers of a model on a machine."""

from smolctl.analysis.alike import is_alike
from smolctl.analysis.arms import Arm
from smolctl.analysis.comparison import Comparison
from smolctl.analysis.run_metrics import PEAK_MEMORY, SECONDS, TOKENS_PER_SECOND
from smolctl.report.document import Block, Figure, Section, Table, bullets
from smolctl.report.evidence import Evidence
from smolctl.report.figures.forest import speeds_of
from smolctl.report.sections.per_study import figure_name, per_study, withdrawn
from smolctl.report.sections.quality import secondary_table
from smolctl.report.wording import NO_INTERVAL, bounds_text, machine, mean_text

OF_MACHINE = (TOKENS_PER_SECOND, SECONDS, PEAK_MEMORY)


def speed_section(evidence: Evidence) -> Section | None:
    """Every study; sentences of the one that answers for speed."""

    def blocks(study: Comparison) -> list[Block | None]:
        is_answer = study is (evidence.timed or evidence.main)
        return [
            bullets(speed_findings(study) if is_answer else []),
            speed_figure(evidence, study) if is_answer else None,
            speeds_table(study),
            secondary_table(study, OF_MACHINE),
        ]

    return per_study(evidence, "Speed and memory", blocks)


def speed_figure(evidence: Evidence, study: Comparison) -> Figure | None:
    """The forest plot of the speeds; none where they cannot be compared or the overview has it."""
    if not study.is_timed or study is evidence.timed_further:
        return None
    return Figure(
        figure_name(evidence, study, "speed.png"),
        f"Tokens per second of every run of {study.study} beside {study.base.name}",
        lambda: speeds_of(study),
    )


def speeds_table(comparison: Comparison) -> Table:
    """A column per arm: mean ± standard deviation over runs."""
    note = "" if comparison.has_speed else " (no basis for a conclusion)"
    arms = comparison.arms
    return Table(
        f"Speed and memory, {comparison.scale} scale{note}: mean ± standard deviation",
        ("", *(arm.name for arm in arms)),
        [
            (metric.label, *(mean_text(arm.values(metric), metric) for arm in arms))
            for metric in OF_MACHINE
        ],
    )


def speed_findings(study: Comparison) -> list[str]:
    """Sentences on each arm against the first, or why there are none."""
    if not study.others:
        return []
    if study.superseded is not None:
        return [withdrawn([study])]
    if study.has_speed:
        return [
            *(ratio_sentence(study, arm) for arm in study.others),
            f"Measured on {machine(study)}; another machine may give another answer. Each interval "
            "stands by itself.",
        ]
    if study.scale != "full":
        return [
            f"Nothing is concluded about speed or memory: what holds at {study.scale} scale does "
            "not carry over to full size. A few full-size steps measure it."
        ]
    return [
        "Nothing is concluded about speed: the runs were made on different machines or with "
        "different numbers of threads."
    ]


def ratio_sentence(study: Comparison, arm: Arm) -> str:
    """Tokens per second, and so FLOPs per second, beside the first arm."""
    base, found = study.base, study.speed_ratios
    if arm.name not in found:
        return f"The speed of {arm.name} was not measured: its runs are too short."
    ratio = found[arm.name]
    flops = arm.flops_per_token / base.flops_per_token
    tokens_bounds, flops_bounds = f", {NO_INTERVAL}", ""
    if ratio.interval is not None:
        low, high = ratio.interval
        tokens_bounds = f" (95 % interval {low:.2f} to {high:.2f})"
        flops_bounds = bounds_text((flops * low, flops * high), ".2f")
    size = ", of equal size and cost," if is_alike(base, arm) else ""
    return (
        f"{arm.name}{size} trained at {ratio.mean:.2f} times the tokens per second of {base.name}"
        f"{tokens_bounds}, which is {flops * ratio.mean:.2f} times its FLOPs per second"
        f"{flops_bounds}."
    )
