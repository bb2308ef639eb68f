"""`smolctl report`: the model card of a study, from its files and nothing else."""

import difflib
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from smolctl.options import RESULTS, STUDY, Json, Results, Study, is_typed
from smollm2.errors import UserError

if TYPE_CHECKING:
    from smolctl.comparison import Comparison

EXAMPLES = """
**Examples**

- `smolctl report > MODEL_CARD.md`

- `smolctl report --study gqa --out cards/gqa.md --html cards/gqa.html`

- `smolctl report --check MODEL_CARD.md`
"""


def report(
    context: typer.Context,
    figures: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the figures; default the study's figures/.", show_default=False
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="CARD", help="Write the card to this file, with links to figures as seen there."
        ),
    ] = None,
    html: Annotated[
        Path | None, typer.Option(help="Also write the card as one self-contained page.")
    ] = None,
    check: Annotated[
        Path | None,
        typer.Option(
            metavar="CARD", help="Write nothing: exit 1 if CARD does not follow from the files."
        ),
    ] = None,
    study: Study = STUDY,
    results: Results = RESULTS,
    as_json: Json = False,
) -> None:
    """Write the model card of a study on stdout; what was not measured is said to be so.

    Every number in it is computed from the study's files. Figures go to the study's figures/.
    """
    from smolctl.card import write_figures
    from smolctl.console import say, warn
    from smolctl.page import html as page

    if check is not None:
        for name in ("figures", "out", "html", "study", "results"):
            if is_typed(context, name):
                raise UserError(f"The card says its own {name}; with --check leave --{name} out.")
        check_card(check, as_json)
        return
    if is_typed(context, "as_json"):
        raise UserError("--json is for --check; without that the card itself is on stdout.")
    comparison, card = make_card(study, results, figures, out)
    for sentence in comparison.notes:
        warn(sentence)
    folder = figures or results / study / "figures"
    paths = write_figures(comparison, folder)
    say(f"{len(paths)} figures in {folder}.")
    if html is not None:
        write(html, page(card, f"Model card: {study}", out.parent if out else Path()))
        say(f"Page: {html}")
    if out is not None:
        write(out, card)
        say(f"Card: {out}")
    else:
        put(card)


def put(text: str) -> None:
    """Write to stdout in UTF-8, whatever the terminal's encoding: a card is a file."""
    import sys

    sys.stdout.flush()
    sys.stdout.buffer.write(text.encode())
    sys.stdout.buffer.flush()


def write(path: Path, text: str) -> None:
    """Write a file, as UTF-8 and with the same line ends everywhere."""
    try:
        path.write_bytes(text.encode())
    except OSError as error:
        raise UserError(f"Cannot write {path}: {error.strerror}.") from None


def make_card(
    study: str, results: Path, figures: Path | None, out: Path | None
) -> "tuple[Comparison, str]":
    """The comparison of a study, and its card.

    Raises:
        UserError: there are no runs to make it of, or it would have to name a path of the machine.
    """
    from smolctl.card import Figures, relative, render, study_comparison
    from smolctl.targets import finished_runs

    options = ["--study", study]
    if results != RESULTS:
        options += ["--results", relative(results)]
    if figures is not None:
        options += ["--figures", relative(figures)]
    if out is not None:
        options += ["--out", relative(out)]
    comparison = study_comparison(study, finished_runs(results, study))
    folder = Figures(figures or results / study / "figures", out.parent if out else Path())
    return comparison, render(comparison, folder, shlex.join(options))


def options_of(path: Path, card: str) -> dict[str, str]:
    """The options of the command that a card says it was made by.

    Raises:
        UserError: it says none, or none that `smolctl report` has.
    """
    import re

    made = re.search(r"^<!-- Made by `smolctl report (.*?)`", card, flags=re.MULTILINE)
    try:
        words = shlex.split(made[1]) if made else []
    except ValueError:  # an open quote
        words = []
    options = dict(zip(words[::2], words[1::2], strict=False))
    known = {"--study", "--results", "--figures", "--out"}
    if "--study" not in options or not known >= options.keys() or len(words) % 2:
        raise UserError(f"{path.name} does not say which study it is of: it is no card of smolctl.")
    return options


def check_card(path: Path, as_json: bool) -> None:
    """Raise `typer.Exit(1)`, having printed the lines that differ, if the card is not true."""
    from smolctl.console import print_json, say

    try:
        card = path.read_bytes().decode().replace("\r\n", "\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The card {path} cannot be read: {error}.") from None
    options = options_of(path, card)
    folders = {name: Path(value) for name, value in options.items() if name != "--study"}
    _, expected = make_card(
        options["--study"],
        folders.get("--results", RESULTS),
        folders.get("--figures"),
        folders.get("--out"),
    )
    follows = card == expected
    lines = list(
        difflib.unified_diff(
            card.splitlines(keepends=True),
            expected.splitlines(keepends=True),
            str(path),
            "the files",
            n=0,
        )
    )
    if as_json:
        found = {"card": str(path), "study": options["--study"], "follows": follows}
        print_json(found | {"difference": "".join(lines)})
    else:
        put("".join(lines))
    if follows:
        say(f"{path} follows from the files of study {options['--study']}.")
        return
    command = shlex.join(
        ["smolctl", "report", *(word for pair in options.items() for word in pair)]
    )
    say(f"{path} does not follow from the files; write it again with {command}.")
    raise typer.Exit(1)
