"""Ray: the runs of a study as remote tasks, which are tried again when a worker dies.

The command stays until the end. When it ends before, by whatever signal, the tasks save and stop.
"""

import contextlib
import logging
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from smolctl.studies.launch.local import no_jobs, stop_process
from smolctl.studies.launch_record import LaunchRecord, log_of
from smolctl.studies.launch_spec import THREADS, Launch, LauncherSpec
from smolctl.talk import say, warn
from smollm2.errors import UserError, reason

RETRIES = 20  # of a task whose worker, machine or process was killed; it goes on each time
STOP_SECONDS = 60.0  # for the tasks to save and stop
LAST = "rest"  # the log of the last task
POLL_SECONDS = 0.5  # between looks at the tasks
FOREVER = 1e9  # seconds


class Killed(RuntimeError):
    """The process of a task was killed, perhaps for lack of memory."""


def require_ray() -> None:
    """Raise `UserError` where Ray is not installed."""
    if find_spec("ray") is None:
        raise UserError("Ray is not installed here: pip install ray")


def train_with_ray(launch: Launch, record: LaunchRecord) -> None:
    """Train a study on the cluster that Ray finds (`RAY_ADDRESS`, or the one that runs on this
    machine), else on this machine: the tuning, the final runs, then what is left and the scores.

    Raises:
        UserError: no machine of the cluster has enough GPUs.
    """
    with cluster() as ray:
        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if launch.gpus > max(machine.get("GPU", 0) for machine in machines):
            raise UserError(f"No machine of the Ray cluster has {launch.gpus} GPU.")
        machines = [one for one in machines if one.get("GPU", 0) >= launch.gpus]
        most = max(1, int(max(machine.get("CPU", 0) for machine in machines)))
        total = int(sum(machine.get("CPU", 0) for machine in machines))
        share = min(most, max(1, total // launch.at_once)) if launch.at_once else 1
        for runs in (launch.tuning, launch.final):
            work = {run: launch.command_of(run) for run in runs}
            run_tasks(ray, launch, work, share)
        run_tasks(ray, launch, {LAST: launch.command}, most)


@contextlib.contextmanager
def cluster() -> Any:
    """Connect to Ray until the block ends; the signals stay this process's own."""
    import ray

    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING)
    for number, handler in handlers.items():
        signal.signal(number, handler)
    try:
        yield ray
    finally:
        ray.shutdown()


def run_tasks(ray: Any, launch: Launch, work: dict[str, list[str]], cores: int) -> None:
    """Run commands as remote tasks, at most `launch.at_once` together; returns when all have
    ended, and says which ended badly.

    Args:
        work: the commands by the names of their logs.
        cores: of each.
    """
    remote = ray.remote(
        num_cpus=cores, num_gpus=launch.gpus, max_retries=RETRIES, retry_exceptions=[Killed]
    )(run_command)
    waiting, running = list(work.items()), dict[Any, str]()
    try:
        while waiting or running:
            while waiting and len(running) < (launch.at_once or len(work)):
                name, command = waiting.pop(0)
                log = log_of(launch.folder, name)
                running[remote.remote(command, str(launch.here), str(log), cores)] = name
            # A signal in `ray.wait` itself would lose its exit code.
            time.sleep(POLL_SECONDS)
            for done in ray.wait(list(running), num_returns=len(running), timeout=0)[0]:
                say_ended(ray, launch, running.pop(done), done)
    finally:
        for task in running:
            ray.cancel(task)
        if running:
            ray.wait(list(running), num_returns=len(running), timeout=STOP_SECONDS)


def say_ended(ray: Any, launch: Launch, name: str, done: Any) -> None:
    """Say how a task ended."""
    try:
        code = ray.get(done)
    except ray.exceptions.RayTaskError as error:
        warn(f"{name}: {reason(error.cause)}")
    except ray.exceptions.RayError as error:
        warn(f"{name}: {reason(error)}")
    else:
        if code:
            warn(f"{name} ended with exit code {code}; see {log_of(launch.folder, name)}.")
        else:
            say(f"{name} has ended.")


def run_command(command: Sequence[str], here: str, log: str, threads: int) -> int:
    """Run the command of a task on the machine that Ray chose; returns its exit code.

    Its standard input is a pipe whose end tells it to save and stop, also when this process is
    killed.

    Raises:
        UserError: the machine does not see the folder of the study.
        Killed: it was killed.
    """
    if not Path(log).parent.is_dir():
        raise UserError(
            f"A machine of the cluster does not see {Path(log).parent}: put --results on a disk "
            "that all of them share."
        )
    with (
        open(log, "ab") as file,
        subprocess.Popen(
            [*command, "--until-stdin-ends"],
            cwd=here,
            env=os.environ | dict.fromkeys(THREADS, str(threads)),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=file,
            start_new_session=True,
        ) as process,
    ):
        try:
            # With a limit it is asked again and again, so that a cancelled task notices.
            code = process.wait(timeout=FOREVER)
        except BaseException:
            assert process.stdin is not None
            process.stdin.close()
            process.wait(timeout=STOP_SECONDS)
            raise
    if code < 0:
        raise Killed(f"Its process was killed by signal {-code}.")
    return code


LAUNCHER = LauncherSpec("ray", require_ray, train_with_ray, no_jobs, stop_process)
