"""The figure of two checkpoints: the change of every text and task with its interval."""

from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from smolctl.analysis.checkpoint_pair import CheckpointPair
from smolctl.analysis.verdicts import Difference
from smolctl.report.figures.forest import BAND
from smolctl.report.style import COLOURS, key, styled, titled
from smolctl.report.verdict_words import verdict_text

LOOK: dict[str, Any] = {"color": COLOURS[0], "linestyle": "-", "linewidth": 1.6}


@styled
def paired_changes_of(pair: CheckpointPair) -> Figure:
    """A row per text, and below, in another unit, a row per task."""
    by_loss = {text.source: text.judged for text in pair.texts if text.losses}
    by_bits = {text.source: text.judged for text in pair.texts if not text.losses}
    answers = {str(task.rows[0]["task"]): task.judged for task in pair.tasks}
    panels = [
        (by_loss, "change of the loss, nats/token", ("better", "worse")),
        (by_bits, "change of the bits per byte", ("better", "worse")),
        (answers, "change of the share of right answers", ("worse", "better")),
    ]
    panels = [panel for panel in panels if panel[0]]
    rows = [len(panel[0]) + 1.4 for panel in panels]
    title = f"{pair.other.name} beside {pair.base.name}: these two checkpoints"
    figure = titled(title, height=1.1 + 0.42 * sum(rows))
    all_axes = figure.subplots(len(panels), 1, height_ratios=rows, squeeze=False)[:, 0]
    for axes, (changes, unit, sides) in zip(all_axes, panels, strict=True):
        if changes is by_loss and pair.margin is not None:
            axes.axvspan(-pair.margin, pair.margin, color=BAND, zorder=0)
        draw_changes(axes, changes, sides)
        axes.set_xlabel(unit)
    label = f"change with its {100 * pair.confidence:.4g} % interval over documents or questions"
    key(figure, Line2D([], [], marker="o", label=label, **LOOK))
    return figure


def draw_changes(axes: Axes, changes: Mapping[str, Difference], sides: tuple[str, str]) -> None:
    """A row per change, with its verdict beside it; no change is at 0, between the two `sides`."""
    axes.axvline(0, color="black", linewidth=1)
    for row, change in enumerate(changes.values()):
        if change.interval:
            axes.plot(change.interval, [row] * 2, **LOOK, marker="|", markersize=9)
        axes.plot([change.mean], [row], **LOOK, marker="o")
        note = f"{change.mean:+.4f}: {verdict_text(change)}"
        axes.text(1.02, row, note, transform=axes.get_yaxis_transform(), va="center")
    low, high = axes.get_xlim()
    axes.set_xlim(-max(-low, high / 4), max(high, -low / 4))  # both sides are seen
    axes.set_ylim(len(changes) - 0.5, -0.5)
    axes.set_yticks(range(len(changes)), list(changes))
    axes.grid(axis="y", visible=False)
    axes.set_title(f"← {sides[0]}", loc="left")
    axes.set_title(f"{sides[1]} →", loc="right")
