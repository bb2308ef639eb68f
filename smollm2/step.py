"""A decoding step of a dense model on a CPU, compiled whole: one loop over the layers in C++.

A step reads every weight once, so it can take no less than the memory does. What takes the rest
in eager code, or with a compiled layer that Python calls, is dispatch: 2 to 4 ms a token for 32
layers. Here the layers' weights lie in stacks, so that the layer is compiled once (unrolled, 32
layers take over a minute) and its loop needs no Python. Products are a row at a time, which the
compiler fuses with what is around them.

Shape suffixes as in `model`, without batch and positions; Y layers, L positions of the cache.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._higher_order_ops import while_loop
from torch.torch_version import TorchVersion

from smollm2.model import Embedding, SmolLM2, rotate

MATRICES = ("attn.qkv", "attn.out", "mlp.gate_up", "mlp.down")
# Step(x_D, place, rope, mask_L) -> logits (V,); `place` (1,) is the token's position.
Step = Callable[[Tensor, Tensor, tuple[Tensor, Tensor], Tensor], Tensor]
Product = Callable[..., Tensor]
OPTIONS: dict[str, Any] = {
    "cpp_wrapper": True,
    "cpp.enable_floating_point_contract_flag": "fast",  # fused multiply-add
    # A weight that is made of its code is never written to memory.
    "realize_acc_reads_threshold": 64,
    "realize_opcount_threshold": 1000,
}


class StepMatrix(Protocol):
    """A quantized matrix that a compiled step can compute with."""

    def step_operands(self) -> tuple[Tensor, ...]:
        """What `step_product` takes beside x; tensors of which the matrix's own may be views."""

    def step_product(self, x: Tensor, *operands: Tensor) -> Tensor:
        """x (n_in,) in fp32, in memory -> (n_out,) in fp32, in operations that fuse."""


def can_step(model: SmolLM2) -> bool:
    """Whether `compiled_step` takes the model: dense, on a CPU, of matrices that it knows; with a
    torch whose loops may write into a cache, which those before 2.13 were not tried for."""
    if (
        model.config.is_moe
        or model.device.type != "cpu"
        or TorchVersion(torch.__version__) < "2.13"
    ):
        return False
    matrices = [block.get_submodule(name) for block in model.blocks for name in MATRICES]
    matrices.append(getattr(model.head, "matrix", model.head))
    return all(
        isinstance(matrix, nn.Linear | Embedding) or hasattr(matrix, "step_operands")
        for matrix in matrices
    )


def compiled_step(model: SmolLM2, keys: Tensor, values: Tensor) -> Step:
    """The step, which is compiled at its first call and writes into `keys` and `values`
    (Y, 1, K, L, E).

    The weights of the model become views of the stacks, so that there is one copy of them.
    """
    config = model.config
    n_layers, _, n_kv_heads, L, head_dim = keys.shape
    n_heads = config.n_heads
    attn_norms, mlp_norms = (
        stack([block.get_parameter(f"{name}.weight") for block in model.blocks])
        for name in ("attn_norm", "mlp_norm")
    )
    products, stacks = zip(*(stacked(model, name) for name in MATRICES), strict=True)
    head_product, head_operands = product_of(getattr(model.head, "matrix", model.head))
    final_norm, eps = model.norm.weight.detach(), config.norm_eps
    first_rows = torch.arange(n_kv_heads) * L

    def norm(x_D: Tensor, weight_D: Tensor) -> Tensor:
        return F.rms_norm(x_D, x_D.shape, weight_D, eps)

    def step(x_D: Tensor, place: Tensor, rope: tuple[Tensor, Tensor], mask_L: Tensor) -> Tensor:
        dtype = x_D.dtype

        def layer(number: Tensor, x_D: Tensor) -> tuple[Tensor, Tensor]:
            y = cast(int, number.item())
            torch._check(y >= 0)
            torch._check(y < n_layers)

            def multiply(m: int, x: Tensor) -> Tensor:
                operands = (operand.select(0, y) for operand in stacks[m])
                return products[m](in_memory(x.float()), *operands).to(dtype)

            heads = multiply(0, norm(x_D, attn_norms.select(0, y))).view(-1, head_dim)
            qk, v_KE = heads.split([n_heads + n_kv_heads, n_kv_heads])
            q_HE, k_KE = in_memory(rotate(qk[None], *rope)[0]).split([n_heads, n_kv_heads])
            rows = first_rows + (number * (n_kv_heads * L) + place)
            keys.view(-1, head_dim).index_copy_(0, rows, k_KE)
            values.view(-1, head_dim).index_copy_(0, rows, v_KE)
            q_KG1E = q_HE.reshape(n_kv_heads, -1, 1, head_dim).float() * head_dim**-0.5
            k_K1LE, v_K1LE = (cache.select(0, y)[0][:, None].float() for cache in (keys, values))
            scores_KGL = (q_KG1E * k_K1LE).sum(-1) + mask_L.float()
            y_KGE = (scores_KGL.softmax(-1)[..., None] * v_K1LE).sum(-2)
            x_D = x_D + multiply(1, y_KGE.to(dtype).view(-1))
            gate, up = multiply(2, norm(x_D, mlp_norms.select(0, y))).chunk(2)
            return number + 1, x_D + multiply(3, F.silu(gate) * up)

        start = torch.zeros((), dtype=torch.int64)
        _, x_D = while_loop(lambda number, _: number < n_layers, layer, (start, x_D))
        return head_product(in_memory(norm(x_D, final_norm).float()), *head_operands).to(dtype)

    return cast(Step, torch.compile(step, dynamic=False, fullgraph=True, options=OPTIONS))


def stacked(model: SmolLM2, name: str) -> tuple[Product, list[Tensor]]:
    """How x is multiplied with the matrix `name` of a layer, and the operands of all layers."""
    found = [product_of(block.get_submodule(name)) for block in model.blocks]
    return found[0][0], [stack(layers) for layers in zip(*(o for _, o in found), strict=True)]


def product_of(matrix: nn.Module) -> tuple[Product, tuple[Tensor, ...]]:
    """How x (n_in,) is multiplied with a matrix, and what is taken beside it."""
    if hasattr(matrix, "step_operands"):
        quantized = cast(StepMatrix, matrix)
        return quantized.step_product, quantized.step_operands()
    return multiply_rows, (cast(Tensor, matrix.weight),)


def multiply_rows(x: Tensor, weight: Tensor) -> Tensor:
    """x (n_in,) in fp32 times the rows of weight (n_out, n_in)."""
    return (weight.float() * x).sum(-1)


def stack(tensors: Sequence[Tensor]) -> Tensor:
    """All in one tensor, of which each becomes a view: its former memory is given back."""
    together = torch.stack([tensor.detach() for tensor in tensors])
    for tensor, view in zip(tensors, together, strict=True):
        tensor.data = view
    return together


def in_memory(x: Tensor) -> Tensor:
    """x as it is, written down: the compiler would compute it anew for every row that reads it."""
    return x.as_strided(x.size(), x.stride())
