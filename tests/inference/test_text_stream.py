"""Text from tokens that arrive one by one."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from support.stories import stories
from tokenizers import Tokenizer, decoders, models

from smollm2.data import load_tokenizer, train_tokenizer
from smollm2.inference.text_stream import Continuation, Ending, StopFilter, TextStream

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


def test_a_tokenizer_that_drops_the_first_space_keeps_the_others():
    tokenizer = Tokenizer(models.WordLevel({"▁Hello": 0, "▁world": 1, "!": 2, "<s>": 3}, "!"))
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(["<s>"])
    assert "".join(streamed(tokenizer, [3, 0, 1, 3, 2, 1])) == "Hello world! world"
    assert tokenizer.decode([3, 0, 1, 3, 2, 1]) == "Hello world! world"


# Where it ends


def before(text: str, stops: list[str]) -> str:
    """The text before the stop text that is complete first."""
    for end in range(len(text) + 1):
        if found := [stop for stop in stops if text[:end].endswith(stop)]:
            return text[: end - max(map(len, found))]
    return text


def filtered(pieces, stops) -> list[str]:
    filter = StopFilter(stops)
    passed = []
    for piece in pieces:
        passed.append(filter.add(piece))
        if filter.is_over:
            return passed
    return [*passed, filter.rest()]


WORDS = st.text("ab ", min_size=1, max_size=4)


@given(st.lists(st.text("ab ", max_size=4), max_size=12), st.lists(WORDS, max_size=3))
def test_a_text_ends_before_a_stop_text_however_it_is_cut(pieces, stops):
    text = "".join(pieces)
    assert "".join(filtered(pieces, stops)) == before(text, stops)
    assert "".join(filtered([text], stops)) == before(text, stops)


@given(st.lists(st.text("ab ", max_size=4), max_size=12), st.lists(WORDS, min_size=1, max_size=3))
def test_only_what_may_begin_a_stop_text_is_held_back(pieces, stops):
    filter, shown = StopFilter(stops), ""
    for number, piece in enumerate(pieces, 1):
        shown += filter.add(piece)
        if filter.is_over:
            break
        held = "".join(pieces[:number])[len(shown) :]
        assert not held or any(stop.startswith(held) for stop in stops)


def test_a_continuation_says_what_ended_it():
    tokens = TOKENIZER.encode("The cat sat").ids
    options = {"max_new_tokens": len(tokens) + 1}
    text = Continuation(TOKENIZER, tokens, **options)
    assert text.ending is None
    assert "".join(text) == text.text == "The cat sat"
    assert (text.tokens, text.ending) == (tokens, Ending.END_OF_TEXT)
    assert len(text.times) == len(tokens) + 1
    stopped = Continuation(TOKENIZER, iter(tokens), stops=["t s", "zz"], **options)
    assert "".join(stopped) == stopped.text == "The ca"
    assert stopped.ending is Ending.STOP_TEXT
    assert tokens[: len(stopped.tokens)] == stopped.tokens
    cut = Continuation(TOKENIZER, tokens, max_new_tokens=len(tokens), stops=["t!"])
    assert "".join(cut) == "The cat sat"  # the t was held back
    assert cut.ending is Ending.MAX_NEW_TOKENS
