"""Continues prompts with a model and prints the text as it comes, for `generate`."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from smolctl.cli.console import print_at_once, say, warn
from smollm2.errors import UserError

if TYPE_CHECKING:
    from smolctl.studies.models import Loaded
    from smollm2.inference.decoder import Decoder, Sampling
    from smollm2.inference.text_stream import Continuation

# New tokens of `pow2`, in one text or several, from which compiling and then decoding is faster
# than decoding eagerly: 800 in bf16 and 1,700 in int4 (benchmarks/README.md).
COMPILING_PAYS = 1500


@dataclass
class TextWriter:
    """A model that continues prompts, each as often as there are `samplings`.

    Args:
        ends: the tokens that end a text.
        stops: the texts before which it ends.
        compiled: as in `Decoder`.
        is_quiet: whether to print nothing.
        decoder: made for the first prompt, and again for one that needs more room.
    """

    loaded: "Loaded"
    max_new_tokens: int
    samplings: Sequence["Sampling"]
    ends: Collection[int]
    stops: Sequence[str]
    compiled: bool | None
    is_quiet: bool
    decoder: "Decoder | None" = None

    @property
    def context(self) -> int:
        """The tokens that the model reads at most."""
        return self.loaded.model.config.max_seq_len

    @property
    def room(self) -> int:
        """The tokens that a prompt may have.

        Raises:
            UserError: there is none for any.
        """
        if self.max_new_tokens >= self.context:
            raise UserError(
                f"--max-new-tokens {self.max_new_tokens} leaves no room for a prompt in the "
                f"model's context of {self.context} tokens; give at most {self.context - 1}."
            )
        return self.context - self.max_new_tokens

    def encode(self, text: str) -> list[int]:
        """The tokens of a prompt. For a model from elsewhere, what spells a special token is one;
        for a model trained here it is text, as it was in training."""
        from smollm2.data import encode_text

        is_from_elsewhere = self.loaded.source.run.origin is not None
        return encode_text(self.loaded.tokenizer, text, with_special=is_from_elsewhere)

    def write(self, prompt: list[int]) -> "Iterator[Continuation]":
        """Print the continuations of a prompt, and yield each when it has ended. Ctrl-C ends it."""
        from smollm2.inference.decoder import continuations
        from smollm2.inference.text_stream import Continuation, Ending

        n = self.max_new_tokens
        decoder = self.decoder_for(len(prompt) + n)
        found = continuations(decoder, prompt, self.samplings, max_new_tokens=n, ends=self.ends)
        for number, (tokens, sampling) in enumerate(zip(found, self.samplings, strict=True), 1):
            if len(found) > 1 and not self.is_quiet:
                say(f"{number} of {len(found)}, seed {sampling.seed}:")
            text = Continuation(self.loaded.tokenizer, tokens, max_new_tokens=n, stops=self.stops)
            try:
                for piece in text:
                    self.show(piece)
            except KeyboardInterrupt:
                text.ending = Ending.INTERRUPT
            self.show("\n")
            yield text

    def show(self, piece: str) -> None:
        """Print at once."""
        if not self.is_quiet:
            print_at_once(piece)

    def decoder_for(self, n: int) -> "Decoder":
        """A decoder with room for at least `n` tokens."""
        from smollm2.inference.compiled_step import has_kept_step
        from smollm2.inference.decoder import Decoder

        if self.decoder is not None:
            if n > self.decoder.max_len:  # of a conversation, which goes on growing
                self.decoder = Decoder(
                    self.loaded.model, min(2 * n, self.context), self.decoder.compiled
                )
            return self.decoder
        model = self.loaded.model
        if self.compiled and not has_kept_step(model):
            say("Compiling the decoding step ...")
            if model.device.type == "cpu" and self.max_new_tokens < COMPILING_PAYS:
                warn(
                    "On a CPU, compiling takes longer than it saves below about "
                    f"{COMPILING_PAYS} new tokens. Its code is kept, so later texts count as well."
                )
        self.decoder = Decoder(model, n, self.compiled)
        if self.decoder.compiled and self.compiled is None:
            say("Decoding with code compiled earlier; --no-compile does without.")
        return self.decoder


def said_speed(n_prompt: int, texts: "Sequence[Continuation]") -> str:
    """`Prompt: 12 tokens, 345.6 tokens/s. New: 64 tokens, 67.8 tokens/s.`"""
    n_new = sum(len(text.tokens) for text in texts)
    prompt, new = said(n_prompt, prefill_rate(n_prompt, texts)), said(n_new, decode_rate(texts))
    return f"Prompt: {prompt}. New: {new}."


def prefill_rate(n_prompt: int, texts: "Sequence[Continuation]") -> float | None:
    """Tokens of the prompt per second, which is read for the first of `texts`; None if not
    measured."""
    start, *times = texts[0].times
    return n_prompt / (times[0] - start) if times else None


def decode_rate(texts: "Sequence[Continuation]") -> float | None:
    """New tokens per second; None if not measured."""
    timed = [text.times[1:] for text in texts if len(text.times) > 2]
    seconds = sum(times[-1] - times[0] for times in timed)
    return sum(len(times) - 1 for times in timed) / seconds if seconds > 0 else None


def said(n: int, tokens_per_second: float | None) -> str:
    """`12 tokens, 345.6 tokens/s`."""
    rate = "not measured" if tokens_per_second is None else f"{tokens_per_second:,.1f} tokens/s"
    return f"{n} tokens, {rate}"
