"""A decoding step of a dense model on a CPU, compiled whole: one loop over the layers in C++.

A step reads every weight once, so memory bandwidth bounds its time. In eager code, or with a
compiled layer that Python calls, dispatch takes the rest: 2 to 4 ms per token for 32 layers. Here
the weights of all layers lie in stacks, so that one layer is compiled (32 unrolled layers take over
a minute) and the loop needs no Python. Products are computed row by row, which the compiler fuses
with the operations around them.

The code is kept (`kept_code.py`): it depends on shapes, but not on the length of the cache.

Shape suffixes as in `model`, without batch and positions; Y layers, L positions of the cache, S of
them attended to.
"""

import dataclasses
import hashlib
import json
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._higher_order_ops import while_loop
from torch.torch_version import TorchVersion

from smollm2.device import device_name
from smollm2.inference.kept_code import DIGITS, keep_code, kept_code, source_digest
from smollm2.model.config import ModelConfig
from smollm2.model.transformer import Embedding, SmolLM2, rotate

MATRICES = ("attn.qkv", "attn.out", "mlp.gate_up", "mlp.down")
# Step(x_D, place, rope, mask_S) -> logits (V,); `place` (1,) is the token's position.
Step = Callable[[Tensor, Tensor, tuple[Tensor, Tensor], Tensor], Tensor]
Product = Callable[..., Tensor]
MOST = 2**31  # positions that code is compiled for
OPTIONS: dict[str, Any] = {
    "cpp.enable_floating_point_contract_flag": "fast",  # fused multiply-add
    # A dequantized weight is never written to memory.
    "realize_acc_reads_threshold": 64,
    "realize_opcount_threshold": 1000,
}
Weights = dict[str, list[Tensor]]  # operands by the name of their matrix or norm


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


class Code(Protocol):
    """A compiled step, which takes its tensors in one list."""

    def boxed_run(self, inputs: list[Tensor]) -> list[Tensor]: ...


def has_kept_step(model: SmolLM2) -> bool:
    """Whether an earlier process kept code for the model."""
    return can_step(model) and kept_code(step_key(model)) is not None


def kept_step(model: SmolLM2) -> Code | None:
    """Code for the model that an earlier process compiled and kept; None if there is none."""
    if not can_step(model) or (path := kept_code(step_key(model))) is None:
        return None
    try:
        return loaded(path)
    except RuntimeError:  # for instance compiled beside other system libraries
        return None


def compiled_step(model: SmolLM2, keys: Tensor, values: Tensor, code: Code | None = None) -> Step:
    """The step, for the current number of threads. It writes into `keys` and `values`
    (Y, 1, K, L, E) and reads as many positions as its mask has, less than L: torch compiles for
    either less or all.

    The weights of the model become views of stacks, so that there is one copy of them. Weights of 4
    bits are copied, because the step reads them in another order.

    Args:
        code: from `kept_step`; None compiles it (seconds) and keeps it for later processes.

    Raises:
        RuntimeError: it cannot be compiled, for instance without a C++ compiler.
    """
    products, weights = products_of(model)
    if code is None:
        layers = Layers(model.config, products)
        with tempfile.TemporaryDirectory() as folder:
            made = compiled(layers, (keys, values, weights), Path(folder))
            code = loaded(made)
            keep_code(step_key(model), made)
    tensors = [keys, values, *(tensor for stacks in weights.values() for tensor in stacks)]

    def step(x_D: Tensor, place: Tensor, rope: tuple[Tensor, Tensor], mask_S: Tensor) -> Tensor:
        (logits,) = code.boxed_run([x_D, place, *rope, mask_S, *tensors])
        return logits

    return step


def step_key(model: SmolLM2) -> str:
    """A digest of everything that the code of a step depends on."""
    matrices = [model.blocks[0].get_submodule(name) for name in MATRICES]
    matrices.append(getattr(model.head, "matrix", model.head))
    facts = {
        "source": source_digest(),
        "torch": (torch.__version__, torch.version.git_version),
        "cpu": (device_name("cpu"), sorted(torch.cpu.get_capabilities().items())),
        "threads": torch.get_num_threads(),
        "model": (dataclasses.asdict(model.config), str(model.dtype)),
        "matrices": [
            (
                f"{type(matrix).__module__}.{type(matrix).__qualname__}",
                [(name, str(t.dtype), tuple(t.shape)) for name, t in matrix.state_dict().items()],
            )
            for matrix in matrices
        ],
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:DIGITS]


def compiled(step: nn.Module, tensors: tuple[Tensor, Tensor, Weights], folder: Path) -> Path:
    """A file in `folder` with the code of `step`, for caches of any length."""
    from torch._inductor import aoti_compile_and_package

    keys, _, weights = tensors
    rope = (keys.new_zeros(1, keys.shape[-1]), keys.new_zeros(1, keys.shape[-1]))
    x_D, place = torch.zeros_like(weights["norm"][0]), torch.zeros(1, dtype=torch.int64)
    mask_S = keys.new_zeros(keys.shape[-2] // 2)
    L, S = torch.export.Dim("L", min=3, max=MOST), torch.export.Dim("S", min=2, max=MOST - 1)
    static = {name: [None] * len(operands) for name, operands in weights.items()}
    shapes = (None, None, (None, None), {0: S}, {3: L}, {3: L}, static)
    options = OPTIONS | {"cpp.threads": torch.get_num_threads()}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, of its deprecated parts
        program = torch.export.export(
            step, (x_D, place, rope, mask_S, *tensors), dynamic_shapes=shapes, strict=False
        )
        made = aoti_compile_and_package(
            program, package_path=str(folder / "step.pt2"), inductor_configs=options
        )
    return Path(made)


def loaded(path: Path) -> Code:
    """The code in a file. `aoti_load_package` does the same, but first imports the compiler."""
    return cast(Code, torch._C._aoti.AOTIModelPackageLoader(str(path), "model", True, 1, -1))


class Layers(nn.Module):
    """What `compiled_step` compiles. The weights are arguments, so that its code serves all models
    of the same shapes."""

    def __init__(self, config: ModelConfig, products: dict[str, Product]) -> None:
        super().__init__()
        self.config, self.products = config, products

    def forward(
        self,
        x_D: Tensor,
        place: Tensor,
        rope: tuple[Tensor, Tensor],
        mask_S: Tensor,
        keys: Tensor,
        values: Tensor,
        weights: Weights,
    ) -> Tensor:
        step = EagerStep(self.config, self.products, keys, values, weights)
        return step(x_D, place, rope, mask_S)


class EagerStep:
    """A step of given tensors."""

    def __init__(
        self,
        config: ModelConfig,
        products: dict[str, Product],
        keys: Tensor,
        values: Tensor,
        weights: Weights,
    ) -> None:
        self.n_heads, self.eps = config.n_heads, config.norm_eps
        self.products, self.weights = products, weights
        self.keys, self.values = keys, values

    def __call__(
        self, x_D: Tensor, place: Tensor, rope: tuple[Tensor, Tensor], mask_S: Tensor
    ) -> Tensor:
        n_layers = len(self.keys)

        def layer(number: Tensor, x_D: Tensor) -> tuple[Tensor, Tensor]:
            y = cast(int, number.item())
            torch._check(y >= 0)
            torch._check(y < n_layers)
            qkv = self.multiply("attn.qkv", y, self.norm("attn_norm", y, x_D))
            x_D = x_D + self.multiply("attn.out", y, self.attend(y, qkv, place, rope, mask_S))
            h_D = self.norm("mlp_norm", y, x_D)
            gate, up = self.multiply("mlp.gate_up", y, h_D).chunk(2)
            return number + 1, x_D + self.multiply("mlp.down", y, F.silu(gate) * up)

        start = torch.zeros((), dtype=torch.int64)
        _, x_D = while_loop(lambda number, _: number < n_layers, layer, (start, x_D))
        h_D = F.rms_norm(x_D, x_D.shape, self.weights["norm"][0], self.eps)
        logits = self.products["head"](materialize(h_D.float()), *self.weights["head"])
        return logits.to(x_D.dtype)

    def norm(self, name: str, y: int, x_D: Tensor) -> Tensor:
        return F.rms_norm(x_D, x_D.shape, self.weights[name][0].select(0, y), self.eps)

    def multiply(self, name: str, y: int, x: Tensor) -> Tensor:
        """x (n_in,) times the matrix `name` of layer y."""
        operands = (operand.select(0, y) for operand in self.weights[name])
        return self.products[name](materialize(x.float()), *operands).to(x.dtype)

    def attend(
        self, y: int, qkv: Tensor, place: Tensor, rope: tuple[Tensor, Tensor], mask_S: Tensor
    ) -> Tensor:
        """What the heads of layer y read from the cache (D,), after writing this token to it."""
        _, _, n_kv_heads, L, head_dim = self.keys.shape
        qk, v_KE = qkv.view(-1, head_dim).split([self.n_heads + n_kv_heads, n_kv_heads])
        q_HE, k_KE = materialize(rotate(qk[None], *rope)[0]).split([self.n_heads, n_kv_heads])
        rows = (y * n_kv_heads + torch.arange(n_kv_heads)) * L + place
        self.keys.view(-1, head_dim).index_copy_(0, rows, k_KE)
        self.values.view(-1, head_dim).index_copy_(0, rows, v_KE)
        q_KG1E = q_HE.reshape(n_kv_heads, -1, 1, head_dim).float() * head_dim**-0.5
        S = len(mask_S)
        k_K1SE = self.keys.select(0, y)[0].narrow(1, 0, S)[:, None].float()
        v_K1SE = self.values.select(0, y)[0].narrow(1, 0, S)[:, None].float()
        scores_KGS = (q_KG1E * k_K1SE).sum(-1) + mask_S.float()
        y_KGE = (scores_KGS.softmax(-1)[..., None] * v_K1SE).sum(-2)
        return y_KGE.to(qkv.dtype).view(-1)


def products_of(model: SmolLM2) -> tuple[dict[str, Product], Weights]:
    """The products of a step and their operands, those of layers stacked; norms have no product."""
    products: dict[str, Product] = {}
    weights: Weights = {"norm": [model.norm.weight.detach()]}
    for name in ("attn_norm", "mlp_norm"):
        norms = [block.get_parameter(f"{name}.weight") for block in model.blocks]
        weights[name] = [stack(norms)]
    for name in MATRICES:
        products[name], weights[name] = stacked(model, name)
    products["head"], operands = product_of(getattr(model.head, "matrix", model.head))
    weights["head"] = list(operands)
    return products, weights


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
