"""What `compare --json` prints of a comparison."""

import dataclasses
import math
from typing import Any

from smolctl.analysis.arms import Arm
from smolctl.analysis.comparison import Comparison
from smolctl.analysis.run_metrics import LOSS, METRICS, SECONDARY
from smolctl.analysis.verdicts import Difference


def to_dict(comparison: Comparison) -> dict[str, Any]:
    """The whole comparison for JSON."""
    found = [(LOSS, comparison.primary)]
    found += [(metric, comparison.secondary(metric)) for metric in SECONDARY]
    return {
        "study": comparison.study,
        "arms": [
            {
                "arm": arm.name,
                "runs": [finished.name for finished in arm.runs],
                "seeds": arm.seeds,
                "failed": list(arm.failed),
                "parameters": arm.parameters,
                "training_flops_per_token": arm.flops_per_token,
                "kv_bytes_per_token": arm.kv_bytes_per_token,
                "tokens": [finished.tokens for finished in arm.runs],
                "flops": [finished.flops for finished in arm.runs],
                "learning_rates": list(arm.rates),
                "metrics": {
                    metric.name: [none_if_nan(value) for value in arm.values(metric)]
                    for metric in METRICS
                },
            }
            for arm in comparison.arms
        ],
        "differences": [
            {"arm": arm, "metric": metric.name, "primary": metric is LOSS}
            | difference_to_dict(difference)
            | ({} if metric is LOSS else {"verdict": None, "minimum_detectable_effect": None})
            for metric, by_arm in found
            for arm, difference in by_arm.items()
        ],
        "verdicts": [verdict_to_dict(comparison, arm) for arm in comparison.others],
        "views": [
            dataclasses.asdict(view) | {"is_fair": view.is_fair, "split": view.split}
            for view in comparison.views
        ],
        "tasks": [
            {key: none_if_nan(value) for key, value in row.items()}
            | {"paired": difference and dataclasses.asdict(difference)}
            for row, difference in zip(comparison.tasks, comparison.task_differences, strict=True)
        ],
        "speed": comparison.speeds and dataclasses.asdict(comparison.speeds),
        "task_notes": comparison.task_notes,
        "excluded": list(comparison.excluded),
    }


def verdict_to_dict(comparison: Comparison, arm: Arm) -> dict[str, Any]:
    """The verdict on an arm for JSON, with all that it stands on."""
    found, documents = comparison.primary[arm.name], comparison.over_documents.get(arm.name)
    return {
        "arm": arm.name,
        "verdict": found.verdict,
        "missing": list(found.missing),
        "exploratory": found.exploratory,
        "difference": found.mean,
        "interval": found.interval,
        "interval_at_best_rates": found.widened,
        "interval_over_documents": documents and documents.like_these,
        "confidence": found.confidence,
        "minimum_detectable": found.minimum_detectable_effect,
        **gaps_to_dict(found),
        "paired": found.paired,
        "gain_of_pairing": found.gain_of_pairing,
        "seeds": arm.seeds,
        "margin": comparison.margin,
        "documents": min(run.test_documents for run in arm.runs),
        "tokens_per_parameter": arm.tokens_per_parameter,
        "unigram_loss": arm.floor("unigram"),
        "trigram_loss": arm.floor("trigram"),
    }


def difference_to_dict(found: Difference) -> dict[str, Any]:
    """A difference for JSON."""
    fields = dataclasses.asdict(found)
    del fields["gaps"]
    return fields | {"widened": found.widened} | gaps_to_dict(found)


def gaps_to_dict(found: Difference) -> dict[str, float | None]:
    """The tuning gaps of the base and the arm for JSON; None where there is no bound."""
    base, arm = (gap if gap < math.inf else None for gap in found.gaps or (math.inf, math.inf))
    return {"base_tuning_gap": base, "tuning_gap": arm}


def none_if_nan(value: Any) -> Any:
    """The value for JSON, which has no NaN."""
    return None if isinstance(value, float) and math.isnan(value) else value
