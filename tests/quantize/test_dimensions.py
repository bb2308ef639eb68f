"""The dimension check against numbers worked out by hand."""

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smollm2.model.config import VARIANTS
from smollm2.model.cost import parameters
from smollm2.quantize.backends.bitsandbytes import BLOCK_SIZES
from smollm2.quantize.backends.torchao import TILE_PACKED
from smollm2.quantize.dimensions import (
    GROUP_SIZES,
    Weight,
    aligned_share,
    bits_per_weight,
    dimension_rows,
    divisible_share,
    kernels,
    next_multiple,
    padded_bits_per_weight,
    padding_share,
    taken_share,
    weights,
)

ORIG, POW2, MOE = (VARIANTS[name] for name in ("orig", "pow2", "moe-160m"))
CPU, CUDA, MARLIN, NF4 = kernels()


def kind(config, name: str) -> Weight:
    return next(weight for weight in weights(config) if weight.name == name)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", VARIANTS)
def test_the_kinds_are_all_the_matrices(name, tied):
    config = dataclasses.replace(VARIANTS[name], tie_embeddings=tied)
    norms = (2 * config.n_layers + 1) * config.d_model
    assert sum(w.parameters for w in weights(config)) + norms == parameters(config).total


def test_576_is_nine_times_64():
    """Of orig only `down`, 1536 wide, has groups of 128."""
    query, down = kind(ORIG, "query, output"), kind(ORIG, "down")
    assert query.dividing_groups() == (32, 64)
    assert down.dividing_groups() == GROUP_SIZES
    assert query.dividing_groups(BLOCK_SIZES) == (32, 64)
    assert down.dividing_groups(BLOCK_SIZES) == (32, 64, 128, 256, 512)
    share = 30 * 1536 * 576 / (30 * (2 * 576 * 576 + 2 * 192 * 576 + 3 * 1536 * 576) + 49152 * 576)
    assert divisible_share(ORIG, 128) == pytest.approx(share)
    assert divisible_share(ORIG, 64) == 1
    assert [divisible_share(POW2, size) for size in GROUP_SIZES] == [1] * 4


def test_padding_and_its_bits():
    query = kind(ORIG, "query, output")
    assert query.padding(64) == 0
    assert query.padding(128) == pytest.approx(640 / 576 - 1)
    assert query.padding(256) == pytest.approx(768 / 576 - 1)
    assert query.bits(64) == 4.5
    # Padded to groups of 128 a row of 576 takes more than in groups of 64: nothing is gained.
    assert query.padded_bits(128) == pytest.approx(640 * 4.25 / 576)
    assert query.padded_bits(128) > query.padded_bits(64) == 4.5
    for bits in (bits_per_weight, padded_bits_per_weight):
        assert [bits(POW2, size) for size in GROUP_SIZES] == [5, 4.5, 4.25, 4.125]
    assert 4.5 < padded_bits_per_weight(ORIG, 128) < padded_bits_per_weight(ORIG, 256)


def test_a_shorter_last_group_costs_no_more_than_a_scale_and_a_zero_point():
    query = kind(ORIG, "query, output")
    assert query.bits(128) == 4 + 5 * 32 / 576  # four of 128, and one of 64
    assert query.bits(256) == 4 + 3 * 32 / 576
    assert {Weight("narrow", 8, 48, 1).bits(size) for size in (64, 256)} == {4 + 32 / 48}
    four = [bits_per_weight(ORIG, size) for size in GROUP_SIZES]
    assert four == sorted(four, reverse=True)
    assert four[:2] == [5, 4.5]


def test_tiles_of_1024_pad_512_more_than_576():
    assert TILE_PACKED is CUDA
    query = kind(POW2, "query, output")
    assert query.padding(1024, 8) == 1
    assert kind(ORIG, "query, output").padding(1024, 8) == pytest.approx(1024 / 576 - 1)
    assert kind(POW2, "down").padding(1024, 8) == 0
    assert Weight("odd", 10, 1000, 1).padding(1024, 8) == pytest.approx(1024 * 16 / 10_000 - 1)
    assert padding_share(POW2, 1024, 8) > padding_share(ORIG, 1024, 8)


def test_kernels_take_what_divides_their_tiles():
    query, down = kind(ORIG, "query, output"), kind(ORIG, "down")
    assert CPU.groups(query) == (32, 64)
    assert CPU.groups(kind(POW2, "down")) == GROUP_SIZES
    assert NF4.groups(kind(MOE, "router")) == ()  # 8 outputs
    assert MARLIN.groups(query) == ()
    assert MARLIN.groups(down) == (128,)
    assert MARLIN.groups(Weight("narrow", 96, 512, 1)) == ()
    assert CUDA.groups(query) == ()
    assert CUDA.groups(kind(POW2, "down")) == GROUP_SIZES
    assert NF4.groups(Weight("odd", 8, 500, 1)) == ()
    assert taken_share(POW2, MARLIN) == taken_share(POW2, CPU) == taken_share(ORIG, CPU) == 1
    assert taken_share(ORIG, MARLIN) == divisible_share(ORIG, 128)
    router = kind(MOE, "router").parameters / sum(w.parameters for w in weights(MOE))
    assert taken_share(MOE, NF4) == pytest.approx(1 - router)


def test_alignment_is_of_both_widths():
    assert kind(ORIG, "key, value").alignment == 64  # 192 to 576
    assert kind(MOE, "router").alignment == 8
    assert Weight("odd", 48, 64, 1).alignment == 16
    assert Weight("odd", 9, 64, 1).alignment == 1
    assert aligned_share(ORIG, 64) == aligned_share(POW2, 64) == 1
    assert aligned_share(MOE, 64) == aligned_share(MOE, 16) < aligned_share(MOE, 8) == 1


@given(
    st.integers(1, 5000),
    st.integers(1, 5000),
    st.sampled_from(GROUP_SIZES),
    st.sampled_from((1, 8, 16)),
)
def test_padding_reaches_the_next_multiple_and_no_further(n_in, n_out, k, n):
    weight = Weight("any", n_out, n_in, 1)
    padded = round(weight.parameters * (1 + weight.padding(k, n)))
    k_padded, n_padded = next_multiple(n_in, k), next_multiple(n_out, n)
    assert padded == k_padded * n_padded
    assert k_padded % k == n_padded % n == 0
    assert k_padded - n_in < k
    assert n_padded - n_out < n
    assert (weight.padding(k) == 0) == (k in weight.dividing_groups())
    assert weight.padded_bits(k) >= weight.bits(k) >= 4 + 32 / k
    assert (weight.padded_bits(k) == weight.bits(k)) == (k in weight.dividing_groups())


@pytest.mark.parametrize("name", VARIANTS)
def test_rows_are_json_and_say_the_same(name):
    rows = json.loads(json.dumps(dimension_rows(VARIANTS[name])))
    for row, weight in zip(rows, weights(VARIANTS[name]), strict=True):
        assert row["parameters"] == row["count"] * row["n_out"] * row["n_in"]
        assert [size for size in GROUP_SIZES if row["padding"][str(size)] == 0] == row["groups"]
        assert row["kernels"] == {k.name: list(k.groups(weight)) for k in kernels()}
        assert row["bits"]["64"] == weight.bits(64)
        assert row["memory_bits"]["128"] == weight.memory_bits(128)
        assert row["padded_bits"]["128"] == weight.padded_bits(128)
