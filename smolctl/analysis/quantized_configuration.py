"""One quantization of one arm, over its runs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

KL, LOSS_DELTA = "kl_mean", "loss_delta"


@dataclass(frozen=True)
class Configuration:
    """One quantization of one arm.

    Args:
        name: as `QuantConfig.name`, or `bf16`.
        rows: one row of quantize.csv per run, NaN where a number is not measured; and the columns
            `run`, its name, `seed`, and `total` and `embedding`, its parameter counts.
    """

    arm: str
    name: str
    rows: "pd.DataFrame"

    def values(self, column: str) -> list[float]:
        """One number per run that has it."""
        return [float(value) for value in self.rows[column].dropna()]

    @property
    def measured(self) -> "pd.DataFrame":
        """The rows with a loss."""
        return self.rows[self.rows[LOSS_DELTA].notna()]

    @property
    def seeds(self) -> list[int]:
        """Of the runs that were measured."""
        return [int(seed) for seed in self.measured["seed"]]

    def mean(self, column: str) -> float:
        """The mean over runs; NaN if none has the number."""
        values = self.values(column)
        return fmean(values) if values else math.nan

    def texts(self, column: str) -> list[str]:
        """The distinct texts of the runs."""
        return [text for text in dict.fromkeys(self.rows[column]) if text]

    @property
    def matrix_share(self) -> float:
        """The quantized share of the parameters outside the embedding; NaN if unknown. The
        embedding is excluded as its share falls with the size of the model."""
        total, embedding = self.mean("total"), self.mean("embedding")
        quantized = self.mean("quantized_share") * total - embedding * self.has_small_embedding
        return quantized / (total - embedding)

    @property
    def has_small_embedding(self) -> bool:
        """Whether the embedding is quantized."""
        skipped = any("embed.weight" in text for text in self.texts("skipped"))
        return bool(self.values("embedding_bits")) and not skipped

    @property
    def bytes_per_parameter(self) -> float:
        """Bytes per parameter on disk, without the embedding; NaN if not measured."""
        matrices = self.mean("total") - self.mean("embedding")
        return self.mean("disk_bytes_without_embedding") / matrices

    @property
    def has_kl(self) -> bool:
        """Whether each run that was measured has a KL divergence, and one with a logarithm."""
        found = self.rows.loc[self.rows[LOSS_DELTA].notna(), KL]
        return len(found) > 0 and bool((found > 0).all())  # False of NaN

    def harm(self, by_kl: bool) -> list[float]:
        """One number per run: the logarithm of its KL divergence, or the change of its loss."""
        return [math.log(kl) for kl in self.values(KL)] if by_kl else self.values(LOSS_DELTA)

    @property
    def mean_log_kl(self) -> float:
        """The logarithm of the geometric mean over runs, where `has_kl`."""
        return fmean(self.harm(by_kl=True))

    def conditions(self, columns: Sequence[str], measured: str) -> set[tuple[Any, ...]]:
        """The distinct conditions, as cells of `columns`, under which `measured` was measured."""
        rows = self.rows.dropna(subset=[measured])
        rows = rows.assign(context=rows["context"].fillna(0))  # unknown: an older version's
        return set(rows[list(columns)].itertuples(index=False, name=None))
