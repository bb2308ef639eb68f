"""`smolctl report`: the model card of a study, from its files and nothing else."""

import difflib
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from smolctl.options import RESULTS, STUDY, Json, Results, Study, is_typed
from smollm2.errors import UserError

if TYPE_CHECKING:
    from smolctl.evidence import Evidence

EXAMPLES = """
**Examples**

- `smolctl report > MODEL_CARD.md`

- `smolctl report --study gqa --out cards/gqa.md --html cards/gqa.html`

- `smolctl report --study gqa --also gqa-full --also control > MODEL_CARD.md`

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
    also: Annotated[
        list[str] | None,
        typer.Option(
            metavar="STUDY",
            help="Another study for what this one cannot tell, as speed at full size; repeat it.",
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
        for name in ("figures", "out", "html", "also", "study", "results"):
            if is_typed(context, name):
                raise UserError(f"The card says its own {name}; with --check leave --{name} out.")
        check_card(check, as_json)
        return
    if is_typed(context, "as_json"):
        raise UserError("--json is for --check; without that the card itself is on stdout.")
    evidence, card = make_card(study, results, figures, out, also or ())
    for sentence in evidence.notes:
        warn(sentence)
    folder = figures or results / study / "figures"
    paths = write_figures(evidence, folder)
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
    study: str,
    results: Path,
    figures: Path | None,
    out: Path | None,
    also: Sequence[str] = (),
) -> "tuple[Evidence, str]":
    """What a card stands on, and the card.

    Raises:
        UserError: a study is named twice or has no runs, or the card would have to name a path of
            the machine.
    """
    from smolctl.card import Figures, relative, render, study_comparison
    from smolctl.evidence import Evidence
    from smolctl.targets import finished_runs

    studies = [study, *also]
    if twice := next((name for name in studies if studies.count(name) > 1), None):
        raise UserError(f"Study {twice!r} is named twice.")
    options = ["--study", study, *(word for name in also for word in ("--also", name))]
    if results != RESULTS:
        options += ["--results", relative(results)]
    if figures is not None:
        options += ["--figures", relative(figures)]
    if out is not None:
        options += ["--out", relative(out)]
    main, *further = (study_comparison(name, finished_runs(results, name)) for name in studies)
    evidence = Evidence(main, tuple(further))
    folder = Figures(figures or results / study / "figures", out.parent if out else Path())
    return evidence, render(evidence, folder, shlex.join(options))


def options_of(path: Path, card: str) -> dict[str, list[str]]:
    """The options of the command that a card says it was made by, with their values.

    Raises:
        UserError: it says none, or none that `smolctl report` has.
    """
    import re

    made = re.search(r"^<!-- Made by `smolctl report (.*?)`", card, flags=re.MULTILINE)
    try:
        words = shlex.split(made[1]) if made else []
    except ValueError:  # an open quote
        words = []
    options: dict[str, list[str]] = {}
    for name, value in zip(words[::2], words[1::2], strict=False):
        options.setdefault(name, []).append(value)
    once = {"--study", "--results", "--figures", "--out"}
    is_known = options.keys() <= once | {"--also"}
    is_once = all(len(options.get(name, [])) < 2 for name in once)
    if "--study" not in options or not is_known or not is_once or len(words) % 2:
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
    study = options["--study"][0]

    def folder(name: str) -> Path | None:
        return Path(options[name][0]) if name in options else None

    _, expected = make_card(
        study,
        folder("--results") or RESULTS,
        folder("--figures"),
        folder("--out"),
        options.get("--also", ()),
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
        found = {"card": str(path), "study": study, "follows": follows}
        print_json(found | {"difference": "".join(lines)})
    else:
        put("".join(lines))
    if follows:
        say(
            f"{path} follows from the files of {' and '.join([study, *options.get('--also', ())])}."
        )
        return
    words = (word for name, values in options.items() for value in values for word in (name, value))
    command = shlex.join(["smolctl", "report", *words])
    say(f"{path} does not follow from the files; write it again with {command}.")
    raise typer.Exit(1)
