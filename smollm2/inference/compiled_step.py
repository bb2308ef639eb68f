"""A decoding step of a dense model on a CPU, compiled whole: one loop over the layers in C++.

A step reads every weight once, so memory bandwidth bounds its time. In eager code, or with a
compiled layer that Python calls, dispatch takes the rest: 2 to 4 ms per token for 32 layers. Here
the weights of all layers lie in stacks, so that one layer is compiled (32 unrolled layers take over
a minute) and the loop needs no Python. Products are computed row by row, which the compiler fuses
with the operations around them.

Shape suffixes as in `model`, without batch and positions; Y layers, L positions of the cache.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._higher_order_ops import while_loop
from torch.torch_version import TorchVersion

from smollm2.model.transformer import Embedding, SmolLM2, rotate

MATRICES = ("attn.qkv", "attn.out", "mlp.gate_up", "mlp.down")
# Step(x_D, place, rope, mask_L) -> logits (V,); `place` (1,) is the token's position.
Step = Callable[[Tensor, Tensor, tuple[Tensor, Tensor], Tensor], Tensor]
Product = Callable[..., Tensor]
OPTIONS: dict[str, Any] = {
    "cpp_wrapper": True,
    "cpp.enable_floating_point_contract_flag": "fast",  # fused multiply-add
    # A dequantized weight is never written to memory.
    "realize_acc_reads_threshold": 64,
    "realize_opcount_threshold": 1000,
}


class StepMatrix(Protocol):
    """A quantized matrix that a compiled step can compute with."""

    def step_operands(self) -> tuple[Tensor, ...]:
        """What `step_product` takes besides x; the matrix's tensors may become views of them."""

    def step_product(self, x: Tensor, *operands: Tensor) -> Tensor:
        """x (n_in,) in fp32, materialized -> (n_out,) in fp32, with operations that fuse."""


def can_step(model: SmolLM2) -> bool:
    """Whether `compiled_step` supports the model: dense, on a CPU, with matrices that it knows, and
    torch 2.13 or later. Loops that write into a cache were not tested with earlier versions."""
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
    """The step. It is compiled at its first call, for the current number of threads, and writes
    into `keys` and `values` (Y, 1, K, L, E).

    The weights of the model become views of the stacks, so that there is one copy of them. Weights
    of 4 bits are copied, because the step reads them in another order.
    """
    eager = EagerStep(model, keys, values)

    def step(x_D: Tensor, place: Tensor, rope: tuple[Tensor, Tensor], mask_L: Tensor) -> Tensor:
        return eager(x_D, place, rope, mask_L)

    # Shapes and weights never change, so there are no guards: they take 0.1 ms of a token's 5.
    # `torch.compile` caches by code object, so each step gets its own copy.
    step.__code__ = step.__code__.replace()
    options = OPTIONS | {
        "guard_filter_fn": torch.compiler.skip_all_guards_unsafe,
        "cpp.threads": torch.get_num_threads(),
    }
    return cast(Step, torch.compile(step, dynamic=False, fullgraph=True, options=options))


class EagerStep:
    """What `compiled_step` compiles."""

    def __init__(self, model: SmolLM2, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values = keys, values
        self.n_heads, self.eps = model.config.n_heads, model.config.norm_eps
        self.attn_norms, self.mlp_norms = (
            stack([block.get_parameter(f"{name}.weight") for block in model.blocks])
            for name in ("attn_norm", "mlp_norm")
        )
        self.matrices = {name: stacked(model, name) for name in MATRICES}
        self.final_norm = model.norm.weight.detach()
        self.head, self.head_operands = product_of(getattr(model.head, "matrix", model.head))

    def __call__(
        self, x_D: Tensor, place: Tensor, rope: tuple[Tensor, Tensor], mask_L: Tensor
    ) -> Tensor:
        n_layers = len(self.keys)

        def layer(number: Tensor, x_D: Tensor) -> tuple[Tensor, Tensor]:
            y = cast(int, number.item())
            torch._check(y >= 0)
            torch._check(y < n_layers)
            qkv = self.multiply("attn.qkv", y, self.norm(x_D, self.attn_norms.select(0, y)))
            x_D = x_D + self.multiply("attn.out", y, self.attend(y, qkv, place, rope, mask_L))
            h_D = self.norm(x_D, self.mlp_norms.select(0, y))
            gate, up = self.multiply("mlp.gate_up", y, h_D).chunk(2)
            return number + 1, x_D + self.multiply("mlp.down", y, F.silu(gate) * up)

        start = torch.zeros((), dtype=torch.int64)
        _, x_D = while_loop(lambda number, _: number < n_layers, layer, (start, x_D))
        h_D = materialize(self.norm(x_D, self.final_norm).float())
        return self.head(h_D, *self.head_operands).to(x_D.dtype)

    def norm(self, x_D: Tensor, weight_D: Tensor) -> Tensor:
        return F.rms_norm(x_D, x_D.shape, weight_D, self.eps)

    def multiply(self, name: str, y: int, x: Tensor) -> Tensor:
        """x (n_in,) times the matrix `name` of layer y."""
        product, stacks = self.matrices[name]
        operands = (operand.select(0, y) for operand in stacks)
        return product(materialize(x.float()), *operands).to(x.dtype)

    def attend(
        self, y: int, qkv: Tensor, place: Tensor, rope: tuple[Tensor, Tensor], mask_L: Tensor
    ) -> Tensor:
        """What the heads of layer y read from the cache (D,), after writing this token to it."""
        _, _, n_kv_heads, L, head_dim = self.keys.shape
        qk, v_KE = qkv.view(-1, head_dim).split([self.n_heads + n_kv_heads, n_kv_heads])
        q_HE, k_KE = materialize(rotate(qk[None], *rope)[0]).split([self.n_heads, n_kv_heads])
        rows = (y * n_kv_heads + torch.arange(n_kv_heads)) * L + place
        self.keys.view(-1, head_dim).index_copy_(0, rows, k_KE)
        self.values.view(-1, head_dim).index_copy_(0, rows, v_KE)
        q_KG1E = q_HE.reshape(n_kv_heads, -1, 1, head_dim).float() * head_dim**-0.5
        k_K1LE = self.keys.select(0, y)[0][:, None].float()
        v_K1LE = self.values.select(0, y)[0][:, None].float()
        scores_KGL = (q_KG1E * k_K1LE).sum(-1) + mask_L.float()
        y_KGE = (scores_KGL.softmax(-1)[..., None] * v_K1LE).sum(-2)
        return y_KGE.to(qkv.dtype).view(-1)


def stacked(model: SmolLM2, name: str) -> tuple[Product, list[Tensor]]:
    """The product with the matrix `name` of a layer, and its operands, stacked over layers."""
    found = [product_of(block.get_submodule(name)) for block in model.blocks]
    return found[0][0], [stack(layers) for layers in zip(*(o for _, o in found), strict=True)]


def product_of(matrix: nn.Module) -> tuple[Product, tuple[Tensor, ...]]:
    """The product of x (n_in,) with a matrix, and its other operands."""
    if hasattr(matrix, "step_operands"):
        quantized = cast(StepMatrix, matrix)
        return quantized.step_product, quantized.step_operands()
    return multiply_rows, (cast(Tensor, matrix.weight),)


def multiply_rows(x: Tensor, weight: Tensor) -> Tensor:
    """x (n_in,) in fp32 times the rows of weight (n_out, n_in)."""
    return (weight.float() * x).sum(-1)


def stack(tensors: Sequence[Tensor]) -> Tensor:
    """One tensor of all; each becomes a view of it, and its former memory is freed."""
    together = torch.stack([tensor.detach() for tensor in tensors])
    for tensor, view in zip(tensors, together, strict=True):
        tensor.data = view
    return together


def materialize(x: Tensor) -> Tensor:
    """x, forced into memory: otherwise the compiler recomputes it for every row that reads it."""
    return x.as_strided(x.size(), x.stride())
