"""`smolctl study`: run what a study file describes, as far as it is missing."""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from smolctl.analysis.ladder_notes import TRANSFER
from smolctl.cli.console import print_json, print_table, say
from smolctl.cli.options import Json, Results, Track
from smolctl.command_line import RESULTS, command, short_path
from smolctl.studies.targets import saved_step
from smolctl.units import duration
from smollm2.model.cost import parameters
from smollm2.runs.manifest import RunState
from smollm2.runs.run import Run

if TYPE_CHECKING:
    from smolctl.studies.plan import PlannedRun
    from smolctl.studies.runner import Session
    from smollm2.training.loop import Observer

EXAMPLES = """
**Examples**

- `smolctl study gqa.toml --dry-run`

- `smolctl study gqa.toml`, then `smolctl compare --study gqa`

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
    file: Annotated[Path, typer.Argument(help="TOML file; its name is the study's name.")],
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
            "equal seconds).",
            rich_help_panel="Where",
            show_default=False,
        ),
    ] = None,
    worker: Annotated[str | None, typer.Option(hidden=True)] = None,
    results: Results = RESULTS,
    track: Track = None,
    as_json: Json = False,
) -> None:
    """Run a study: train every arm with every seed, interleaved, then evaluate.

    Stop it at any time; the same command continues with what is missing. Small models train
    several at once. Two processes that run the same study share its runs. A failed run is
    reported and does not stop the others. A file with [ladder] is run at each of its sizes. Next:
    `smolctl compare` and `smolctl report`.
    """
    import torch

    from smolctl.cli.progress import observed
    from smolctl.cli.workers import train_at_once, work
    from smolctl.studies.at_once import runs_at_once
    from smolctl.studies.ladder import sessions_of
    from smolctl.studies.study_warnings import warn_before, warn_of_one_seed

    def observe(run: Run) -> "AbstractContextManager[Observer]":
        return observed(run, track, "The same command continues the study.")

    if worker is not None:
        work(sessions_of(file, results, observe, data), worker, at_once or 1)
        return
    words = [str(file), *(["--data", data] if data else []), *(["--track", track] if track else [])]
    sessions: list[Session] = []
    for session in sessions_of(file, results, observe, data):
        if not sessions and not dry_run:
            warn_before(session)
        sessions.append(session)
        if not dry_run:
            runs, threads = together = runs_at_once(session, at_once)
            if runs > 1 or threads < torch.get_num_threads():
                session.refuse_changes()  # once, before each process does
                train_at_once(together, [*words, "--results", str(results)], session.study.name)
                session.tried_again.clear()  # by the processes
            session.run()
            say_result(session)
    if dry_run:
        warn_of_one_seed(sessions[0].study)
    found = [study_plan(one) if dry_run else study_result(one) for one in sessions]
    if as_json:
        print_json({"rungs": found} if len(found) > 1 else found[0])
    if not dry_run:
        finish(sessions)
    elif not as_json:
        show_study_plans(sessions, found)


def study_plan(session: "Session") -> dict[str, Any]:
    """The runs, their states, and how long the missing ones take on this machine."""
    from smolctl.studies import step_times
    from smolctl.studies.ledger import say_if_changed

    session.refuse_changes()
    say_if_changed(session.study, session.folder)
    step_seconds = session.step_seconds or step_times.measure(session.study, session.data)
    rows = [plan_of(session, planned, step_seconds) for planned in session.planned()]
    total = sum(row["seconds_left"] for row in rows)
    return {"study": session.study.name, "runs": rows, "seconds_left": total}


def show_study_plans(sessions: "list[Session]", plans: list[dict[str, Any]]) -> None:
    """Print `study_plan` of each session, and the time of all."""
    for session, plan in zip(sessions, plans, strict=True):
        show_rows(session, plan["runs"])
    first = sessions[0]
    rest = ["the evaluation"] * bool(first.questions)
    rest += ["quantizing"] * (first.study.quantization is not None)
    rest += ["measuring the speed"] * (first.study.speed is not None)
    more = f" and, not counted here, {', '.join(rest)}" if rest else ""
    total = sum(plan["seconds_left"] for plan in plans)
    say(f"About {duration(total)} of training and validation on this machine{more}.")
    ladder = first.study.ladder
    if len(sessions) > 1 and ladder and ladder.rate == TRANSFER and not first.rates():
        say(f"The rates of the larger sizes follow from the tuning at {ladder.smallest}.")


def show_rows(session: "Session", rows: list[dict[str, Any]]) -> None:
    """Print the planned runs: a row for those that differ in their seeds alone."""
    from smolctl.report.wording import seeds_text

    alike: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows:
        cells = (
            row["arm"],
            f"{row['parameters']:,}",
            f"{row['steps']:,}",
            f"{row['flops']:.2e}",
            f"{row['lr']:g}" if row["lr"] else "from tuning",
            row["state"],
        )
        alike.setdefault((row["role"], *cells), []).append(row)
    has_begun = any(row["state"] != "to do" for row in rows)
    print_table(
        f"Study {session.study.name}: equal {session.study.equal}",
        (
            *("arm", "seeds", "parameters", "steps", "FLOPs a run", "lr", "state"),
            "time left" if has_begun else "time",
        ),
        (
            (
                cells[0],
                seeds_text(row["seed"] for row in found),
                *cells[1:],
                duration(left) if (left := sum(row["seconds_left"] for row in found)) else "–",
            )
            for (_, *cells), found in alike.items()
        ),
        n_words=2,
    )


def plan_of(
    session: "Session", planned: "PlannedRun", step_seconds: dict[str, float]
) -> dict[str, Any]:
    """A planned run, and the seconds of training and validation that remain."""
    config, run = planned.resolved, session.existing(planned)
    steps_left = 0 if session.is_over(planned) else config.steps - (saved_step(run) if run else 0)
    return {
        "run": planned.name,
        "arm": planned.arm,
        "role": planned.role,
        "seed": config.seed,
        "steps": config.steps,
        "tokens": config.steps * config.tokens_per_step,
        "flops": config.steps * config.flops_per_step,
        "parameters": parameters(config.model).total,
        "lr": config.recipe.lr if planned.config.lr or not has_rates_to_come(session) else None,
        "state": progress_of(run),
        "seconds_left": seconds_of(planned, step_seconds[planned.arm], steps_left),
    }


def has_rates_to_come(session: "Session") -> bool:
    """Whether the rates of the final runs follow from a tuning: of the study, or of the smallest
    size of its ladder."""
    ladder = session.study.ladder
    is_transferred = ladder is not None and ladder.is_transferred(ladder.rung or "")
    return session.study.tuning is not None or is_transferred


def seconds_of(planned: "PlannedRun", step_seconds: float, steps: int) -> float:
    """The time that so many steps of a run take, with its validations and its final scores."""
    config = planned.resolved
    # A validation is a forward pass: a third of what training on its tokens costs.
    tokens_scored = config.validation_tokens / config.validation_every
    tokens_scored += config.test_tokens / config.steps  # of a tuning run on validation
    scoring = tokens_scored / config.tokens_per_step / 3  # in training steps, per step
    return steps * step_seconds * (1 + scoring)


def progress_of(run: Run | None) -> str:
    """`to do`, `finished`, `failed` or `to be continued`."""
    if run is None:
        return "to do"
    return run.state if run.state in (RunState.FINISHED, RunState.FAILED) else "to be continued"


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
