"""A card as one HTML page that needs nothing beside it."""

import base64
import re
from pathlib import Path
from urllib.parse import unquote

from smollm2.errors import UserError


def html(card: str, title: str, folder: Path = Path()) -> str:
    """The card as one page that needs nothing beside it: pictures, linked ones too, are in it as
    data.

    Args:
        folder: where the card lies, from which its pictures are linked.

    Raises:
        UserError: a picture is not there.
    """
    from html import unescape

    from markdown_it import MarkdownIt

    body = re.sub(r"\A---\n.*?\n---\n\s*<!--.*?-->", "", card, flags=re.DOTALL)
    body = re.sub(r"(?<!!)(\[[^\]\n]*\]\([^)\n]*\.png\))", r"!\1", body)
    page = MarkdownIt("commonmark", {"html": False}).enable("table").render(body)

    def embedded(match: re.Match[str]) -> str:
        name = unquote(unescape(match[1]))
        try:
            data = base64.b64encode((folder / name).read_bytes()).decode()
        except (OSError, ValueError) as error:
            raise UserError(f"The figure {name} cannot be read: {error}.") from None
        return f'<img src="data:image/png;base64,{data}"'

    page, found = re.subn(r'<img src="([^"]*)"', embedded, page)
    if found != body.count("!["):
        raise UserError("A link of the card to a figure is none: give --figures a plainer name.")
    return PAGE.format(title=title, body=page)


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
th:first-child, td:first-child {{ text-align: left; }}
img {{ max-width: 100%; }}
pre {{ background: #f5f5f5; padding: .8rem; overflow-x: auto; }}
</style>
</head>
<body>
{body}
</body>
</html>
"""
