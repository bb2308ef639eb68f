"""Which groups and kernels fit the weights of an architecture; needs no trained run.

A matrix maps K inputs to N outputs. At 4 bits a group of weights along K shares a scale and a zero
point, so a group size has to divide K, or each row is padded; kernels ask for multiples of their
tiles in K and N besides.
"""

import math
from dataclasses import dataclass
from typing import Any

from smollm2.config import ModelConfig

GROUP_SIZES = (32, 64, 128, 256)
# Of bitsandbytes 0.50 (`quantize_4bit`). It cuts the flattened weight into blocks; its kernels for
# CPUs compute with a block as a part of a row, and its CUDA ones take a slower path otherwise.
BLOCK_SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)
# Multiples of 16 bytes, 8 numbers in bf16 and 16 in int8, keep tensor cores busy, and of 128 bytes,
# 64 numbers in bf16, best on an A100 (NVIDIA, "Matrix Multiplication Background User's Guide").
ALIGNMENTS = (64, 16, 8)
CODE_BITS = 4
GROUP_BITS = 16 + 16  # a scale and a zero point in bf16, as torchao keeps them at 4 bits


@dataclass(frozen=True)
class Weight:
    """A kind of matrix: `count` of them map `n_in` numbers to `n_out`."""

    name: str
    n_out: int
    n_in: int
    count: int

    @property
    def parameters(self) -> int:
        return self.n_out * self.n_in * self.count

    def dividing_groups(self) -> tuple[int, ...]:
        """Group sizes that divide the input width; kernels skip or refuse a weight otherwise."""
        return tuple(size for size in GROUP_SIZES if self.n_in % size == 0)

    def whole_blocks(self) -> tuple[int, ...]:
        """Block sizes of bitsandbytes of which none straddles two rows."""
        return tuple(size for size in BLOCK_SIZES if self.n_in % size == 0)

    def padding(self, k_multiple: int, n_multiple: int = 1) -> float:
        """Weights that padding to the next multiples adds, as a share of those there are."""
        padded = next_multiple(self.n_in, k_multiple) * next_multiple(self.n_out, n_multiple)
        return padded / (self.n_in * self.n_out) - 1

    def bits(self, group_size: int) -> float:
        """Bits that a weight takes at 4 bits with a scale and a zero point a group, its rows padded
        to whole groups."""
        return (CODE_BITS + GROUP_BITS / group_size) * (1 + self.padding(group_size))

    @property
    def alignment(self) -> int:
        """The largest of 64, 16 and 8 that divides both widths; 1 if none does."""
        both = math.gcd(self.n_in, self.n_out)
        return next((size for size in ALIGNMENTS if both % size == 0), 1)


@dataclass(frozen=True)
class Kernel:
    """A 4-bit matrix product, and what it asks of a matrix.

    Args:
        group_sizes: that it has; one of them has to divide K.
        k_multiple, n_multiple: of its tiles.
        pads: whether it pads a matrix to its tiles, which takes bytes and time; one that does not
            leaves the matrix to others.
    """

    name: str
    group_sizes: tuple[int, ...]
    k_multiple: int = 1
    n_multiple: int = 1
    pads: bool = False

    def groups(self, weight: Weight) -> tuple[int, ...]:
        """Group sizes with which it takes the matrix as it is, unpadded."""
        if weight.n_out % self.n_multiple or weight.n_in % self.k_multiple:
            return ()
        return tuple(size for size in self.group_sizes if weight.n_in % size == 0)


TILE_PACKED = Kernel("torchao int4, CUDA", GROUP_SIZES, k_multiple=1024, n_multiple=8, pads=True)
KERNELS = (
    # torch's `_weight_int4pack_mm_for_cpu`, which torchao calls; rows are padded to its blocks of
    # 32 or 64, which adds nothing to widths such as these.
    Kernel("torchao int4, CPU", GROUP_SIZES),
    # torchao 0.18, `Int4TilePackedTo4dTensor.from_hp`: pads K to 1024 and N to 8.
    TILE_PACKED,
    # Groups of 128 in Frantar et al. 2024 (MARLIN, arXiv:2408.11743); the smallest tiles are those
    # that vLLM asks for in its version of it.
    Kernel("Marlin", (128,), k_multiple=128, n_multiple=64),
    # bitsandbytes 0.50, `_convert_weight_packed_for_cpu`: 32 rows at a time.
    Kernel("bitsandbytes NF4, CPU", BLOCK_SIZES, n_multiple=32),
)


def next_multiple(n: int, multiple: int) -> int:
    """The smallest multiple that is at least `n`."""
    return -(-n // multiple) * multiple


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
    """Share of the matrices' parameters that `kernel` takes as they are, with one group or another.
    The router counts too, though one would not quantize it."""
    return mean_of(config, [float(bool(kernel.groups(w))) for w in weights(config)])


def aligned_share(config: ModelConfig, multiple: int) -> float:
    """Share of the matrices' parameters both of whose widths are multiples."""
    return mean_of(config, [float(w.alignment >= multiple) for w in weights(config)])


def padding_share(config: ModelConfig, k_multiple: int, n_multiple: int = 1) -> float:
    """What padding every matrix adds, as a share of the matrices' parameters; of the bytes too,
    since a padded row has codes and scales as any other."""
    return mean_of(config, [w.padding(k_multiple, n_multiple) for w in weights(config)])


def bits_per_weight(config: ModelConfig, group_size: int) -> float:
    """Mean over all matrices of `Weight.bits`."""
    return mean_of(config, [w.bits(group_size) for w in weights(config)])


def mean_of(config: ModelConfig, values: list[float]) -> float:
    """Mean of a number a kind of matrix over the parameters."""
    kinds = weights(config)
    whole = sum(w.parameters for w in kinds)
    pairs = zip(kinds, values, strict=True)
    return sum(w.parameters * value for w, value in pairs) / whole


def dimension_rows(config: ModelConfig) -> list[dict[str, Any]]:
    """The check of every kind of matrix, for a script.

    padding: by group size, and by `torchao int4, CUDA` to its tiles: weights added, as a share.
    bits: by group size, a weight's with what padding adds.
    kernels: by name, with which group sizes it takes the matrix as it is.
    """
    return [
        {
            "weight": weight.name,
            "count": weight.count,
            "n_out": weight.n_out,
            "n_in": weight.n_in,
            "parameters": weight.parameters,
            "groups": list(weight.dividing_groups()),
            "blocks": list(weight.whole_blocks()),
            "alignment": weight.alignment,
            "padding": {str(size): weight.padding(size) for size in GROUP_SIZES}
            | {TILE_PACKED.name: weight.padding(TILE_PACKED.k_multiple, TILE_PACKED.n_multiple)},
            "bits": {str(size): weight.bits(size) for size in GROUP_SIZES},
            "kernels": {kernel.name: list(kernel.groups(weight)) for kernel in KERNELS},
        }
        for weight in weights(config)
    ]
