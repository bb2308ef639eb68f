"""Our models are transformers' Llama and Mixtral: same logits, same gradients, same files."""

import dataclasses
import json

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from support.perturbed import perturbed
from transformers import AutoModelForCausalLM, AutoTokenizer

from smollm2 import VARIANTS, SmolLM2, variant
from smollm2.data import end_of_text_id, train_tokenizer
from smollm2.errors import UserError
from smollm2.interop.hf import from_hf, hf_config, save_hf, to_hf

SMALL = variant("pow2:n_layers=2", scale="nano")
SMALL_MOE = variant("moe-160m:n_layers=2", scale="nano")
UNTIED = dataclasses.replace(SMALL, tie_embeddings=False)
UNTIED_MOE = dataclasses.replace(SMALL_MOE, tie_embeddings=False)
CONFIGS = {"dense": SMALL, "moe": SMALL_MOE, "untied": UNTIED, "untied moe": UNTIED_MOE}


def tokens_and_targets(config, n_positions):
    generator = torch.Generator().manual_seed(3)
    shape = (2, n_positions + 1)
    tokens = torch.randint(config.vocab_size, shape, generator=generator)
    return tokens[:, :-1], tokens[:, 1:]


def assert_same_computation(config, folder, n_positions=64):
    """Logits and gradients of ours and of what transformers makes of our files."""
    ours = perturbed(config)
    save_hf(folder / "weights", ours.state_dict(), config, None)
    theirs = AutoModelForCausalLM.from_pretrained(folder / "weights", dtype=torch.float32)
    tokens, targets = tokens_and_targets(config, n_positions)

    logits = theirs(tokens).logits
    torch.testing.assert_close(ours(tokens), logits, atol=1e-5, rtol=0)

    F.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()
    ours.loss(tokens, targets).cross_entropy.backward()
    # Saved as if they were weights, their gradients too come in the layout on disk.
    for parameter in theirs.parameters():
        parameter.data = parameter.grad
    theirs.save_pretrained(folder / "gradients")
    expected = from_hf(load_file(folder / "gradients" / "model.safetensors"), config)
    for name, parameter in ours.named_parameters():
        scale = min(1.0, expected[name].abs().max().item())
        torch.testing.assert_close(
            parameter.grad, expected[name], atol=1e-4 * scale, rtol=0, msg=lambda m, n=name: n + m
        )


@pytest.mark.parametrize("name", VARIANTS)
def test_variant_computes_what_transformers_does(name, tmp_path):
    assert_same_computation(dataclasses.replace(VARIANTS[name], n_layers=2), tmp_path)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_nano_model_computes_what_transformers_does(config, tmp_path):
    assert_same_computation(config, tmp_path)


def test_other_rotary_base_and_context_are_carried_over(tmp_path):
    config = dataclasses.replace(SMALL, rope_theta=100_000.0, max_seq_len=8192, norm_eps=1e-3)
    assert_same_computation(config, tmp_path, n_positions=500)
    content = json.loads((tmp_path / "weights" / "config.json").read_text())
    assert content["max_position_embeddings"] == 8192


def test_rotary_base_changes_the_logits():
    ours = perturbed(SMALL)
    other = SmolLM2(dataclasses.replace(SMALL, rope_theta=100_000.0))
    other.load_state_dict(ours.state_dict())
    tokens, _ = tokens_and_targets(SMALL, 64)
    assert (ours(tokens) - other(tokens)).abs().max() > 1e-3


@pytest.mark.parametrize("config", [SMALL, SMALL_MOE], ids=["dense", "moe"])
def test_bfloat16_is_close_to_float32(config):
    model = perturbed(config)
    tokens, targets = tokens_and_targets(config, 64)
    with torch.no_grad():
        exact, loss = model(tokens), model.loss(tokens, targets).cross_entropy
        model.bfloat16()
        rounded, rounded_loss = model(tokens), model.loss(tokens, targets).cross_entropy
    assert rounded.dtype == torch.bfloat16
    # The median token: in a mixture, rounding sends a few tokens to another expert.
    error = ((rounded.float() - exact).std(dim=-1) / exact.std(dim=-1)).median()
    assert 1e-4 < error < 0.03
    assert rounded_loss.item() == pytest.approx(loss.item(), rel=5e-3)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_state_survives_the_round_trip_bit_for_bit(config):
    state = perturbed(config).state_dict()
    back = from_hf(to_hf(state, config), config)
    assert list(back) == list(state)
    assert all(torch.equal(back[name], state[name]) for name in state)


def test_tied_head_is_omitted():
    assert not any("lm_head" in name for name in to_hf(SmolLM2(SMALL).state_dict(), SMALL))


def test_missing_tensor_is_named():
    tensors = to_hf(SmolLM2(SMALL).state_dict(), SMALL)
    del tensors["model.layers.1.self_attn.k_proj.weight"]
    with pytest.raises(UserError, match=r"lacks .*layers\.1\.self_attn\.k_proj"):
        from_hf(tensors, SMALL)


def test_unexpected_tensor_is_named():
    tensors = to_hf(SmolLM2(SMALL).state_dict(), SMALL)
    with pytest.raises(UserError, match=r"model\.layers\.1\.input_layernorm\.weight.*no place"):
        from_hf(tensors, dataclasses.replace(SMALL, n_layers=1))


def test_tensor_of_another_shape_is_named():
    tensors = to_hf(SmolLM2(SMALL).state_dict(), SMALL)
    wider = dataclasses.replace(SMALL, d_ff=516)
    with pytest.raises(UserError, match=r"gate_proj\.weight has shape \(512, 128\).*\(516, 128\)"):
        from_hf(tensors, wider)


def test_config_says_the_dtype_of_the_weights(tmp_path):
    save_hf(tmp_path, SmolLM2(SMALL).bfloat16().state_dict(), SMALL, None)
    assert AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto").dtype == torch.bfloat16
    assert hf_config(SMALL)["torch_dtype"] == "float32"


def test_tokenizer_goes_with_the_model(tmp_path):
    tokenizer = train_tokenizer(320, ["the cat sat on the mat, 12 times over"] * 9)
    tokenizer.save(str(tmp_path / "ours.json"))
    save_hf(tmp_path / "out", SmolLM2(SMALL).state_dict(), SMALL, tmp_path / "ours.json")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "out")
    text = "the cat sat\n 12 mats , 猫"
    assert theirs.encode(text) == tokenizer.encode(text).ids
    assert theirs.decode(theirs.encode(text)) == text
    assert theirs.eos_token_id == end_of_text_id(tokenizer)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.config.eos_token_id == end_of_text_id(tokenizer)
