"""Quantized matrices and models: their arithmetic, what is saved, and what is refused."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from smolctl.quantize import configuration
from smollm2 import SmolLM2, variant
from smollm2.errors import UserError
from smollm2.evaluate import TextScore
from smollm2.generate import Decoder
from smollm2.quantize.config import QuantConfig
from smollm2.quantize.convert import assemble, memory_bytes, quantize, quantized_share
from smollm2.quantize.matrix import QuantizedMatrix, Unfit
from smollm2.quantize.measure import loss_change
from smollm2.quantize.store import load_quantized, open_quantized, quantized_names, save
from smollm2.quantize.torchao import MANY_ROWS, Int4, Int8
from smollm2.runs import Run, final_weights, load_model

INT8 = QuantConfig(8, group_size=None)
INT4 = QuantConfig(4)


def weight(n_out: int, n_in: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (0.04 * torch.randn(n_out, n_in, generator=generator)).bfloat16()


def inputs(n: int, n_in: int, dtype=torch.bfloat16) -> torch.Tensor:
    return torch.randn(n, n_in, generator=torch.Generator().manual_seed(1)).to(dtype)


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found.float() - expected.float()).norm() / expected.float().norm()).item()


@pytest.mark.parametrize("method", ["rtn", "hqq"])
@pytest.mark.parametrize("group_size", [32, 64])
@pytest.mark.parametrize("n_out", [64, 144, 192])  # 144 is no whole number of packed blocks
def test_int4_computes_what_torchao_computes_bit_for_bit(n_out, group_size, method):
    from torchao.prototype.quantization.int4 import Int4OpaqueTensor
    from torchao.quantization.quantize_.workflows import Int4ChooseQParamsAlgorithm

    w, x = weight(n_out, 192), inputs(3, 192)
    algorithm = {
        "rtn": Int4ChooseQParamsAlgorithm.TINYGEMM,
        "hqq": Int4ChooseQParamsAlgorithm.HQQ,
    }[method]
    theirs = Int4OpaqueTensor.from_hp(w, [1, group_size], algorithm)
    ours = Int4(Int4.choose(w, group_size, method), torch.bfloat16)
    assert torch.equal(ours(x), F.linear(x, theirs))


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
@pytest.mark.parametrize("kind", [Int4, Int8])
def test_the_kernel_the_rows_and_the_matrix_made_anew_agree(kind, dtype):
    matrix = kind(kind.choose(weight(144, 192), 64, "rtn"), dtype)
    exact = matrix.weight().float()
    few = inputs(5, 192, dtype)
    many = few.repeat(max(MANY_ROWS.values()), 1)
    tolerance = 1e-5 if dtype == torch.float32 else 8e-3
    assert relative_error(matrix(few), F.linear(few.float(), exact)) < tolerance
    assert relative_error(matrix(many), F.linear(many.float(), exact)) < tolerance
    numbers = torch.tensor([143, 0, 7, 7, 64])
    assert torch.equal(matrix.rows(numbers), matrix.weight()[numbers])
    assert matrix(few.view(5, 1, 192)).shape == (5, 1, 144)


@pytest.mark.parametrize("kind", [Int4, Int8])
@pytest.mark.parametrize("group_size", [32, 64])
def test_a_compiled_step_multiplies_with_the_same_matrix(kind, group_size):
    matrix = kind(kind.choose(weight(144, 192), group_size, "rtn"), torch.float32)
    x = inputs(1, 192, torch.float32)[0]
    y = matrix.step_product(x, *matrix.step_operands())
    assert relative_error(y, F.linear(x, matrix.weight())) < 1e-5


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("config", [INT8, INT4], ids=["int8", "int4"])
def test_a_compiled_step_of_a_quantized_model_has_the_eager_logits(config):
    model = SmolLM2(variant("pow2:n_layers=2", scale="nano"))
    quantized = assemble(model.config, config, quantize(model, config), torch.float32)
    eager, compiled = Decoder(quantized, 70), Decoder(quantized, 70, compiled=True)
    torch.testing.assert_close(compiled.prefill([5, 17, 300]), eager.prefill([5, 17, 300]))
    for token in range(0, 670, 10):
        torch.testing.assert_close(compiled.step(token), eager.step(token), atol=1e-4, rtol=1e-4)


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

    from smollm2.quantize.bitsandbytes import NF4, LLMInt8

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


CONFIGS = [
    INT8,
    INT4,
    QuantConfig(4, embedding_bits=4),
    QuantConfig(4, method="hqq", group_size=32),
    QuantConfig(4, embedding_bits=None),
    QuantConfig(4, "bitsandbytes"),
    QuantConfig(8, "bitsandbytes", group_size=None),
]


@pytest.fixture(scope="module")
def small() -> SmolLM2:
    """Two layers of `pow2` at nano scale, in bf16."""
    return SmolLM2(variant("pow2:n_layers=2", scale="nano")).bfloat16().eval()


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.name)
@pytest.mark.parametrize(
    "spec", ["pow2:n_layers=2", "moe-160m:n_layers=2", "pow2:n_layers=2,tie_embeddings=false"]
)
def test_every_matrix_but_routers_is_quantized_and_the_model_still_computes_about_the_same(
    spec, config
):
    model = SmolLM2(variant(spec, scale="nano")).bfloat16().eval()
    plain = quantize(model, config)
    found = assemble(model.config, config, plain, torch.bfloat16)

    norms_and_routers = [n for n, p in model.named_parameters() if p.ndim == 1 or "router" in n]
    tables = ["embed.weight"] if model.lm_head is None else ["embed.weight", "lm_head.weight"]
    kept = norms_and_routers + (tables if config.embedding_bits is None else [])
    assert sorted(plain.kept) == sorted(kept)
    left = sum(model.get_parameter(name).numel() for name in kept)
    total = sum(p.numel() for p in model.parameters())
    assert quantized_share(found) == pytest.approx(1 - left / total)
    assert not any(isinstance(m, torch.nn.Linear) for m in torch_linears(found))

    tokens = torch.arange(40).view(2, 20)
    with torch.inference_mode():
        expected, logits = model(tokens).float(), found(tokens).float()
    # Random weights of so small a model suffer most; what is seen is that nothing is mixed up.
    agreement = F.cosine_similarity(logits.flatten(), expected.flatten(), dim=0)
    assert agreement > (0.97 if config.bits == 8 else 0.75)


def torch_linears(model: SmolLM2) -> list[torch.nn.Module]:
    """What still multiplies by a matrix of floats, routers aside."""
    inside = {m for q in model.modules() if isinstance(q, QuantizedMatrix) for m in q.modules()}
    return [
        module
        for name, module in model.named_modules()
        if type(module) is torch.nn.Linear and module not in inside and "router" not in name
    ]


def test_layers_that_no_group_fits_are_named_and_not_counted():
    model = SmolLM2(variant("orig:n_layers=2", scale="nano")).bfloat16()  # 144 and 384 wide
    plain = quantize(model, QuantConfig(4, group_size=128))
    found = assemble(model.config, QuantConfig(4, group_size=128), plain, torch.bfloat16)
    assert plain.summary == (
        "2 × blocks.N.attn.qkv.weight: groups of 128 do not divide its 144 inputs; "
        "2 × blocks.N.attn.out.weight: groups of 128 do not divide its 144 inputs; "
        "2 × blocks.N.mlp.gate_up.weight: groups of 128 do not divide its 144 inputs"
    )
    quantized = 2 * 144 * 384 + 4096 * 144
    assert quantized_share(found) == pytest.approx(
        quantized / sum(p.numel() for p in model.parameters())
    )
    with pytest.raises(Unfit, match="No layer can be quantized"):
        quantize(model, QuantConfig(4, group_size=256))


def test_bytes_in_memory_are_those_of_codes_and_scales(small):
    config = small.config
    matrices = sum(p.numel() for p in small.blocks.parameters() if p.ndim == 2)
    norms = sum(p.numel() for p in small.parameters() if p.ndim == 1)
    embedding = config.vocab_size * config.d_model
    int8_rows = 2 * config.vocab_size
    found = assemble(config, INT4, quantize(small, INT4), torch.bfloat16)
    assert memory_bytes(found.embed) == embedding + int8_rows
    # A scale and a zero point of two bytes for 64 weights.
    assert memory_bytes(found) == (
        matrices // 2 + matrices // 64 * 4 + 2 * norms + embedding + int8_rows
    )
    assert memory_bytes(small) == 2 * (matrices + norms + embedding)


def test_quantizing_does_not_depend_on_the_dtype_that_the_model_is_in(small):
    plain = quantize(small, INT4)
    other = quantize(SmolLM2(small.config).eval(), INT4)
    assert plain.tensors().keys() == other.tensors().keys()
    for name, tensor in plain.tensors().items():
        assert torch.equal(tensor, other.tensors()[name]), name


@pytest.fixture
def run(template: Path, tmp_path: Path) -> Run:
    """A finished run, the test's own."""
    shutil.copytree(template, tmp_path / "results/runs/run")
    return Run(tmp_path / "results/runs/run")


@pytest.mark.parametrize("config", [INT8, QuantConfig(4, group_size=32, embedding_bits=4)])
def test_a_saved_model_is_read_back_to_the_same_logits_bit_for_bit(run, config):
    final = final_weights(run)
    model = load_model(run, "cpu", "bfloat16", final)
    plain = quantize(model, config)
    save(run, final.sha256, config, plain)
    assert quantized_names(run) == [config.name]

    made = assemble(model.config, config, plain, torch.bfloat16)
    read = load_quantized(open_quantized(run, config.name), "cpu", "bfloat16")
    for n in (5, 32):  # in the kernel, and anew
        tokens = torch.arange(n).view(1, n)
        with torch.inference_mode():
            assert torch.equal(made(tokens), read(tokens))


def test_a_quantized_model_that_is_not_what_was_saved_is_refused(run):
    final = final_weights(run)
    config = QuantConfig(4, group_size=32)
    saved = save(
        run, final.sha256, config, quantize(load_model(run, "cpu", "bfloat16", final), config)
    )
    sidecar = saved.path / "model.json"
    facts = json.loads(sidecar.read_text())

    sidecar.write_text(json.dumps(facts | {"weights": "0"}))
    with pytest.raises(UserError, match="other weights than the run has now; quantize run 'run'"):
        open_quantized(run, config.name)
    sidecar.write_text(json.dumps(facts | {"format": 0}))
    with pytest.raises(UserError, match="another version"):
        open_quantized(run, config.name)
    sidecar.write_text("{")
    with pytest.raises(UserError, match="missing or damaged"):
        open_quantized(run, config.name)
    sidecar.write_text(json.dumps(facts))
    file = saved.path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    with pytest.raises(UserError, match="checksum does not hold"):
        open_quantized(run, config.name)
    with pytest.raises(UserError, match="missing or damaged"):
        open_quantized(run, "int8")


def test_the_same_model_again_keeps_its_scores_and_another_does_not(run):
    final = final_weights(run)
    model = load_model(run, "cpu", "bfloat16", final)
    saved = save(run, final.sha256, INT8, quantize(model, INT8))
    saved.tables.append("eval", {"task": "arc_easy"})
    save(run, final.sha256, INT8, quantize(model, INT8))
    assert len(saved.tables.rows("eval")) == 1
    with torch.no_grad():
        model.embed.weight *= 2
    save(run, final.sha256, INT8, quantize(model, INT8))
    assert saved.tables.rows("eval") == []
    assert [path.name for path in run.path.glob("quantized/*")] == ["int8"]


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


def test_the_loss_change_is_paired_over_documents():
    rng = np.random.default_rng(0)
    tokens, nats, change = rng.integers(50, 100, 40), rng.normal(300, 90, 40), rng.normal(2, 1, 40)

    def scores(values):
        return [
            TextScore(i, i, int(n), float(v), 0, float(v), 1)
            for i, (n, v) in enumerate(zip(tokens, values, strict=True))
        ]

    found = loss_change(scores(nats), scores(nats + change))
    assert found.value == pytest.approx(change.sum() / tokens.sum())
    residuals = change - found.value * tokens
    stderr = np.sqrt(40 / 39 * (residuals**2).sum()) / tokens.sum()
    assert found.stderr == pytest.approx(stderr)
    with pytest.raises(ValueError, match="not of the same text"):
        loss_change(scores(nats), scores(nats)[1:])


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"bits": 3}, "--bits takes 8 or 4, not 3"),
        ({"backend": "torchoa"}, "Unknown backend 'torchoa'. Did you mean 'torchao'"),
        ({"method": "gptq"}, "Unknown method 'gptq'"),
        ({"group_size": 48}, "--group-size takes 32, 64, 128, 256, not 48"),
        ({"group_size": None}, "--group-size takes"),
        ({"bits": 8}, "one scale a row; leave --group-size out"),
        ({"embedding_bits": 3}, "--embedding takes 8, 4 or none"),
        ({"backend": "bitsandbytes", "method": "hqq"}, "hqq is for 4 bits with torchao"),
    ],
)
def test_a_configuration_that_there_is_not_is_refused(wrong, sentence):
    with pytest.raises(UserError, match=sentence):
        dataclasses.replace(INT4, **wrong)


def test_names_leave_out_what_is_usual():
    assert [config.name for config in INT4.grid()] == [
        *("int8", "int4-g32", "int4-g64", "int4-g128", "int4-g256"),
        *("llm-int8", "nf4-g32", "nf4-g64", "nf4-g128", "nf4-g256"),
    ]
    assert QuantConfig(4, method="hqq", embedding_bits=4).name == "int4-g64-hqq-emb4"
    assert QuantConfig(4, embedding_bits=None).name == "int4-g64-emb16"


@pytest.mark.parametrize("config", [*CONFIGS, *INT4.grid()], ids=lambda config: config.name)
def test_name_and_options_say_the_whole_configuration(config):
    assert QuantConfig.of(config.name) == config
    words = iter(config.options.split())
    options = dict(zip(words, words, strict=True))
    found = configuration(
        int(options.pop("--bits")),
        options.pop("--backend", "torchao"),
        options.pop("--method", "rtn"),
        int(size) if (size := options.pop("--group-size", None)) else None,
        options.pop("--embedding", "8"),
    )
    assert (found, options) == (config, {})
