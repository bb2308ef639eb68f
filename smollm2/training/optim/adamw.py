"""AdamW (Loshchilov & Hutter 2017, arXiv:1711.05101) for every parameter."""

from typing import TYPE_CHECKING

from smollm2.protocol.optimizer_spec import OptimizerSpec

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

    from smollm2.protocol.recipe import Recipe


def build_adamw(leaves: "dict[str, Tensor]", recipe: "Recipe") -> "list[tuple[Optimizer, float]]":
    """See `OptimizerSpec.build`. Norms are not decayed."""
    import torch

    matrices = [leaf for leaf in leaves.values() if leaf.ndim > 1]
    norms = [leaf for leaf in leaves.values() if leaf.ndim == 1]
    optimizer = torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": recipe.weight_decay},
            {"params": norms, "weight_decay": 0.0},
        ],
        lr=recipe.lr,
        betas=(recipe.beta1, recipe.beta2),
        eps=recipe.eps,
        fused=True,
    )
    return [(optimizer, recipe.lr)]


SPEC = OptimizerSpec(
    name="adamw",
    build=build_adamw,
    rates=("lr",),
    state_bytes=8,
    layer_matrix_state_bytes=8,
)
