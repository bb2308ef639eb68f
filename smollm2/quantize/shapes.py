"""The shapes of weight matrices, and what 4-bit kernels require of them.

A matrix maps K inputs to N outputs. At 4 bits a group of weights along K shares a scale, so a group
size must divide K, or each row is padded. Kernels also require multiples of their tiles in K and N.
"""

import math
from dataclasses import dataclass

GROUP_SIZES = (32, 64, 128, 256)
# Multiples of 16 bytes, 8 numbers in bf16 and 16 in int8, keep tensor cores busy; multiples of 128
# bytes, 64 numbers in bf16, are best on an A100 (NVIDIA, "Matrix Multiplication Background User's
# Guide").
ALIGNMENTS = (64, 16, 8)
CODE_BITS = 4
GROUP_BITS = 16 + 16  # a scale and a zero point in bf16, as int4 stores them


@dataclass(frozen=True)
class Weight:
    """A kind of matrix: `count` of them, each mapping `n_in` numbers to `n_out`."""

    name: str
    n_out: int
    n_in: int
    count: int

    @property
    def parameters(self) -> int:
        return self.n_out * self.n_in * self.count

    def dividing_groups(self, sizes: tuple[int, ...] = GROUP_SIZES) -> tuple[int, ...]:
        """The `sizes` that divide the input width; kernels skip or refuse a weight otherwise."""
        return tuple(size for size in sizes if self.n_in % size == 0)

    def padding(self, k_multiple: int, n_multiple: int = 1) -> float:
        """Weights added by padding to the next multiples, as a share of the weights."""
        padded = next_multiple(self.n_in, k_multiple) * next_multiple(self.n_out, n_multiple)
        return padded / (self.n_in * self.n_out) - 1

    def bits(self, group_size: int) -> float:
        """Bits per weight at 4 bits, with a scale and a zero point per group and rows padded to
        whole groups."""
        return (CODE_BITS + GROUP_BITS / group_size) * (1 + self.padding(group_size))

    @property
    def alignment(self) -> int:
        """The largest of 64, 16 and 8 that divides both widths; 1 if none does."""
        both = math.gcd(self.n_in, self.n_out)
        return next((size for size in ALIGNMENTS if both % size == 0), 1)


@dataclass(frozen=True)
class Kernel:
    """A 4-bit matrix product and what it requires of a matrix.

    Args:
        group_sizes: the sizes it supports; one of them must divide K.
        k_multiple, n_multiple: the size of its tiles.
        pads: whether it pads a matrix to its tiles, which costs bytes and time; otherwise it does
            not take the matrix.
    """

    name: str
    group_sizes: tuple[int, ...]
    k_multiple: int = 1
    n_multiple: int = 1
    pads: bool = False

    def groups(self, weight: Weight) -> tuple[int, ...]:
        """Group sizes with which it takes the matrix unpadded."""
        if weight.n_out % self.n_multiple or weight.n_in % self.k_multiple:
            return ()
        return weight.dividing_groups(self.group_sizes)


def next_multiple(n: int, multiple: int) -> int:
    """The smallest multiple that is at least `n`."""
    return -(-n // multiple) * multiple
