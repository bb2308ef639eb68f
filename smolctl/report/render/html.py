"""Sections as one HTML page that needs nothing beside it."""

import base64
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path

from smolctl.report.document import Block, Code, Figure, Prose, Section, Table
from smolctl.report.render.spans import Span, code_lines, one_line, spans
from smollm2.errors import UserError


def page(
    title: str,
    notices: Iterable[str],
    sections: Iterable[Section],
    pictures: Mapping[str, Path],
) -> str:
    """The page, with its pictures as data.

    Args:
        title: of the page, and its first heading.
        notices: sentences above the sections.
        pictures: the files of the figures by their names; no other file is read.

    Raises:
        UserError: a picture cannot be read.
    """
    parts = [f"<h1>{inline_html(title)}</h1>"]
    parts += [f"<blockquote><p>{inline_html(text)}</p></blockquote>" for text in notices]
    parts += [text for one in sections for text in section_html(one, pictures, 2)]
    plain = escape(one_line(title.replace("`", "")))
    return PAGE.format(title=plain, body="\n".join(parts))


def section_html(one: Section, pictures: Mapping[str, Path], level: int) -> list[str]:
    """The heading, the blocks and the parts of a section."""
    parts = [f"<h{level}>{inline_html(one.title)}</h{level}>"]
    parts += [block_html(block, pictures) for block in one.blocks]
    for part in one.parts:
        parts += section_html(part, pictures, level + 1)
    return parts


def block_html(block: Block, pictures: Mapping[str, Path]) -> str:
    """A block as HTML."""
    match block:
        case Prose(sentences, True):
            return f"<ul>\n{lines(f'<li>{inline_html(text)}</li>' for text in sentences)}</ul>"
        case Prose(sentences):
            return f"<p>{' '.join(map(inline_html, sentences))}</p>"
        case Table():
            return f"<p>{inline_html(block.title)}:</p>\n{table_html(block)}"
        case Figure(name, caption):
            data = base64.b64encode(picture_bytes(pictures[name])).decode()
            alternative = escape(one_line(caption))
            return f'<p><img src="data:image/png;base64,{data}" alt="{alternative}"></p>'
        case Code(_, text):
            return f"<pre><code>{escape(code_lines(text))}</code></pre>"


def table_html(table: Table) -> str:
    """The table without its title."""

    def row(cells: tuple[str, ...], tag: str) -> str:
        sides = (' class="word"' if i < table.n_words else "" for i in range(len(cells)))
        inner = zip(sides, cells, strict=True)
        shown = (f"<{tag}{side}>{inline_html(text)}</{tag}>" for side, text in inner)
        return f"<tr>{''.join(shown)}</tr>"

    body = lines(row(cells, "td") for cells in table.rows)
    return (
        f"<table>\n<thead>\n{row(table.header, 'th')}\n</thead>\n<tbody>\n{body}</tbody>\n</table>"
    )


def lines(parts: Iterable[str]) -> str:
    """Each part on a line of its own."""
    return "".join(f"{part}\n" for part in parts)


def inline_html(text: str) -> str:
    """A sentence, or a part of one."""
    return "".join(span_html(kind, part) for kind, part in spans(text))


def span_html(kind: Span, text: str) -> str:
    """A part of a sentence as HTML."""
    match kind:
        case Span.CODE:
            return f"<code>{escape(text)}</code>"
        case Span.STRONG | Span.EMPHASIS:
            return f"<{kind}>{inline_html(text)}</{kind}>"
    return escape(text)


def picture_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"The figure {path} cannot be read: {error.strerror}.") from None


PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="icon" href="data:,">
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem;
  color: #1b1b1b; background: #fff; }}
table {{ border-collapse: collapse; display: block; overflow-x: auto; margin: 1rem 0; }}
th, td {{ border-bottom: 1px solid #ddd; padding: .3rem .7rem; text-align: right;
  font-variant-numeric: tabular-nums; }}
.word {{ text-align: left; }}
img {{ max-width: 100%; }}
pre {{ background: #f5f5f5; padding: .8rem; overflow-x: auto; }}
</style>
</head>
<body>
{body}
</body>
</html>
"""
