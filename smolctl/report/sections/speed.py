"""Is it faster? Tokens per second, seconds and memory: numbers of a model on a machine."""

from smolctl.analysis.alike import is_alike
from smolctl.analysis.arms import Arm
from smolctl.analysis.comparison import Comparison
from smolctl.analysis.run_metrics import PEAK_MEMORY, SECONDS, TOKENS_PER_SECOND
from smolctl.analysis.speed_ratios import SpeedRatio, Speeds
from smolctl.analysis.stats import Interval
from smolctl.report.document import Block, Figure, Section, Table, bullets
from smolctl.report.evidence import Evidence
from smolctl.report.figures.forest import speeds_of
from smolctl.report.sections.per_study import figure_name, per_study, withdrawn
from smolctl.report.sections.quality import secondary_table
from smolctl.report.wording import (
    NO_INTERVAL,
    bounds_text,
    listed,
    machine,
    mean_text,
    size_words,
)
from smollm2.runs.speed_table import MOST_FALL

SAME_COST = 0.005  # FLOPs per token that differ by less count as equal
OF_MACHINE = (TOKENS_PER_SECOND, SECONDS, PEAK_MEMORY)


def speed_section(evidence: Evidence) -> Section | None:
    """Every study; sentences of the one that answers for speed."""

    def blocks(study: Comparison) -> list[Block | None]:
        is_answer = study is (evidence.timed or evidence.main)
        return [
            bullets(speed_findings(study) if is_answer else []),
            speed_figure(evidence, study) if is_answer else None,
            ratios_table(study),
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


def ratios_table(study: Comparison) -> Table | None:
    """How fast the arms train beside the first one, and by what."""
    if study.speeds is None or study.superseded is not None:
        return None
    found = study.speeds.ratios
    (confidence,) = {one.confidence for one in found.values()}
    how = "measured in turns" if study.speeds.is_alternated else "by the runs' own clocks"
    return Table(
        f"Training speed as multiples of {study.base.name}'s, {how}; {100 * confidence:.4g} % "
        "intervals",
        ("arm", "tokens per second", "FLOPs per token (exact)", "FLOPs per second"),
        [
            (arm, times(one.tokens), f"{one.flops_per_token:.3f}", times(one.flops))
            for arm, one in found.items()
        ],
    )


def times(found: Interval) -> str:
    """`1.072 (1.051 to 1.093)`."""
    return f"{found.mean:.3f}{bounds_text(found.interval, '.3f')}"


def speeds_table(comparison: Comparison) -> Table:
    """A column per arm: mean ± standard deviation over runs, and over rounds."""
    speeds, arms = comparison.speeds, comparison.arms
    note = "" if comparison.has_speed else " (no basis for a conclusion)"
    rows = [
        (metric.label, *(mean_text(arm.values(metric), metric) for arm in arms))
        for metric in OF_MACHINE
    ]
    if speeds is not None and speeds.is_alternated:
        rows = [(f"{label}{note}", *cells) for label, *cells in rows]
        cells = (mean_text(speeds.tokens_per_second[arm.name], TOKENS_PER_SECOND) for arm in arms)
        rows.insert(0, ("tokens per second, in turns", *cells))
        note = ""
    return Table(
        f"Speed and memory, {comparison.scale} scale{note}: mean ± standard deviation",
        ("", *(arm.name for arm in arms)),
        rows,
    )


def speed_findings(study: Comparison) -> list[str]:
    """Sentences on each arm against the first, or why there are none."""
    if not study.others:
        return []
    if study.superseded is not None:
        return [withdrawn([study])]
    if study.speeds is not None:
        sentences = [ratio_sentence(study, arm, study.speeds) for arm in study.others]
        return [*sentences, *how_measured(study, study.speeds)]
    if study.scale != "full":
        return [
            f"Nothing is concluded about speed or memory: what holds at {study.scale} scale does "
            "not carry over to full size. A few full-size steps measure it; [speed] in a study "
            "file measures the speed of these small models."
        ]
    if study.has_speed:
        return ["The speed was not measured: the runs are too short."]
    if len(study.machines) > 1:
        return [
            "Nothing is concluded about speed: the runs were made on different machines or with "
            "different numbers of threads."
        ]
    return [
        "Nothing is concluded about speed: runs were trained several at once and shared the "
        "machine. [speed] in the study file measures the arms in turns."
    ]


def ratio_sentence(study: Comparison, arm: Arm, speeds: Speeds) -> str:
    """Tokens per second beside the first arm, split into FLOPs per token and per second."""
    base, found = study.base, speeds.ratios[arm.name]
    bounds = f", {NO_INTERVAL}"
    if found.tokens.interval is not None:
        low, high = found.tokens.interval
        bounds = f" ({100 * found.confidence:.4g} % interval {low:.2f} to {high:.2f})"
    size = ", of equal size and cost," if is_alike(base, arm) else ""
    work = (
        f"with {found.flops_per_token:.2f} times the FLOPs per token, which is exact, at "
        f"{found.flops.mean:.2f} times the FLOPs per second"
        f"{bounds_text(found.flops.interval, '.2f')}"
    )
    if abs(found.flops_per_token - 1) < SAME_COST:
        work = "and so the FLOPs per second, for a token takes as many"
    return (
        f"{arm.name}{size} trained at {found.tokens.mean:.2f} times the tokens per second of "
        f"{base.name}{bounds}, {work}.{speed_answer(found)}"
    )


def speed_answer(found: SpeedRatio) -> str:
    """` It is faster by fewer FLOPs per token (0.93 ×).`; empty without an interval."""
    sign = side(found.tokens)
    if found.tokens.interval is None:
        return ""
    if not sign:
        return " Whether it is faster or slower is inconclusive."
    by, against = causes(found, sign), causes(found, -sign)
    text = f" It is {'faster' if sign > 0 else 'slower'}"
    text += f" by {listed(by)}" if by else ""
    return f"{text}{f', in spite of {listed(against)}' if against else ''}."


def causes(found: SpeedRatio, sign: int) -> list[str]:
    """What makes an arm faster (`sign` is 1) or slower (-1), each with its number."""
    texts = []
    if sign * (1 - found.flops_per_token) >= SAME_COST:
        word = "fewer" if sign > 0 else "more"
        texts.append(f"{word} FLOPs per token ({found.flops_per_token:.2f} ×)")
    if side(found.flops) == sign:
        word = "more" if sign > 0 else "fewer"
        texts.append(f"{word} FLOPs per second ({found.flops.mean:.2f} ×)")
    return texts


def by_cause(found: SpeedRatio) -> str:
    """`, by fewer FLOPs per token (0.93 ×)`, for a list of arms; empty where the speeds do not
    differ."""
    by = causes(found, side(found.tokens)) if side(found.tokens) else []
    return f", by {listed(by)}" if by else ""


def side(found: Interval) -> int:
    """1 or -1 if the whole interval is above or below equality, else 0, as without one."""
    low, high = found.interval or (1.0, 1.0)
    return int(low > 1) - int(high < 1)


def how_measured(study: Comparison, speeds: Speeds) -> list[str]:
    """The design of the measurement, and how far its answer goes."""
    there = f"{machine(study)}; another machine may give another answer."
    if not speeds.is_alternated:
        return [
            f"Measured by the runs' own clocks, not in turns, on {there} Each interval stands by "
            "itself. [speed] in a study file measures arms in turns."
        ]
    sentences = [
        f"Measured in turns within one process, in {speeds.rounds} rounds there and back, on "
        f"{there} All intervals hold together with 95 % confidence (Bonferroni over arms)."
    ]
    if speeds.repeats or speeds.slowed:
        sentences.append(
            f"Blocks were measured again {speeds.repeats} times because the machine itself had "
            f"become slower by more than {100 * MOST_FALL:.0f} %; {speeds.slowed} of "
            f"{speeds.blocks} blocks stayed so."
        )
    if study.scale != "full":
        sentences.append(
            f"The speed is that of these small models, {size_words(study)}; it does not carry over "
            "to full size."
        )
    return sentences
