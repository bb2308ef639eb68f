"""The difference of each arm to the first one against the size of the models."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import NullLocator

from smolctl.analysis.ladder_notes import parsed_size
from smolctl.analysis.rungs import ArmTrend, SizeLadder
from smolctl.analysis.size_ladder import Trend
from smolctl.analysis.stats import critical_t
from smolctl.report.style import GREY, key, looks_of, styled, titled
from smolctl.report.wording import listed

BAND_POINTS = 60
MARGIN_COLOUR = "#e8e8e8"


@styled
def trends_of(ladder: SizeLadder) -> Figure:
    """A panel per arm: the differences with their intervals, the line and its band, dashed beyond
    the measured sizes; the study's margin as a grey band."""
    trends = [one for one in ladder.trends.values() if one.line is not None]
    figure = titled(headline_of(ladder), height=1.3 + 2.1 * len(trends))
    panels = figure.subplots(len(trends), 1, sharex=True, squeeze=False)[:, 0]
    own = looks_of(ladder.main.arms)
    for axes, one in zip(panels, trends, strict=True):
        draw_trend(axes, one, ladder, own[one.arm]["color"])
    panels[-1].set_xlabel("non-embedding parameters")
    handles: list[Line2D | Patch] = [
        Line2D([], [], color=GREY, marker="o", linewidth=1.6, label="measured, with its interval"),
        Line2D([], [], color=GREY, marker="", label="line a + b log N, with its band"),
    ]
    if ladder.notes.is_extrapolated:
        handles.append(Line2D([], [], color=GREY, linestyle="--", marker="", label="extrapolated"))
    if ladder.main.margin is not None:
        handles.append(Patch(color=MARGIN_COLOUR, label="within the study's margin"))
    key(figure, *handles)
    return figure


def draw_trend(axes: Axes, one: ArmTrend, ladder: SizeLadder, colour: str) -> None:
    """A panel; see `trends_of`."""
    line = one.line
    assert line is not None
    asked = parsed_size(ladder.notes.at)
    if ladder.main.margin is not None:
        axes.axhspan(-ladder.main.margin, ladder.main.margin, color=MARGIN_COLOUR, zorder=0)
    axes.axhline(0, color="black", linewidth=1)
    axes.set_xscale("log")
    spans = [(line.smallest, line.largest, "-")]
    spans += [(asked, line.smallest, "--")] if asked < line.smallest else []
    spans += [(line.largest, asked, "--")] if asked > line.largest else []
    for low, high, style in spans:
        sizes = np.geomspace(low, high, BAND_POINTS)
        found = [line.at(float(size)) for size in sizes]
        means, lows, highs = ([getattr(x, name) for x in found] for name in ("mean", "low", "high"))
        axes.plot(sizes, means, color=colour, linestyle=style, marker="")
        axes.fill_between(sizes, lows, highs, color=colour, alpha=0.15, linewidth=0)
    for rung in line.rungs:
        half = rung.error * float(critical_t(line.level / 2, rung.df))
        ends = [rung.mean - half - rung.gaps[1], rung.mean + half + rung.gaps[0]]
        whisker: dict[str, Any] = {
            "linestyle": "-",
            "linewidth": 1.6,
            "marker": "_",
            "markersize": 9,
        }
        axes.plot([rung.parameters] * 2, ends, color=colour, **whisker)
        axes.plot([rung.parameters], [rung.mean], color=colour, marker="o")
    ticks = {parsed_size(size): size for size in (*ladder.studies, ladder.notes.at)}
    axes.set_xticks(list(ticks), list(ticks.values()))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_ylabel(f"{one.arm} minus {ladder.main.base.name},\nnats/token")
    axes.set_title(f"{one.arm}: {one.trend}", loc="left")


def headline_of(ladder: SizeLadder) -> str:
    """`At 2M, measured, against orig: pow2 persists`."""
    notes = ladder.notes
    texts = [
        f"{one.arm} is unknown" if one.trend is Trend.UNKNOWN else f"{one.arm} {one.trend}"
        for one in ladder.trends.values()
    ]
    how = "extrapolated" if notes.is_extrapolated else "measured"
    return f"At {notes.at}, {how}, against {ladder.main.base.name}: {listed(texts)}"
