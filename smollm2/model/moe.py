"""Mixture of experts: a top-k router and SwiGLU experts computed as grouped matrix products.

The layout and the arithmetic are Mixtral's (Jiang et al. 2024, arXiv:2401.04088).
X is the number of experts, k the number that one token uses, S = N·k the number of all choices;
other suffixes as in `transformer`.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smollm2.model.config import ModelConfig
from smollm2.model.feedforward import swiglu


class Routing(NamedTuple):
    """How a batch was distributed over the experts.

    balance_loss: scalar, 1 if the experts share the tokens evenly, n_experts if one takes them all
        (Fedus et al. 2021, arXiv:2101.03961, eq. 4, over the k choices of a token).
    load: (X,) or (layers, X), the share of the choices that each expert got; sums to 1.
    """

    balance_loss: Tensor
    load: Tensor


class MoE(nn.Module):
    """A layer of SwiGLU experts, some of which each token uses."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        X, D, F_ = config.n_experts, config.d_model, config.d_ff
        self.n_active = config.n_active_experts
        self.router = nn.Linear(D, X, bias=False)
        self.gate_up = nn.Parameter(torch.empty(X, 2 * F_, D))
        self.down = nn.Parameter(torch.empty(X, D, F_))

    @property
    def is_quantized(self) -> bool:
        """Whether quantized modules have replaced the experts' matrices."""
        return isinstance(self.gate_up, nn.Module)

    def forward(self, x_BTD: Tensor) -> tuple[Tensor, Routing]:
        x_ND = x_BTD.flatten(0, 1)
        probs_NX = self.router(x_ND).float().softmax(dim=-1)
        weights_Nk, experts_Nk = probs_NX.topk(self.n_active, dim=-1)
        weights_Nk = weights_Nk / weights_Nk.sum(dim=-1, keepdim=True)

        # The rows of an expert's choices become one contiguous group; the rest stays zero.
        experts_X1 = torch.arange(probs_NX.shape[1], device=x_ND.device)[:, None]
        chosen_XS = (experts_Nk.flatten() == experts_X1).long()
        slots_S, ends_X, n_rows = groups(chosen_XS, group_multiple(x_ND, chosen_XS))
        rows = x_ND.new_zeros(n_rows, x_ND.shape[1])
        rows.index_copy_(0, slots_S, x_ND.repeat_interleave(self.n_active, dim=0))
        rows = swiglu(grouped_mm(rows, self.gate_up, ends_X))
        rows = grouped_mm(rows, self.down, ends_X)

        # Back to token order, where a token's k rows are weighted and summed.
        y_NkD = rows.index_select(0, slots_S).view(*experts_Nk.shape, -1)
        y_ND = (y_NkD * weights_Nk[..., None].to(rows.dtype)).sum(dim=1)
        return y_ND.view_as(x_BTD), routing(probs_NX, chosen_XS.sum(dim=1))


def groups(chosen_XS: Tensor, multiple: int) -> tuple[Tensor, Tensor, int]:
    """Where the rows of S choices go so that each expert's are contiguous, in the given order.

    Args:
        chosen_XS: 1 in the row of the chosen expert, else 0.
        multiple: the number of rows of each expert is rounded up to a multiple of it.

    Returns:
        The row of each choice (S,), the end of each expert's group (X,), and a number of rows that
        suffices for any choice, known without waiting for the device.
    """
    n_experts, n_choices = chosen_XS.shape
    counts_XS = chosen_XS.cumsum(dim=1)  # choices so far
    sizes_X = (counts_XS[:, -1] + multiple - 1) // multiple * multiple
    ends_X = sizes_X.cumsum(dim=0)
    slots_S = (chosen_XS * ((ends_X - sizes_X)[:, None] + counts_XS - 1)).sum(dim=0)
    return slots_S, ends_X.to(torch.int32), n_choices + n_experts * (multiple - 1)


def group_multiple(x_ND: Tensor, chosen_XS: Tensor) -> int:
    """The multiple to which an expert's number of rows is rounded up: an eighth of an even share.

    On a CPU, oneDNN compiles a bf16 product for each new number of rows, which takes about as long
    as the product and keeps up to a MB. Without rounding, `moe-160m` trained at 356 tokens/s
    instead of 470, and 8 steps took 1.1 GB more. Eighths leave few numbers, and on average one row
    in 16 is padding.
    """
    if x_ND.device.type != "cpu" or x_ND.dtype != torch.bfloat16:
        return 1
    n_experts, n_choices = chosen_XS.shape
    return max(1, n_choices // n_experts // 8)


def grouped_mm(rows: Tensor, weight: Tensor | nn.Module, ends_X: Tensor) -> Tensor:
    """rows[group x] @ weight[x].T for each expert x, whose group of rows ends at ends_X[x]."""
    if isinstance(weight, nn.Module):  # quantized experts compute it themselves
        return weight(rows, ends_X)
    product = getattr(F, "grouped_mm", None) or torch._grouped_mm  # not public everywhere
    return product(rows, weight.transpose(-2, -1), offs=ends_X)


def routing(probs_NX: Tensor, counts_X: Tensor) -> Routing:
    """Balance loss and load of one layer."""
    load_X = counts_X / counts_X.sum()
    return Routing(probs_NX.shape[1] * (load_X * probs_NX.mean(dim=0)).sum(), load_X)


def mean_routing(routings: list[Routing]) -> Routing:
    """The balance loss averaged over layers, the loads stacked to (layers, X)."""
    return Routing(
        torch.stack([r.balance_loss for r in routings]).mean(),
        torch.stack([r.load for r in routings]),
    )
