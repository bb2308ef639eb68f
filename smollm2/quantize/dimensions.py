"""Which group sizes and kernels fit the weights of an architecture; needs no trained run."""

from typing import Any

from smollm2.model.config import ModelConfig
from smollm2.quantize.backends.bitsandbytes import BLOCK_SIZES
from smollm2.quantize.registry import all_formats
from smollm2.quantize.shapes import ALIGNMENTS, GROUP_SIZES, Kernel, Weight, next_multiple

__all__ = [
    "ALIGNMENTS",
    "GROUP_SIZES",
    "Kernel",
    "Weight",
    "aligned_share",
    "bits_per_weight",
    "dimension_rows",
    "divisible_share",
    "kernels",
    "memory_bits_per_weight",
    "next_multiple",
    "padded_bits_per_weight",
    "padding_share",
    "taken_share",
    "weights",
]


def kernels() -> list[Kernel]:
    """The kernels of every format that is registered now."""
    return [kernel for format in all_formats() for kernel in format.kernels]


def weights(config: ModelConfig) -> list[Weight]:
    """Every kind of matrix of the model, as published (unfused)."""
    kv_width, layers = config.n_kv_heads * config.head_dim, config.n_layers
    experts = layers * config.n_experts
    kinds = [
        Weight("query, output", config.d_model, config.d_model, 2 * layers),
        Weight("key, value", kv_width, config.d_model, 2 * layers),
        Weight("gate, up", config.d_ff, config.d_model, 2 * experts),
        Weight("down", config.d_model, config.d_ff, experts),
    ]
    if config.is_moe:
        kinds.append(Weight("router", config.n_experts, config.d_model, layers))
    n_copies = 1 if config.tie_embeddings else 2
    return [*kinds, Weight("embedding, head", config.vocab_size, config.d_model, n_copies)]


def divisible_share(config: ModelConfig, group_size: int) -> float:
    """Share of the matrices' parameters whose input width `group_size` divides."""
    return mean_of(config, [float(w.n_in % group_size == 0) for w in weights(config)])


def taken_share(config: ModelConfig, kernel: Kernel) -> float:
    """Share of the matrices' parameters that `kernel` takes unpadded with some group size. Routers
    count too, although they are never quantized."""
    return mean_of(config, [float(bool(kernel.groups(w))) for w in weights(config)])


def aligned_share(config: ModelConfig, multiple: int) -> float:
    """Share of the matrices' parameters with both widths multiples of `multiple`."""
    return mean_of(config, [float(w.alignment >= multiple) for w in weights(config)])


def padding_share(config: ModelConfig, k_multiple: int, n_multiple: int = 1) -> float:
    """What padding every matrix adds, as a share of the matrices' parameters. It is the share of
    their bytes too, since a padded row has codes and scales like any other."""
    return mean_of(config, [w.padding(k_multiple, n_multiple) for w in weights(config)])


def bits_per_weight(config: ModelConfig, group_size: int) -> float:
    """Mean over all matrices of `Weight.bits`."""
    return mean_of(config, [w.bits(group_size) for w in weights(config)])


def memory_bits_per_weight(config: ModelConfig, group_size: int) -> float:
    """Mean over all matrices of `Weight.memory_bits`."""
    return mean_of(config, [w.memory_bits(group_size) for w in weights(config)])


def padded_bits_per_weight(config: ModelConfig, group_size: int) -> float:
    """Mean over all matrices of `Weight.padded_bits`."""
    return mean_of(config, [w.padded_bits(group_size) for w in weights(config)])


def mean_of(config: ModelConfig, values: list[float]) -> float:
    """Mean over all parameters of a value per kind of matrix."""
    kinds = weights(config)
    whole = sum(w.parameters for w in kinds)
    pairs = zip(kinds, values, strict=True)
    return sum(w.parameters * value for w, value in pairs) / whole


def dimension_rows(config: ModelConfig) -> list[dict[str, Any]]:
    """The check of every kind of matrix, for a script.

    padding: the weights added, as a share, by group size and by each kernel that pads to tiles.
    bits: bits per weight on disk by group size, where the last group of a row may be shorter.
    memory_bits: the same as int4 is held for kernels of whole groups.
    padded_bits: the same with rows padded to whole groups.
    kernels: the group sizes with which a kernel takes the matrix unpadded, by its name.
    """
    return [
        {
            "weight": weight.name,
            "count": weight.count,
            "n_out": weight.n_out,
            "n_in": weight.n_in,
            "parameters": weight.parameters,
            "groups": list(weight.dividing_groups()),
            "blocks": list(weight.dividing_groups(BLOCK_SIZES)),
            "alignment": weight.alignment,
            "padding": {str(size): weight.padding(size) for size in GROUP_SIZES}
            | {k.name: weight.padding(k.k_multiple, k.n_multiple) for k in kernels() if k.pads},
            "bits": {str(size): weight.bits(size) for size in GROUP_SIZES},
            "memory_bits": {str(size): weight.memory_bits(size) for size in GROUP_SIZES},
            "padded_bits": {str(size): weight.padded_bits(size) for size in GROUP_SIZES},
            "kernels": {kernel.name: list(kernel.groups(weight)) for kernel in kernels()},
        }
        for weight in weights(config)
    ]
