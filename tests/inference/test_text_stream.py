"""Text from tokens that arrive one by one."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from support.stories import stories

from smollm2.data import load_tokenizer, train_tokenizer
from smollm2.inference.decoder import TextStream

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
