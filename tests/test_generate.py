"""Decoding: the tokens of transformers and of a model without a cache, sampling by its formula."""

import dataclasses
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from stories import stories
from test_parity import perturbed
from torch import nn
from transformers import AutoModelForCausalLM

from smollm2 import VARIANTS, SmolLM2, variant
from smollm2.data import load_tokenizer, train_tokenizer
from smollm2.errors import RunError, UserError
from smollm2.generate import UNIT, Decoder, Sampling, TextStream, generate, measure_speed
from smollm2.hf import save_hf

NANO = {name: variant(f"{name}:n_layers=2", scale="nano") for name in VARIANTS}
KINDS = ["orig", "pow2", "moe-160m"]  # 3 and 2 heads a key, and experts with a head a key
PROMPT = [5, 17, 300, 4, 4, 99, 1024, 7]
OTHER_PROMPT = [8, 8, 2000, 31]
# What the compiler warns of while it traces is not ours to keep quiet.
quiet = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def greedy(decoder, prompt=PROMPT, n=40, **options):
    return list(generate(decoder, prompt, max_new_tokens=n, ends=(), **options))


@torch.no_grad()
def without_cache(model, prompt, n):
    """The greedy tokens, each from the whole text anew."""
    tokens = list(prompt)
    for _ in range(n):
        tokens.append(int(model(torch.tensor([tokens]))[0, -1].argmax()))
    return tokens[len(prompt) :]


# The same tokens


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


class Int8(nn.Module):
    """What stands for a matrix in a quantized model: called alike, but without a `weight`."""

    def __init__(self, weight):
        super().__init__()
        scales = weight.detach().abs().amax(dim=1) / 127
        self.register_buffer("codes", (weight / scales[:, None]).round().to(torch.int8))
        self.register_buffer("scales", scales)

    def forward(self, x):
        flat = x.reshape(-1, x.shape[-1])
        y = torch.ops.aten._weight_int8pack_mm(flat, self.codes, self.scales)
        return y.view(*x.shape[:-1], -1)

    def rounded(self):
        return self.codes * self.scales[:, None]


class Int8Embedding(nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.matrix = Int8(weight)

    def forward(self, tokens):
        return self.matrix.rounded()[tokens]

    def logits(self, h):
        return self.matrix(h)


def replace_matrices(model):
    """Int8 for every matrix; the model with the rounded weights comes back."""
    rounded = SmolLM2(model.config)
    rounded.load_state_dict(model.state_dict())
    state = rounded.state_dict()
    for number, block in enumerate(model.blocks):
        for path in ("attn.qkv", "attn.out", "mlp.gate_up", "mlp.down"):
            quantized = Int8(block.get_submodule(path).weight)
            state[f"blocks.{number}.{path}.weight"].copy_(quantized.rounded())
            block.set_submodule(path, quantized)
    model.embed = Int8Embedding(model.embed.weight)
    state["embed.weight"].copy_(model.embed.matrix.rounded())
    return rounded


def test_matrices_can_be_replaced_by_what_has_no_weight():
    model = perturbed(NANO["pow2"])
    rounded = replace_matrices(model)
    assert greedy(Decoder(model, 64)) == without_cache(rounded, PROMPT, 40)


# Room


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
        ([1] * 8, 9, "8 tokens of prompt and 9 new ones are more than the 16"),
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


# Sampling


def log(*probabilities):
    return torch.tensor(probabilities).log()


FOUR = log(0.15, 0.5, 0.05, 0.3)


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(1.0), [0.15, 0.5, 0.05, 0.3]),
        (Sampling(0.5), [0.0225 / 0.365, 0.25 / 0.365, 0.0025 / 0.365, 0.09 / 0.365]),
        (Sampling(1.0, top_k=2), [0, 0.5 / 0.8, 0, 0.3 / 0.8]),
        (Sampling(1.0, top_k=9), [0.15, 0.5, 0.05, 0.3]),
        (Sampling(1.0, top_p=0.01), [0, 1, 0, 0]),
        (Sampling(1.0, top_p=0.49), [0, 1, 0, 0]),
        (Sampling(1.0, top_p=0.51), [0, 0.5 / 0.8, 0, 0.3 / 0.8]),
        (Sampling(1.0, top_p=0.81), [0.15 / 0.95, 0.5 / 0.95, 0, 0.3 / 0.95]),
        # Of the two that top_k leaves, the first has 0.5 / 0.8 = 0.625.
        (Sampling(1.0, top_k=2, top_p=0.6), [0, 1, 0, 0]),
        (Sampling(1e-300), [0, 1, 0, 0]),
    ],
)
def test_probabilities_are_those_of_the_formula(sampling, expected):
    torch.testing.assert_close(sampling.probabilities(FOUR).float(), torch.tensor(expected).float())


@given(
    st.lists(st.floats(-20, 20), min_size=1, max_size=30),
    st.floats(0.05, 5),
    st.floats(0.01, 0.999),
)
def test_a_nucleus_is_the_least_set_that_reaches_top_p(logits, temperature, top_p):
    whole = Sampling(temperature).probabilities(torch.tensor(logits))
    kept = Sampling(temperature, top_p=top_p).probabilities(torch.tensor(logits))
    assert kept.sum() == pytest.approx(1, abs=1e-9)
    in_it = kept > 0
    share = whole[in_it].sum()
    assert share >= top_p - 1e-9
    assert share - whole[in_it].min() < top_p + 1e-9
    if not in_it.all():
        assert whole[in_it].min() >= whole[~in_it].max()
    torch.testing.assert_close(kept[in_it], whole[in_it] / share)


def test_tokens_are_drawn_as_often_as_they_are_likely():
    generator = torch.Generator().manual_seed(0)
    drawn = [Sampling(1.0).choose(FOUR, generator) for _ in range(8000)]
    counts = torch.bincount(torch.tensor(drawn), minlength=4)
    expected = FOUR.exp() * 8000
    # Chi square with 3 degrees of freedom: 16.3 is passed once in a thousand seeds.
    assert ((counts - expected) ** 2 / expected).sum() < 16.3


def test_a_seed_repeats_a_generation_and_leaves_other_generators_alone():
    decoder = Decoder(perturbed(NANO["pow2"]), 64)
    before = torch.get_rng_state()
    texts = [greedy(decoder, sampling=Sampling(1.0, seed=seed)) for seed in (1, 2, 1)]
    assert texts[0] == texts[2] != texts[1]
    assert torch.equal(torch.get_rng_state(), before)
    # One likely token is left, whatever the seed.
    assert greedy(decoder, sampling=Sampling(1.0, top_k=1, seed=3)) == greedy(decoder)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"temperature": -0.1}, "--temperature"),
        ({"temperature": float("nan")}, "--temperature"),
        ({"temperature": float("inf")}, "--temperature"),
        ({"top_p": 0.0}, "--top-p"),
        ({"top_p": 1.1}, "--top-p"),
        ({"top_p": float("nan")}, "--top-p"),
        ({"top_k": -1}, "--top-k"),
        ({"seed": -1}, "--seed"),
        ({"seed": 2**63}, "--seed"),
    ],
)
def test_sampling_out_of_range_is_refused(options, said):
    with pytest.raises(UserError, match=said):
        Sampling(**options)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_broken_weights_are_said(temperature):
    model = SmolLM2(NANO["pow2"])
    with torch.no_grad():
        model.norm.weight[3] = float("nan")
    with pytest.raises(RunError, match="not finite"):
        greedy(Decoder(model, 64), sampling=Sampling(temperature))


# What a decoder leaves alone


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


# Text as it comes

TOKENIZER = train_tokenizer(320, stories(50))


def streamed(tokenizer, tokens):
    stream = TextStream(tokenizer)
    return [*map(stream.add, tokens), stream.rest()]


@given(st.lists(st.integers(0, TOKENIZER.get_vocab_size() + 9), max_size=40))
def test_a_stream_adds_up_to_the_text_of_all_tokens(tokens):
    """Most are no text: stray bytes, ends of text, tokens that the tokenizer does not have."""
    assert "".join(streamed(TOKENIZER, tokens)) == TOKENIZER.decode(tokens)


@given(st.text(st.characters(exclude_categories=["Cs"])) | st.text("a 🙂👩‍🚀é猫\u200d\ufe0f\ufffd"))
def test_a_stream_tears_no_character(text):
    tokens = TOKENIZER.encode(text).ids
    pieces = streamed(TOKENIZER, tokens)
    assert "".join(pieces) == text
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)


def test_a_stream_gives_each_character_as_soon_as_it_is_whole():
    tokens = TOKENIZER.encode("🙂x").ids
    assert len(tokens) == 5
    assert streamed(TOKENIZER, tokens) == ["", "", "", "🙂", "x", ""]


def test_the_published_tokenizer_streams_alike(real_data):
    tokenizer = load_tokenizer(str(real_data / "tokenizer"))
    text = "Zoë's 🙂 — 猫\n\n  said: 1234 👩‍🚀"
    assert "".join(streamed(tokenizer, tokenizer.encode(text).ids)) == text
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(tokenizer.get_vocab_size(), (500,), generator=generator).tolist()
    assert "".join(streamed(tokenizer, tokens)) == tokenizer.decode(tokens)


# Compiled


@pytest.mark.slow
@quiet
@pytest.mark.parametrize("name", ["orig", "pow2"])
def test_a_compiled_layer_gives_the_eager_tokens(name):
    model = perturbed(NANO[name])
    for max_len in (48, 64):
        compiled = Decoder(model, max_len, compiled=True)
        assert greedy(compiled) == greedy(Decoder(model, max_len))
        assert greedy(compiled, OTHER_PROMPT) == greedy(Decoder(model, max_len), OTHER_PROMPT)


@pytest.mark.slow
@quiet
def test_no_step_compiles_again_and_every_layer_shares_its_code():
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    decoder = Decoder(perturbed(variant("pow2", scale="nano")), 48, compiled=True)
    assert counters["stats"]["unique_graphs"] == 1
    greedy(decoder)
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]


@pytest.mark.slow
@quiet
def test_compiled_decoders_keep_their_own_weights_and_caches():
    """Their code is alike and unguarded."""
    models = [perturbed(NANO["pow2"]), perturbed(NANO["pow2"]).bfloat16(), perturbed(NANO["orig"])]
    with torch.no_grad():
        models.append(perturbed(NANO["pow2"]))
        models[-1].norm.weight.mul_(torch.arange(128) % 3)
    pairs = [(Decoder(model, 64, compiled=True), Decoder(model, 64)) for model in models]
    for turn in range(2):
        for compiled, eager in pairs:
            for decoder in (compiled, eager):
                decoder.prefill(PROMPT[turn:])
            atol = 0.1 if eager.model.dtype == torch.bfloat16 else 1e-4
            for token in OTHER_PROMPT:
                torch.testing.assert_close(
                    compiled.step(token), eager.step(token), atol=atol, rtol=0.02
                )


@pytest.mark.slow
@quiet
def test_a_compiled_step_goes_on_after_a_change_of_threads():
    decoder, threads = Decoder(perturbed(NANO["pow2"]), 64, compiled=True), torch.get_num_threads()
    expected = greedy(decoder)
    try:
        for other in (1, threads + 1):
            torch.set_num_threads(other)
            assert greedy(decoder) == expected
    finally:
        torch.set_num_threads(threads)


@pytest.mark.slow
@quiet
def test_replaced_matrices_compile():
    model = perturbed(NANO["pow2"])
    replace_matrices(model)
    assert greedy(Decoder(model, 64, compiled=True)) == greedy(Decoder(model, 64))


def test_experts_in_float32_are_not_compiled():
    with pytest.raises(RunError, match="in bf16 only"):
        Decoder(SmolLM2(NANO["moe-160m"]), 16, compiled=True)


@pytest.mark.slow
def test_without_a_compiler_the_reason_is_said(tmp_path):
    code = """
from smollm2 import SmolLM2, variant
from smollm2.errors import RunError
from smollm2.generate import Decoder
try:
    Decoder(SmolLM2(variant("pow2:n_layers=1", scale="nano")), 16, compiled=True)
except RunError as error:
    print(error)
"""
    environment = os.environ | {"CXX": "/nowhere/g++", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    assert found.stdout.startswith("The layer cannot be compiled here (InvalidCxxCompiler: ")
    assert found.stdout.endswith("decode without compilation.\n")
