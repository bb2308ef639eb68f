"""`smolctl report`: the model card of a study, from its files and nothing else."""

import difflib
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from smolctl.options import RESULTS, STUDY, Results, Study
from smollm2.errors import UserError

if TYPE_CHECKING:
    from smolctl.comparison import Comparison

EXAMPLES = """
**Examples**

- `smolctl report > MODEL_CARD.md`

- `smolctl report --study gqa --html gqa.html > gqa.md`

- `smolctl report --check MODEL_CARD.md`
"""


def report(
    figures: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the figures; default the study's figures/.", show_default=False
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
) -> None:
    """Write the model card of a study on stdout; what was not measured is said to be so.

    Every number in it is computed from the study's files. Figures go to the study's figures/.
    """
    import sys

    from smolctl.card import html as page
    from smolctl.card import write_figures
    from smolctl.console import say, warn

    if check is not None:
        check_card(check, results)
        return
    comparison, card = make_card(study, results, figures)
    for sentence in comparison.left_out:
        warn(sentence)
    paths = write_figures(comparison, figures or results / study / "figures")
    sys.stdout.write(card)
    say(f"{len(paths)} figures in {paths[0].parent}.")
    if html is not None:
        try:
            html.write_text(page(card, f"Model card: {study}"), encoding="utf-8")
        except OSError as error:
            raise UserError(f"Cannot write {html}: {error.strerror}.") from None
        say(f"Page: {html}")


def make_card(study: str, results: Path, figures: Path | None) -> "tuple[Comparison, str]":
    """The comparison of a study, and its card."""
    from smolctl.card import Figures, render, study_comparison
    from smolctl.targets import finished_runs

    comparison = study_comparison(study, finished_runs(results, study))
    options = ["--study", study]
    if results != RESULTS:
        options += ["--results", results.as_posix()]
    if figures is not None:
        options += ["--figures", figures.as_posix()]
    folder = figures or results / study / "figures"
    return comparison, render(comparison, Figures(folder), shlex.join(options))


def check_card(path: Path, results: Path) -> None:
    """Raise `typer.Exit(1)`, having printed the lines that differ, if the card is not true."""
    import re
    import sys

    from smolctl.console import say

    try:
        card = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The card {path} cannot be read: {error}.") from None
    made = re.search(r"^<!-- Made by `smolctl report (.*?)`", card, flags=re.MULTILINE)
    if made is None:
        raise UserError(f"{path.name} does not say which study it is of: it is no card of smolctl.")
    words = shlex.split(made[1])
    options = dict(zip(words[::2], words[1::2], strict=False))
    figures = options.get("--figures")
    _, expected = make_card(
        options["--study"],
        Path(options.get("--results", results)),
        Path(figures) if figures else None,
    )
    if card == expected:
        say(f"{path} follows from the files of study {options['--study']}.")
        return
    lines = difflib.unified_diff(
        card.splitlines(keepends=True),
        expected.splitlines(keepends=True),
        str(path),
        "the files",
        n=0,
    )
    sys.stdout.writelines(lines)
    say(f"{path} does not follow from the files; write it again with smolctl report {made[1]}.")
    raise typer.Exit(1)
