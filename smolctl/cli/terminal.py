"""Sections on a terminal: tables first, then sentences, next to the prompt."""

from collections.abc import Iterable

from smolctl.cli.console import print_lines, print_table, say
from smolctl.report.document import Code, Prose, Section, Table, blocks_of


def show_sections(sections: Iterable[Section]) -> None:
    """Print tables, code and sentences on stdout; figures are files."""
    blocks = list(blocks_of(sections))
    for block in blocks:
        if isinstance(block, Table):
            print_table(block.title, block.header, block.rows, block.n_words)
        elif isinstance(block, Code):
            print_lines(block.text.splitlines())
    for block in blocks:
        if isinstance(block, Prose):
            mark = "- " if block.is_list else ""
            print_lines(f"{mark}{sentence}" for sentence in block.sentences)


def say_what_is_missing(names: Iterable[str], sections: Iterable[Section]) -> None:
    """Report the requested sections that are empty."""
    found = {section.name for section in sections}
    for name in names:
        if name not in found:
            say(f"Section {name} is empty for these runs.")
