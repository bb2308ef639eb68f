"""A study as tasks of Ray on this machine, one of whose workers is killed."""

import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
from support.command import smolctl
from support.launched import in_training, outcomes, study_status, wait_for

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(find_spec("ray") is None, reason='needs Ray: pip install -e ".[ray]"'),
]


@pytest.fixture
def n_steps() -> int:
    """Of each run."""
    return 1200


@pytest.fixture
def long_study(study_file, n_steps) -> Path:
    """Two arms and three seeds, of some seconds each."""
    text = study_file.read_text().replace("seeds = [0, 1]", "seeds = [0, 1, 2]")
    study_file.write_text(text.replace("steps = 6", f"steps = {n_steps}\nval_every = 300"))
    return study_file


@pytest.fixture
def launched(long_study):
    """The launch of the study, in a process that does not outlive the test."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    environment.pop("RAY_ADDRESS", None)
    words = [sys.executable, "-m", "smolctl", "study", long_study.name, "--launch", "ray"]
    with (
        open("ray.log", "w") as log,
        subprocess.Popen([*words, "--at-once", "2"], stderr=log, env=environment) as process,
    ):
        yield process
        process.terminate()


def worker_of(run: str) -> int:
    """The process of Ray that waits for the one that trains a run."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
            if b"--only" in words and run.encode() in words and str(Path.cwd()) in str(words):
                return int((path.parent / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, IndexError):  # it has just ended
            continue
    raise AssertionError(f"No process trains {run}.")


def test_a_killed_worker_is_tried_again_and_ends_as_a_local_study(long_study, launched):
    run = wait_for(long_study, os.environ, in_training("final", 50))
    os.kill(worker_of(run["run"]), signal.SIGKILL)
    assert launched.wait(timeout=900) == 0, Path("ray.log").read_text()
    states = {run["state"] for run in study_status(long_study, os.environ)["runs"]}
    assert states == {"finished"}
    log = (Path("results/tinies/launch") / f"{run['run']}.log").read_text()
    assert "continued from step" in log
    options = {"cwd": long_study.parent, "env": os.environ | {"OMP_NUM_THREADS": "1"}}
    there = smolctl("study", long_study.name, "--results", "here", timeout=600, **options)
    assert there.returncode == 0, there.stderr
    assert outcomes(Path("results/tinies")) == outcomes(Path("here/tinies"))


@pytest.mark.parametrize("n_steps", [50_000])  # so that no run ends before it is cancelled
def test_cancel_saves_what_the_tasks_train(long_study, launched):
    run = wait_for(long_study, os.environ, in_training("final", 50))
    again = smolctl("study", long_study.name, "--launch", "ray", cwd=long_study.parent)
    assert again.returncode == 2
    assert "has been launched already by ray" in again.stderr
    assert smolctl("study", "cancel", long_study.name, cwd=long_study.parent).returncode == 0
    assert launched.wait(timeout=120) == 128 + signal.SIGTERM
    for _ in range(300):
        rows = study_status(long_study, os.environ)["runs"]
        (row,) = (each for each in rows if each["run"] == run["run"])
        if row["state"] == "stopped":
            return
        time.sleep(0.2)
    raise AssertionError(row)
