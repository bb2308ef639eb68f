"""The project's documents: their fenced blocks, commands, options and links."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
GENERATED = ROOT / "docs" / "card-appendix.md"  # by `smolctl report`, which has tests of its own
GUIDES = [README, *sorted(set((ROOT / "docs").glob("*.md")) - {GENERATED})]
DOCUMENTS = [*GUIDES, ROOT / "results" / "README.md", ROOT / "benchmarks" / "README.md"]

COMMENT = re.compile(r"<!-- not run: (.+) -->")
FENCE = re.compile(r"^```(\w*)$")
HEADING = re.compile(r"^(#+) (.+)$")
SHELL = ("sh", "console")


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Args:
        section: the heading of level one or two above it.
        not_run: why its commands are not run in a test, from the comment above it.
    """

    document: Path
    section: str
    language: str
    text: str
    not_run: str | None

    @property
    def lines(self) -> list[str]:
        """The command lines: all of an `sh` block, those after a `$` of a `console` block."""
        lines = self.text.replace("\\\n", " ").splitlines()
        if self.language == "console":
            return [line[2:] for line in lines if line.startswith("$ ")]
        return [line for line in lines if line and not line.startswith("#")]

    @property
    def output(self) -> list[str]:
        """What a `console` block shows of the output, without the lines `...` for what it omits."""
        shown = self.text.splitlines() if self.language == "console" else []
        return [line for line in shown if not line.startswith("$ ") and line != "..."]

    @property
    def commands(self) -> list[list[str]]:
        """The words of the smolctl commands, redirections included."""
        words = [shlex.split(line, comments=True) for line in self.lines]
        bare = [line[1:] if re.match(r"[A-Z_]+=", line[0]) else line for line in words]
        return [line[1:] for line in bare if line[0] == "smolctl"]


def blocks(document: Path) -> list[Block]:
    """The fenced blocks of a document in order."""
    found: list[Block] = []
    section, not_run, language, lines = "", None, None, []
    for line in document.read_text(encoding="utf-8").splitlines():
        if language is not None:
            if line == "```":
                text = "".join(f"{line}\n" for line in lines)
                found.append(Block(document, section, language, text, not_run))
                language, not_run, lines = None, None, []
            else:
                lines.append(line)
        elif match := FENCE.match(line):
            language = match[1]
        elif match := COMMENT.match(line):
            not_run = match[1]
        elif (match := HEADING.match(line)) and len(match[1]) <= 2:
            section = match[2]
    assert language is None, f"{document.name} ends inside a fenced block"
    return found


def prose(document: Path) -> str:
    """A document without its fenced blocks."""
    text = document.read_text(encoding="utf-8")
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def shown_files(document: Path) -> dict[str, str]:
    """The files that a document shows: a TOML block whose first line is the name."""
    named = [
        (re.match(r"# ([\w-]+\.toml)\n", block.text), block.text)
        for block in blocks(document)
        if block.language == "toml"
    ]
    return {match[1]: text for match, text in named if match}


def anchors(document: Path) -> set[str]:
    """The addresses that GitHub gives the headings of a document."""
    headings = re.findall(r"^#+ (.+)$", prose(document), re.MULTILINE)
    kept = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.replace(" ", "-") for heading in kept}


def links(document: Path) -> list[str]:
    """The targets of links and images that are within the project."""
    found = re.findall(r"\]\(([^()\s]+)\)", prose(document))
    return [target for target in found if not target.startswith(("http:", "https:"))]
