"""Quantized models: what is quantized, what is kept, and what they compute."""

import pytest
import torch
import torch.nn.functional as F

from smollm2 import SmolLM2, variant
from smollm2.inference.decoder import Decoder
from smollm2.quantize.convert import assemble, memory_bytes, quantize, quantized_share
from smollm2.quantize.matrix import QuantizedMatrix, UnsupportedShape
from smollm2.quantize.quant_config import QuantConfig

INT8 = QuantConfig(8, group_size=None)
INT4 = QuantConfig(4)


CONFIGS = [
    INT8,
    INT4,
    QuantConfig(4, embedding_bits=4),
    QuantConfig(4, method="hqq", group_size=32),
    QuantConfig(4, embedding_bits=None),
    QuantConfig(4, "bitsandbytes"),
    QuantConfig(8, "bitsandbytes", group_size=None),
    QuantConfig(8, group_size=32),
    QuantConfig(4, method="clip", value_bits=8),
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
    model = SmolLM2(variant("pow2:n_layers=2,d_model=160,d_ff=384", scale="nano")).bfloat16()
    config = QuantConfig(4, "bitsandbytes", group_size=128)
    plain = quantize(model, config)
    found = assemble(model.config, config, plain, torch.bfloat16)
    assert plain.summary == (
        "2 × blocks.N.attn.qkv.weight: blocks of 128 do not divide its 160 inputs; "
        "2 × blocks.N.attn.out.weight: blocks of 128 do not divide its 160 inputs; "
        "2 × blocks.N.mlp.gate_up.weight: blocks of 128 do not divide its 160 inputs"
    )
    quantized = 2 * 160 * 384 + 4096 * 160
    assert quantized_share(found) == pytest.approx(
        quantized / sum(p.numel() for p in model.parameters())
    )
    with pytest.raises(UnsupportedShape, match="No layer can be quantized"):
        quantize(model, QuantConfig(4, "bitsandbytes", group_size=256))


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


def test_values_of_8_bits_are_those_of_int8(small):
    config = QuantConfig(4, value_bits=8)
    found = assemble(small.config, config, quantize(small, config), torch.bfloat16)
    eight = assemble(small.config, INT8, quantize(small, INT8), torch.bfloat16)
    four = assemble(small.config, INT4, quantize(small, INT4), torch.bfloat16)
    n_values = small.config.n_kv_heads * small.config.head_dim
    x = torch.randn(3, small.config.d_model).bfloat16()
    for layer in range(2):
        y, of_eight, of_four = (
            model.blocks[layer].attn.qkv(x).detach() for model in (found, eight, four)
        )
        assert torch.equal(y[:, -n_values:], of_eight[:, -n_values:])
        assert torch.equal(y[:, :-n_values], of_four[:, :-n_values])
    share = n_values * small.config.d_model * 2 / sum(p.numel() for p in small.parameters())
    assert quantized_share(found) == pytest.approx(quantized_share(four))
    assert memory_bytes(found) > memory_bytes(four) * (1 + 0.4 * share)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "config",
    [INT8, QuantConfig(8, group_size=32), INT4, QuantConfig(4, value_bits=8)],
    ids=lambda config: config.name,
)
def test_a_compiled_step_of_a_quantized_model_has_the_eager_logits(config, fresh_cache):
    model = SmolLM2(variant("pow2:n_layers=2", scale="nano"))
    quantized = assemble(model.config, config, quantize(model, config), torch.float32)
    eager, compiled = Decoder(quantized, 70), Decoder(quantized, 70, compiled=True)
    torch.testing.assert_close(compiled.prefill([5, 17, 300]), eager.prefill([5, 17, 300]))
    for token in range(0, 670, 10):
        torch.testing.assert_close(compiled.step(token), eager.step(token), atol=1e-4, rtol=1e-4)
