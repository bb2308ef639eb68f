"""An arm: the runs of one model, trained in one way with several seeds."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

from smolctl.analysis.run_metrics import FinishedRun, Metric
from smollm2.model.cost import kv_cache_bytes_per_token

if TYPE_CHECKING:
    from smollm2.protocol.run_config import ResolvedConfig


@dataclass(frozen=True)
class Arm:
    """The runs of one arm, in order of their seeds.

    Args:
        failed: names of runs that failed.
        diverged: the seeds of those whose loss did not stay finite, which is a result.
    """

    name: str
    runs: tuple[FinishedRun, ...]
    failed: tuple[str, ...] = ()
    diverged: tuple[int, ...] = ()

    @property
    def protocol(self) -> "ResolvedConfig":
        return self.runs[0].protocol

    @property
    def parameters(self) -> dict[str, int]:
        """Counts by name: total, active and embedding."""
        return dict(self.runs[0].run.manifest["parameters"])

    @property
    def flops_per_token(self) -> float:
        return float(self.runs[0].run.manifest["training_flops_per_token"])

    @property
    def kv_bytes_per_token(self) -> int:
        return kv_cache_bytes_per_token(self.protocol.model)

    @property
    def seeds(self) -> list[int]:
        return [finished.protocol.seed for finished in self.runs]

    @property
    def rates(self) -> tuple[float, ...]:
        """The learning rates of the recipe."""
        return tuple(self.protocol.recipe.rates.values())

    @property
    def tokens_per_parameter(self) -> float:
        """Training tokens of a run per parameter, embeddings included."""
        return self.runs[0].tokens / self.parameters["total"]

    def floor(self, name: str) -> float | None:
        """The test loss of the `unigram` or `trigram` model counted on as many tokens as the runs
        have seen: the lowest that they record, which should all be one (`floor_problems`). None if
        it is unknown for one of them."""
        found = [run.floors[name] for run in self.runs if run.floors]
        return min(found) if len(found) == len(self.runs) else None

    def values(self, metric: Metric) -> list[float]:
        """One value per run."""
        return [finished.values[metric.name] for finished in self.runs]

    def mean_of(self, axis: str) -> float:
        """The mean over runs of their total `tokens`, `flops` or `seconds`."""
        return fmean(
            {"tokens": run.tokens, "flops": run.flops, "seconds": run.values["seconds"]}[axis]
            for run in self.runs
        )


def floor_problems(arms: Sequence[Arm]) -> list[str]:
    """A sentence on each number of tokens for which runs of one text record different floors. Text
    and number determine the floor, so some of them are wrong.

    Args:
        arms: whose runs share the data.
    """
    found: dict[int, set[float]] = {}
    for run in (run for arm in arms for run in arm.runs):
        if run.floors:
            found.setdefault(run.tokens, set()).add(round(run.floors["trigram"], 4))
    return [
        f"Runs of {tokens:,} tokens of one text record different losses of a trigram "
        f"({', '.join(f'{loss:.4f}' for loss in sorted(losses))}); an arm has to be below the "
        "lowest of its runs."
        for tokens, losses in found.items()
        if len(losses) > 1
    ]
