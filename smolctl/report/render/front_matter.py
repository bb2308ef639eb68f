"""The YAML above a card that the Hugging Face hub reads."""

from collections.abc import Callable, Sequence

from huggingface_hub import EvalResult, ModelCardData

from smolctl.analysis.comparison import Comparison
from smolctl.analysis.run_metrics import ACCURACY, LOSS, mean_and_spread
from smolctl.report.render.spans import one_line
from smollm2.runs.conditions import describe
from smollm2.runs.run import Run

HUB_MODEL, HUB_DATA = "hf:", "hub:"  # how a source of either kind begins


def front_matter(
    runs: Sequence[Run],
    *,
    license: str | None,
    model_name: str | None = None,
    scores: "list[EvalResult] | None" = None,
    is_for_transformers: bool = False,
) -> str:
    """YAML without its fences. Scores are those of one model: the hub takes them for scores of the
    weights beside the card.

    Args:
        runs: that the card is about. Their base model and their data are named where all share
            them, the data where it is on the hub.
    """
    card = ModelCardData(
        base_model=shared_by(runs, base_model),
        datasets=shared_by(runs, dataset),
        model_name=model_name and one_line(model_name),
        eval_results=scores,
        license=license and one_line(license),
        library_name="transformers" if is_for_transformers else None,
        pipeline_tag="text-generation",
        tags=["smolctl", "small-language-model"],
    )
    return str(card.to_yaml())


def shared_by(runs: Sequence[Run], of: Callable[[Run], str | None]) -> str | None:
    """What `of` gives of every run, where that is one and the same."""
    found = {of(run) for run in runs}
    return found.pop() if len(found) == 1 else None


def base_model(run: Run) -> str | None:
    """The imported model that the run began as: ORG/NAME of the hub, or the name of its folder."""
    if run.is_imported or run.origin is None:
        return None
    return one_line(run.origin.removeprefix(HUB_MODEL).removeprefix("./"))


def dataset(run: Run) -> str | None:
    """The data set of the hub that the run was trained on, as ORG/NAME."""
    data = run.protocol.data
    if data is None or not data.source.startswith(HUB_DATA):
        return None
    return one_line("/".join(data.source.removeprefix(HUB_DATA).split("/")[:2]))


def scores_of(comparison: Comparison, name: str) -> list[EvalResult]:
    """The scores of the only arm of a comparison, as means over its runs.

    Args:
        name: whose scores they are, after the metric.
    """
    (arm,) = comparison.arms
    data = arm.protocol.data
    assert data is not None
    source, name = one_line(data.source), one_line(name)
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=source,
            dataset_name=f"{source}, test split",
            metric_type=kind,
            metric_name=f"{metric.label} of {name}",
            metric_value=round(mean_and_spread(arm.values(metric))[0], 6),
        )
        for metric, kind in ((LOSS, "loss"), (ACCURACY, "accuracy"))
    ]
    for row in comparison.tasks:
        extent = "" if row["n"] == row["total"] else f", first {row['n']} of {row['total']}"
        task, metric_type = one_line(row["task"]), one_line(row["metric"])
        how = one_line(f"{describe(row)}{extent}")
        results.append(
            EvalResult(
                task_type="text-generation",
                dataset_type=task,
                dataset_name=f"{task} ({how})",
                dataset_config=how,  # the hub merges what agrees in this and the type
                metric_type=metric_type,
                metric_name=f"{metric_type} of {name}",
                metric_value=round(row["mean"], 6),
            )
        )
    return results
