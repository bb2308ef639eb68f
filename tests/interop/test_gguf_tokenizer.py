"""The tokenizer that a GGUF file describes gives the tokens of the one that was written."""

import json
from pathlib import Path

import pytest
from gguf import GGUFWriter
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.stories import stories
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing

from smollm2.data import Bounds, document_bounds, load_tokenizer, tokenizer_fingerprint
from smollm2.interop.gguf import describe_bounds, describe_tokenizer
from smollm2.interop.gguf_file import read_gguf
from smollm2.interop.gguf_tokenizer import kept_settings, read_text_bounds, rebuilt_tokenizer
from smollm2.runs.text_settings import chat_template

pieces = st.sampled_from(
    [
        *("when the old", " ", "  ", "\n\n", "\t", "1", "23", "½", "٣", "é", "e\u0301", "猫", "🙂"),
        *("'s", "'LL", "->", "<tool>", "<|endoftext|>", "<|im_end|>", "\u3000", "\x00"),
    ]
)
writings = st.text() | st.lists(pieces).map("".join)


def of_words() -> Tokenizer:
    """GPT-2's kind, which does not take digits one by one."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*stories(50), "1234 5678 " * 9], trainer)
    tokenizer.encode_special_tokens = True
    return tokenizer


def with_tokens(tokens: Tokenizer) -> Tokenizer:
    tokens.add_special_tokens(["<|im_end|>"])
    tokens.add_tokens([AddedToken("<tool>", special=False)])
    return tokens


def described(
    folder: Path,
    tokens: Tokenizer,
    bounds: Bounds | None = None,
    vocab_size: int = 512,
    **templates,
) -> dict:
    """The fields of a file with the tokenizer."""
    writer = GGUFWriter(folder / "t.gguf", "llama")
    describe_tokenizer(writer, tokens, vocab_size)
    describe_bounds(writer, tokens, bounds or document_bounds(tokens))
    if templates:
        several = [{"name": name, "template": text} for name, text in templates.items()]
        writer.add_chat_template(several)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return read_gguf(folder / "t.gguf").fields


@pytest.fixture(scope="module", params=["trained", "of words", "with tokens of its own"])
def pair(request, tokenizer, tmp_path_factory) -> tuple[Tokenizer, Tokenizer]:
    """A tokenizer, and the one that is made of its description."""
    tokens = of_words() if request.param == "of words" else load_tokenizer(tokenizer)
    if request.param == "with tokens of its own":
        tokens = with_tokens(tokens)
    return tokens, rebuilt_tokenizer(described(tmp_path_factory.mktemp("tokens"), tokens))


@settings(max_examples=300, suppress_health_check=list(HealthCheck))
@given(text=writings)
def test_a_text_has_the_same_tokens(pair, text):
    ours, theirs = pair
    expected = ours.encode(text, add_special_tokens=False).ids
    assert theirs.encode(text, add_special_tokens=False).ids == expected
    assert theirs.decode(expected) == ours.decode(expected)


def test_it_is_the_tokenizer_that_was_written(pair):
    ours, theirs = pair
    assert theirs.get_vocab() == ours.get_vocab()
    if theirs.token_to_id("<tool>") is None:  # added ones have moved into the vocabulary
        assert tokenizer_fingerprint(theirs) == tokenizer_fingerprint(ours)
    added = [tokens.get_added_tokens_decoder().items() for tokens in (ours, theirs)]
    first, second = ({number: str(token) for number, token in each} for each in added)
    assert first == second


def test_special_tokens_count_as_such_where_they_are_asked_for(pair):
    ours, theirs = pair
    for tokens in (ours, theirs):
        tokens.encode_special_tokens = False
    text = "a<|endoftext|>b<|im_end|><tool>"
    assert theirs.encode(text).ids == ours.encode(text).ids
    assert theirs.encode(text).ids[1] == theirs.token_to_id("<|endoftext|>")
    for tokens in (ours, theirs):
        tokens.encode_special_tokens = True


@pytest.mark.parametrize(
    "bounds",
    [
        Bounds(3, (0,)),
        Bounds(0, (5, 6), 7),
        Bounds(1, (5, 6, 7), 1),
    ],
)
def test_bounds_are_read_back(tmp_path, tokenizer, bounds):
    fields = described(tmp_path, load_tokenizer(tokenizer), bounds)
    assert read_text_bounds(fields) == bounds


def test_numbers_of_no_token_are_none(tmp_path, tokenizer):
    fields = described(tmp_path, load_tokenizer(tokenizer), Bounds(0, (5,), 7))
    fields |= {
        "tokenizer.ggml.bos_token_id": 512,
        "tokenizer.ggml.eot_token_id": 2**32 - 1,
        "tokenizer.ggml.padding_token_id": -1,
    }
    assert read_text_bounds(fields) == Bounds(None, (5,), None)
    for name in ("bos", "eos"):
        fields.pop(f"tokenizer.ggml.{name}_token_id")
    assert read_text_bounds(fields) == Bounds(None, (), None)


@pytest.mark.parametrize("single", ["[BOS] $A", "$A [EOS]", "[BOS] $A [EOS]", "$A"])
def test_what_is_added_to_a_text_is_read_back(tmp_path, tokenizer, single):
    tokens = load_tokenizer(tokenizer)
    tokens.add_special_tokens(["[BOS]", "[EOS]"])
    begin, end = map(tokens.token_to_id, ("[BOS]", "[EOS]"))
    special = [("[BOS]", begin), ("[EOS]", end)]
    if single != "$A":
        tokens.post_processor = TemplateProcessing(single=single, special_tokens=special)
    fields = described(tmp_path, tokens, Bounds(begin, (end,)))
    assert fields["tokenizer.ggml.add_bos_token"] == ("[BOS]" in single)
    assert fields.get("tokenizer.ggml.add_eos_token", False) == ("[EOS]" in single)
    rebuilt = rebuilt_tokenizer(fields)
    for text in ("", "when the old"):
        assert rebuilt.encode(text).ids == tokens.encode(text).ids
        assert rebuilt.encode(text, add_special_tokens=False).ids == (
            tokens.encode(text, add_special_tokens=False).ids
        )


def test_templates_are_kept_as_files_of_transformers(tmp_path, tokenizer):
    tokens = load_tokenizer(tokenizer)
    one = kept_settings(described(tmp_path, tokens, default="{{ a }}"), 64)
    assert one.keys() == {"chat_template.jinja", "tokenizer_config.json"}
    assert chat_template(one) == one["chat_template.jinja"].decode() == "{{ a }}"
    content = json.loads(one["tokenizer_config.json"])
    assert (content["eos_token"], content["model_max_length"]) == ("<|endoftext|>", 64)
    assert "pad_token" not in content

    several = kept_settings(described(tmp_path, tokens, default="a", tool_use="b"), 64)
    assert several.keys() == {"tokenizer_config.json"}
    found = chat_template(several)
    assert {each["name"]: each["template"] for each in found} == {"default": "a", "tool_use": "b"}
    assert chat_template(kept_settings(described(tmp_path, tokens), 64)) is None
