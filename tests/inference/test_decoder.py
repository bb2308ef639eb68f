"""A decoder: the tokens of transformers and of a model without a cache; its room and its speed."""

import dataclasses

import pytest
import torch
from support.decoding import (
    KINDS,
    NANO,
    OTHER_PROMPT,
    PROMPT,
    greedy,
    quiet,
    replace_matrices,
    without_cache,
)
from support.perturbed import perturbed
from transformers import AutoModelForCausalLM

from smollm2 import VARIANTS, SmolLM2
from smollm2.errors import UserError
from smollm2.inference.decoder import UNIT, Decoder, generate, measure_speed
from smollm2.interop.hf import save_hf


@pytest.mark.parametrize(
    "config",
    [dataclasses.replace(VARIANTS[name], n_layers=2) for name in KINDS] + [*NANO.values()],
    ids=[f"{name}-wide" for name in KINDS] + list(NANO),
)
def test_greedy_tokens_are_those_of_transformers(config, tmp_path):
    ours = perturbed(config)
    save_hf(tmp_path, ours.state_dict(), config, None)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    out = theirs.generate(
        torch.tensor([PROMPT]),
        attention_mask=torch.ones(1, len(PROMPT)).long(),
        do_sample=False,
        max_new_tokens=40,
        pad_token_id=0,
    )
    expected = out[0, len(PROMPT) :].tolist()
    assert len(set(expected)) > 5
    assert greedy(Decoder(ours, 64)) == expected


@pytest.mark.parametrize("name", VARIANTS)
def test_greedy_tokens_are_those_without_a_cache(name):
    model = perturbed(NANO[name])
    decoder = Decoder(model, 64)
    expected = without_cache(model, PROMPT, 40)
    assert greedy(decoder) == expected
    # ... and what another text left in the cache is not seen.
    assert greedy(decoder, OTHER_PROMPT) == without_cache(model, OTHER_PROMPT, 40)
    assert greedy(decoder) == expected


@pytest.mark.parametrize("name", KINDS)
@torch.no_grad()
def test_steps_have_the_logits_of_one_pass(name):
    """Across the end of the unit of the cache that a step attends to."""
    model = perturbed(NANO[name])
    tokens = torch.arange(UNIT + 20) * 13 % 4096
    decoder = Decoder(model, UNIT + 20)
    expected = model(tokens[None])[0]
    start = UNIT - 20
    torch.testing.assert_close(
        decoder.prefill(tokens[:start]), expected[start - 1], atol=1e-4, rtol=0
    )
    for place in range(start, len(tokens)):
        logits = decoder.step(int(tokens[place]))
        torch.testing.assert_close(logits, expected[place], atol=1e-4, rtol=0)


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=[pytest.mark.slow, quiet])])
@pytest.mark.parametrize("name", KINDS)
@torch.no_grad()
def test_bfloat16_is_close_to_float32(name, compiled):
    model = perturbed(NANO[name])
    tokens = torch.arange(40) * 13 % 4096
    exact = model(tokens[None])[0]
    decoder = Decoder(model.bfloat16(), 40, compiled)
    rows = [decoder.prefill(tokens[:1]), *(decoder.step(int(token)) for token in tokens[1:])]
    assert {row.dtype for row in rows} == {torch.bfloat16}
    # The median token: in a mixture, rounding sends a few tokens to another expert.
    error = ((torch.stack(rows).float() - exact).std(dim=-1) / exact.std(dim=-1)).median()
    assert 1e-4 < error < 0.03


def test_matrices_can_be_replaced_by_what_has_no_weight():
    model = perturbed(NANO["pow2"])
    rounded = replace_matrices(model)
    assert greedy(Decoder(model, 64)) == without_cache(rounded, PROMPT, 40)


def test_a_decoder_is_full_after_max_len_tokens():
    decoder = Decoder(perturbed(NANO["pow2"]), 10)
    decoder.prefill(PROMPT)
    decoder.step(1)
    decoder.step(1)
    with pytest.raises(ValueError, match="room for 10 tokens is used up"):
        decoder.step(1)
    with pytest.raises(ValueError, match="1 to 10 tokens, not 11"):
        decoder.prefill(list(range(11)))
    with pytest.raises(ValueError, match="1 to 10 tokens, not 0"):
        decoder.prefill([])
    assert decoder.prefill(torch.arange(10)).shape == (4096,)


@pytest.mark.parametrize("max_len", [0, 2049])
def test_a_decoder_is_at_most_as_long_as_the_context(max_len):
    with pytest.raises(UserError, match=f"1 to 2048 tokens.*not {max_len}"):
        Decoder(SmolLM2(NANO["pow2"]), max_len)


@pytest.mark.parametrize(
    ("prompt", "n", "said"),
    [
        ([], 3, "no tokens"),
        ([1], 0, "at least 1, not 0"),
        ([1] * 8, 9, "8 tokens of prompt and 9 new ones exceed the 16"),
    ],
)
def test_generation_that_cannot_be_is_refused(prompt, n, said):
    with pytest.raises(UserError, match=said):
        greedy(Decoder(SmolLM2(NANO["pow2"]), 16), prompt, n)


def test_generation_fills_the_room_and_stops_at_the_end_of_text():
    decoder = Decoder(perturbed(NANO["pow2"]), 48)
    tokens = greedy(decoder)
    assert len(tokens) == 40
    ends = tokens[30], tokens[20]
    stopped = generate(decoder, PROMPT, max_new_tokens=40, ends=ends)
    assert list(stopped) == tokens[: min(map(tokens.index, ends))]


def test_decoding_makes_no_gradients_and_leaves_the_settings_of_torch():
    model = SmolLM2(NANO["pow2"])
    decoder = Decoder(model, 16)
    assert not decoder.prefill(PROMPT).requires_grad
    assert not decoder.step(1).requires_grad
    with pytest.raises(IndexError):
        decoder.step(4096)  # no token of the vocabulary
    assert torch.backends.mkldnn.enabled
    model(torch.tensor([PROMPT])).sum().backward()
    assert model.norm.weight.grad is not None


def test_speed_is_of_a_whole_pass():
    decoder = Decoder(SmolLM2(NANO["moe-160m"]), 24)
    speed = measure_speed(decoder, n_prompt=16, n_new=8)
    assert decoder.length == 24
    assert speed.prefill_tokens_per_second > 0
    assert speed.decode_tokens_per_second > 0
    with pytest.raises(ValueError, match="used up"):
        measure_speed(decoder, n_prompt=16, n_new=9)
