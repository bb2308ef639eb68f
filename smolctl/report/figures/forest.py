"""Forest plots: a row per arm, its runs, their mean beside the base's and its interval."""

from collections.abc import Mapping, Sequence
from statistics import fmean

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from smolctl.analysis.alike import is_of_controls
from smolctl.analysis.arms import Arm
from smolctl.analysis.comparison import Comparison
from smolctl.analysis.run_metrics import LOSS
from smolctl.analysis.stats import Interval
from smolctl.analysis.verdicts import Difference, Verdict
from smolctl.report.style import (
    GREY,
    HOLLOW,
    WIDTH,
    Looks,
    arm_label,
    head,
    key,
    looks_of,
    styled,
    titled,
)
from smolctl.report.verdict_words import verdict_text
from smolctl.report.wording import AXES, grouped, listed, machine, runs_text, size_words

BAND = "#e8e8e8"
ONE_RUN = "one run"


@styled
def forest_of(comparison: Comparison) -> Figure:
    """A row per arm: test losses of its runs minus the base's mean, their mean and its interval."""
    figure = titled(headline(comparison), height=1.8 + 0.45 * len(comparison.arms))
    draw_quality(figure.subplots(), comparison, looks_of(comparison.arms))
    rows_key(figure, [comparison], [comparison])
    return figure


@styled
def speeds_of(comparison: Comparison) -> Figure:
    """A row per arm: tokens per second of its runs, as multiples of the base's mean."""
    figure = titled(speed_headline(comparison), height=1.8 + 0.45 * len(comparison.arms))
    draw_speed(figure.subplots(), comparison, looks_of(comparison.arms))
    rows_key(figure, [comparison], (), "one round" if is_in_rounds(comparison) else ONE_RUN)
    return figure


@styled
def overview_of(
    losses: Sequence[Comparison], timed: Comparison, in_time: Sequence[Comparison] = ()
) -> Figure:
    """On the left the losses of studies, one below the other over the same range; on the right the
    speeds of another study, and the losses of studies of equal time."""
    sides = [list(losses), [timed, *in_time]]
    heights = [[len(one.arms) + 1.5 for one in side] for side in sides]
    tallest = max(map(sum, heights))
    figure = Figure(figsize=(1.5 * WIDTH, 1.2 + 0.46 * tallest), layout="constrained")
    own = looks_of([arm for side in sides for one in side for arm in one.arms])
    halves = figure.subfigures(1, 2, wspace=0.04, squeeze=False)[0]
    panels = []
    for half, side, ratios in zip(halves, sides, heights, strict=True):
        ratios.append(max(0.01, tallest - sum(ratios)))  # what the other side has more
        parts = half.subfigures(len(ratios), 1, height_ratios=ratios, squeeze=False)[:, 0]
        for part, one in zip(parts, side, strict=False):
            axes = part.subplots()
            if one is timed:
                head(part, speed_headline(one), 66)
                draw_speed(axes, one, own)
                continue
            head(part, f"{extent(one)} {headline(one)}", 66)
            draw_quality(axes, one, own)
            panels += [axes] * (side is sides[0])
    low, high = zip(*(axes.get_xlim() for axes in panels), strict=True)
    for axes in panels:
        axes.set_xlim(min(low), max(high))
    also = "; of the speeds, one round" if is_in_rounds(timed) else ""
    judged = [*losses, *in_time]
    rows_key(figure, [*judged, timed], judged, ONE_RUN + also)
    return figure


def draw_quality(axes: Axes, comparison: Comparison, own: Looks) -> None:
    """The rows of test losses, relative to the mean of the base. Those of a superseded study say
    nothing about better and worse."""
    found, centre = comparison.primary, fmean(comparison.base.values(LOSS))
    notes = {arm: note_on(one) for arm, one in found.items()}
    runs = {arm.name: [loss - centre for loss in arm.values(LOSS)] for arm in comparison.arms}
    sides = ("better", "worse") if comparison.superseded is None else ("lower", "higher")
    draw_rows(axes, comparison.arms, own, runs, found, notes, sides)
    if (margin := shown_margin(comparison)) is not None:
        axes.axvspan(-margin, margin, color=BAND, zorder=0)
    intervals = {
        f" ({100 * one.confidence:.4g} % intervals)" for one in found.values() if one.interval
    }
    axes.set_xlabel(
        f"test loss minus the mean of {comparison.base.name}, nats/token{''.join(intervals)}"
    )


def draw_speed(axes: Axes, comparison: Comparison, own: Looks) -> None:
    """The rows of speeds, as multiples of the base's; without intervals in a superseded study."""
    speeds = comparison.speeds
    assert speeds is not None
    is_shown = comparison.superseded is None
    found = {
        arm: one.tokens if is_shown else Interval(one.tokens.mean, None)
        for arm, one in speeds.ratios.items()
    }
    notes = {
        arm: f"{one.tokens.mean:.2f} × tokens/s\n{one.flops_per_token:.2f} × FLOPs per token"
        for arm, one in speeds.ratios.items()
    }
    runs = speeds.beside_first
    draw_rows(axes, comparison.arms, own, runs, found, notes, ("slower", "faster"), middle=1)
    (confidence,) = {one.confidence for one in speeds.ratios.values()}
    intervals = f" ({100 * confidence:.4g} % intervals)" if is_shown else ""
    axes.set_xlabel(f"tokens per second, times those of {comparison.base.name}{intervals}")


def draw_rows(
    axes: Axes,
    arms: Sequence[Arm],
    own: Looks,
    runs: Mapping[str, Sequence[float]],
    found: Mapping[str, Difference] | Mapping[str, Interval],
    notes: Mapping[str, str],
    sides: tuple[str, str],
    middle: float = 0,
) -> None:
    """A row per arm in its own look: a mark per run and, of all arms but the first, their mean with
    its interval and a note. Equality is at `middle`, between the two `sides`."""
    axes.axvline(middle, color="black", linewidth=1)
    for row, arm in enumerate(arms):
        one, values, look = found.get(arm.name), runs[arm.name], own[arm.name]
        # Runs stand below the mean that they make.
        axes.plot(values, [row + 0.22 if one else row] * len(values), **look | HOLLOW)
        if one:
            if isinstance(one, Difference) and one.widened not in (None, one.interval):
                # With what better learning rates could gain.
                axes.plot(one.widened, [row] * 2, **look | {"linestyle": ":", "marker": "|"})
            if one.interval:
                whisker = {"linestyle": "-", "linewidth": 1.6, "marker": "|", "markersize": 9}
                axes.plot(one.interval, [row] * 2, **look | whisker)
            axes.plot([one.mean], [row], **look)
        note = notes.get(arm.name, "the base")
        axes.text(1.02, row, note, transform=axes.get_yaxis_transform(), va="center")
    low, high = axes.get_xlim()
    below, above = middle - low, high - middle
    axes.set_xlim(middle - max(below, above / 4), middle + max(above, below / 4))  # both are seen
    axes.set_ylim(len(arms) - 0.5, -0.5)
    axes.set_yticks(range(len(arms)), [arm_label(arm) for arm in arms])
    axes.grid(axis="y", visible=False)
    axes.set_title(f"← {sides[0]}", loc="left")
    axes.set_title(f"{sides[1]} →", loc="right")


def shown_margin(comparison: Comparison) -> float | None:
    """The margin of a study with verdicts that it decides."""
    return comparison.margin if comparison.superseded is None else None


def is_in_rounds(timed: Comparison) -> bool:
    """Whether a speed is drawn for each round of a measurement in turns, not for each run."""
    return timed.speeds is not None and timed.speeds.is_alternated


def rows_key(
    figure: Figure, shown: Sequence[Comparison], judged: Sequence[Comparison], mark: str = ONE_RUN
) -> None:
    """What the rows of `draw_rows` are made of.

    Args:
        shown: in the figure; `judged` those of which it has losses.
        mark: what a hollow mark is.
    """
    mean = "their mean beside the base's"
    if any(one.superseded is None for one in shown):
        mean += ", with its interval"
    handles: list[Line2D | Patch] = [
        Line2D([], [], color=GREY, marker="o", label=mark, **HOLLOW),
        Line2D([], [], color=GREY, marker="o", linewidth=1.6, label=mean),
    ]
    if any(
        found.widened not in (None, found.interval)
        for one in judged
        for found in one.primary.values()
    ):
        label = "the same at best learning rates: it decides"
        handles.append(Line2D([], [], color=GREY, linestyle=":", marker="|", label=label))
    if any(shown_margin(one) is not None for one in judged):
        handles.append(Patch(color=BAND, label="within the study's margin"))
    key(figure, *handles)


# Words


def headline(comparison: Comparison) -> str:
    """What the final test losses show."""
    base, others = comparison.base, comparison.others
    if comparison.superseded is not None:
        return f"Against {base.name}: verdicts withdrawn"
    if not others:
        return f"{base.name}: the loss of every run"
    if len(others) == 1:
        return against(comparison, others[0])
    texts = {arm: verdict_text(found) for arm, found in comparison.primary.items()}
    parts = [f"{listed(names)} {text}" for text, names in grouped(texts).items()]
    return f"Against {base.name}: {'; '.join(parts)}"


def against(comparison: Comparison, arm: Arm) -> str:
    """`pow2 ends 0.0120 below orig: inconclusive (3 and 3 runs)`."""
    found = comparison.primary[arm.name]
    amount = f"{abs(found.mean):.{LOSS.digits}f} {'below' if found.mean < 0 else 'above'}"
    runs = f"{len(arm.runs)} and {runs_text(len(comparison.base.runs))}"
    return f"{arm.name} ends {amount} {comparison.base.name}: {verdict_text(found)} ({runs})"


def extent(comparison: Comparison) -> str:
    """`Loss after 1,024,000 tokens at nano scale.`, or what else a study has made equal."""
    if is_of_controls(comparison):
        return "Control, one model under several names."
    if comparison.equal != "tokens":
        planned = ", planned for" if comparison.equal == "seconds" else " at"
        return f"Loss{planned} equal {AXES[comparison.equal]}, {comparison.scale} scale."
    protocol = comparison.base.protocol
    tokens = protocol.steps * protocol.tokens_per_step
    return f"Loss after {tokens:,} tokens at {comparison.scale} scale."


def speed_headline(comparison: Comparison) -> str:
    """The title of a figure of speeds."""
    return f"Training speed {size_words(comparison)}, {machine(comparison)}"


def verdict_of(found: Difference) -> str:
    """The verdict as a note beside a row."""
    return f"{found.mean:+.{LOSS.digits}f}: {verdict_text(found)}"


def note_on(found: Difference) -> str:
    """The difference with its verdict and, in a second line, what is missing."""
    if found.verdict is not Verdict.INCONCLUSIVE:
        return verdict_of(found)
    missing = ", ".join(found.missing if found.interval else ["no interval"])
    return f"{found.mean:+.{LOSS.digits}f}: {found.verdict}\n{missing}"
