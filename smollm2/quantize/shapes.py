"""The shapes of weight matrices, and what 4-bit kernels require of them.

A matrix maps K inputs to N outputs. At 4 bits a group of weights along K shares a scale. A group
size must divide K, or the last group of each row is shorter, or each row is padded. Kernels also
require multiples of their tiles in K and N.
"""

import math
from dataclasses import dataclass

GROUP_SIZES = (32, 64, 128, 256)  # each twice the one before: see `group_size_of`
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
        """The `sizes` that divide the input width; many kernels skip or refuse a weight
        otherwise."""
        return tuple(size for size in sizes if self.n_in % size == 0)

    def padding(self, k_multiple: int, n_multiple: int = 1) -> float:
        """Weights added by padding to the next multiples, as a share of the weights."""
        padded = next_multiple(self.n_in, k_multiple) * next_multiple(self.n_out, n_multiple)
        return padded / (self.n_in * self.n_out) - 1

    def bits(self, group_size: int) -> float:
        """Bits per weight at 4 bits, with a scale and a zero point per group. The last group of a
        row may be shorter."""
        return CODE_BITS + GROUP_BITS * group_count(self.n_in, group_size) / self.n_in

    def memory_bits(self, group_size: int) -> float:
        """The same as it is held for a kernel of whole groups."""
        return self.padded_bits(held_group_size(self.n_in, group_size))

    def padded_bits(self, group_size: int) -> float:
        """The same with rows padded to whole groups."""
        return padded_row_bits(self.n_in, group_size) / self.n_in

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


def group_count(n_in: int, group_size: int) -> int:
    """The groups of a row, of which the last may be shorter."""
    return -(-n_in // group_size)


def group_size_of(n_in: int, n_groups: int) -> int:
    """The size of which a row has so many groups. Twice a size has fewer of them, so it is the only
    one; but a single group may have any size that covers the row, and this is the smallest.

    Raises:
        ValueError: no size of `GROUP_SIZES` has so many groups.
    """
    for size in GROUP_SIZES:
        if group_count(n_in, size) == n_groups:
            return size
    raise ValueError(f"{n_in} inputs have no {n_groups} groups of the same size.")


def held_group_size(n_in: int, group_size: int) -> int:
    """The size of groups in which a kernel of whole groups reads a row in the fewest bytes, at most
    `group_size`: smaller groups repeat a scale, larger ones pad the row more. It is 64 for 576
    inputs in groups of 128, and `group_size` where that divides the row."""
    sizes = [size for size in GROUP_SIZES if size <= group_size]
    return min(sizes, key=lambda size: padded_row_bits(n_in, size))


def padded_row_bits(n_in: int, group_size: int) -> float:
    """Bits of a row at 4 bits that is padded to whole groups, with their scales and zero points."""
    return next_multiple(n_in, group_size) * (CODE_BITS + GROUP_BITS / group_size)
