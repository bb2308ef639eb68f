"""A comparison as tables of text, for the terminal and for the card alike."""

from collections.abc import Sequence
from dataclasses import dataclass

from smolctl.comparison import (
    PRIMARY,
    SECONDARY,
    Comparison,
    Metric,
    mean_and_spread,
    task_differences,
)
from smolctl.stats import Difference

METRICS = (PRIMARY, *SECONDARY)


@dataclass(frozen=True)
class Table:
    """Cells as text; the first column is named, the others are numbers."""

    title: str
    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


def arms_table(comparison: Comparison) -> Table:
    """A column an arm: what it is, and every metric as mean ± standard deviation over runs."""
    arms = comparison.arms
    counts = [arm.parameters for arm in arms]
    rows = [
        ("runs (seeds)", *(f"{len(arm.runs)} ({', '.join(map(str, arm.seeds))})" for arm in arms)),
        ("parameters", *(f"{count['total']:,}" for count in counts)),
        ("active parameters", *(f"{count['active']:,}" for count in counts)),
        ("embedding parameters", *(f"{count['embedding']:,}" for count in counts)),
        ("training FLOPs a token", *(f"{arm.flops_per_token:.3g}" for arm in arms)),
        ("KV cache bytes a token", *(f"{arm.kv_bytes_per_token:,}" for arm in arms)),
        ("training tokens", *(f"{arm.runs[0].tokens:,}" for arm in arms)),
        ("learning rate", *(f"{arm.protocol.recipe.lr:g}" for arm in arms)),
    ]
    rows += [
        (metric.label, *(mean_text(arm.values(metric), metric) for arm in arms))
        for metric in METRICS
    ]
    return Table(
        f"Arms, {comparison.scale} scale, equal {comparison.equal}: mean ± standard deviation",
        ("", *(arm.name for arm in arms)),
        rows,
    )


def verdicts_table(comparison: Comparison) -> Table:
    """Every arm against the first: the primary metric with its verdict, then the others."""
    rows = []
    for metric in METRICS:
        is_primary = metric is PRIMARY
        for arm, difference in comparison.differences(metric).items():
            rows.append(
                (
                    arm,
                    metric.label if is_primary else f"{metric.label} (secondary)",
                    number(difference.mean, metric, signed=True),
                    interval_text(difference, metric),
                    difference.verdict if is_primary else "–",
                    number(difference.resolvable, metric) if is_primary else "–",
                )
            )
    return Table(
        f"Against {comparison.base.name}; the verdict is on the final test loss alone",
        ("arm", "metric", "difference", "interval", "verdict", "found with 80 % power"),
        rows,
    )


def views_table(comparison: Comparison) -> Table:
    """The loss where every arm has had the same tokens, FLOPs, seconds."""
    rows = []
    for view in comparison.views:
        for arm, losses in view.losses.items():
            difference = view.differences.get(arm)
            read = "test loss at the end" if view.ended[arm] else "validation loss before the end"
            rows.append(
                (
                    f"{view.axis} ({view.budget:.3g})",
                    arm,
                    mean_text(losses, PRIMARY),
                    read,
                    difference.verdict if difference else "–",
                )
            )
    return Table(
        "With equal tokens, FLOPs and seconds; a loss read before a schedule's end is not to be "
        "compared",
        ("equal", "arm", "loss", "read", "verdict"),
        rows,
    )


def tasks_table(comparison: Comparison) -> Table:
    """Task scores, and their differences over questions; no rows where none was measured."""
    paired = {(d.arm, d.task, d.metric, d.n): d.interval for d in task_differences(comparison)}
    rows = []
    for row in comparison.tasks.to_dict("records"):
        spread = "" if row["std"] != row["std"] else f" ± {row['std']:.4f}"
        extent = f"{row['n']:,}" + ("" if row["n"] == row["total"] else f" of {row['total']:,}")
        found = paired.get((row["arm"], row["task"], row["metric"], row["n"]))
        difference = "–"
        if found:
            low, high = found.interval or (found.mean, found.mean)
            difference = f"{found.mean:+.4f} ({low:+.4f} to {high:+.4f})"
        rows.append(
            (
                f"{row['task']} {row['metric']}",
                row["arm"],
                f"{row['mean']:.4f}{spread}",
                "–" if row["chance"] != row["chance"] else f"{row['chance']:.4f}",
                extent,
                difference,
            )
        )
    return Table(
        "Tasks (secondary); differences are over questions, for these checkpoints: the noise of "
        "training is not in them",
        ("metric", "arm", "mean ± std over runs", "chance", "questions", "paired difference"),
        rows,
    )


def runs_table(comparison: Comparison) -> Table:
    """A row a run."""
    return Table(
        "Every run",
        ("run", "arm", "seed", *(metric.label for metric in METRICS)),
        [
            (
                facts.name,
                arm.name,
                str(facts.protocol.seed),
                *(number(facts.values[metric.name], metric) for metric in METRICS),
            )
            for arm in comparison.arms
            for facts in arm.runs
        ],
    )


def mean_text(values: list[float], metric: Metric) -> str:
    """`5.4321 ± 0.0123`, without a spread for one run."""
    mean, spread = mean_and_spread(values)
    if spread is None or spread != spread:
        return number(mean, metric)
    return f"{number(mean, metric)} ± {number(spread, metric)}"


def number(value: float | None, metric: Metric, *, signed: bool = False) -> str:
    """A value with the digits that its metric has; `–` where there is none."""
    if value is None or value != value:
        return "–"
    return f"{value:{'+' if signed else ''},.{metric.digits}f}"


def interval_text(difference: Difference, metric: Metric) -> str:
    """`-0.0200 to +0.0100 (95 %)`, or `–`."""
    if difference.interval is None:
        return "–"
    low, high = (number(bound, metric, signed=True) for bound in difference.interval)
    return f"{low} to {high} ({100 * difference.confidence:.4g} %)"
