"""`smolctl runs`: list runs, show one, remove, pack and unpack some."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from smolctl.analysis.study_plan import read_ledger
from smolctl.cli.console import print_facts, print_json, print_table, say, warn
from smolctl.cli.options import Json, Results, Study, complete_run, complete_study, is_typed
from smolctl.cli.run_details import eval_rows, run_facts, score_cells
from smolctl.cli.run_list import (
    opened,
    print_all,
    print_runs,
    require_study,
    runs_to_remove,
    summary,
)
from smolctl.cli.single_options import SingleOptionsGroup
from smolctl.command_line import RESULTS, STUDY
from smolctl.studies.targets import RunStatus, unpack_command
from smolctl.units import size
from smollm2.errors import UserError, first_few, unknown
from smollm2.runs.pack import HasWeights, pack_study, unpack_study

EXAMPLES = """
**Examples**

- `smolctl runs`, or as JSON for a script: `smolctl runs --json`

- the runs of one study, packed or not: `smolctl runs nano-main`

- `smolctl runs show pow2-nano-300-s0`

- `smolctl runs remove pow2-nano-300-s0`, `smolctl runs remove pow2 --state failed`

- `smolctl runs pack gqa`, `smolctl runs unpack gqa`
"""


class StudyOrCommand(SingleOptionsGroup):
    """`runs STUDY` for `runs list STUDY`, where STUDY is not the name of a command."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args[0] not in self.commands and not args[0].startswith("-"):
            args = ["list", *args]
        return super().resolve_command(ctx, args)


app = typer.Typer(
    cls=StudyOrCommand,
    invoke_without_command=True,
    rich_markup_mode="markdown",
    add_completion=False,
    subcommand_metavar="[STUDY | COMMAND]",
)

StudyName = Annotated[str, typer.Argument(metavar="STUDY", autocompletion=complete_study)]


@app.callback()
def runs(
    context: typer.Context,
    study: Annotated[
        str | None,
        typer.Option(help="Only this study (default: all).", rich_help_panel="Where"),
    ] = None,
    results: Results = RESULTS,
    as_json: Json = False,
) -> None:
    """List runs; show, remove, pack or unpack them.

    The list is newest first. A packed study is one line in it; `smolctl runs STUDY` lists its runs.
    """
    typed = [name for name in ("study", "results", "as_json") if is_typed(context, name)]
    command = context.invoked_subcommand
    if command is not None:
        if typed:
            word = "name of the study" if command == "list" else f"word {command}"
            raise UserError(f"Give options after the {word}.")
        return
    if "study" in typed:  # a default is for commands that work in one study
        print_runs(results, str(study), as_json)
    else:
        print_all(results, as_json)


@app.command("list")
def list_(study: StudyName, results: Results = RESULTS, as_json: Json = False) -> None:
    """List the runs of a study, newest first; `runs STUDY` is short for it."""
    print_runs(results, study, as_json)


@app.command()
def show(
    name: Annotated[str, typer.Argument(metavar="RUN", autocompletion=complete_run)],
    study: Study = STUDY,
    results: Results = RESULTS,
    as_json: Json = False,
) -> None:
    """Show a run's settings, scores and files on disk."""
    run = opened(results, study, name)
    scores = eval_rows(run)
    weights = run.weights_bytes()
    if as_json:
        more = {"weights_bytes": weights, "scores": scores, "manifest": run.manifest}
        print_json(summary(run) | more)
        return
    print_facts(f"{run.name}, of study {run.study}", run_facts(run))
    if scores:
        header = ("task", "how", "metric", "value", "stderr", "scored", "of", "fingerprint")
        print_table("Scores", header, map(score_cells, scores), n_words=3)
    if weights:
        rows = ((name, size(n_bytes)) for name, n_bytes in weights.items())
        print_table("Weights on disk", ("weights", "size"), rows)


@app.command("remove")
def remove_runs(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[RUN|ARM]...", autocompletion=complete_run)
    ] = None,
    state: Annotated[
        str | None,
        typer.Option(help=f"Only runs in this state: {', '.join(RunStatus)}.", show_default=False),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
    study: Study = STUDY,
    results: Results = RESULTS,
) -> None:
    """Delete runs of a study with all their files, after asking."""
    if state is not None and state not in list(RunStatus):
        raise unknown("state", state, list(RunStatus))
    if not names and state is None:
        raise UserError("Name runs or arms to remove, or give a --state.")
    doomed = runs_to_remove(results, study, names or [], state)
    for run in doomed:  # check all before removing any
        run.require_removable()
    warn_of_ledger(results / study, [run.name for run in doomed])
    what = ", ".join(f"{run.name} ({size(run.disk_bytes)})" for run in doomed)
    if not yes:
        if not sys.stdin.isatty():
            raise UserError(f"Without a terminal, removing {what} needs --yes.")
        if not typer.confirm(f"Remove {what} from {results / study} for good?", err=True):
            say("Nothing was removed.")
            raise typer.Exit(1)
    for run in doomed:
        say(f"Removed {run.name}: {size(run.remove())} freed.")


def warn_of_ledger(study: Path, names: list[str]) -> None:
    """Warn if runs that are to be removed have results in the ledger of their study."""
    try:
        ledger = read_ledger(study)
    except UserError:  # a damaged ledger is no reason to keep a run
        return
    if counted := [name for name in names if ledger and name in ledger.results]:
        warn(
            f"the ledger of study {study.name!r} keeps the result of {first_few(counted)}: the "
            "study will not train it again, and goes on only if the folder is put back."
        )


@app.command()
def pack(
    study: StudyName,
    drop_weights: Annotated[
        bool, typer.Option("--drop-weights", help="Delete the weights; a pack cannot hold them.")
    ] = False,
    results: Results = RESULTS,
) -> None:
    """Replace a study's run directories with one table per kind, for publishing.

    Every command reads a packed study as before; nothing is written into it until it is unpacked.
    """
    require_study(results, study)
    try:
        done = pack_study(results / study, drop_weights=drop_weights)
    except HasWeights as error:
        raise UserError(f"{error} Delete them with --drop-weights, or copy them first.") from None
    say(
        f"Packed {done.runs} runs of {study}: {size(done.bytes_before)} became "
        f"{size(done.bytes_after)}. Unpack them with: {unpack_command(results / study)}"
    )


@app.command()
def unpack(
    study: StudyName,
    to: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="A new folder for the copy (default: in place)."),
    ] = None,
    results: Results = RESULTS,
) -> None:
    """Restore the run directories of a packed study, byte for byte."""
    require_study(results, study)
    n_runs = unpack_study(results / study, to)
    say(f"Unpacked {n_runs} runs of {study} into {to or results / study}.")
