"""Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) for the matrices of the layers,
AdamW for the rest: embeddings, head and norms."""

from typing import TYPE_CHECKING

from smollm2.protocol.optimizer_spec import OptimizerSpec
from smollm2.training.optim import adamw

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

    from smollm2.protocol.recipe import Recipe


def build_muon(leaves: "dict[str, Tensor]", recipe: "Recipe") -> "list[tuple[Optimizer, float]]":
    """See `OptimizerSpec.build`. Muon's matrices are not decayed."""
    import torch

    from smollm2.training.masters import is_layer_matrix

    matrices = [leaf for name, leaf in leaves.items() if is_layer_matrix(name, leaf)]
    rest = {name: leaf for name, leaf in leaves.items() if not is_layer_matrix(name, leaf)}
    optimizers = adamw.build_adamw(rest, recipe) if rest else []
    if matrices:
        muon = torch.optim.Muon(
            matrices, lr=recipe.muon_lr, momentum=recipe.momentum, weight_decay=0.0
        )
        optimizers.append((muon, recipe.muon_lr))
    return optimizers


SPEC = OptimizerSpec(
    name="muon",
    build=build_muon,
    rates=("lr", "muon_lr"),
    state_bytes=8,
    layer_matrix_state_bytes=4,
    whole_matrices=True,
)
