"""The arithmetic of quantized matrices."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from smollm2.quantize.backends.bitsandbytes.llm_int8 import LLMInt8
from smollm2.quantize.backends.bitsandbytes.nf4 import NF4
from smollm2.quantize.backends.torchao.int4 import MANY_ROWS, Int4
from smollm2.quantize.backends.torchao.int8 import Int8


def weight(n_out: int, n_in: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (0.04 * torch.randn(n_out, n_in, generator=generator)).bfloat16()


def inputs(n: int, n_in: int, dtype=torch.bfloat16) -> torch.Tensor:
    return torch.randn(n, n_in, generator=torch.Generator().manual_seed(1)).to(dtype)


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found.float() - expected.float()).norm() / expected.float().norm()).item()


@pytest.mark.parametrize("group_size", [32, 64])
@pytest.mark.parametrize("n_out", [64, 144, 192])  # 144 is no whole number of packed blocks
def test_int4_computes_what_torchao_computes_bit_for_bit(n_out, group_size):
    from torchao.prototype.quantization.int4 import Int4OpaqueTensor
    from torchao.quantization.quantize_.workflows import Int4ChooseQParamsAlgorithm

    # Codes of these weights do not depend on the arithmetic that chooses them: a grid.
    codes = torch.randint(0, 16, (n_out, 192), generator=torch.Generator().manual_seed(0))
    codes[:, ::32], codes[:, 1::32] = 0, 15
    w, x = ((codes - 8) * 2.0**-7).bfloat16(), inputs(3, 192)
    algorithm = Int4ChooseQParamsAlgorithm.TINYGEMM
    theirs = Int4OpaqueTensor.from_hp(w, [1, group_size], algorithm)
    ours = Int4(Int4.choose(w, group_size, "rtn"), torch.bfloat16)
    assert torch.equal(ours(x), F.linear(x, theirs))


@pytest.mark.parametrize("method", ["rtn", "hqq"])
@pytest.mark.parametrize("group_size", [32, 64])
def test_int4_codes_are_no_worse_than_those_of_torchao(group_size, method):
    from torchao.prototype.quantization.int4 import Int4OpaqueTensor
    from torchao.quantization.quantize_.workflows import Int4ChooseQParamsAlgorithm

    w, x = weight(192, 192), inputs(64, 192)
    algorithm = {
        "rtn": Int4ChooseQParamsAlgorithm.TINYGEMM,
        "hqq": Int4ChooseQParamsAlgorithm.HQQ,
    }[method]
    theirs = Int4OpaqueTensor.from_hp(w, [1, group_size], algorithm)
    ours = Int4(Int4.choose(w, group_size, method), torch.bfloat16)
    exact = F.linear(x.float(), w.float())
    # torchao chooses codes in bf16, which costs a little.
    assert relative_error(ours(x), exact) < 1.01 * relative_error(F.linear(x, theirs), exact)


def test_int8_rounds_like_torchao_but_for_the_scale():
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    w, x = weight(96, 192), inputs(3, 192)
    layer = torch.nn.Linear(192, 96, bias=False, dtype=torch.bfloat16)
    layer.weight = torch.nn.Parameter(w)
    quantize_(layer, Int8WeightOnlyConfig())
    ours = Int8(Int8.choose(w, None, "rtn"), torch.bfloat16)
    theirs = relative_error(layer(x), F.linear(x.float(), w.float()))
    assert relative_error(ours(x), F.linear(x.float(), w.float())) < 1.1 * theirs


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("kind", "group_size"), [(Int4, 64), (Int8, None), (Int8, 32)])
def test_the_kernel_the_rows_and_the_dequantized_matrix_agree(kind, group_size, dtype):
    matrix = kind(kind.choose(weight(144, 192), group_size, "rtn"), dtype)
    exact = matrix.weight().float()
    few = inputs(5, 192, dtype)
    many = few.repeat(MANY_ROWS, 1)
    tolerance = 1e-5 if dtype == torch.float32 else 8e-3
    assert relative_error(matrix(few), F.linear(few.float(), exact)) < tolerance
    assert relative_error(matrix(many), F.linear(many.float(), exact)) < tolerance
    numbers = torch.tensor([143, 0, 7, 7, 64])
    assert torch.equal(matrix.rows(numbers), matrix.weight()[numbers])
    assert matrix(few.view(5, 1, 192)).shape == (5, 1, 144)


@pytest.mark.parametrize(("kind", "group_size"), [(Int4, 32), (Int4, 64), (Int8, None), (Int8, 32)])
def test_a_compiled_step_multiplies_with_the_same_matrix(kind, group_size):
    matrix = kind(kind.choose(weight(144, 192), group_size, "rtn"), torch.float32)
    x = inputs(1, 192, torch.float32)[0]
    y = matrix.step_product(x, *matrix.step_operands())
    assert relative_error(y, F.linear(x, matrix.weight())) < 1e-5


@given(st.integers(0, 2**32), st.sampled_from([1e-6, 1.0, 1e4]))
def test_no_int4_weight_is_further_off_than_half_a_step(seed, scale):
    w = weight(32, 64, seed) * scale
    plain = Int4.choose(w, 32, "rtn")
    matrix = Int4(plain, torch.float32)
    off = (matrix.weight() - w.float()).abs().view(32, 2, 32)
    # The scale, the zero point and their use are rounded to bf16, 2^-8 of values up to 16 steps.
    limit = plain["scales"].float() * (0.5 + 16 * 2**-7)
    assert (off <= limit[..., None]).all()


def test_plain_tensors_are_what_their_description_says():
    w = weight(64, 128)
    plain = Int4.choose(w, 64, "rtn")
    codes = torch.stack([plain["codes"] >> 4, plain["codes"] & 15], dim=-1).view(64, 2, 64)
    by_hand = (codes.float() - 8) * plain["scales"].float()[..., None]
    by_hand = by_hand + plain["zeros"].float()[..., None]
    assert torch.equal(Int4(plain, torch.float32).weight(), by_hand.view(64, 128))
    assert plain["codes"].nbytes == 64 * 128 // 2

    plain = Int8.choose(w, None, "rtn")
    by_hand = plain["codes"].float() * plain["scales"].float()[:, None]
    assert torch.equal(Int8(plain, torch.float32).weight(), by_hand)


def test_a_matrix_of_zeros_stays_one():
    for kind in (Int4, Int8):
        matrix = kind(kind.choose(torch.zeros(32, 64).bfloat16(), 32, "rtn"), torch.bfloat16)
        assert matrix.weight().abs().max() < 1e-5


def test_nf4_and_llm_int8_compute_what_bitsandbytes_computes_bit_for_bit():
    import bitsandbytes as bnb

    w, x = weight(96, 192), inputs(3, 192)
    layer = bnb.nn.Linear4bit(
        *(192, 96), bias=False, quant_type="nf4", compress_statistics=False
    ).eval()
    codes, state = bnb.functional.quantize_4bit(w, blocksize=64, quant_type="nf4")
    layer.weight = bnb.nn.Params4bit(codes, quant_state=state, bnb_quantized=True, module=layer)
    with torch.inference_mode():
        assert torch.equal(NF4(NF4.choose(w, 64, "rtn"), torch.bfloat16)(x), layer(x))

    eight = bnb.nn.Linear8bitLt(192, 96, bias=False, has_fp16_weights=False)
    eight.weight = bnb.nn.Int8Params(w.half(), requires_grad=False, has_fp16_weights=False)
    eight = eight.to("cpu").eval()
    with torch.inference_mode():
        assert torch.equal(LLMInt8(LLMInt8.choose(w, None, "rtn"), torch.bfloat16)(x), eight(x))


@pytest.mark.parametrize("offset", [0, 8, 16, 24])
def test_int8_codes_compute_wherever_a_file_has_them(offset):
    """The kernel dies on codes that are not aligned, with some numbers of rows."""
    plain = Int8.choose(weight(64, 192), None, "rtn")
    memory = torch.empty(64 * 192 + 64, dtype=torch.int8)
    start = (-memory.data_ptr()) % 64 + offset
    codes = memory[start : start + 64 * 192].view(64, 192).copy_(plain["codes"])
    matrix = Int8({"codes": codes, "scales": plain["scales"]}, torch.bfloat16)
    for n in (1, 5, 31, 40):
        x = inputs(n, 192)
        exact = F.linear(x.float(), matrix.weight().float())
        assert relative_error(matrix(x), exact) < 8e-3
