"""What a section consists of: prose, tables, figures and code, as data for any renderer."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing


@dataclass(frozen=True)
class Prose:
    """Sentences, as a list or (`is_list=False`) as one paragraph."""

    sentences: tuple[str, ...]
    is_list: bool = True


@dataclass(frozen=True)
class Table:
    """Cells as text; the first `n_words` columns are words, the others numbers."""

    title: str
    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    n_words: int = 1

    def without_empty_columns(self) -> "Table":
        """Without the columns of numbers that hold none."""
        kept = [
            i
            for i in range(len(self.header))
            if i < self.n_words or any(row[i].strip("–, ") for row in self.rows)
        ]
        rows = [tuple(row[i] for i in kept) for row in self.rows]
        return Table(self.title, tuple(self.header[i] for i in kept), rows, self.n_words)


@dataclass(frozen=True)
class Figure:
    """A picture that is drawn only when it is written.

    name: of its PNG file, relative to the folder of figures; two figures of one name are the same.
    """

    name: str
    caption: str
    draw: "Callable[[], Drawing]" = field(compare=False, repr=False)


@dataclass(frozen=True)
class Code:
    """Lines to run or to copy; `language` as Markdown names it."""

    language: str
    text: str


Block = Prose | Table | Figure | Code


@dataclass(frozen=True)
class Section:
    """One topic: its blocks, then its parts, for example one per further study.

    name: by which `--section` asks for it; a part has none.
    """

    title: str
    blocks: tuple[Block, ...]
    parts: "tuple[Section, ...]" = ()
    name: str = ""


def section(
    title: str, blocks: Iterable[Block | None], parts: Iterable[Section | None] = ()
) -> Section | None:
    """A section of the blocks and parts that have something to say; None if none has."""
    kept = tuple(block for block in blocks if block is not None and says_something(block))
    kept_parts = tuple(part for part in parts if part is not None)
    return Section(title, kept, kept_parts) if kept or kept_parts else None


def says_something(block: Block) -> bool:
    """Whether a block has a sentence or a row; figures and code always say something."""
    match block:
        case Prose():
            return bool(block.sentences)
        case Table():
            return bool(block.rows)
    return True


def bullets(sentences: Iterable[str]) -> Prose:
    """Sentences as a list."""
    return Prose(tuple(sentences))


def paragraph(*sentences: str) -> Prose:
    """Sentences as one paragraph."""
    return Prose(sentences, is_list=False)


def blocks_of(sections: Iterable[Section]) -> Iterator[Block]:
    """Every block of the sections and of their parts, in order."""
    for one in sections:
        yield from one.blocks
        yield from blocks_of(one.parts)


def figures_of(sections: Iterable[Section]) -> list[Figure]:
    """Every figure once."""
    found = [block for block in blocks_of(sections) if isinstance(block, Figure)]
    return list(dict.fromkeys(found))


def sentences_of(sections: Iterable[Section]) -> list[str]:
    """Every sentence, in order."""
    prose = [block for block in blocks_of(sections) if isinstance(block, Prose)]
    return [sentence for block in prose for sentence in block.sentences]


def without(sections: Iterable[Section], shown: Iterable[Section]) -> list[Section]:
    """The sections without the sentences, tables and figures that `shown` has; what is then empty
    is dropped."""
    seen: set[object] = set()
    for block in blocks_of(shown):
        seen.update(block.sentences if isinstance(block, Prose) else [key_of(block)])

    def unseen(one: Section) -> Section | None:
        blocks = [left_of(block, seen) for block in one.blocks]
        left = section(one.title, blocks, map(unseen, one.parts))
        return left and dataclasses.replace(left, name=one.name)

    return [left for one in sections if (left := unseen(one)) is not None]


def left_of(block: Block, seen: set[object]) -> Block | None:
    """The block without what was seen; None if that is all of it."""
    if isinstance(block, Prose):
        sentences = tuple(text for text in block.sentences if text not in seen)
        return dataclasses.replace(block, sentences=sentences)
    return None if key_of(block) in seen else block


def key_of(block: Block) -> object:
    """What makes two blocks the same."""
    return (block.header, tuple(block.rows)) if isinstance(block, Table) else block
