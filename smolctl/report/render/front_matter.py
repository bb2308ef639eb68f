"""The YAML above a card that the Hugging Face hub reads."""

from huggingface_hub import EvalResult, ModelCardData

from smolctl.analysis.comparison import Comparison
from smolctl.analysis.run_metrics import ACCURACY, LOSS, mean_and_spread
from smolctl.report.render.spans import one_line
from smollm2.runs.conditions import describe


def front_matter(
    *,
    license: str | None,
    model_name: str | None = None,
    scores: "list[EvalResult] | None" = None,
    is_for_transformers: bool = False,
) -> str:
    """YAML without its fences. Scores are those of one model: the hub takes them for scores of the
    weights beside the card."""
    card = ModelCardData(
        model_name=model_name and one_line(model_name),
        eval_results=scores,
        license=license and one_line(license),
        library_name="transformers" if is_for_transformers else None,
        pipeline_tag="text-generation",
        tags=["smolctl", "small-language-model"],
    )
    return str(card.to_yaml())


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
    for row in comparison.tasks.to_dict("records"):
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
