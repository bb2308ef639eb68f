"""The figure of quantized arms: what the bytes cost in loss, and how fast they decode."""

import math
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from smolctl.analysis.quantized_arms import BF16, LOSS_DELTA, UNTESTED, Configuration, Quantized
from smolctl.analysis.run_metrics import mean_and_spread
from smolctl.analysis.verdicts import Verdict
from smolctl.report.style import GREY, key, styled, titled
from smolctl.report.wording import grouped, listed

# A mark per configuration; with more configurations they repeat.
MARKS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">", "p", "h", "d", "8")
RUNS, DOCUMENTS = "standard deviation over runs", "standard error over documents"
RATIOS = {"decode_ratio": "decoding", "compiled_decode_ratio": "decoding, compiled"}

LOOKS: dict[str, dict[str, Any]] = {  # eager is full, compiled hollow
    "decode_ratio": {"linestyle": ""},
    "compiled_decode_ratio": {
        "linestyle": "",
        "markerfacecolor": "white",
        "markeredgewidth": 1.2,
    },
}


@styled
def quantized_losses_of(found: Quantized) -> Figure:
    """Change of the loss against bytes on disk, and beside it, where it was timed, the speed of
    decoding relative to bf16; a mark per configuration, a colour per arm."""
    names = found.names
    marks = {name: MARKS[i % len(MARKS)] for i, name in enumerate(names)}
    timed = [
        column
        for column in RATIOS
        if any(found.configuration(a, name).values(column) for a in found.arms for name in names)
    ]
    figure = titled(quantized_headline(found), height=max(3.9, 1.9 + 0.3 * len(names)))
    panels = figure.subplots(1, 2, width_ratios=(3, 2)) if timed else [figure.subplots()]
    draw_losses(panels[0], found, marks)
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
    else:  # beside speeds the marks stand with their names
        handles += [
            Line2D([], [], color=GREY, marker=mark, linestyle="", label=name)
            for name, mark in marks.items()
        ]
    key(figure, *handles)
    return figure


def draw_losses(axes: Axes, found: Quantized, marks: dict[str, str]) -> None:
    """Change of the loss with its error against MB on disk; bf16 is a dash at no change."""
    bars = []
    for arm, colour in colours(found):
        for one in found.arms[arm].values():
            size, values = one.mean("disk_bytes") / 1e6, one.values(LOSS_DELTA)
            if not values or math.isnan(size):
                continue
            change, spread = mean_and_spread(values)
            if one.name == BF16:
                axes.plot([size], [0], marker="|", markersize=14, color=colour, linestyle="")
                continue
            error = one.mean("loss_delta_stderr") if spread is None else spread
            bars.append(DOCUMENTS if spread is None else RUNS)
            axes.errorbar(
                [size],
                [change],
                yerr=None if math.isnan(error) else [error],
                marker=marks[one.name],
                markersize=5,
                color=colour,
                elinewidth=1,
                capsize=2,
            )
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda size, _: f"{size:g}"))
    axes.set_xlabel("MB on disk (log scale; the dashes at 0 are bf16)")
    axes.set_ylabel("change of the loss, nats/token")
    axes.margins(0.07)
    if bars:
        axes.set_title(f"Bars: {' or '.join(dict.fromkeys(bars))}", loc="left")


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
    """What the changes of the losses show."""
    if not found.is_judged:
        return f"Quantized at {found.comparison.scale} scale, which says nothing about full size"
    arms = [arm for arm in found.arms if any(p.arm == arm and p.difference for p in found.pairs)]
    if arms:
        alike = grouped({arm: verdicts_of(found, arm) for arm in arms})
        parts = [f"{listed(names)} {verdicts}" for verdicts, names in alike.items()]
        return f"Quantized, against {found.comparison.base.name}: {'; '.join(parts)}"
    measured = [
        one
        for by_name in found.arms.values()
        for one in by_name.values()
        if one.name != BF16 and one.values(LOSS_DELTA)
    ]
    if not measured:
        return "No change of the loss was measured"
    return f"Quantizing changes the loss by {loss_span(measured)}"


def verdicts_of(found: Quantized, arm: str) -> str:
    """`better at int4-g64, inconclusive at 9 of 10 configurations`."""
    compared = [pair for pair in found.pairs if pair.arm == arm and pair.difference]
    parts = []
    for outcome in (Verdict.BETTER, Verdict.WORSE, Verdict.INCONCLUSIVE, UNTESTED):
        names = [p.name for p in compared if p.outcome == outcome]
        if len(names) > 2:
            parts.append(f"{outcome} at {len(names)} of {len(compared)} configurations")
        elif names:
            parts.append(f"{outcome} at {listed(names)}")
    return ", ".join(parts)


def loss_span(measured: list[Configuration]) -> str:
    """`+0.0003 (orig int8) to +0.0200 (orig int4-g128)`."""
    ordered = sorted(measured, key=lambda one: one.mean(LOSS_DELTA))
    ends = [f"{one.mean(LOSS_DELTA):+.4f} ({one.arm} {one.name})" for one in ordered]
    return ends[0] if len(ends) == 1 else f"{ends[0]} to {ends[-1]}"
