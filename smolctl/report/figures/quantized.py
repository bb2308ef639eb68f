"""The figure of quantized arms: what fewer bytes cost in fidelity, and how fast they decode."""

import math
from itertools import product
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from matplotlib.transforms import Bbox

from smolctl.analysis.quantized_arms import (
    BF16,
    KL,
    LOSS_DELTA,
    UNTESTED,
    Configuration,
    Quantized,
)
from smolctl.analysis.run_metrics import mean_and_spread
from smolctl.analysis.verdicts import Verdict
from smolctl.report.style import GREY, key, styled, titled
from smolctl.report.wording import grouped, listed

# A mark per configuration; with more configurations they repeat.
MARKS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">", "p", "h", "d", "8")
RUNS, DOCUMENTS = "standard deviation over runs", "standard error over documents"
RATIOS = {"decode_ratio": "decoding", "compiled_decode_ratio": "decoding, compiled"}

Point = tuple[float, float]  # bytes per parameter and harm
# Of names beside points, in typographic points: width of a letter, distance, tried shifts.
LETTER, GAP = 4.2, 7
SHIFTS = [0, *(sign * 9 * step for step in range(1, 12) for sign in (1, -1))]
OUTCOMES = (*Verdict, UNTESTED)
LOOKS: dict[str, dict[str, Any]] = {  # eager is full, compiled hollow
    "decode_ratio": {"linestyle": ""},
    "compiled_decode_ratio": {
        "linestyle": "",
        "markerfacecolor": "white",
        "markeredgewidth": 1.2,
    },
}


def harm_of(found: Quantized) -> str:
    """What the figure shows of a configuration; the change of the loss where an older version
    measured nothing else."""
    return "KL divergence to bf16" if found.has_kl else "Change of the loss"


@styled
def harm_figure_of(found: Quantized) -> Figure:
    """Harm against bytes per parameter, and beside it, where it was timed, the speed of decoding
    relative to bf16; a mark per configuration, a colour per arm."""
    names = found.names
    marks = {name: MARKS[i % len(MARKS)] for i, name in enumerate(names)}
    timed = [
        column
        for column in RATIOS
        if any(found.configuration(a, name).values(column) for a in found.arms for name in names)
    ]
    figure = titled(quantized_headline(found), height=max(3.9, 1.9 + 0.3 * len(names)))
    panels = figure.subplots(1, 2, width_ratios=(3, 2)) if timed else [figure.subplots()]
    draw_harm(figure, panels[0], found, marks)
    handles = [
        Line2D([], [], color=colour, linewidth=3, label=arm)
        for arm, colour in colours(found)
        if found.arms[arm]
    ]
    if timed:
        draw_speeds(panels[1], found, marks)
        handles += [
            Line2D([], [], color=GREY, marker="o", label=RATIOS[column], **LOOKS[column])
            for column in timed
        ]
    key(figure, *handles)
    return figure


def draw_harm(figure: Figure, axes: Axes, found: Quantized, marks: dict[str, str]) -> None:
    """The KL divergence, on a logarithmic scale, or the change of the loss, with its error, against
    bytes per parameter; the name of each configuration is beside its mark of the first arm."""
    column = KL if found.has_kl else LOSS_DELTA
    bars, named, points = list[str](), dict[str, Point](), list[Point]()
    for arm, colour in colours(found):
        for one in (one for one in found.arms[arm].values() if one.name != BF16):
            size, values = one.bytes_per_parameter, one.values(column)
            if not values or math.isnan(size) or (found.has_kl and min(values) <= 0):
                continue
            harm, spread = mean_and_spread(values)
            error = one.mean(f"{column}_stderr") if spread is None else spread
            bars.append(DOCUMENTS if spread is None else RUNS)
            named.setdefault(one.name, (size, harm))
            points.append((size, harm))
            # A bar that reaches below zero has no end on a logarithmic scale.
            lower = min(error, 0.9 * harm) if found.has_kl else error
            axes.errorbar(
                [size],
                [harm],
                yerr=None if math.isnan(error) else [[lower], [error]],
                marker=marks[one.name],
                markersize=5,
                color=colour,
                elinewidth=1,
                capsize=2,
            )
    if found.has_kl:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda harm, _: f"{harm:g}"))
    else:
        axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xlabel("bytes per parameter on disk, without the embedding (bf16: 2)")
    axes.set_ylabel(f"{harm_of(found)}, nats/token")
    axes.margins(0.15)
    name_points(figure, axes, named, points)
    if bars:
        axes.set_title(f"Bars: {' or '.join(dict.fromkeys(bars))}", loc="left")


def name_points(figure: Figure, axes: Axes, named: dict[str, Point], points: list[Point]) -> None:
    """Write each name beside its point, clear of all points and of the other names."""
    axes.autoscale_view()  # the limits, which else follow from the data when it is drawn
    # In typographic points, as if the panel were the left half of the figure.
    size = 72 * figure.get_size_inches() * (0.5, 0.6)
    to_panel = axes.transData + axes.transAxes.inverted()
    places = {point: to_panel.transform(point) * size for point in points}
    taken = [Bbox.from_bounds(x - 4, y - 4, 8, 8) for x, y in places.values()]
    for name, point in named.items():
        x, y = places[point]
        width = LETTER * len(name)
        for shift, side in product(SHIFTS, ("left", "right")):
            start = x + GAP if side == "left" else x - GAP - width
            box = Bbox.from_bounds(start, y + shift - 4, width, 8)
            if not box.count_overlaps(taken):
                break
        taken.append(box)
        axes.annotate(
            name,
            point,
            xytext=(GAP if side == "left" else -GAP, shift),
            textcoords="offset points",
            ha=side,
            va="center",
            fontsize=7,
            arrowprops={"arrowstyle": "-", "color": GREY, "linewidth": 0.5} if shift else None,
        )


def draw_speeds(axes: Axes, found: Quantized, marks: dict[str, str]) -> None:
    """A row per configuration: speed over that of bf16, the arms a little apart."""
    names = list(marks)
    arms = list(colours(found))
    for place, (arm, colour) in enumerate(arms):
        shift = 0.5 * (place / (len(arms) - 1) - 0.5) if len(arms) > 1 else 0.0
        for column, look in LOOKS.items():
            for row, name in enumerate(names):
                ratio = found.configuration(arm, name).mean(column)
                if not math.isnan(ratio):
                    mark = {"marker": marks[name], "markersize": 5, "color": colour}
                    axes.plot([ratio], [row + shift], **look | mark)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xlim(0, max(1.1, axes.get_xlim()[1]))
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("tokens per second, times those of bf16")
    axes.set_title("slower", loc="left")
    axes.set_title("faster", loc="right")


def colours(found: Quantized) -> list[tuple[str, str]]:
    """Every arm with its colour, as in the other figures."""
    cycle = mpl.rcParams["axes.prop_cycle"]()
    return [(arm, look["color"]) for arm, look in zip(found.arms, cycle, strict=False)]


# Words


def quantized_headline(found: Quantized) -> str:
    """What quantizing does to the arms."""
    scale = "" if found.is_full_size else f" at {found.comparison.scale} scale"
    if not found.is_judged:
        return f"Quantized{scale}, which says nothing about full size"
    arms = [arm for arm in found.arms if any(p.arm == arm and p.difference for p in found.pairs)]
    if arms:
        alike = grouped({arm: verdicts_of(found, arm) for arm in arms})
        parts = [f"{listed(names)} {verdicts}" for verdicts, names in alike.items()]
        return f"Quantized{scale}, against {found.comparison.base.name}: {'; '.join(parts)}"
    measured = [
        one
        for by_name in found.arms.values()
        for one in by_name.values()
        if one.name != BF16 and one.values(KL if found.has_kl else LOSS_DELTA)
    ]
    if not measured:
        return "No change of the loss was measured"
    if found.has_kl:
        return f"Quantized{scale}, the KL divergence to bf16 is {extent_of(measured, KL, '.4f')}"
    return f"Quantizing changes the loss by {extent_of(measured, LOSS_DELTA, '+.4f')}"


def verdicts_of(found: Quantized, arm: str) -> str:
    """`better at int4-g64, inconclusive at 9 of 10 configurations`."""
    compared = [pair for pair in found.pairs if pair.arm == arm and pair.difference]
    parts = []
    for outcome in OUTCOMES:
        names = [p.name for p in compared if p.outcome == outcome]
        if len(names) > 2:
            parts.append(f"{outcome} at {len(names)} of {len(compared)} configurations")
        elif names:
            parts.append(f"{outcome} at {listed(names)}")
    return ", ".join(parts)


def extent_of(measured: list[Configuration], column: str, form: str) -> str:
    """`+0.0003 (orig int8) to +0.0200 (orig int4-g128)`."""
    ordered = sorted(measured, key=lambda one: one.mean(column))
    ends = [f"{one.mean(column):{form}} ({one.arm} {one.name})" for one in ordered]
    return ends[0] if len(ends) == 1 else f"{ends[0]} to {ends[-1]}"
