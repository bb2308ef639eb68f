"""What the rest of the code needs to know about an optimizer."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class OptimizerSpec:
    """An optimizer.

    name: as the recipe's `optimizer` names it.
    build: makes the optimizers of some leaves of the model. It takes the leaves by name, which are
        fp32 tensors whose `grad` is set before each step, and the `Recipe`; it returns
        `torch.optim` optimizers with the peak learning rate of each. Together they update every
        leaf once.
    rates: the recipe's fields that are its peak learning rates. A sweep of `lr` tunes an optimizer
        whose only rate that is.
    state_bytes: bytes of optimizer state per parameter; in fp32, 4 per moment.
    layer_matrix_state_bytes: the same per parameter in a matrix of a layer.
    whole_matrices: it updates each matrix of a layer as one, as the published model has them: a
        fused weight is split into its matrices, and no matrix is split by rows.
    """

    name: str
    build: Callable[[dict[str, Any], Any], list[tuple[Any, float]]]
    rates: tuple[str, ...]
    state_bytes: int
    layer_matrix_state_bytes: int
    whole_matrices: bool = False
