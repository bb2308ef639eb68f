"""Loss curves of every run, and final losses against the size of the KV cache."""

import math
from collections.abc import Iterable
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from smolctl.analysis.comparison import Comparison
from smolctl.analysis.run_metrics import LOSS, FinishedRun
from smolctl.report.figures.forest import against, headline, verdict_of
from smolctl.report.style import GREY, HOLLOW, arm_label, key, looks, styled, titled

if TYPE_CHECKING:
    from smollm2.runs.tables import Columns


@styled
def losses_of(comparison: Comparison) -> Figure:
    """Validation loss against steps, FLOPs and seconds: a line per run with its test loss."""
    figure = titled(headline(comparison), height=3.9)
    panels = figure.subplots(1, 3, sharey=True)
    runs = comparison.runs
    exponent = math.floor(math.log10(max(finished.flops for finished in runs)))
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
            for finished in arm.runs:
                draw_loss(axes, finished, axis, look)
        seen = [np.concatenate([one.curve[name] for one in runs]) for name in (axis, "loss")]
        axes.update_datalim(np.column_stack(seen))
        axes.autoscale_view()
        axes.set(xlabel=label, xlim=(0, None))
    panels[0].set_ylim(
        end_range([finished.curve for finished in runs], [f.values["loss"] for f in runs])
    )
    panels[0].set_ylabel("loss, nats/token")
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
def tradeoff_of(comparison: Comparison) -> Figure:
    """Final test loss, a marker per run and a dash for their mean, against KV cache per token."""
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
    axes.set_xlabel("KV cache, bytes per token (bf16; log scale)")
    axes.set_ylabel("final test loss, nats/token")
    mean = Line2D([], [], color=GREY, marker="_", markersize=16, linestyle="", label="mean")
    axes.legend(handles=[*handles, mean], loc="upper left", bbox_to_anchor=(1, 1), labelspacing=0.9)
    return figure


def tradeoff_headline(comparison: Comparison) -> str:
    """Of the arm whose cache differs the most."""
    base = comparison.base.kv_bytes_per_token
    arm = max(comparison.others, key=lambda arm: abs(math.log(arm.kv_bytes_per_token / base)))
    return (
        f"With {arm.kv_bytes_per_token / base:.3g} times the KV cache, {against(comparison, arm)}"
    )


def draw_loss(axes: Axes, finished: FinishedRun, axis: str, look: dict[str, Any]) -> None:
    """A run's validation loss as a line, or a dot of a single validation; and its test loss where
    that ends. The caller scales the axes: there may be thousands of lines, which `axes.add_line`
    would look at one by one, and the layout too."""
    x, y = finished.curve[axis], finished.curve["loss"]
    marker = "." if len(x) == 1 else ""
    curve = Line2D(x, y, **look | {"marker": marker})
    test = Line2D(x[-1:], [finished.values["loss"]], **look | HOLLOW, clip_on=False)
    for one in (curve, test):
        one.set_in_layout(False)  # it lies within the axes
        axes.add_artist(one)


def spread_out(sizes: list[int]) -> list[int]:
    """Those in ascending order whose labels do not overlap on a logarithmic axis."""
    kept = sizes[:1]
    for size in sizes:
        if math.log(size / kept[-1]) > 0.08 * math.log(1.5**2 * sizes[-1] / sizes[0]):
            kept.append(size)
    return kept


FEW_VALIDATIONS = 3  # all of which are shown


def end_range(curves: "Iterable[Columns]", ends: Iterable[float]) -> tuple[float, float]:
    """Limits in which the later part of the curves is seen well, and all of `ends`.

    The first tenth of a curve may be cut off, and of the rest the highest tenth.
    """
    seen = list(ends)
    for curve in curves:
        steps, losses = curve["step"], curve["loss"]
        late = losses[steps >= 0.1 * steps[-1]]
        if len(losses) <= FEW_VALIDATIONS:
            seen += losses.tolist()
        seen += [late.min(), np.percentile(late, 90), late[-1]]
    margin = 0.05 * (max(seen) - min(seen)) or 0.1
    return min(seen) - margin, max(seen) + margin
