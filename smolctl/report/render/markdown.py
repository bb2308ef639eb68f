"""Sections as Markdown. Text is escaped here: it gives no heading, list, link, image or HTML."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from smolctl.report.document import Block, Code, Figure, Prose, Section, Table
from smolctl.report.paths import relative
from smolctl.report.render.spans import Span, code_lines, one_line, spans

# What Markdown, as CommonMark and GitHub have it, might not show as it stands. A character that
# stays as it is in this place is left alone: `acc_norm`, `p < 0.05`, `about ~135`.
SPECIAL = re.compile(
    r"""[\\`\[\]$]
    | \*(?!\s|$) | (?<=\S)\*
    | (?<![^\W_])_ | _(?![^\W_])
    | (?<=\S)~
    | <(?=[A-Za-z/!?])
    | &(?=\#?\w+;)
    | (?<=:)/(?=/) | (?<=www)\.
    """,
    re.VERBOSE | re.IGNORECASE,
)
# What would begin a block at the start of a line.
BLOCK = re.compile(r"\A(\d{0,9})([#>]|[-+*.)](?=\s|$)|--|~~)")


@dataclass(frozen=True)
class Figures:
    """Where the pictures are, as a page links them from the folder it lies in."""

    folder: Path
    page: Path = Path()

    def show(self, figure: Figure) -> str:
        """The picture, by a link."""
        return f"!{link(figure.caption, self.folder / figure.name, self.page)}"


def link(text: str, path: Path, page: Path) -> str:
    """A link to a file from a page in the folder `page`, percent-encoded: a space or a parenthesis
    would end it."""
    return f"[{inline(text)}]({quote(relative(path, page))})"


def markdown(sections: Iterable[Section], figures: Figures, level: int = 2) -> str:
    """The sections, each below a heading of `level`; their parts one level deeper."""
    return "\n".join(part for one in sections for part in section_parts(one, figures, level))


def section_parts(one: Section, figures: Figures, level: int) -> list[str]:
    """The heading, the blocks and the parts of a section."""
    parts = [f"{heading(one.title, level)}\n"]
    parts += [f"{block_text(block, figures)}\n" for block in one.blocks]
    for part in one.parts:
        parts += section_parts(part, figures, level + 1)
    return parts


def block_text(block: Block, figures: Figures) -> str:
    """A block as Markdown."""
    match block:
        case Prose(sentences, is_list):
            lines = [line(text) for text in sentences]
            return "\n".join(f"- {text}" for text in lines) if is_list else " ".join(lines)
        case Table():
            return f"{line(block.title)}:\n\n{table_text(block)}"
        case Figure():
            return figures.show(block)
        case Code(language, text):
            return fenced(language, text)


def heading(title: str, level: int) -> str:
    """A heading."""
    return f"{'#' * level} {inline(title)}"


def notice(text: str) -> str:
    """A quoted paragraph."""
    return f"> {line(text)}"


def comment(text: str) -> str:
    """A comment, which no reader sees; its text cannot end it."""
    return f"<!-- {re.sub('--+!?>', '–', one_line(text))} -->"


def fenced(language: str, text: str) -> str:
    """Code that no line of it ends."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{code_lines(text)}{fence}"


def table_text(table: Table) -> str:
    """The table without its title."""
    sides = [":--" if i < table.n_words else "--:" for i in range(len(table.header))]
    cells = [[cell(text) for text in row] for row in (table.header, *table.rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (cells[0], sides, *cells[1:]))


def line(text: str) -> str:
    """A sentence at the start of a line."""
    return re.sub(BLOCK, r"\1\\\2", inline(text))


def inline(text: str) -> str:
    """A sentence, or a part of one."""
    return "".join(span_text(kind, part) for kind, part in spans(text))


def span_text(kind: Span, text: str) -> str:
    """A part of a sentence as Markdown."""
    match kind:
        case Span.CODE:
            return f"`{text}`"
        case Span.STRONG:
            return f"**{inline(text)}**"
        case Span.EMPHASIS:
            return f"*{inline(text)}*"
    return escaped(text)


def cell(text: str) -> str:
    """A sentence in a cell, which `|` would end. In code nothing can be escaped for every reader of
    Markdown, so that code with `|` becomes text."""
    parts = (
        escaped(part) if kind is Span.CODE and re.search(r"[|\\]", part) else span_text(kind, part)
        for kind, part in spans(text)
    )
    return "".join(parts).replace("|", "\\|")


def escaped(text: str) -> str:
    """Text that is shown as it is."""
    return SPECIAL.sub(r"\\\g<0>", text)
