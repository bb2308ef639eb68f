"""A random permutation computed place by place, in memory that does not grow with its length."""

import math

import numpy as np

ROUNDS = 8  # of the network; four are indistinguishable from random in theory (Luby and Rackoff)


def permuted(places: np.ndarray, n: int, keys: np.ndarray) -> np.ndarray:
    """Where the permutation of range(n) that `keys` choose has each of `places`, `int64`.

    A balanced Feistel network on two digits in base ceil(sqrt(n)), repeated where it leaves
    range(n) (Black and Rogaway 2002, Ciphers with Arbitrary Finite Domains). Of its domain, less
    than 2 sqrt(n) + 1 numbers lie outside.

    Args:
        places: from 0 to n - 1, `[m]`.
        keys: `uint64 [ROUNDS]`.
    """
    base = np.uint64(math.isqrt(n - 1) + 1)
    values = _network(places.astype(np.uint64), base, keys)
    while (outside := values >= n).any():
        values[outside] = _network(values[outside], base, keys)
    return values.astype(np.int64)


def _network(values: np.ndarray, base: np.uint64, keys: np.ndarray) -> np.ndarray:
    left, right = np.divmod(values, base)
    for key in keys:
        left, right = right, (left + _mixed(right + key) % base) % base
    return left * base + right


def _mixed(values: np.ndarray) -> np.ndarray:
    """The finalizer of SplitMix64 (Steele, Lea and Flood 2014); products are modulo 2^64."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
