"""A comparison as tables of text, for the terminal and for the card alike."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from smolctl.comparison import Comparison, View, best_rate
from smolctl.facts import LOSS, METRICS, SECONDARY, Metric, mean_and_spread
from smolctl.stats import Difference
from smolctl.task_scores import TASK_KEYS, TaskDifference


@dataclass(frozen=True)
class Table:
    """Cells as text; the first `n_words` columns are words, the others numbers."""

    title: str
    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    n_words: int = 1

    def without_empty_columns(self) -> "Table":
        """Without the columns of numbers in which there is none."""
        kept = [
            i
            for i in range(len(self.header))
            if i < self.n_words or any(row[i].strip("–, ") for row in self.rows)
        ]
        rows = [tuple(row[i] for i in kept) for row in self.rows]
        return Table(self.title, tuple(self.header[i] for i in kept), rows, self.n_words)


def arms_table(comparison: Comparison) -> Table:
    """A column an arm: what it is, and every metric as mean ± standard deviation over runs."""
    arms = comparison.arms
    counts = [arm.parameters for arm in arms]
    note = "" if comparison.has_speed else " (no basis for a conclusion)"
    rows = [
        ("runs (seeds)", *(f"{len(arm.runs)} ({', '.join(map(str, arm.seeds))})" for arm in arms)),
        ("parameters", *(f"{count['total']:,}" for count in counts)),
        ("active parameters", *(f"{count['active']:,}" for count in counts)),
        ("embedding parameters", *(f"{count['embedding']:,}" for count in counts)),
        ("training FLOPs a token", *(f"{arm.flops_per_token:.3g}" for arm in arms)),
        ("KV cache bytes a token", *(f"{arm.kv_bytes_per_token:,}" for arm in arms)),
        ("training tokens", *(f"{arm.runs[0].tokens:,}" for arm in arms)),
        ("learning rate", *(" and ".join(f"{rate:g}" for rate in arm.rates) for arm in arms)),
    ]
    rows += [
        (
            metric.label + (note if metric.is_of_machine else ""),
            *(mean_text(arm.values(metric), metric) for arm in arms),
        )
        for metric in METRICS
    ]
    return Table(
        f"Arms, {comparison.scale} scale, equal {comparison.equal}: mean ± standard deviation",
        ("", *(arm.name for arm in arms)),
        rows,
    )


def verdicts_table(comparison: Comparison) -> Table:
    """Every arm against the first on the primary metric, with its verdict."""
    rows = [
        (
            arm,
            difference.verdict,
            number(difference.mean, LOSS, signed=True),
            interval_text(difference, LOSS),
            number(difference.resolvable, LOSS),
        )
        for arm, difference in comparison.primary.items()
    ]
    return Table(
        f"Final test loss against {comparison.base.name}: the primary metric",
        ("arm", "verdict", "difference", "interval", "resolvable"),
        rows,
        n_words=2,
    )


def secondary_table(comparison: Comparison) -> Table:
    """The other metrics against the first arm; no verdicts."""
    rows = [
        (
            metric.label,
            arm,
            number(difference.mean, metric, signed=True),
            interval_text(difference, metric),
        )
        for metric in SECONDARY
        for arm, difference in comparison.secondary(metric).items()
    ]
    return Table(
        f"Secondary metrics against {comparison.base.name}: each by itself, no verdicts",
        ("metric", "arm", "difference", "interval"),
        rows,
        n_words=2,
    )


def views_table(comparison: Comparison) -> Table:
    """The losses of each arm and the first one where both have had the same of something."""
    base = comparison.base.name

    def cell(view: View, name: str) -> str:
        return mean_text(view.losses[name], LOSS) + (
            "" if view.ended[name] else " (before its end)"
        )

    rows = [
        (
            view.arm,
            f"{view.axis} ({view.budget:.3g})",
            cell(view, base),
            cell(view, view.arm),
            comparison.primary[view.arm].verdict if view.is_fair else "cannot tell",
        )
        for view in comparison.views
    ]
    return Table(
        "At equal tokens, FLOPs and seconds: test losses, and validation losses where a schedule "
        "had not ended, which may not be compared",
        ("arm", "equal", f"loss of {base}", "loss of the arm", "verdict"),
        rows,
        n_words=2,
    )


def tasks_table(comparison: Comparison) -> Table:
    """Task scores, a row a set of questions and metric; no rows where none was measured."""
    rows = []
    for key, scores in task_rows(comparison):
        counts = {score["count"] for score, _ in scores.values()}
        chance = next(iter(scores.values()))[0]["chance"]
        cells = {arm: score_text(score, len(counts) > 1) for arm, (score, _) in scores.items()}
        rows.append(
            (
                *question_cells(key),
                " or ".join(map(str, sorted(counts))),
                "–" if chance != chance else f"{chance:.4f}",
                *(cells.get(arm.name, "–") for arm in comparison.arms),
            )
        )
    return Table(
        "Tasks (secondary): mean ± standard deviation over runs",
        ("metric", "how", "questions", "runs", "chance", *(a.name for a in comparison.arms)),
        rows,
        n_words=2,
    )


def task_differences_table(comparison: Comparison) -> Table:
    """Of each row of `tasks_table` how far the arms are from the first one; no rows where none was
    scored as that was."""
    rows = []
    for key, scores in task_rows(comparison):
        cells = {arm: difference_text(found) for arm, (_, found) in scores.items()}
        row = [cells.get(arm.name, "–") for arm in comparison.others]
        if set(row) - {"–"}:
            rows.append((*question_cells(key), *row))
    return Table(
        f"Paired differences to {comparison.base.name} over the questions, for these checkpoints: "
        "the noise of training is not in the intervals",
        ("metric", "how", "questions", *(arm.name for arm in comparison.others)),
        rows,
        n_words=2,
    )


def question_cells(key: tuple[Any, ...]) -> tuple[str, str, str]:
    """What was asked, how, and how many questions of how many."""
    task, metric, protocol, n, total, _ = key
    extent = f"{n:,}" + ("" if n == total else f" of {total:,}")
    return f"{task} {metric}", protocol.removeprefix("lm-eval, 0-shot, "), extent


def score_text(score: dict[Any, Any], with_count: bool) -> str:
    """`0.2482 ± 0.0021`, with the number of runs where arms differ in that."""
    text = f"{score['mean']:.4f}"
    if score["std"] == score["std"]:
        text += f" ± {score['std']:.4f}"
    return text + (f" ({score['count']})" if with_count else "")


Scores = dict[str, tuple[dict[Any, Any], TaskDifference | None]]


def task_rows(comparison: Comparison) -> list[tuple[tuple[Any, ...], Scores]]:
    """By `TASK_KEYS`, task by task: the score of each arm that has it, by the arm's name."""
    found: dict[tuple[Any, ...], Scores] = {}
    records = comparison.tasks.to_dict("records")
    for row, difference in zip(records, comparison.task_differences, strict=True):
        found.setdefault(tuple(row[key] for key in TASK_KEYS), {})[row["arm"]] = (row, difference)
    return sorted(found.items(), key=lambda item: item[0][0])


def difference_text(found: TaskDifference | None) -> str:
    """`-0.0017 (-0.0142 to +0.0108)`, or `–` where the two were not scored alike."""
    if found is None:
        return "–"
    if found.interval is None:
        return "cannot tell"
    text = f"{found.interval.mean:+.4f}"
    if bounds := found.interval.interval:
        text += f" ({bounds[0]:+.4f} to {bounds[1]:+.4f})"
    return text


def sweep_table(comparison: Comparison) -> Table:
    """The validation losses of the sweep: a row an arm, a column a rate."""
    found = comparison.sweep
    rates = sorted({rate for by_rate in found.values() for rate in by_rate})
    rows = []
    for arm, by_rate in found.items():
        cells = [
            f"{mean_text(by_rate[rate], LOSS)}{' *' if rate == best_rate(by_rate) else ''}"
            if rate in by_rate
            else "–"
            for rate in rates
        ]
        rows.append((arm, *cells))
    return Table(
        "Sweep of the learning rate: final validation loss, the best marked *",
        ("arm", *(f"{rate:g}" for rate in rates)),
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
        n_words=2,
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
