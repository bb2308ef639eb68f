"""Figures of a comparison and of a run, as PNG files that the same input makes byte for byte.

`losses_of`, `differences_of`, `speeds_of`, `overview_of`, `tradeoff_of` and `run_of` draw a
`Figure`, the others write it. pyplot and the global settings stay untouched, and a user's
matplotlibrc changes nothing.
"""

import math
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean, geometric_mean
from typing import Any

import matplotlib as mpl
import pandas as pd
from cycler import cycler
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from smolctl.comparison import Arm, Comparison
from smolctl.facts import LOSS, TOKENS_PER_SECOND, RunFacts
from smolctl.stats import Difference, Interval
from smolctl.words import AXES, is_of_controls, listed, machine

# Okabe and Ito's colours, which any colour vision tells apart; in grey, line and marker do.
COLOURS = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9", "#F0E442",
)  # fmt: skip
LINES = ("-", "--", "-.", ":", (0, (8, 2)), (0, (4, 1, 1, 1, 1, 1)), (0, (1, 3)), (0, (8, 5)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
GREY = "#777777"
DPI = 150
WIDTH = 9.0  # inches
STYLE = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.prop_cycle": cycler(color=COLOURS, linestyle=LINES, marker=MARKERS),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 9,
    "axes.unicode_minus": False,
    "figure.titlesize": 11,
    "figure.titleweight": "bold",
    "font.size": 9,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "lines.linewidth": 1.1,
    "text.parse_math": False,
}
styled = style.context(["default", STYLE])

Looks = Mapping[str, dict[str, Any]]  # by the name of an arm

# A run's test loss: hollow, so that those that lie on one another are still seen.
HOLLOW: dict[str, Any] = {"linestyle": "", "markerfacecolor": "none", "markeredgewidth": 1.2}


def comparison_figures(comparison: Comparison, folder: Path) -> list[Path]:
    """Write `loss.png`, `differences.png` and, where the runs tell of speed, `speed.png` into
    `folder`, which is made where there is none."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [
        save(losses_of(comparison), folder / "loss.png"),
        save(differences_of(comparison), folder / "differences.png"),
    ]
    if comparison.is_timed:
        paths.append(save(speeds_of(comparison), folder / "speed.png"))
    return paths


def overview_figure(
    losses: Sequence[Comparison], timed: Comparison, in_time: Sequence[Comparison], path: Path
) -> Path:
    """Write what `overview_of` draws."""
    return save(overview_of(losses, timed, in_time), path)


def loss_figure(comparison: Comparison, path: Path) -> Path:
    """Write what `losses_of` draws."""
    return save(losses_of(comparison), path)


def tradeoff_figure(comparison: Comparison, path: Path) -> Path:
    """Write what `tradeoff_of` draws."""
    return save(tradeoff_of(comparison), path)


def run_figure(facts: RunFacts, path: Path) -> Path:
    """Write what `run_of` draws."""
    return save(run_of(facts), path)


@styled
def save(figure: Figure, path: Path) -> Path:
    """As PNG, without the version of matplotlib that it would name."""
    figure.savefig(path, format="png", dpi=DPI, metadata={"Software": None})
    return path


@styled
def losses_of(comparison: Comparison) -> Figure:
    """Validation loss against steps, FLOPs and seconds, a line a run, with its final test loss."""
    figure = titled(headline(comparison), height=3.9)
    panels = figure.subplots(1, 3, sharey=True)
    runs = comparison.runs
    exponent = math.floor(math.log10(max(facts.flops for facts in runs)))
    time = "training time, s"
    if comparison.scale != "full":
        time += f"\n(not comparable at {comparison.scale} scale)"
    labels = {
        "step": "training steps",
        "flops": f"training FLOPs, 1e{exponent}",
        "seconds": time,
    }
    for axes, (axis, label) in zip(panels, labels.items(), strict=True):
        for arm, look in looks(comparison.arms):
            for facts in arm.runs:
                draw_loss(axes, facts, axis, look)
        axes.set(xlabel=label, xlim=(0, None))
    panels[0].set_ylim(end_range([facts.curve for facts in runs], [f.values["loss"] for f in runs]))
    panels[0].set_ylabel("loss, nats a token")
    panels[1].xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x / 10**exponent:g}"))
    handles = [
        Line2D([], [], **look, markerfacecolor="none", label=arm_label(arm))
        for arm, look in looks(comparison.arms)
    ]
    key(
        figure,
        *handles,
        Line2D([], [], color=GREY, label="validation, each run"),
        Line2D([], [], color=GREY, marker="o", label="test, at the end", **HOLLOW),
    )
    return figure


@styled
def differences_of(comparison: Comparison) -> Figure:
    """A row an arm: test losses of its runs less the base's mean, their mean and its interval."""
    figure = titled(headline(comparison), height=1.8 + 0.45 * len(comparison.arms))
    draw_quality(figure.subplots(), comparison, looks_of(comparison.arms))
    rows_key(figure)
    return figure


@styled
def speeds_of(comparison: Comparison) -> Figure:
    """A row an arm: tokens a second of its runs, as multiples of the base's mean."""
    figure = titled(speed_headline(comparison), height=1.8 + 0.45 * len(comparison.arms))
    draw_speed(figure.subplots(), comparison, looks_of(comparison.arms))
    rows_key(figure)
    return figure


@styled
def overview_of(
    losses: Sequence[Comparison], timed: Comparison, in_time: Sequence[Comparison] = ()
) -> Figure:
    """On the left the losses of studies, one below the other over the same range; on the right the
    speeds of another, and the losses of those that tell of equal time."""
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
    rows_key(figure)
    return figure


def draw_quality(axes: Axes, comparison: Comparison, own: Looks) -> None:
    found, centre = comparison.primary, fmean(comparison.base.values(LOSS))
    notes = {arm: f"{verdict_of(one)}\n{interval_of(one)}" for arm, one in found.items()}
    runs = {arm.name: [loss - centre for loss in arm.values(LOSS)] for arm in comparison.arms}
    draw_rows(axes, comparison.arms, own, runs, found, notes, ("better", "worse"))
    axes.set_xlabel(f"test loss less the mean of {comparison.base.name}, nats a token")


def draw_speed(axes: Axes, comparison: Comparison, own: Looks) -> None:
    base, found = comparison.base, comparison.speed_ratios
    centre = geometric_mean(base.values(TOKENS_PER_SECOND))
    runs = {
        arm.name: [speed / centre for speed in arm.values(TOKENS_PER_SECOND)]
        for arm in comparison.arms
    }
    notes = {
        arm.name: f"{found[arm.name].mean:.2f} × tokens/s\n"
        f"{arm.flops_per_token / base.flops_per_token:.2f} × FLOPs a token"
        for arm in comparison.others
    }
    draw_rows(axes, comparison.arms, own, runs, found, notes, ("worse", "better"), middle=1)
    axes.set_xlabel(f"tokens a second, times those of {base.name} (95 % intervals)")


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
    """A row an arm, with its own look: a number a run, and of all arms but the first what they are
    found to be beside it, with a note; equality is in the middle, between two sides."""
    axes.axvline(middle, color="black", linewidth=1)
    for row, arm in enumerate(arms):
        one, values, look = found.get(arm.name), runs[arm.name], own[arm.name]
        # Runs stand below the mean that they make.
        axes.plot(values, [row + 0.22 if one else row] * len(values), **look | HOLLOW)
        if one:
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


@styled
def tradeoff_of(comparison: Comparison) -> Figure:
    """Final test loss, a marker a run and a dash for their mean, against KV cache a token."""
    figure = titled(tradeoff_headline(comparison), height=3.9)
    axes = figure.subplots()
    handles = []
    for arm, look in looks(comparison.arms):
        values = arm.values(LOSS)
        cache = [arm.kv_bytes_per_token] * len(values)
        found = comparison.primary.get(arm.name)  # the base has none
        label = arm_label(arm) + (f"\n{verdict_of(found)}" if found else "\nthe base")
        handles += axes.plot(cache, values, **look | HOLLOW, label=label)
        axes.plot(cache[:1], [fmean(values)], color=look["color"], marker="_", markersize=24)
    sizes = sorted({arm.kv_bytes_per_token for arm in comparison.arms})
    axes.set_xscale("log")
    axes.set_xlim(sizes[0] / 1.5, sizes[-1] * 1.5)
    axes.xaxis.set_major_locator(FixedLocator(spread_out(sizes)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda size, _: f"{size:,.0f}"))
    axes.set_xlabel("KV cache, bytes a token (bf16; log scale)")
    axes.set_ylabel("final test loss, nats a token")
    mean = Line2D([], [], color=GREY, marker="_", markersize=16, linestyle="", label="mean")
    axes.legend(handles=[*handles, mean], loc="upper left", bbox_to_anchor=(1, 1), labelspacing=0.9)
    return figure


@styled
def run_of(facts: RunFacts) -> Figure:
    """Loss against seconds and steps; validation accuracy and learning rate against steps."""
    steps, loss = facts.protocol.steps, facts.values["loss"]
    text = f"{facts.name} ends with test loss {loss:.{LOSS.digits}f} after {steps:,} steps"
    figure = titled(text, height=5.4)
    (timed, stepped), (accuracy, rate) = figure.subplots(2, 2)
    look: dict[str, Any] = {"color": COLOURS[0], "linestyle": "-"}
    faint: dict[str, Any] = {"color": "#aaaaaa", "linestyle": "-", "linewidth": 0.7}
    for axes, axis in ((timed, "seconds"), (stepped, "step")):
        axes.plot(facts.train[axis], facts.train["loss"], **faint, marker=dot(facts.train))
        draw_loss(axes, facts, axis, look | {"marker": "o"})
        limits = end_range([facts.curve, facts.train], [loss])
        axes.set(ylabel="loss, nats a token", xlim=(0, None), ylim=limits)
    draw_curve(accuracy, facts, "step", "accuracy", look)
    accuracy.set(ylabel="validation accuracy,\nshare of tokens", xlim=(0, None), ylim=(0, None))
    rate.plot(facts.train["step"], facts.train["lr"], **look, marker=dot(facts.train))
    rate.set(ylabel="learning rate", xlim=(0, None), ylim=(0, None))
    timed.set_xlabel("training time, s")
    for axes in (stepped, accuracy, rate):
        axes.set_xlabel("training steps")
    key(
        figure,
        Line2D([], [], **faint, label="training"),
        Line2D([], [], **look, label="validation"),
        Line2D([], [], color=COLOURS[0], marker="o", label="test, at the end", **HOLLOW),
    )
    return figure


# Words


def headline(comparison: Comparison) -> str:
    """What the final test losses show."""
    base, others = comparison.base, comparison.others
    if len(others) == 1:
        return against(comparison, others[0])
    verdicts: dict[str, list[str]] = {"better": [], "worse": [], "unresolved": []}
    for arm in others:
        verdicts[comparison.primary[arm.name].verdict].append(arm.name)
    parts = [f"{listed(names)} {verdict}" for verdict, names in verdicts.items() if names]
    return f"Against {base.name}: {'; '.join(parts)}"


def against(comparison: Comparison, arm: Arm) -> str:
    """`pow2 ends 0.0120 below orig: unresolved (3 and 3 runs)`."""
    found = comparison.primary[arm.name]
    amount = f"{abs(found.mean):.{LOSS.digits}f} {'below' if found.mean < 0 else 'above'}"
    runs = f"{len(arm.runs)} and {runs_text(comparison.base)}"
    return f"{arm.name} ends {amount} {comparison.base.name}: {found.verdict} ({runs})"


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
    return f"Speed of training at full size, {machine(comparison)}"


def tradeoff_headline(comparison: Comparison) -> str:
    """Of the arm whose cache differs the most."""
    base = comparison.base.kv_bytes_per_token
    arm = max(comparison.others, key=lambda arm: abs(math.log(arm.kv_bytes_per_token / base)))
    return (
        f"With {arm.kv_bytes_per_token / base:.3g} times the KV cache, {against(comparison, arm)}"
    )


def verdict_of(found: Difference) -> str:
    return f"{found.mean:+.{LOSS.digits}f}: {found.verdict}"


def interval_of(found: Difference) -> str:
    if not found.interval:
        return "no interval"
    return f"{100 * found.confidence:.4g} % interval"


def runs_text(arm: Arm) -> str:
    return f"{len(arm.runs)} run{'' if len(arm.runs) == 1 else 's'}"


def arm_label(arm: Arm) -> str:
    """Name and number of runs, on several lines where the name is long."""
    return textwrap.fill(f"{arm.name} ({runs_text(arm)})", 28)


# Parts


def titled(text: str, height: float) -> Figure:
    """An empty figure."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    head(figure, text, 88)
    return figure


def head(figure: FigureBase, text: str, width: int) -> None:
    """The title, in lines of `width` characters."""
    figure.suptitle(textwrap.fill(text, width, break_on_hyphens=False), x=0.01, ha="left")


def looks(arms: Iterable[Arm]) -> Iterator[tuple[Arm, dict[str, Any]]]:
    """Every arm with its colour, line style and marker, of which there are eight."""
    return zip(arms, mpl.rcParams["axes.prop_cycle"](), strict=False)


def looks_of(arms: Iterable[Arm]) -> Looks:
    """The look of each name."""
    names = {arm.name: arm for arm in arms}
    return {arm.name: look for arm, look in looks(names.values())}


def key(figure: Figure, *handles: Line2D) -> None:
    """A legend below the panels, with as many columns as there is room for."""
    longest = max(len(line) for handle in handles for line in str(handle.get_label()).split("\n"))
    columns = min(len(handles), 100 // (longest + 4))
    figure.legend(handles=handles, loc="outside lower center", ncols=columns)


def rows_key(figure: Figure) -> None:
    """What the rows of `draw_rows` are made of."""
    mean = "their mean beside the base's, with its interval"
    key(
        figure,
        Line2D([], [], color=GREY, marker="o", label="a run", **HOLLOW),
        Line2D([], [], color=GREY, marker="o", linewidth=1.6, label=mean),
    )


def draw_loss(axes: Axes, facts: RunFacts, axis: str, look: dict[str, Any]) -> None:
    """A run's validation loss as a line, and its test loss where that ends."""
    draw_curve(axes, facts, axis, "loss", look)
    end = facts.curve[axis].iloc[-1]
    axes.plot([end], [facts.values["loss"]], **look | HOLLOW, clip_on=False)


def draw_curve(axes: Axes, facts: RunFacts, x: str, y: str, look: dict[str, Any]) -> None:
    """A column of the validation table as a line; a single validation is a dot."""
    axes.plot(facts.curve[x], facts.curve[y], **look | {"marker": dot(facts.curve)})


def dot(table: pd.DataFrame) -> str:
    """The marker of a curve: a line needs two rows to be seen."""
    return "." if len(table) == 1 else ""


def spread_out(sizes: list[int]) -> list[int]:
    """Those in ascending order whose labels do not overlap on a logarithmic axis."""
    kept = sizes[:1]
    for size in sizes:
        if math.log(size / kept[-1]) > 0.08 * math.log(1.5**2 * sizes[-1] / sizes[0]):
            kept.append(size)
    return kept


def end_range(curves: Iterable[pd.DataFrame], ends: Iterable[float]) -> tuple[float, float]:
    """Limits in which the later part of the curves is seen well, and all of `ends`.

    The first tenth of a curve may be cut off, and of the rest the highest tenth.
    """
    seen = list(ends)
    for curve in curves:
        late = curve["loss"][curve["step"] >= 0.1 * curve["step"].iloc[-1]]
        seen += [late.min(), late.quantile(0.9), late.iloc[-1]]
    margin = 0.05 * (max(seen) - min(seen)) or 0.1
    return min(seen) - margin, max(seen) + margin
