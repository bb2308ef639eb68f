"""A study on a real Slurm, which the test starts as root: a task is requeued and another killed."""

import os
import subprocess
from pathlib import Path

import pytest
from support.command import smolctl
from support.launched import has_ended, in_training, outcomes, study_status, wait_for
from support.real_slurm import running_slurm, why_no_slurm

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),  # a requeued task waits
    pytest.mark.skipif(why_no_slurm() is not None, reason=str(why_no_slurm())),
]


@pytest.fixture(scope="module")
def slurm():
    with running_slurm() as environment:
        yield os.environ | environment | {"OMP_NUM_THREADS": "1"}


@pytest.fixture
def n_steps() -> int:
    """Of each run."""
    return 1200


@pytest.fixture
def long_study(study_file, n_steps) -> Path:
    """Two arms and three seeds, of some seconds each, whose rate is tuned."""
    text = study_file.read_text().replace("seeds = [0, 1]", "seeds = [0, 1, 2]")
    text = text.replace("steps = 6", f"steps = {n_steps}\nval_every = 300")
    study_file.write_text(text + "\n[sweep]\nlr = [1e-3, 2e-3]\n")  # one seed, no other rates
    return study_file


def test_requeued_and_killed_tasks_end_as_a_local_study(long_study, slurm):
    options = {"cwd": long_study.parent, "env": slurm}
    submitted = smolctl("study", long_study.name, "--launch", "slurm", **options)
    assert submitted.returncode == 0, submitted.stderr
    jobs = study_status(long_study, slurm)["launch"]["jobs"]
    assert len(jobs) == 3
    again = smolctl("study", long_study.name, "--launch", "slurm", **options)
    assert again.returncode == 2
    assert "has been launched already by slurm" in again.stderr

    requeued = wait_for(long_study, slurm, in_training("final", 50))
    subprocess.run(["scontrol", "requeue", requeued["job"]], env=slurm, check=True)
    killed = wait_for(
        long_study,
        slurm,
        lambda status: (
            (run := in_training("final", 50)(status)) and run["run"] != requeued["run"] and run
        ),
    )
    words = ["scancel", "--signal=KILL", "--full", killed["job"]]
    subprocess.run(words, env=slurm, check=True)
    wait_for(long_study, slurm, has_ended)

    log = (Path("results/tinies/launch") / f"{requeued['job']}.log").read_text()
    assert f"{requeued['run']}, " in log
    assert "continued from step" in log
    there = smolctl("study", long_study.name, "--results", "here", timeout=600, **options)
    assert there.returncode == 0, there.stderr
    assert outcomes(Path("results/tinies")) == outcomes(Path("here/tinies"))
    states = {run["state"] for run in study_status(long_study, slurm)["runs"]}
    assert states == {"finished"}


@pytest.mark.parametrize("n_steps", [50_000])  # so that no run ends before it is cancelled
def test_a_cancelled_study_is_saved_and_goes_on(long_study, slurm):
    options = {"cwd": long_study.parent, "env": slurm}
    assert smolctl("study", long_study.name, "--launch", "slurm", **options).returncode == 0
    run = wait_for(long_study, slurm, in_training("sweep", 50))
    stopped = smolctl("study", "cancel", long_study.name, **options)
    assert stopped.returncode == 0, stopped.stderr
    wait_for(long_study, slurm, has_ended)
    (row,) = (row for row in study_status(long_study, slurm)["runs"] if row["run"] == run["run"])
    assert row["state"] == "stopped"
    assert row["step"] >= 50


def test_a_machine_that_does_not_share_the_results_trains_nothing(study_file):
    results = study_file.parent / "results"
    results.mkdir()
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode:
        pytest.skip("needs the right to mount a folder that only Slurm sees")
    with running_slurm(unshared=results) as environment:
        options = {"cwd": study_file.parent, "env": os.environ | environment}
        submitted = smolctl("study", study_file.name, "--launch", "slurm", **options)
        assert submitted.returncode == 0, submitted.stderr
        wait_for(study_file, options["env"], has_ended)
        runs = study_status(study_file, options["env"])["runs"]
    assert {(run["state"], run["job_state"]) for run in runs} == {("waiting", "FAILED")}
    assert {run["said"] for run in runs} == {
        "Its task left no log: the machine that ran it may not see results/tinies/launch."
    }
