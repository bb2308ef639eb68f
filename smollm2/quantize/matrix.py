"""What stands in a quantized model where a matrix stood: the modules that do not depend on how
their codes were chosen.

n_out, n_in: the shape of a matrix, as in `torch.nn.Linear`; V, D: of the embedding.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class QuantizedMatrix(nn.Module, ABC):
    """A matrix in codes and scales; `matrix(x)` is `x @ matrix.T`, as of the layer it replaces.

    Made as `Kind(plain, dtype)` from plain tensors, which are what `choose` gives and a file holds:
    they are packed for the kernel of the device that they are on. `dtype` is that of x.
    """

    n_out: int
    n_in: int

    @classmethod
    @abstractmethod
    def choose(cls, weight: Tensor, group_size: int | None, method: str) -> dict[str, Tensor]:
        """Codes and scales for `weight` (n_out, n_in), by name.

        Raises:
            Unfit: the kernel does not take this shape.
        """

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """(..., n_in) -> (..., n_out)."""

    @property
    def memory_bytes(self) -> int:
        """Of what is kept for the kernel."""
        return sum(tensor.nbytes for tensor in (*self.parameters(), *self.buffers()))


class Unfit(ValueError):
    """A matrix that a kernel cannot take, which is left as it is; the message says why."""


class TableMatrix(QuantizedMatrix):
    """A matrix whose rows can also be looked up, so that one copy is embedding and head."""

    @abstractmethod
    def rows(self, numbers: Tensor) -> Tensor:
        """The rows with these numbers (N,) as (N, n_in)."""

    def weight(self) -> Tensor:
        """The whole matrix (n_out, n_in), made anew at each call."""
        return self.rows(torch.arange(self.n_out, device=next(self.buffers()).device))


class QuantizedEmbedding(nn.Module):
    """The embedding, which is the head too, or a head of its own, over one matrix (V, D)."""

    def __init__(self, matrix: TableMatrix) -> None:
        super().__init__()
        self.matrix = matrix

    def forward(self, tokens: Tensor) -> Tensor:
        return self.matrix.rows(tokens.flatten()).view(*tokens.shape, self.matrix.n_in)

    def logits(self, h: Tensor) -> Tensor:
        return self.matrix(h)

    @property
    def weight(self) -> Tensor:
        """The whole matrix, for code that computes a loss without all logits."""
        return self.matrix.weight()


class QuantizedExperts(nn.ModuleList):
    """A matrix for each expert, in the place of a stack of them."""

    def __init__(self, matrices: Sequence[QuantizedMatrix]) -> None:
        super().__init__(matrices)

    def forward(self, rows: Tensor, ends_X: Tensor) -> Tensor:
        """rows (N, n_in), of which those of expert x end at ends_X[x] -> (N, n_out)."""
        parts, start = [], 0
        for matrix, end in zip(self, ends_X.tolist(), strict=True):
            if end > start:
                parts.append(matrix(rows[start:end]))
            start = end
        return torch.cat(parts)
