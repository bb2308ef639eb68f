"""`smolctl study status` and `cancel`: how far a study is, from its results directory."""

import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smolctl.cli.console import print_json, print_table, say, warn
from smolctl.cli.run_list import age, current_step
from smolctl.command_line import command
from smolctl.studies.launch_record import log_of, read_launch
from smolctl.studies.targets import RunStatus, status_of
from smollm2.errors import RunError, UserError
from smollm2.runs.run import Run, list_runs

if TYPE_CHECKING:
    from smolctl.studies.plan import PlannedRun

ACTIONS = ("status", "cancel")  # words before a study file
WAITING = "waiting"  # the state of a run that has not begun
LOCKS_AT_ONCE = 32  # that are tried: each takes a second if another process holds it
LAST_BYTES = 4096  # of a log, in which its last line is looked for


def action_and_file(words: list[Path]) -> tuple[str | None, Path]:
    """What is to be done with a study, None to run it; and its file.

    Raises:
        UserError: the words are not one study file, or an action and one.
    """
    first = str(words[0])
    if len(words) == 1 and (first not in ACTIONS or words[0].exists()):
        return None, words[0]
    if len(words) == 2 and first in ACTIONS:
        return first, words[1]
    if len(words) == 1:
        raise UserError(f"Name the study file: {command('study', first, 'gqa.toml')}")
    raise UserError(
        f"smolctl study takes one study file, with {' or '.join(ACTIONS)} before it or nothing; "
        f"got {' '.join(map(str, words))!r}."
    )


def act(action: str, file: Path, results: Path, as_json: bool) -> None:
    """Do what is asked with the launch of a study."""
    if action == "cancel":
        cancel(file, results, as_json)
    else:
        show_status(file, results, as_json)


def cancel(file: Path, results: Path, as_json: bool) -> None:
    """Stop the launch of a study."""
    from smolctl.studies.ladder import read_rungs
    from smolctl.studies.launching import cancel_launch

    study = read_rungs(file)[0].name
    record = cancel_launch(results / study)
    what = f"jobs {', '.join(record.jobs)}" if record.jobs else f"process {record.pid}"
    say(f"Stopping {what}. What is being trained is saved first; a later launch goes on with it.")
    if as_json:
        print_json({"study": study, "launcher": record.launcher, "jobs": record.jobs})


def show_status(file: Path, results: Path, as_json: bool) -> None:
    """Print a study's launch and the state of each of its runs."""
    found = study_status(file, results)
    if as_json:
        print_json(found)
        return
    rows, launch = found["runs"], found["launch"]
    print_table(
        f"Study {found['study']}",
        ("run", "state", "job", "steps"),
        [
            (
                row["run"],
                row["state"],
                " ".join(filter(None, (row["job"], row["job_state"]))) or "–",
                f"{row['step']:,} of {row['steps']:,}",
            )
            for row in rows
        ],
        n_words=3,
    )
    counts = Counter(row["state"] for row in rows)
    say(f"Of {len(rows)} runs: {', '.join(f'{n} {state}' for state, n in counts.items())}.")
    for row in rows:
        if row["error"] or row["said"]:
            say(f"{row['run']}: {row['error'] or row['said']}")
    if launch is not None:
        state = "goes on" if launch["goes_on"] else "has ended"
        jobs = [f"{job} {launch['job_states'].get(job, '')}".strip() for job in launch["jobs"]]
        names = f", as jobs {', '.join(jobs)}" if jobs else ""
        say(f"Launched by {launch['launcher']} {age(launch['at'])} ago{names}: it {state}.")


def study_status(file: Path, results: Path) -> dict[str, Any]:
    """How far the runs of a study are, and its newest launch.

    Raises:
        UserError: it is a ladder, whose rungs are studies of their own.
    """
    from smolctl.studies.ladder import read_rungs
    from smolctl.studies.study_progress import runs_so_far

    study, *larger = read_rungs(file)
    if larger:
        listed = command("runs", study.name, results=results)
        raise UserError(f"Each size of a ladder is a study of its own; see the first: {listed}")
    launch = newest_launch(results / study.name)
    there = {run.name: run for run in list_runs(results, study.name)[0]}
    tuning, final = runs_so_far(study, list(there.values()))
    tasks = {run: task for task, run in launch["tasks"].items()} if launch else {}
    states = launch["job_states"] if launch else {}

    def row(planned: "PlannedRun") -> dict[str, Any]:
        task = tasks.get(planned.name)
        found = progress_row(planned, there.get(planned.name))
        found |= {"job": task, "job_state": states.get(task or "")}
        is_over = found["state"] in (RunStatus.FINISHED, RunStatus.RUNNING)
        log = log_of(results / study.name, task or planned.name)
        said = None if is_over else last_line(log)
        if said is None and found["job_state"] == "FAILED":
            said = f"Its task left no log: the machine that ran it may not see {log.parent}."
        return found | {"said": said}

    with ThreadPoolExecutor(LOCKS_AT_ONCE) as pool:
        rows = list(pool.map(row, [*tuning, *final]))
    return {"study": study.name, "launch": launch, "runs": rows}


def newest_launch(folder: Path) -> dict[str, Any] | None:
    """The newest launch of the study in a folder, with the states of its jobs; None without one."""
    from smolctl.studies.launching import goes_on, job_states

    record, states = read_launch(folder), dict[str, str]()
    if record is None:
        return None
    try:
        states = job_states(record)
    except RunError as error:
        warn(str(error))
    names = ("launcher", "host", "pid", "at", "jobs", "tasks")
    launch = {name: getattr(record, name) for name in names}
    return launch | {"job_states": states, "goes_on": goes_on(record, states)}


def progress_row(planned: "PlannedRun", run: Run | None) -> dict[str, Any]:
    """A run's state, and the steps and tokens that it has made."""
    config = planned.resolved
    state = None if run is None else status_of(run)
    step = current_step(run, state) if run and state else 0
    return {
        "run": planned.name,
        "arm": planned.arm,
        "role": planned.role,
        "seed": config.seed,
        "state": state or WAITING,
        "step": step,
        "steps": config.steps,
        "tokens": step * config.tokens_per_step,
        "error": None if run is None else run.manifest.get("error"),
    }


def last_line(log: Path) -> str | None:
    """The last line of a log; None if there is none."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - LAST_BYTES))
            lines = file.read().decode(errors="replace").strip().splitlines()
    except OSError:
        return None
    return lines[-1] if lines else None
