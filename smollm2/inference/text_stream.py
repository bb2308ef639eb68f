"""Text from tokens that are generated one by one, up to where it ends."""

import time
from collections.abc import Iterable, Iterator, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class Ending(StrEnum):
    """What ended a text."""

    END_OF_TEXT = "end-of-text"  # a token of the model
    STOP_TEXT = "stop-text"
    MAX_NEW_TOKENS = "max-new-tokens"
    INTERRUPT = "interrupt"


class TextStream:
    """Turns tokens that arrive one by one into text.

    A token may hold a part of a character; an incomplete character is held back.
    """

    def __init__(self, tokenizer: "Tokenizer") -> None:
        self.tokenizer = tokenizer
        # The tokens of the last piece: some tokenizers decode the first token without its space.
        self._before: list[int] = []
        self._held: list[int] = []

    def add(self, token: int) -> str:
        """The text that `token` completes."""
        self._held.append(token)
        # U+FFFD at the end is a character whose last bytes may still come.
        return "" if self._text().endswith("\ufffd") else self.rest()

    def rest(self) -> str:
        """The text still held back, with U+FFFD for a broken character."""
        text = self._text()
        if text:
            self._before = self._held
        self._held = []
        return text

    def _text(self) -> str:
        before = self.tokenizer.decode(self._before)
        return self.tokenizer.decode(self._before + self._held)[len(before) :]


class StopFilter:
    """Lets a text through that arrives in pieces, up to the first of some stop texts.

    The first is the one that is complete first, and of several that are complete at the same
    character the longest: where the pieces are cut is no matter.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self.stops = stops
        self.is_over = False
        self._held = ""

    def add(self, piece: str) -> str:
        """The text that is now certain to be before a stop text."""
        self._held += piece
        found = [
            (start + len(stop), start)
            for stop in self.stops
            if (start := self._held.find(stop)) >= 0
        ]
        if found:
            self.is_over = True
            return self._held[: min(found)[1]]
        n = len(self._held) - self._n_uncertain()
        text, self._held = self._held[:n], self._held[n:]
        return text

    def rest(self) -> str:
        """The text still held back, if no more follows."""
        return "" if self.is_over else self._held

    def _n_uncertain(self) -> int:
        """The length of the longest end of the text that a stop text begins with."""
        longest = max(map(len, self.stops), default=1) - 1
        sizes = range(min(longest, len(self._held)), 0, -1)
        return next(
            (n for n in sizes if any(stop.startswith(self._held[-n:]) for stop in self.stops)), 0
        )


class Continuation:
    """A text that is being generated: iterate over it once for its pieces.

    Args:
        tokens: as they are generated, at most `max_new_tokens`.
        stops: texts before the first of which it ends, none of them empty.

    Attributes:
        text: so far.
        tokens: so far, with those of a stop text.
        times: clock readings in seconds: at the start, and at each token.
        ending: what ended it; None before that.
    """

    def __init__(
        self,
        tokenizer: "Tokenizer",
        tokens: Iterable[int],
        *,
        max_new_tokens: int,
        stops: Sequence[str] = (),
    ) -> None:
        self.tokens: list[int] = []
        self.text = ""
        self.times: list[float] = []
        self.ending: Ending | None = None
        self._source, self._max_new_tokens = tokens, max_new_tokens
        self._stream, self._filter = TextStream(tokenizer), StopFilter(stops)

    def __iter__(self) -> Iterator[str]:
        for piece in self._pieces():
            if piece:
                self.text += piece
                yield piece

    def _pieces(self) -> Iterator[str]:
        self.times.append(time.perf_counter())
        for token in self._source:
            self.times.append(time.perf_counter())
            self.tokens.append(token)
            yield self._filter.add(self._stream.add(token))
            if self._filter.is_over:
                break
        else:
            yield self._filter.add(self._stream.rest())
            yield self._filter.rest()
        if self._filter.is_over:
            self.ending = Ending.STOP_TEXT
        elif len(self.tokens) < self._max_new_tokens:
            self.ending = Ending.END_OF_TEXT
        else:
            self.ending = Ending.MAX_NEW_TOKENS
