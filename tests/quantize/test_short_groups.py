"""Groups that do not divide a row: the last one is shorter, on disk and in memory."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from smollm2 import SmolLM2, variant
from smollm2.inference.decoder import Decoder
from smollm2.quantize.backends.torchao.int4 import MANY_ROWS, Int4, choose_int4, packing
from smollm2.quantize.backends.torchao.int8 import Int8
from smollm2.quantize.convert import assemble, memory_bytes, quantize
from smollm2.quantize.matrix import UnsupportedShape
from smollm2.quantize.quant_config import QuantConfig
from smollm2.quantize.shapes import (
    GROUP_SIZES,
    Weight,
    group_count,
    group_size_of,
    held_group_size,
    next_multiple,
)

N_OUT = 144  # no whole number of packed blocks
METHODS = ("rtn", "hqq", "clip", "gptq")
# Inputs of a row and the group size; 48 is less than a group.
UNEVEN = [(576, 128), (576, 256), (144, 32), (100, 32), (48, 128), (34, 32)]
uneven = pytest.mark.parametrize(("n_in", "group_size"), UNEVEN)
by_method = pytest.mark.parametrize("method", METHODS)


def weight(n_in: int, n_out: int = N_OUT, seed: int = 0) -> torch.Tensor:
    """Rows whose last weights are of another size."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.linspace(0.02, 0.1, n_in)
    return (torch.randn(n_out, n_in, generator=generator) * scale).bfloat16()


def inputs(n: int, n_in: int, dtype=torch.float32, seed: int = 1) -> torch.Tensor:
    """Inputs that are correlated alike for every seed."""
    mix = torch.randn(16, n_in, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(n, 16, generator=generator) @ mix
    return (mixed / 4 + torch.randn(n, n_in, generator=generator)).to(dtype)


def moments(n_in: int) -> torch.Tensor:
    x = inputs(2000, n_in)
    return x.T @ x / len(x)


def chosen(n_in: int, group_size: int, method: str) -> dict[str, torch.Tensor]:
    return Int4.choose(weight(n_in), group_size, method, moments(n_in))


def by_hand(plain: dict[str, torch.Tensor], group_size: int) -> torch.Tensor:
    """What the tensors of a file stand for, as their description says, in fp32."""
    codes = torch.stack([plain["codes"] >> 4, plain["codes"] & 15], dim=-1).flatten(1)
    group = torch.arange(codes.shape[1]) // group_size
    scales, zeros = plain["scales"].float()[:, group], plain["zeros"].float()[:, group]
    return (codes.float() - 8) * scales + zeros


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found.float() - expected.float()).norm() / expected.float().norm()).item()


# On disk


@uneven
@by_method
def test_nothing_is_padded_on_disk(n_in, group_size, method):
    plain = chosen(n_in, group_size, method)
    n_groups = -(-n_in // group_size)
    assert plain["codes"].shape == (N_OUT, n_in // 2)
    assert plain["scales"].shape == plain["zeros"].shape == (N_OUT, n_groups)
    n_bytes = sum(tensor.nbytes for tensor in plain.values())
    assert n_bytes == N_OUT * (n_in // 2 + 4 * n_groups)
    kind = Weight("any", N_OUT, n_in, 1)
    assert 8 * n_bytes == pytest.approx(kind.bits(group_size) * kind.parameters)


@given(n_in=st.integers(1, 5000), size=st.sampled_from(GROUP_SIZES))
def test_the_number_of_groups_says_where_they_end(n_in, size):
    found = group_size_of(n_in, group_count(n_in, size))
    assert found == size or (found < size and found >= n_in)  # a single group either way
    if n_in % size == 0:  # as files of earlier versions have it
        assert found == size == n_in // group_count(n_in, size)


def test_a_number_of_groups_that_no_size_gives_is_an_error():
    with pytest.raises(ValueError, match="576 inputs have no 7 groups"):
        group_size_of(576, 7)


@pytest.mark.parametrize("n_out", [32, N_OUT])
def test_a_file_of_an_earlier_version_loads_as_before(n_out):
    """Of every size of groups, in rows that it divides."""
    generator = torch.Generator().manual_seed(0)
    for size in GROUP_SIZES:
        for n_in in (size, 2 * size, 9 * size):
            codes = torch.randint(0, 256, (n_out, n_in // 2), generator=generator)
            scales, zeros = torch.rand(2, n_out, n_in // size, generator=generator).bfloat16()
            plain = {"codes": codes.to(torch.uint8), "scales": scales, "zeros": zeros}
            matrix = Int4(plain, torch.float32)
            assert matrix.group_size == size
            assert matrix.n_held == n_in
            assert torch.equal(matrix.weight(), by_hand(plain, size))


# Codes


@uneven
@pytest.mark.parametrize("method", ["rtn", "hqq", "clip"])
def test_each_part_of_a_row_has_the_codes_that_it_has_alone(n_in, group_size, method):
    w, squares = weight(n_in), moments(n_in).diagonal()
    codes, scales, zeros = choose_int4(w, group_size, method, squares)
    whole = n_in - n_in % group_size
    for columns, groups, size in (
        (slice(0, whole), slice(0, whole // group_size), group_size),
        (slice(whole, None), slice(whole // group_size, None), n_in - whole),
    ):
        if w[:, columns].numel():
            alone = choose_int4(w[:, columns].clone(), size, method, squares[columns].clone())
            assert torch.equal(codes[:, columns], alone.codes)
            assert torch.equal(scales[:, groups], alone.scales)
            assert torch.equal(zeros[:, groups], alone.zeros)


@uneven
def test_gptq_without_correlations_is_clip(n_in, group_size):
    w = weight(n_in)
    alone = choose_int4(w, group_size, "gptq", torch.eye(n_in))
    together = choose_int4(w, group_size, "clip", torch.ones(n_in))
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


@uneven
def test_each_method_leaves_less_error_than_the_one_before(n_in, group_size):
    w, unseen = weight(n_in).float(), inputs(1000, n_in, seed=2)
    errors = [
        relative_error(F.linear(unseen, by_hand(plain, group_size)), F.linear(unseen, w))
        for plain in (chosen(n_in, group_size, method) for method in ("rtn", "clip", "gptq"))
    ]
    assert errors[2] < errors[1] < errors[0] < 0.2


@given(
    n_in=st.integers(1, 200).map(lambda n: 2 * n),
    size=st.sampled_from(GROUP_SIZES),
    seed=st.integers(0, 100),
)
def test_no_weight_is_further_off_than_half_a_step_of_its_own_group(n_in, size, seed):
    w = weight(n_in, 3, seed)
    plain = Int4.choose(w, size, "rtn")
    groups = torch.arange(n_in) // size
    step, zero = (plain[name].float()[:, groups] for name in ("scales", "zeros"))
    # Scale and zero point are rounded to bf16, by 2^-8 of up to 16 steps and of the zero point.
    rounding = 2**-8 * (16 * step + zero.abs())
    assert ((by_hand(plain, size) - w).abs() <= 0.5 * step + 2 * rounding).all()


def test_odd_inputs_are_refused():
    with pytest.raises(UnsupportedShape, match="stored in pairs, and its 33 inputs are odd"):
        Int4.choose(torch.zeros(32, 33), 32, "rtn")


# In memory


@pytest.mark.parametrize(
    ("n_in", "group_size", "held", "n_held"),
    [(576, 128, 64, 576), (576, 256, 64, 576), (544, 64, 64, 576), (100, 32, 32, 128)],
)
def test_a_row_is_held_in_smaller_groups_or_padded(n_in, group_size, held, n_held):
    matrix = Int4(chosen(n_in, group_size, "rtn"), torch.bfloat16)
    assert (matrix.group_size, matrix.n_held) == (held, n_held)
    n_rows = next_multiple(N_OUT, packing()[0])
    assert matrix.memory_bytes == n_rows * (n_held // 2 + 4 * n_held // held)


@given(n_in=st.integers(1, 5000), size=st.sampled_from(GROUP_SIZES))
def test_held_groups_take_the_fewest_bytes_and_no_more_than_padded_ones(n_in, size):
    row = Weight("any", 1, n_in, 1)
    held = held_group_size(n_in, size)
    assert size % held == 0
    assert row.bits(size) <= row.memory_bits(size) == row.padded_bits(held) <= row.padded_bits(size)
    assert (held == size) or n_in % size


# Products


@uneven
@by_method
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_are_those_of_the_dequantized_matrix(n_in, group_size, method, dtype):
    plain = chosen(n_in, group_size, method)
    matrix, exact = Int4(plain, dtype), by_hand(plain, group_size)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    assert matrix.weight().shape == (N_OUT, n_in)
    assert relative_error(matrix.weight(), exact) < tolerance / 2
    numbers = torch.tensor([N_OUT - 1, 0, 7, 7])
    assert torch.equal(matrix.rows(numbers), matrix.weight()[numbers])
    for n in (1, 5, MANY_ROWS):  # by the kernel, and dequantized
        x = inputs(n, n_in, dtype)
        assert relative_error(matrix(x), F.linear(x.float(), exact)) < tolerance
    assert matrix(inputs(4, n_in, dtype).view(2, 2, n_in)).shape == (2, 2, N_OUT)


@uneven
def test_a_step_multiplies_with_the_same_matrix(n_in, group_size):
    matrix = Int4(chosen(n_in, group_size, "clip"), torch.float32)
    x = inputs(1, n_in)[0]
    y = matrix.step_product(x, *matrix.step_operands())
    assert relative_error(y, F.linear(x, matrix.weight())) < 1e-5


@pytest.mark.parametrize("n_in", [32, 100, 144, 20])
def test_int8_in_groups_has_a_shorter_one_too(n_in):
    w, x = weight(n_in), inputs(5, n_in)
    plain = Int8.choose(w, 32, "rtn")
    assert plain["scales"].shape == (N_OUT, -(-n_in // 32))
    exact = plain["codes"].float() * plain["scales"].float()[:, torch.arange(n_in) // 32]
    assert ((exact - w).abs() <= 0.51 * exact.abs().amax(1, keepdim=True) / 127).all()
    matrix = Int8(plain, torch.float32)
    assert torch.equal(matrix.weight(), exact)
    assert relative_error(matrix(x), F.linear(x, exact)) < 1e-5
    y = matrix.step_product(x[0], *matrix.step_operands())
    assert relative_error(y, F.linear(x[0], exact)) < 1e-5
    if n_in > 32:
        whole = n_in // 32 * 32
        alone = Int8.choose(w[:, :whole].clone(), 32, "rtn")
        assert torch.equal(plain["codes"][:, :whole], alone["codes"])
        assert torch.equal(plain["scales"][:, :-1], alone["scales"])


# Models


ORIG = "orig:n_layers=2"  # nano: 144 and 384 wide


@pytest.mark.parametrize("embedding_bits", [8, 4])
@pytest.mark.parametrize("group_size", GROUP_SIZES)
def test_every_matrix_is_quantized_and_held_in_what_the_shapes_say(group_size, embedding_bits):
    model = SmolLM2(variant(ORIG, scale="nano"), seed=0).bfloat16().eval()
    config = QuantConfig(4, group_size=group_size, embedding_bits=embedding_bits)
    state = quantize(model, config)
    assert state.skipped == {}
    for name, plain in state.quantized.items():
        if name != "embed" or embedding_bits == 4:
            n_out, n_in = model.get_submodule(name).weight.shape
            bits = 8 * sum(tensor.nbytes for tensor in plain.values())
            expected = Weight("any", n_out, n_in, 1).bits(group_size) * n_out * n_in
            assert bits == pytest.approx(expected)

    found = assemble(model.config, config, state, torch.bfloat16)
    per_row = memory_bytes(found.embed) / model.config.vocab_size
    # Of 4 bits: 160 inputs, in groups of 32.
    assert per_row == (160 / 2 + 4 * 160 / 32 if embedding_bits == 4 else 144 + 2)
    tokens = torch.arange(40).view(2, 20)
    with torch.inference_mode():
        expected, logits = model(tokens).float(), found(tokens).float()
    assert F.cosine_similarity(logits.flatten(), expected.flatten(), dim=0) > 0.75


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", ["int4-g32", "int4-g128-v8-emb4", "int4-g256", "int8-g32"])
def test_a_compiled_step_has_the_eager_logits(name, fresh_cache):
    model, config = SmolLM2(variant(ORIG, scale="nano"), seed=0), QuantConfig.of(name)
    quantized = assemble(model.config, config, quantize(model, config), torch.float32)
    eager, compiled = Decoder(quantized, 70), Decoder(quantized, 70, compiled=True)
    torch.testing.assert_close(compiled.prefill([5, 17, 300]), eager.prefill([5, 17, 300]))
    for token in range(0, 670, 10):
        torch.testing.assert_close(compiled.step(token), eager.step(token), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("n_in", [33, 36, 40, 100])
@pytest.mark.parametrize("n_rows", [1, 7, 40])
def test_int8_rows_that_the_kernel_would_read_beyond_are_dequantized(n_in, n_rows):
    matrix = Int8(Int8.choose(weight(n_in), None, "rtn"), torch.bfloat16)
    x = inputs(n_rows, n_in, torch.bfloat16)
    expected = x.double() @ matrix.weight().double().T
    assert torch.allclose(matrix(x).double(), expected, rtol=0.02, atol=0.02)


def test_a_last_group_of_one_weight_has_a_scale():
    matrix = Int8(Int8.choose(weight(33), 32, "rtn"), torch.float32)
    assert torch.allclose(matrix.weight()[:, 32], weight(33)[:, 32].float(), rtol=0.01)
