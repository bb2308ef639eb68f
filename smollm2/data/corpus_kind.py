"""The interface of a kind of corpus."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class CorpusKind:
    """A kind of corpus. Its functions take a source, the string that names one corpus.

    prefix: what a source of this kind begins with if it ends with a colon (`hub:`), else the whole
        source (`builtin`); empty for paths.
    spelling: what to type, for messages.
    read: the documents, in a fixed order.
    identity: a string that changes if the content may have changed; raises OSError if the source
        cannot be examined.
    not_read: a sentence about what of the source is not read; None if all is.
    slices: of a source and a number n, n functions that read slices of it, each without what is
        before; None if it can only be read from its start.
    is_unbounded: the source may be too long to read whole, so `prepare` takes `HUB_TOKENS` of
        it.
    follows_python: the text depends on the running Python version.
    """

    prefix: str
    spelling: str
    read: Callable[[str], Iterator[str]]
    identity: Callable[[str], str]
    not_read: Callable[[str], str | None] = lambda source: None
    slices: Callable[[str, int], list[Callable[[], Iterator[str]]]] | None = None
    is_unbounded: bool = False
    follows_python: bool = False

    def names(self, source: str) -> bool:
        """Whether `source` is of this kind."""
        if self.prefix.endswith(":"):
            return source.startswith(self.prefix)
        return source == self.prefix
