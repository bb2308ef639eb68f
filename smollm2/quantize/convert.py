"""A trained model -> plain codes and scales -> a model that computes with them.

Quantizing and loading from a file both end in `assemble`, so that they give the same model.
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from smollm2.config import ModelConfig
from smollm2.cost import parameters
from smollm2.model import SmolLM2
from smollm2.quantize.bitsandbytes import NF4, LLMInt8
from smollm2.quantize.config import QuantConfig
from smollm2.quantize.matrix import (
    QuantizedEmbedding,
    QuantizedExperts,
    QuantizedMatrix,
    TableMatrix,
    Unfit,
)
from smollm2.quantize.torchao import Int4, Int8

KINDS: dict[tuple[str, int], type[QuantizedMatrix]] = {
    ("torchao", 8): Int8,
    ("torchao", 4): Int4,
    ("bitsandbytes", 8): LLMInt8,
    ("bitsandbytes", 4): NF4,
}
TABLES: dict[int, type[TableMatrix]] = {8: Int8, 4: Int4}  # for the embedding and the head
TABLE_NAMES = ("embed", "lm_head")  # the second in a model with a head of its own
EMBEDDING_GROUP = 64  # at 4 bits, where the other matrices have no groups
NO_LAYER = "No layer can be quantized"


@dataclass(frozen=True)
class Plain:
    """A quantized model as it is saved.

    Args:
        quantized: the plain tensors of each matrix by its name (`blocks.0.attn.qkv`, `embed`, or
            `blocks.0.mlp.gate_up.3` for an expert).
        kept: parameters in bf16 that are not quantized, by name.
        skipped: why a matrix is among those, by the parameter's name.
    """

    quantized: dict[str, dict[str, Tensor]]
    kept: dict[str, Tensor]
    skipped: dict[str, str]

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by its name in a file."""
        parts = {
            f"{name}.{part}": tensor
            for name, plain in self.quantized.items()
            for part, tensor in plain.items()
        }
        return parts | self.kept

    @property
    def summary(self) -> str:
        """`30 × blocks.N.attn.qkv.weight: ...`: what was skipped and why, layers put together."""
        kinds = Counter(
            (re.sub(r"\.\d+\.", ".N.", name), why) for name, why in self.skipped.items()
        )
        return "; ".join(f"{count} × {name}: {why}" for (name, why), count in kinds.items())


def quantize(model: SmolLM2, config: QuantConfig) -> Plain:
    """Codes and scales for the weights of the model, rounded to bf16 first whatever its dtype.

    Raises:
        Unfit: there is no layer that the configuration fits.
    """
    quantized: dict[str, dict[str, Tensor]] = {}
    kept: dict[str, Tensor] = {}
    skipped: dict[str, str] = {}
    for parameter_name, parameter in model.state_dict().items():
        weight = parameter.bfloat16()
        try:
            kind, group_size = kind_of(parameter_name, weight, config)
            quantized |= {
                name: kind.choose(matrix, group_size, config.method)
                for name, matrix in named_matrices(parameter_name, weight)
            }
        except Unfit as error:
            kept[parameter_name] = weight
            if weight.ndim > 1:
                skipped[parameter_name] = str(error)
    plain = Plain(quantized, kept, skipped)
    if not quantized.keys() - set(TABLE_NAMES):
        raise Unfit(f"{NO_LAYER}: {plain.summary}.")
    return plain


def kind_of(
    name: str, weight: Tensor, config: QuantConfig
) -> tuple[type[QuantizedMatrix], int | None]:
    """What a parameter becomes, and its group size.

    Raises:
        Unfit: it stays as it is.
    """
    if weight.ndim < 2:
        raise Unfit("no matrix")
    if ".router." in name:
        raise Unfit("a router is small and decides")
    if name.removesuffix(".weight") not in TABLE_NAMES:
        return KINDS[config.backend, config.bits], config.group_size
    if config.embedding_bits is None:
        raise Unfit("left as it is, as was asked")
    if config.embedding_bits == 4 and weight.device.type == "cuda":
        raise Unfit("rows of 4 bits cannot be looked up as CUDA packs them")
    return TABLES[config.embedding_bits], config.group_size or EMBEDDING_GROUP


def named_matrices(name: str, weight: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The matrices (n_out, n_in) of a parameter, named as `Plain.quantized` does."""
    name = name.removesuffix(".weight")
    if weight.ndim == 2:
        yield name, weight
    else:
        for x, expert in enumerate(weight):
            yield f"{name}.{x}", expert


def assemble(
    model_config: ModelConfig, config: QuantConfig, plain: Plain, dtype: torch.dtype
) -> SmolLM2:
    """The model, in evaluation mode, computing in `dtype` on the device that `plain` is on."""
    model = SmolLM2(model_config, seed=None).requires_grad_(False)
    model.load_state_dict(
        {name: tensor.to(dtype) for name, tensor in plain.kept.items()}, strict=False, assign=True
    )
    experts: dict[str, list[QuantizedMatrix]] = {}
    for name, tensors in plain.quantized.items():
        if name in TABLE_NAMES:
            assert config.embedding_bits is not None
            table = TABLES[config.embedding_bits](tensors, dtype)
            model.set_submodule(name, QuantizedEmbedding(table))
            continue
        matrix = KINDS[config.backend, config.bits](tensors, dtype)
        parent, _, last = name.rpartition(".")
        if last.isdigit():
            experts.setdefault(parent, []).append(matrix)
        else:
            model.set_submodule(name, matrix, strict=True)
    for name, matrices in experts.items():
        parent, _, last = name.rpartition(".")
        delattr(model.get_submodule(parent), last)  # the stack that was a parameter
        model.set_submodule(name, QuantizedExperts(matrices))
    return model.eval()


def quantized_share(model: SmolLM2) -> float:
    """Share of the parameters that are in quantized matrices, as the model really stands."""
    quantized = sum(m.n_out * m.n_in for m in model.modules() if isinstance(m, QuantizedMatrix))
    return quantized / parameters(model.config).total


def memory_bytes(module: nn.Module) -> int:
    """Of the weights in a model or a part of it, as they are kept for computing."""
    if isinstance(module, QuantizedMatrix):
        return module.memory_bytes
    own = (*module.parameters(recurse=False), *module.buffers(recurse=False))
    return sum(tensor.nbytes for tensor in own) + sum(map(memory_bytes, module.children()))
