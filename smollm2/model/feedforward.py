"""silu(gate) · up, whose backward pass recomputes the activation instead of keeping it."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def swiglu(gate_up: Tensor) -> Tensor:
    """The gated activation (..., F) of gate and up side by side (..., 2 F).

    Recomputing saves one number per token, layer and unit: 67 MB for pow2 at 512 tokens in bf16.
    """
    return SwiGLU.apply(gate_up)


class SwiGLU(torch.autograd.Function):
    """`swiglu` with its own backward pass."""

    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up)
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate) * up

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (gate_up,) = ctx.saved_tensors
        gate, up = gate_up.chunk(2, dim=-1)
        grad_gate = torch.ops.aten.silu_backward(grad * up, gate)
        return torch.cat([grad_gate, grad * F.silu(gate)], dim=-1)
