"""`smolctl study`: run what a study file describes, as far as it is missing."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from smolctl.cli.console import say
from smolctl.cli.options import Json, Results, Track, is_typed
from smolctl.cli.study_dry_run import print_rungs, progress_of, show_dry_run
from smolctl.cli.study_launch import (
    launch_elsewhere,
    launch_of_study,
    launching_here,
    require_consistent,
    require_seen,
    train_one,
)
from smolctl.cli.study_options import StudyOptions
from smolctl.cli.study_status import act, action_and_file
from smolctl.command_line import RESULTS, command, short_path
from smolctl.studies.launchers import launcher_of
from smollm2.errors import UserError

if TYPE_CHECKING:
    from smolctl.studies.runner import Session

EXAMPLES = """
**Examples**

- `smolctl study gqa.toml --dry-run`

- `smolctl study gqa.toml`, then `smolctl compare --study gqa`

- `smolctl study gqa.toml --launch slurm --gpus-per-run 1 --slurm "--partition=gpu --time=4:00:00"`

- `smolctl study status gqa.toml`, `smolctl study cancel gqa.toml`

The study file gqa.toml:

    seeds = [0, 1, 2]
    arms = ["pow2", "pow2:n_kv_heads=8", "pow2:n_kv_heads=1"]
    train = { scale = "nano", steps = 300, data = "novels.jsonl.gz" }
    tune = { lr = 3e-3 }    # each arm's rate, from a grid around it
    equal = "tokens"        # optional, or flops, seconds
    eval = { tasks = "arc_easy", limit = 500 }  # optional
    speed = { rounds = 5 }  # optional: of training, measured in turns
"""


def study(
    context: typer.Context,
    words: Annotated[
        list[Path],
        typer.Argument(
            metavar="[status | cancel] FILE",
            help="TOML file; its name is the study's name. After status: how far its runs are; "
            "after cancel: stop what was launched.",
        ),
    ],
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Print the runs and their estimated time on this machine, without training.",
        ),
    ] = False,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            help="Where the study's text is now, if not where the file says: it names only the "
            "base name after the study has begun.",
            rich_help_panel="Where",
            show_default=False,
        ),
    ] = None,
    at_once: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Runs that train at once, each with its share of the cores (default: as many as "
            "a measurement shows to be fastest; 1 where the study is short, on a GPU, or with "
            "equal seconds). With Slurm or Ray: as many as there is room for.",
            rich_help_panel="Where",
            show_default=False,
        ),
    ] = None,
    launch: Annotated[
        str | None,
        typer.Option(
            metavar="LAUNCHER",
            help="Train in N processes of this machine (local:N), as jobs of Slurm (slurm), or as "
            "tasks of Ray (ray).",
            rich_help_panel="Cluster",
            show_default=False,
        ),
    ] = None,
    gpus_per_run: Annotated[
        int, typer.Option(min=0, help="GPUs of each run: 0 or 1.", rich_help_panel="Cluster")
    ] = 0,
    slurm: Annotated[
        str,
        typer.Option(
            metavar="OPTIONS",
            help='More options of sbatch, such as "--partition=gpu --time=4:00:00".',
            rich_help_panel="Cluster",
            show_default=False,
        ),
    ] = "",
    only: Annotated[
        str | None,
        typer.Option(
            metavar="RUN",
            help="Train this run alone; before a final run, what the tuning lacks. For tasks of "
            "another scheduler.",
            rich_help_panel="Cluster",
            show_default=False,
        ),
    ] = None,
    launched: Annotated[str | None, typer.Option(hidden=True)] = None,
    worker: Annotated[str | None, typer.Option(hidden=True)] = None,
    until_stdin_ends: Annotated[bool, typer.Option("--until-stdin-ends", hidden=True)] = False,
    results: Results = RESULTS,
    track: Track = None,
    as_json: Json = False,
) -> None:
    """Run a study: train every arm with every seed, interleaved, then evaluate.

    Stop it at any time; the same command continues with what is missing. Small models train
    several at once. Processes that run the same study share its runs, also on several machines. A
    failed run is reported and does not stop the others. A file with [ladder] is run at each of its
    sizes. Next: `smolctl compare` and `smolctl report`.
    """
    from smolctl.cli.workers import stop_when_stdin_ends, work

    action, file = action_and_file(words)
    if action is not None:
        refuse_other_options(context, action)
        act(action, file, results, as_json)
        return
    options = StudyOptions(file, results, data, track, at_once)
    here: AbstractContextManager[object] = nullcontext()
    # A worker or a task does not launch again, whatever a file of defaults says.
    if launch is not None and not (dry_run or only or launched or worker):
        launcher, number = launcher_of(launch)
        require_consistent(launcher, options, number, gpus_per_run, slurm)
        options = replace(options, at_once=number or at_once)
        whole = launch_of_study(options, gpus_per_run, slurm)
        if launcher.start is not None:
            launch_elsewhere(launcher, whole, options, as_json)
            return
        here = launching_here(launcher, whole, options)
    if until_stdin_ends:
        stop_when_stdin_ends()
    if launched is not None:
        require_seen(options, launched)
    if only is not None:
        train_one(options, only)
    elif worker is not None:
        work(options.sessions(), worker, at_once or 1)
    elif dry_run:
        show_dry_run(list(options.sessions()), as_json)
    else:
        with here:
            run_study(options, as_json)


def refuse_other_options(context: typer.Context, action: str) -> None:
    """Raise `UserError` for an option that was typed and that status and cancel do not have."""
    for name in context.params.keys() - {"words", "results", "as_json"}:
        if is_typed(context, name):
            raise UserError(
                f"smolctl study {action} takes --results and --json, and no "
                f"--{name.replace('_', '-')}."
            )


def run_study(options: StudyOptions, as_json: bool) -> None:
    """Run what is missing of a study, in this process or several, and say what it did.

    Raises:
        typer.Exit: a final run failed.
    """
    import torch

    from smolctl.cli.workers import train_at_once
    from smolctl.studies.at_once import runs_at_once
    from smolctl.studies.study_warnings import warn_before

    sessions: list[Session] = []
    for session in options.sessions():
        if not sessions:
            warn_before(session)
        sessions.append(session)
        runs, threads = together = runs_at_once(session, options.at_once)
        if runs > 1 or threads < torch.get_num_threads():
            session.refuse_changes()  # once, before each process does
            train_at_once(together, options.words, session.study.name)
            session.tried_again.clear()  # by the processes
        session.run()
        say_result(session)
    if as_json:
        print_rungs([study_result(one) for one in sessions])
    finish(sessions)


def study_result(session: "Session") -> dict[str, Any]:
    """What has been run."""
    runs = [(planned, session.existing(planned)) for planned in session.planned()]
    return {
        "study": session.study.name,
        "runs": [
            {
                "run": planned.name,
                "arm": planned.arm,
                "role": planned.role,
                "state": progress_of(run),
                "error": session.failed.get(planned.name),
            }
            for planned, run in runs
        ],
    }


def say_result(session: "Session") -> None:
    """Say what a study chose, and how much of it is finished."""
    from smolctl.report.wording import grouped, listed

    texts = {arm: f"{rate:g}" for arm, rate in session.rates().items()}
    for rate, arms in grouped(texts).items():
        say(f"Tuning chose a learning rate of {rate} for {listed(arms)}.")
    runs = session.planned()
    finished = [run for run in runs if session.is_finished(run)]
    say(f"{len(finished)} of {len(runs)} runs are finished in {session.folder}.")
    tried = session.tuned().runs
    if lost := [run.name for run in tried if not session.is_finished(run)]:
        say(f"Failed while tuning, so not chosen: {', '.join(lost)}.")


def finish(sessions: "list[Session]") -> None:
    """Say what to type next, of a ladder about its largest size; exit code 1 if a final run failed
    in any of the sessions."""
    last = sessions[-1]
    where: dict[str, Any] = {"study": last.study.name, "results": last.results}
    arms = [arm.name for arm in last.study.arms]
    say(f"Next: {command('compare', *arms, **where)}")
    if last.study.ladder is not None:
        say(f"      {command('compare', *arms, '--section', 'ladder', **where)}")
    card = short_path(last.folder / "MODEL_CARD.md")
    say(f"      {command('report', '--out', card, **where)}")
    failed, diverged, has_failed = list[str](), list[str](), False
    for one in sessions:
        of_rung = f" of {one.study.name}" if one.study.ladder else ""
        results = one.diverged()
        tried = {run.name for run in one.tuned().runs}
        final = [name for name in one.failed if name not in tried]
        has_failed |= bool(final)
        failed += [f"{name}{of_rung}" for name in final if name not in results]
        diverged += [f"{name}{of_rung}" for name in results]
    if diverged:
        say(f"Diverged: {', '.join(diverged)}. That is a result, which is not tried again.")
    if failed:
        say(f"Failed: {', '.join(failed)}. The same command tries them again.")
    if has_failed:
        raise typer.Exit(1)
