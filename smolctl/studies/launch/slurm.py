"""Slurm: the runs of a study as job arrays, which `sbatch` takes.

The tuning is one array, and the final runs are another, which begins when the first has ended. A
last job then trains what is left, scores and quantizes, with a machine to itself. A requeued task
goes on with its run.
"""

import shlex
import shutil
import subprocess
from collections.abc import Sequence

from smolctl.studies.launch_record import LaunchRecord, log_of
from smolctl.studies.launch_spec import THREADS, Launch, LauncherSpec
from smollm2.errors import RunError, UserError, reason

SECONDS = 120.0  # for a program of Slurm to answer
UNKNOWN = "UNKNOWN"  # the state of a job that cannot be asked for here
MOST_TASKS = 1000  # of an array: what Slurm takes by default
SCRIPT = """\
#!/bin/bash
# Made by smolctl study --launch slurm.
{names}
export {threads}
exec {command}
"""
CORES = "${SLURM_CPUS_PER_TASK:-${SLURM_CPUS_ON_NODE:-1}}"  # as many as Slurm gives the task
ALL_CORES = "${SLURM_CPUS_ON_NODE:-1}"  # of a machine of its own


def require_slurm() -> None:
    """Raise `UserError` where no job can be submitted."""
    if shutil.which("sbatch") is None:
        raise UserError(
            "There is no Slurm here: the program sbatch is not found. Type the command where the "
            "cluster takes jobs, or take --launch local:N."
        )


def submit(launch: Launch, record: LaunchRecord) -> None:
    """Submit the jobs of a study, each after the one before: all of them or none.

    Raises:
        UserError: `sbatch` refuses a job.
    """
    try:
        for stage, runs in (("tuning", launch.tuning), ("final", launch.final)):
            for start in range(0, len(runs), MOST_TASKS):
                part = runs[start : start + MOST_TASKS]
                job = sbatch(launch, record, f"{launch.folder.name}-{stage}", part)
                record.add(job, {f"{job}_{index}": run for index, run in enumerate(part)})
        record.add(sbatch(launch, record, launch.folder.name, ()), {})
    except BaseException:  # Ctrl-C too
        if record.jobs:
            scancel(record)
        raise


def sbatch(launch: Launch, record: LaunchRecord, name: str, runs: Sequence[str]) -> str:
    """Submit an array of runs, or without runs the last job, to begin when the newest job of the
    record has ended; returns its number."""
    words = ["sbatch", "--parsable", "--requeue", f"--job-name={name}"]
    words += [f"--gres=gpu:{launch.gpus}"] if launch.gpus else []
    words += launch.options
    log = "%A_%a" if runs else "%j"
    words += [f"--chdir={launch.here}", f"--output={log_of(launch.folder, log)}"]
    words += ["--open-mode=append"]
    if runs:
        at_once = f"%{launch.at_once}" if launch.at_once else ""
        words.append(f"--array=0-{len(runs) - 1}{at_once}")
    else:
        words.append("--exclusive")
    if record.jobs:
        words.append(f"--dependency=afterany:{record.jobs[-1]}")
    done = answer(words, script(launch, runs))
    if done.returncode:
        raise UserError(
            f"sbatch refused the job {name}: {why_failed(done)}. The jobs before it are cancelled; "
            "change what --slurm gives sbatch, or ask those who run the cluster."
        )
    return done.stdout.strip().partition(";")[0]  # the name of a cluster may follow


def script(launch: Launch, runs: Sequence[str]) -> str:
    """The script of an array of runs, or without runs that of the last job."""
    names = f"runs=({' '.join(map(shlex.quote, runs))})" if runs else ""
    command = shlex.join(launch.command)
    if runs:
        command += ' --only "${runs[$SLURM_ARRAY_TASK_ID]}"'
    cores = CORES if runs else ALL_CORES
    threads = " ".join(f"{name}={cores}" for name in THREADS)
    return SCRIPT.format(names=names, threads=threads, command=command)


def squeue(record: LaunchRecord) -> dict[str, str]:
    """The states of a launch's jobs and of their tasks, such as `PENDING`. Slurm forgets those that
    ended some minutes ago. Where there is no `squeue`, all of them are `UNKNOWN`.

    Raises:
        RunError: `squeue` does not answer.
    """
    if not record.jobs:
        return {}
    if shutil.which("squeue") is None:
        return dict.fromkeys(record.jobs, UNKNOWN)
    jobs = ",".join(record.jobs)
    words = ["squeue", "--noheader", "--array", "--states=all", f"--jobs={jobs}", "--format=%i %T"]
    done = answer(words)
    if done.returncode and "Invalid job id" in done.stderr:  # all are forgotten
        return {}
    if done.returncode:
        raise RunError(f"squeue does not say which jobs go on: {why_failed(done)}.")
    return dict(line.split(None, 1) for line in done.stdout.splitlines() if " " in line.strip())


def scancel(record: LaunchRecord) -> None:
    """Have Slurm stop the jobs of a launch; a run that is being trained is saved.

    Raises:
        UserError: there is no `scancel` here.
        RunError: it failed.
    """
    if shutil.which("scancel") is None:
        raise UserError("There is no Slurm here: type the command on a machine of the cluster.")
    done = answer(["scancel", *record.jobs])
    if done.returncode:
        raise RunError(f"scancel did not stop all jobs: {why_failed(done)}.")


def answer(words: list[str], text: str = "") -> "subprocess.CompletedProcess[str]":
    """What a program of Slurm answers.

    Raises:
        RunError: it does not answer.
    """
    try:
        return subprocess.run(words, input=text, capture_output=True, text=True, timeout=SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RunError(f"{words[0]} does not answer: {reason(error)}.") from None


def why_failed(done: "subprocess.CompletedProcess[str]") -> str:
    """Why a program of Slurm failed, in one line without a period."""
    lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
    return lines[-1].removeprefix(f"{done.args[0]}: error: ").rstrip(".")


LAUNCHER = LauncherSpec("slurm", require_slurm, submit, squeue, scancel)
