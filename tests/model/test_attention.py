"""Attention in tiles is attention: torch's own gives the same results and gradients."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from smollm2 import variant
from smollm2.model import transformer as model_module
from smollm2.model.attention import (
    COMPILED_POSITIONS,
    KEPT_POSITIONS,
    TILE,
    causal_attention,
    hidden_keys,
    suits_tiles,
)
from smollm2.protocol.resolve import resolve
from smollm2.protocol.run_config import RunConfig
from smollm2.training.trainer import Trainer

SHAPES = {  # B, T, H, K, E
    "one tile": (2, TILE, 4, 4, 8),
    "a part of a tile": (1, TILE + 3, 4, 2, 8),
    "one key-value head": (2, 3 * TILE, 3, 1, 16),
    "heads of 64": (1, 2 * TILE, 4, 2, 64),
    "recomputed probabilities": (1, KEPT_POSITIONS + 70, 9, 3, 16),
}


def results(shape, dtype, attention, sharpness=1.0):
    """Output and gradients of queries, keys and values, in fp32."""
    B, T, H, K, E = shape
    generator = torch.Generator().manual_seed(0)
    sizes = ((B, T, H, E), (B, K, T, E), (B, K, T, E), (B, T, H, E))
    q, k, v, dy = (torch.randn(size, generator=generator).to(dtype) for size in sizes)
    q, k = q * sharpness, k * sharpness
    inputs = [x.detach().requires_grad_() for x in (q, k, v)]
    y = attention(*inputs)
    y.backward(dy)
    return [x.float() for x in (y.detach(), *(x.grad for x in inputs))]


def torchs(q_BTHE, k_BKTE, v_BKTE):
    y = F.scaled_dot_product_attention(
        q_BTHE.transpose(1, 2), k_BKTE, v_BKTE, is_causal=True, enable_gqa=True
    )
    return y.transpose(1, 2)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_results_and_gradients_are_those_of_torch(shape):
    ours, theirs = (results(shape, torch.float32, f) for f in (causal_attention, torchs))
    for x, y in zip(ours, theirs, strict=True):
        torch.testing.assert_close(x, y, atol=2e-5, rtol=0)


@pytest.mark.parametrize("sharpness", [1.0, 2.0, 4.0])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_rounding_in_bfloat16_is_of_the_size_of_torchs(shape, sharpness):
    exact = results(shape, torch.float32, torchs, sharpness)
    ours, theirs = (
        results(shape, torch.bfloat16, attention, sharpness)
        for attention in (causal_attention, torchs)
    )
    for x, y, z in zip(ours, theirs, exact, strict=True):
        assert (x - z).std() < 1.5 * (y - z).std()


def losses(monkeypatch, data, dtype, in_tiles):
    """Of 20 steps, at a learning rate at which rounding does not grow by itself."""
    monkeypatch.setattr(model_module, "suits_tiles", lambda *_: in_tiles)
    request = RunConfig(
        "pow2", "nano", steps=400, micro_batch_size=2, seq_len=2 * TILE + 5, dtype=dtype
    )
    protocol = dataclasses.replace(resolve(request), device="cpu", compile=False, dtype=dtype)
    protocol = dataclasses.replace(
        protocol,
        model=dataclasses.replace(variant("pow2", "nano"), n_layers=4, vocab_size=data.vocab_size),
    )
    trainer = Trainer(protocol.on(data), data)
    found = []
    for _ in range(20):
        result = trainer.gradients()
        trainer.update(result)
        found.append(result.loss)
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_mask_that_is_added_changes_no_bit(shape, dtype):
    mask = hidden_keys(shape[1] + 5)
    ours = results(shape, dtype, causal_attention)
    masked = results(shape, dtype, lambda *qkv: causal_attention(*qkv, mask))
    assert all(torch.equal(x, y) for x, y in zip(ours, masked, strict=True))


def test_training_is_that_with_torchs_attention(monkeypatch, data):
    plain = losses(monkeypatch, data, "float32", in_tiles=False)
    assert losses(monkeypatch, data, "float32", in_tiles=True) == pytest.approx(plain, rel=1e-4)
    rounded = losses(monkeypatch, data, "bfloat16", in_tiles=True)
    assert rounded == pytest.approx(plain, rel=1e-3)


def test_compiled_code_keeps_no_probabilities_of_long_sequences(monkeypatch):
    cpu = torch.device("cpu")
    assert suits_tiles(2048, cpu, torch.bfloat16)
    assert not suits_tiles(TILE, cpu, torch.bfloat16)
    assert not suits_tiles(512, torch.device("cuda"), torch.bfloat16)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert suits_tiles(COMPILED_POSITIONS, cpu, torch.bfloat16)
    assert not suits_tiles(COMPILED_POSITIONS + 1, cpu, torch.bfloat16)


@pytest.mark.parametrize("has_amx", [True, False])
def test_with_amx_tiles_are_for_training_alone(monkeypatch, has_amx):
    monkeypatch.setattr("smollm2.model.attention.HAS_AMX", has_amx)
    cpu = torch.device("cpu")
    assert suits_tiles(512, cpu, torch.bfloat16)
    with torch.no_grad():
        assert suits_tiles(512, cpu, torch.bfloat16) is not has_amx
        assert suits_tiles(512, cpu, torch.float32)
