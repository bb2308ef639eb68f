"""`smolctl report`: the model card of a study, from its files and nothing else."""

import difflib
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from smolctl.cli.options import RESULTS, STUDY, Json, License, Results, Section, Study, is_typed
from smolctl.cli.report_files import read, read_appendix, require_writable, write
from smolctl.cli.startup import collect_garbage_rarely
from smolctl.units import counted
from smollm2.errors import UserError

if TYPE_CHECKING:
    from smolctl.report.card import Card
    from smolctl.report.evidence import Evidence

EXAMPLES = """
**Examples**

- `smolctl report > MODEL_CARD.md`

- `smolctl report --study gqa --out cards/gqa.md --appendix cards/gqa-appendix.md`

- `smolctl report --study gqa --also gqa-full --also control --html gqa.html`

- `smolctl report --study gqa --section quality --section speed`

- `smolctl report --check MODEL_CARD.md`
"""
FILES = ("figures", "out", "appendix", "html")  # options that name what to write
# What a card says about its command, by which `--check` makes it again.
ONCE = ("--study", "--results", "--figures", "--appendix", "--out", "--license")


def report(
    context: typer.Context,
    figures: Annotated[
        Path | None,
        typer.Option(
            help="Folder for figures (default: the study's figures/).", show_default=False
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="CARD",
            help="Write the card to this file, with links to figures relative to it.",
        ),
    ] = None,
    appendix: Annotated[
        Path | None,
        typer.Option(help="Also write every table, run and command to this file."),
    ] = None,
    html: Annotated[
        Path | None, typer.Option(help="Also write card and appendix as one self-contained page.")
    ] = None,
    check: Annotated[
        Path | None,
        typer.Option(
            metavar="CARD",
            help="Write nothing: exit 1 if CARD or its appendix does not follow from the files.",
        ),
    ] = None,
    also: Annotated[
        list[str] | None,
        typer.Option(
            metavar="STUDY",
            help="Add a study for what this one does not measure, e.g. full-size "
            "speed; may be repeated.",
        ),
    ] = None,
    license: License = None,
    section: Section = None,
    study: Study = STUDY,
    results: Results = RESULTS,
    as_json: Json = False,
) -> None:
    """Write the model card of a study to stdout: the answer, how it was measured, its limits.

    Every number is computed from the study's files. What was not measured is listed with the
    command that measures it. Figures go to the study's figures/ folder.
    """
    collect_garbage_rarely()
    from smolctl.cli.console import print_file, print_json, say, warn
    from smolctl.report.card import write_figures
    from smolctl.report.render.json import as_json as in_json
    from smolctl.report.wording import briefly
    from smollm2.runs.links import require_own

    if check is not None:
        for name in (*FILES, "also", "license", "section", "study", "results"):
            if is_typed(context, name):
                raise UserError(f"The card says its own {name}; with --check omit --{name}.")
        check_card(check, as_json)
        return
    if section:
        refuse_files(context, "--section prints sections alone")
        print_sections(evidence_of(study, results, also or ()), section, as_json)
        return
    if as_json:
        refuse_files(context, "--json prints on stdout alone", " and append > FILE, or omit --json")
    card = make_card(study, results, figures, out, also or (), appendix, license)
    for sentence in briefly(card.evidence.notes):
        warn(sentence)
    if as_json:
        print_json(in_json([*card.sections, *card.details]))
        return
    text, details = card.markdown, card.appendix_markdown if appendix is not None else ""
    pages = {"--html": html, "--appendix": appendix, "--out": out}
    if figures is None:
        require_own(results / study, "figures")
    require_writable({k: path for k, path in pages.items() if path}, card.figures, results)
    pictures = write_figures([*card.sections, *card.details], card.figures)
    say(f"{counted(len(pictures), 'figure')} in {card.figures}.")
    if html is not None:
        write(html, card.page(pictures))
        say(f"Page: {html}")
    if appendix is not None:
        write(appendix, details)
        say(f"Appendix: {appendix}")
    if out is not None:
        write(out, text)
        say(f"Card: {out}")
    else:
        print_file(text)


def refuse_files(context: typer.Context, reason: str, further: str = "") -> None:
    """Raise `UserError` if an option that names a file to write is typed."""
    for name in FILES:
        if is_typed(context, name):
            raise UserError(f"{reason}; omit --{name}{further}.")


def print_sections(evidence: "Evidence", names: Sequence[str], as_json: bool) -> None:
    """Some sections by themselves, on stdout."""
    from smolctl.cli.console import print_json
    from smolctl.cli.terminal import say_what_is_missing, show_sections
    from smolctl.report.render.json import as_json as in_json
    from smolctl.report.sections import sections

    shown = sections(evidence, names)
    say_what_is_missing(names, shown)
    if as_json:
        print_json(in_json(shown))
    else:
        show_sections(shown)


def evidence_of(
    study: str,
    results: Path,
    also: Sequence[str] = (),
    command: str = "",
    license: str | None = None,
) -> "Evidence":
    """The studies that a report uses, and the license that was given.

    Raises:
        UserError: a study is named twice or has no runs.
    """
    from smolctl.analysis.selection import study_comparison
    from smolctl.report.evidence import Evidence
    from smolctl.studies.targets import finished_runs

    studies = [study, *also]
    if twice := next((name for name in studies if studies.count(name) > 1), None):
        raise UserError(f"Study {twice!r} is named twice.")
    main, *further = (study_comparison(name, finished_runs(results, name)) for name in studies)
    return Evidence(main, tuple(further), command, given_license=license)


def make_card(
    study: str,
    results: Path,
    figures: Path | None = None,
    out: Path | None = None,
    also: Sequence[str] = (),
    appendix: Path | None = None,
    license: str | None = None,
) -> "Card":
    """The card of a study.

    Raises:
        UserError: as `evidence_of`, or the card would have to name a path of the machine.
    """
    from smolctl.report.card import Card
    from smolctl.report.paths import relative

    words = ["smolctl", "report", "--study", study]
    words += [word for name in also for word in ("--also", name)]
    if results != RESULTS:
        words += ["--results", relative(results)]
    for name, path in (("--figures", figures), ("--appendix", appendix), ("--out", out)):
        if path is not None:
            words += [name, relative(path)]
    if license is not None:
        words += ["--license", license]
    evidence = evidence_of(study, results, also, shlex.join(words), license)
    folder = out.parent if out else Path()
    return Card(evidence, figures or results / study / "figures", folder, appendix)


def options_of(path: Path, card: str) -> dict[str, list[str]]:
    """The options of the command that a card says it was made by, with their values.

    Raises:
        UserError: it says none, or none that `smolctl report` has.
    """
    made = re.search(r"^<!-- Made by `smolctl report (.*?)`", card, flags=re.MULTILINE)
    try:
        words = shlex.split(made[1]) if made else []
    except ValueError:  # an open quote
        words = []
    options: dict[str, list[str]] = {}
    for name, value in zip(words[::2], words[1::2], strict=False):
        options.setdefault(name, []).append(value)
    is_known = options.keys() <= {*ONCE, "--also"}
    is_once = all(len(options.get(name, [])) < 2 for name in ONCE)
    if "--study" not in options or not is_known or not is_once or len(words) % 2:
        raise UserError(f"{path.name} does not say which study it is of: it is no card of smolctl.")
    return options


def check_card(path: Path, as_json: bool) -> None:
    """Raise `typer.Exit(1)`, having printed the lines that differ, if the card or its appendix does
    not follow from the files."""
    from smolctl.cli.console import print_file, print_json, say

    found = read(path)
    options = options_of(path, found)
    study, also = options["--study"][0], options.get("--also", [])
    results, figures, appendix, out = (
        Path(options[name][0]) if name in options else None for name in ONCE[1:-1]
    )
    license = options["--license"][0] if "--license" in options else None
    card = make_card(study, results or RESULTS, figures, out, also, appendix, license)
    difference = difference_of(path, found, card.markdown)
    if appendix is not None:
        details = read_appendix(appendix, path, card.evidence.command)
        difference += difference_of(appendix, details, card.appendix_markdown)
    if as_json:
        told = {"card": str(path), "study": study, "follows": not difference}
        print_json(told | {"difference": difference})
    else:
        print_file(difference)
    if not difference:
        say(f"{path} follows from the files of {' and '.join([study, *also])}.")
        return
    say(f"{path} does not follow from the files; write it again with {card.evidence.command}.")
    raise typer.Exit(1)


def difference_of(path: Path, found: str, expected: str) -> str:
    """The lines that differ; empty if none does."""
    before, after = (text.splitlines(keepends=True) for text in (found, expected))
    return "".join(difflib.unified_diff(before, after, str(path), "the files", n=0))
