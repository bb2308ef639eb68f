"""`smolctl compare`: finished runs of two or more arms, with a verdict or the lack of one."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from smolctl.options import RESULTS, STUDY, Json, Results, Study
from smollm2.errors import UserError

if TYPE_CHECKING:
    from smolctl.comparison import Comparison, Metric
    from smolctl.stats import Difference

EXAMPLES = """
**Examples**

- `smolctl compare orig pow2`

- `smolctl compare pow2 pow2:n_kv_heads=8 pow2:n_kv_heads=1 --study gqa --verbose`

- `smolctl compare orig pow2 moe-160m --study demo --json`
"""


def compare(
    arms: Annotated[
        list[str], typer.Argument(help="Arms, variants or runs; the first is the base.")
    ],
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Every run's numbers as well.")
    ] = False,
    figures: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the figures; default the study's figures/.", show_default=False
        ),
    ] = None,
    study: Study = STUDY,
    results: Results = RESULTS,
    as_json: Json = False,
) -> None:
    """Compare arms on the final test loss, with intervals over seeds; one seed decides nothing.

    Only runs that share everything but the model (and the learning rate) are compared; others are
    named and left out. A verdict needs at least two runs of each arm.
    """
    import json
    import sys

    from smolctl.comparison import compare_arms, to_dict
    from smolctl.console import say, warn
    from smolctl.plots import comparison_figures
    from smolctl.targets import runs_of
    from smolctl.words import conclusion

    if len(set(arms)) < 2:
        raise UserError("Name at least two different arms: smolctl compare orig pow2.")
    found = compare_arms(study, {arm: runs_of(arm, results, study) for arm in arms})
    for sentence in found.left_out:
        warn(sentence)
    if as_json:
        json.dump(to_dict(found) | {"conclusion": conclusion(found)}, sys.stdout)
        sys.stdout.write("\n")
        return
    show_arms(found)
    show_verdicts(found)
    show_views(found)
    show_tasks(found)
    if verbose:
        show_runs(found)
    for sentence in conclusion(found):
        sys.stdout.write(f"- {sentence}\n")
    for path in comparison_figures(found, figures or results / study / "figures"):
        say(f"Figure: {path}")


def show_arms(comparison: "Comparison") -> None:
    """A column an arm: what it is, and every metric as mean ± standard deviation over runs."""
    from smolctl.comparison import PRIMARY, SECONDARY
    from smolctl.console import table

    arms = comparison.arms
    parameters = [arm.parameters for arm in arms]
    rows = [
        ["runs (seeds)", *(f"{len(arm.runs)} ({', '.join(map(str, arm.seeds))})" for arm in arms)],
        ["parameters", *(f"{counts['total']:,}" for counts in parameters)],
        ["  active", *(f"{counts['active']:,}" for counts in parameters)],
        ["  embedding", *(f"{counts['embedding']:,}" for counts in parameters)],
        ["training FLOPs a token", *(f"{arm.flops_per_token:.3g}" for arm in arms)],
        ["KV cache bytes a token", *(f"{arm.kv_bytes_per_token:,}" for arm in arms)],
        ["tokens", *(f"{arm.runs[0].tokens:,}" for arm in arms)],
        ["learning rate", *(f"{arm.protocol.recipe.lr:g}" for arm in arms)],
    ]
    rows += [
        [metric.label, *(mean_text(arm.values(metric), metric) for arm in arms)]
        for metric in (PRIMARY, *SECONDARY)
    ]
    table(
        f"{comparison.study}: {' and '.join(arm.name for arm in arms)}, {comparison.scale} scale, "
        f"equal {comparison.equal}",
        ("mean ± standard deviation", *(arm.name for arm in arms)),
        rows,
    )


def show_verdicts(comparison: "Comparison") -> None:
    """Every arm against the first: the primary metric with its verdict, then the others."""
    from smolctl.comparison import PRIMARY, SECONDARY
    from smolctl.console import table

    rows = []
    for metric in (PRIMARY, *SECONDARY):
        for arm, difference in comparison.differences(metric).items():
            is_primary = metric is PRIMARY
            rows.append(
                (
                    arm,
                    metric.label + ("" if is_primary else " (secondary)"),
                    number(difference.mean, metric, signed=True),
                    interval_cell(difference, metric),
                    difference.verdict if is_primary else "–",
                    number(difference.resolvable, metric) if is_primary else "–",
                )
            )
    table(
        f"Against {comparison.base.name}: the verdict is on the final test loss alone",
        ("arm", "metric", "difference", "interval", "verdict", "found with 80 % power"),
        rows,
    )


def show_views(comparison: "Comparison") -> None:
    """The loss where every arm has had the same tokens, FLOPs, seconds."""
    from smolctl.comparison import PRIMARY
    from smolctl.console import count, table

    rows = []
    for view in comparison.views:
        for arm, losses in view.losses.items():
            difference = view.differences.get(arm)
            read = "test loss at the end" if view.ended[arm] else "validation loss before the decay"
            rows.append(
                (
                    f"{view.axis} ({count(view.budget)})",
                    arm,
                    mean_text(losses, PRIMARY),
                    read,
                    difference.verdict if difference else "–",
                )
            )
    table(
        "With equal tokens, FLOPs and seconds; a loss before the decay is not to be compared",
        ("equal", "arm", "loss", "read", "verdict"),
        rows,
    )


def show_tasks(comparison: "Comparison") -> None:
    """Task scores, and their differences over questions."""
    from smolctl.comparison import task_differences
    from smolctl.console import say, table

    if comparison.tasks.empty:
        say("Tasks: not measured; smolctl eval ... --tasks arc_easy,hellaswag")
        return
    by_arm = {(d.arm, d.task, d.metric, d.n): d.interval for d in task_differences(comparison)}
    rows = []
    for row in comparison.tasks.to_dict("records"):
        spread = "" if row["std"] != row["std"] else f" ± {row['std']:.4f}"
        extent = f"{row['n']:,}" + ("" if row["n"] == row["total"] else f" of {row['total']:,}")
        paired = by_arm.get((row["arm"], row["task"], row["metric"], row["n"]))
        difference = "–"
        if paired:
            low, high = paired.interval or (paired.mean, paired.mean)
            difference = f"{paired.mean:+.4f} ({low:+.4f} to {high:+.4f})"
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
    table(
        "Tasks (secondary)",
        ("metric", "arm", "mean ± std over runs", "chance", "questions", "paired difference"),
        rows,
    )
    say(
        "Paired differences are over questions, for these checkpoints; training noise is not in them."
    )


def show_runs(comparison: "Comparison") -> None:
    """A row a run."""
    from smolctl.comparison import PRIMARY, SECONDARY
    from smolctl.console import table

    metrics = (PRIMARY, *SECONDARY)
    table(
        "Every run",
        ("run", "arm", "seed", *(metric.label for metric in metrics)),
        (
            (
                facts.name,
                arm.name,
                str(facts.protocol.seed),
                *(number(facts.values[metric.name], metric) for metric in metrics),
            )
            for arm in comparison.arms
            for facts in arm.runs
        ),
    )


def mean_text(values: list[float], metric: "Metric") -> str:
    from smolctl.comparison import mean_and_spread

    mean, spread = mean_and_spread(values)
    if spread is None or spread != spread:
        return number(mean, metric)
    return f"{number(mean, metric)} ± {number(spread, metric)}"


def number(value: float | None, metric: "Metric", *, signed: bool = False) -> str:
    """A value with the digits that its metric has; `–` where there is none."""
    if value is None or value != value:
        return "–"
    return f"{value:{'+' if signed else ''},.{metric.digits}f}"


def interval_cell(difference: "Difference", metric: "Metric") -> str:
    if difference.interval is None:
        return "–"
    low, high = (number(bound, metric, signed=True) for bound in difference.interval)
    return f"{low} to {high} ({100 * difference.confidence:.4g} %)"
