"""Sections as values that JSON can hold."""

from collections.abc import Iterable
from typing import Any

from smolctl.report.document import Block, Code, Figure, Prose, Section, Table


def as_json(sections: Iterable[Section]) -> list[dict[str, Any]]:
    """Per section `name`, `title`, `blocks` and `parts`; a block says its `kind`."""
    return [
        {
            "name": one.name,
            "title": one.title,
            "blocks": [block_json(block) for block in one.blocks],
            "parts": as_json(one.parts),
        }
        for one in sections
    ]


def block_json(block: Block) -> dict[str, Any]:
    """A block as JSON, by its kind."""
    match block:
        case Prose(sentences):
            return {"kind": "prose", "sentences": list(sentences)}
        case Table():
            rows = [list(row) for row in block.rows]
            return {
                "kind": "table",
                "title": block.title,
                "header": list(block.header),
                "rows": rows,
            }
        case Figure(name, caption):
            return {"kind": "figure", "name": name, "caption": caption}
        case Code(language, text):
            return {"kind": "code", "language": language, "text": text}
