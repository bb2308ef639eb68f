"""A trained model -> codes and scales -> a model that computes with them.

Quantizing and loading from a file both end in `assemble`, so that they give the same model.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import cast

import torch
from torch import Tensor, nn

from smollm2.model.config import ModelConfig
from smollm2.model.cost import parameters
from smollm2.model.transformer import SmolLM2
from smollm2.quantize.matrix import (
    QuantizedEmbedding,
    QuantizedExperts,
    QuantizedMatrix,
    SideBySide,
    TableMatrix,
    UnsupportedShape,
)
from smollm2.quantize.quant_config import DEFAULT_GROUP_SIZE, QuantConfig
from smollm2.quantize.registry import embedding_format

TABLE_NAMES = ("embed", "lm_head")  # the second in a model with an untied head
# Of a matrix of queries, keys and values whose values are quantized apart, in order of the rows.
PARTS = ("qk", "v")


class NoLayerFits(UnsupportedShape):
    """A configuration that fits no layer of a model."""


@dataclass(frozen=True)
class QuantizedState:
    """A quantized model as it is saved.

    Args:
        quantized: the codes and scales of each matrix by its name (`blocks.0.attn.qkv`, `embed`,
            `blocks.0.mlp.gate_up.3` for an expert, or `blocks.0.attn.qkv.v` for one of `PARTS`).
        kept: the parameters that stay in bf16, by name.
        skipped: why a matrix is kept, by the parameter's name.
    """

    quantized: dict[str, dict[str, Tensor]]
    kept: dict[str, Tensor]
    skipped: dict[str, str]

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by its name in the file."""
        parts = {
            f"{name}.{part}": tensor
            for name, codes_and_scales in self.quantized.items()
            for part, tensor in codes_and_scales.items()
        }
        return parts | self.kept

    @property
    def summary(self) -> str:
        """`30 × blocks.N.attn.qkv.weight: ...`: what was skipped and why, with layers grouped."""
        kinds = Counter(
            (re.sub(r"\.\d+\.", ".N.", name), why) for name, why in self.skipped.items()
        )
        return "; ".join(f"{count} × {name}: {why}" for (name, why), count in kinds.items())


def quantize(
    model: SmolLM2, config: QuantConfig, moments: Mapping[str, Tensor] = MappingProxyType({})
) -> QuantizedState:
    """Codes and scales for the weights of the model, which are first rounded to bf16.

    Args:
        moments: of the inputs of each matrix, as `second_moments` gives them; for a method that is
            calibrated (`CALIBRATED`).

    Raises:
        NoLayerFits: the configuration fits no layer.
    """
    quantized: dict[str, dict[str, Tensor]] = {}
    kept: dict[str, Tensor] = {}
    skipped: dict[str, str] = {}
    for parameter_name, parameter in model.state_dict().items():
        weight = parameter.bfloat16()
        try:
            matrix_class, group_size = plan(parameter_name, weight, config)
            found = {}
            for name, matrix in named_matrices(parameter_name, weight):
                seen = moments.get(name)
                if (value_class := values_in(name, config)) is None:
                    found[name] = matrix_class.choose(matrix, group_size, config.method, seen)
                    continue
                n_values = model.config.n_kv_heads * model.config.head_dim
                rest, values = matrix.split([len(matrix) - n_values, n_values])
                rest_name, values_name = (f"{name}.{part}" for part in PARTS)
                found[rest_name] = matrix_class.choose(rest, group_size, config.method, seen)
                found[values_name] = value_class.choose(values, None, "rtn")
            quantized |= found
        except UnsupportedShape as error:
            kept[parameter_name] = weight
            if weight.ndim > 1:
                skipped[parameter_name] = str(error)
    state = QuantizedState(quantized, kept, skipped)
    if not quantized.keys() - set(TABLE_NAMES):
        raise NoLayerFits(f"No layer can be quantized: {state.summary}.")
    return state


def plan(
    name: str, weight: Tensor, config: QuantConfig
) -> tuple[type[QuantizedMatrix], int | None]:
    """The class that a parameter becomes, and its group size.

    Raises:
        UnsupportedShape: the parameter is not quantized.
    """
    if weight.ndim < 2:
        raise UnsupportedShape("not a matrix")
    if ".router." in name:
        raise UnsupportedShape("routers are kept: they are small and choose the experts")
    if name.removesuffix(".weight") not in TABLE_NAMES:
        return config.format.matrix_class, config.group_size
    if config.embedding_bits is None:
        raise UnsupportedShape("kept, as requested")
    format = embedding_format(config.embedding_bits)
    assert format is not None  # checked when the configuration was made
    if weight.device.type not in format.row_devices:
        raise UnsupportedShape(f"rows of {format.name} cannot be looked up on {weight.device.type}")
    if not format.needs_groups:
        return format.matrix_class, None
    return format.matrix_class, config.group_size or DEFAULT_GROUP_SIZE


def values_in(name: str, config: QuantConfig) -> type[QuantizedMatrix] | None:
    """The class of the value projections in the matrix `name`, if it has some that are quantized
    apart."""
    if config.value_bits is None or not name.endswith(".attn.qkv"):
        return None
    format = embedding_format(config.value_bits)
    assert format is not None  # checked when the configuration was made
    return format.matrix_class


def named_matrices(name: str, weight: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The matrices (n_out, n_in) of a parameter, named as in `QuantizedState.quantized`."""
    name = name.removesuffix(".weight")
    if weight.ndim == 2:
        yield name, weight
    else:
        for x, expert in enumerate(weight):
            yield f"{name}.{x}", expert


def assemble(
    model_config: ModelConfig, config: QuantConfig, state: QuantizedState, dtype: torch.dtype
) -> SmolLM2:
    """The model, in evaluation mode, computing in `dtype` on the device of `state`."""
    model = SmolLM2(model_config, seed=None).requires_grad_(False)
    model.load_state_dict(
        {name: tensor.to(dtype) for name, tensor in state.kept.items()}, strict=False, assign=True
    )
    experts: dict[str, list[QuantizedMatrix]] = {}
    parts: dict[str, dict[str, QuantizedMatrix]] = {}
    for name, tensors in state.quantized.items():
        if name in TABLE_NAMES:
            assert config.embedding_bits is not None
            format = embedding_format(config.embedding_bits)
            assert format is not None
            table = cast(TableMatrix, format.matrix_class(tensors, dtype))
            model.set_submodule(name, QuantizedEmbedding(table))
            continue
        parent, _, last = name.rpartition(".")
        is_values = last == PARTS[1]
        matrix_class = values_in(parent, config) if is_values else config.format.matrix_class
        assert matrix_class is not None
        matrix = matrix_class(tensors, dtype)
        if last.isdigit():
            experts.setdefault(parent, []).append(matrix)
        elif last in PARTS:
            parts.setdefault(parent, {})[last] = matrix
        else:
            model.set_submodule(name, matrix, strict=True)
    for name, by_part in parts.items():
        model.set_submodule(name, SideBySide([by_part[part] for part in PARTS]), strict=True)
    for name, matrices in experts.items():
        parent, _, last = name.rpartition(".")
        delattr(model.get_submodule(parent), last)  # the stack that was a parameter
        model.set_submodule(name, QuantizedExperts(matrices))
    return model.eval()


def quantized_share(model: SmolLM2) -> float:
    """Share of the parameters that are in quantized matrices, counted in the model itself."""
    quantized = sum(m.n_out * m.n_in for m in model.modules() if isinstance(m, QuantizedMatrix))
    return quantized / parameters(model.config).total


def memory_bytes(module: nn.Module) -> int:
    """Bytes of the weights in a model or a part of it, as they are held for computing."""
    if isinstance(module, QuantizedMatrix):
        return module.memory_bytes
    own = (*module.parameters(recurse=False), *module.buffers(recurse=False))
    return sum(tensor.nbytes for tensor in own) + sum(map(memory_bytes, module.children()))
