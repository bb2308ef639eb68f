"""The modules that replace a matrix in a quantized model, whatever its format.

n_out, n_in: the shape of a matrix, as in `torch.nn.Linear`; V, D: of the embedding.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class QuantizedMatrix(nn.Module, ABC):
    """A matrix in codes and scales; `matrix(x)` is `x @ matrix.T`, like the layer it replaces.

    Args:
        plain: what `choose` returns and a file holds. It is packed for the kernel of its device.
        dtype: of x.
    """

    n_out: int
    n_in: int

    def __init__(self, plain: Mapping[str, Tensor], dtype: torch.dtype) -> None:
        super().__init__()

    @classmethod
    @abstractmethod
    def choose(
        cls, weight: Tensor, group_size: int | None, method: str, moments: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Codes and scales for `weight` (n_out, n_in), by name.

        Args:
            group_size: one of the format's `group_sizes`; None where it has none.
            method: one of the format's `methods`.
            moments: of the inputs, for a method that is calibrated: E[x²] (n_in,) or E[x xᵀ]
                (n_in, n_in); None where nothing is known of them.

        Raises:
            UnsupportedShape: the kernel does not take this shape.
        """

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """(..., n_in) -> (..., n_out)."""

    @property
    def memory_bytes(self) -> int:
        """Bytes of what the kernel reads."""
        return sum(tensor.nbytes for tensor in (*self.parameters(), *self.buffers()))


class UnsupportedShape(ValueError):
    """A kernel cannot take a matrix, which then stays in bf16; the message says why."""


class TableMatrix(QuantizedMatrix):
    """A matrix whose rows can also be looked up, so that one copy is embedding and head."""

    @abstractmethod
    def rows(self, numbers: Tensor) -> Tensor:
        """The rows with these numbers (N,) as (N, n_in)."""

    def weight(self) -> Tensor:
        """The whole matrix (n_out, n_in), dequantized at each call."""
        return self.rows(torch.arange(self.n_out, device=next(self.buffers()).device))


class QuantizedEmbedding(nn.Module):
    """The embedding, the head or both, over one matrix (V, D)."""

    def __init__(self, matrix: TableMatrix) -> None:
        super().__init__()
        self.matrix = matrix

    def forward(self, tokens: Tensor) -> Tensor:
        return self.matrix.rows(tokens.flatten()).view(*tokens.shape, self.matrix.n_in)

    def logits(self, h: Tensor) -> Tensor:
        return self.matrix(h)

    @property
    def weight(self) -> Tensor:
        """The whole matrix, for a loss that does not compute all logits at once."""
        return self.matrix.weight()


class QuantizedExperts(nn.ModuleList):
    """One matrix per expert, in place of their stack."""

    def __init__(self, matrices: Sequence[QuantizedMatrix]) -> None:
        super().__init__(matrices)

    def forward(self, rows: Tensor, ends_X: Tensor) -> Tensor:
        """rows (N, n_in), sorted by expert; those of expert x end at ends_X[x] -> (N, n_out)."""
        parts, start = [], 0
        for matrix, end in zip(self, ends_X.tolist(), strict=True):
            if end > start:
                parts.append(matrix(rows[start:end]))
            start = end
        return torch.cat(parts)


class SideBySide(nn.ModuleList):
    """Matrices of the same inputs whose outputs are concatenated."""

    def __init__(self, matrices: Sequence[QuantizedMatrix]) -> None:
        super().__init__(matrices)

    def forward(self, x: Tensor) -> Tensor:
        """(..., n_in) -> (..., the sum of n_out)."""
        return torch.cat([matrix(x) for matrix in self], dim=-1)

    def step_operands(self) -> tuple[Tensor, ...]:
        """Those of all matrices, for `smollm2.inference.compiled_step`."""
        matrices: list[Any] = list(self)
        return tuple(operand for matrix in matrices for operand in matrix.step_operands())

    def step_product(self, x: Tensor, *operands: Tensor) -> Tensor:
        """The products of all matrices."""
        matrices: list[Any] = list(self)
        n = len(operands) // len(matrices)  # every matrix that has a step has as many
        parts = [operands[i : i + n] for i in range(0, len(operands), n)]
        pairs = zip(matrices, parts, strict=True)
        return torch.cat([matrix.step_product(x, *part) for matrix, part in pairs])
