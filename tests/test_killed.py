"""A process is stopped, killed or out of disk: its run goes on to the same rows and weights."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import smolctl
from test_resume import STEPS, outcome

from smollm2.runs import Run


@pytest.fixture(scope="module")
def undisturbed_cli(tiny, tmp_path_factory) -> dict[str, object]:
    folder = tmp_path_factory.mktemp("cli")
    done = smolctl(*tiny, "--steps", str(STEPS), "--name", "r", cwd=folder)
    assert done.returncode == 0, done.stderr
    return outcome(folder / "results/runs/r")


def start(arguments: list[str], folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "smolctl", *arguments],
        cwd=folder,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )


def wait_for_rows(path: Path, n_rows: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if path.exists() and path.read_text().count("\n") > n_rows:
            return
        time.sleep(0.002)
    raise AssertionError(f"{path} did not get {n_rows} rows")


@pytest.mark.parametrize("rows", [1, 8, 17])
def test_sigkill_then_resume_ends_the_same(tiny, workdir, undisturbed_cli, rows):
    options = ["--steps", str(STEPS), "--name", "r", "--checkpoint-every", "4"]
    process = start([*tiny, *options], workdir)
    wait_for_rows(workdir / "results/runs/r/train.csv", rows)
    process.kill()
    process.communicate()
    done = smolctl("train", "--resume", "r", "--checkpoint-every", "4", cwd=workdir)
    assert done.returncode == 0, done.stderr
    assert outcome(workdir / "results/runs/r") == undisturbed_cli


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_says_how_to_resume(tiny, workdir, undisturbed_cli, number):
    options = ["--steps", str(STEPS), "--name", "r", "--results", "elsewhere"]
    process = start([*tiny, *options], workdir)
    wait_for_rows(workdir / "elsewhere/runs/r/train.csv", 3)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    command = said.rpartition("Continue with: smolctl ")[2].split()
    assert Run(workdir / "elsewhere/runs/r").manifest["state"] == "stopped"
    done = smolctl(*command, cwd=workdir)
    assert done.returncode == 0, done.stderr
    assert outcome(workdir / "elsewhere/runs/r") == undisturbed_cli


# Kill the process at the named function of smollm2.checkpoints while it saves the second one:
# before the weights get their name, and between the weights and their checksum.
KILL_INSIDE_SAVING = """
import os, signal, sys
import smollm2.checkpoints as checkpoints
from smolctl.cli import main
original, calls = checkpoints.{function}, []
def deadly(*arguments):
    if not {only_sidecars} or "step-" in str(arguments[0]):
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
    return original(*arguments)
checkpoints.{function} = deadly
main(sys.argv[1:])
"""


@pytest.mark.parametrize(("function", "only_sidecars"), [("checksum", False), ("write_json", True)])
def test_killed_inside_a_checkpoint_it_resumes_from_the_one_before(
    tiny, workdir, undisturbed_cli, function, only_sidecars
):
    code = KILL_INSIDE_SAVING.format(function=function, only_sidecars=only_sidecars)
    options = ["--steps", str(STEPS), "--name", "r", "--checkpoint-every", "5"]
    killed = subprocess.run(
        [sys.executable, "-c", code, *tiny, *options], cwd=workdir, capture_output=True
    )
    assert killed.returncode == -signal.SIGKILL
    run = Run(workdir / "results/runs/r")
    assert run.checkpoints.steps() == [5]
    done = smolctl("train", "--resume", "r", cwd=workdir)
    assert done.returncode == 0, done.stderr
    assert outcome(run.path) == undisturbed_cli
    assert sorted(p.name for p in (run.path / "checkpoints").iterdir()) == [
        "final.json",
        "final.safetensors",
    ]


# A file-size limit fails a write in the middle, as a full disk does.
FULL_DISK = """
import resource, sys
from smolctl.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, resource.RLIM_INFINITY))
main(sys.argv[1:])
"""


def test_a_full_disk_ends_with_a_sentence_and_spares_the_checkpoint(tiny, workdir, undisturbed_cli):
    first = smolctl(*tiny, "--steps", "24", "--name", "r", "--dry-run", cwd=workdir)
    assert first.returncode == 0, first.stderr  # the tokens are in the cache now
    process = start([*tiny, "--steps", "24", "--name", "r", "--checkpoint-every", "4"], workdir)
    wait_for_rows(workdir / "results/runs/r/train.csv", 9)
    process.kill()
    process.communicate()
    before = Run(workdir / "results/runs/r").checkpoints.steps()
    full = subprocess.run(
        [sys.executable, "-c", FULL_DISK, "train", "--resume", "r", "--checkpoint-every", "4"],
        cwd=workdir,
        capture_output=True,
        text=True,
    )
    assert full.returncode == 1
    assert "Could not write checkpoint" in full.stderr
    assert "Traceback" not in full.stderr
    run = Run(workdir / "results/runs/r")
    assert run.manifest["state"] == "failed"
    assert set(run.checkpoints.steps()) <= set(before)
    assert run.checkpoints.latest([]) is not None
    assert not list((run.path / "checkpoints").glob(".*"))
    done = smolctl("train", "--resume", "r", cwd=workdir)
    assert done.returncode == 0, done.stderr
    assert outcome(run.path) == undisturbed_cli


def test_a_branch_from_a_kept_step_equals_the_run_it_left(tiny, workdir, undisturbed_cli):
    options = ["--steps", str(STEPS), "--name", "trunk", "--keep-step", "10"]
    assert smolctl(*tiny, *options, cwd=workdir).returncode == 0
    options = ["--steps", str(STEPS), "--name", "branch", "--from", "trunk@10"]
    done = smolctl(*tiny, *options, cwd=workdir)
    assert done.returncode == 0, done.stderr
    branch = outcome(workdir / "results/runs/branch")
    assert branch["weights"] == undisturbed_cli["weights"]
    assert branch["train"] == undisturbed_cli["train"][10:]
    assert Run(workdir / "results/runs/branch").manifest["started_from"] == "trunk@10"


def test_from_a_finished_run_training_goes_on_with_its_weights(tiny, workdir):
    assert smolctl(*tiny, "--steps", "20", "--name", "first", cwd=workdir).returncode == 0
    options = ["--steps", "5", "--name", "second", "--from", "first"]
    assert smolctl(*tiny, *options, cwd=workdir).returncode == 0
    first = Run(workdir / "results/runs/first").table("val")["loss"].iloc[-1]
    second = Run(workdir / "results/runs/second").table("val")["loss"].iloc[0]
    assert second == pytest.approx(first, abs=1e-6)


def test_the_order_of_the_process_environment_does_not_matter(tiny, workdir, undisturbed_cli):
    environment = os.environ | {"PYTHONHASHSEED": "7"}
    done = smolctl(*tiny, "--steps", str(STEPS), "--name", "r", cwd=workdir, env=environment)
    assert done.returncode == 0, done.stderr
    assert outcome(workdir / "results/runs/r") == undisturbed_cli


def test_a_branch_whose_start_is_lost_does_not_start_from_scratch(tiny, workdir):
    options = ["--steps", "12", "--name", "trunk", "--keep-step", "6"]
    assert smolctl(*tiny, *options, cwd=workdir).returncode == 0
    options = ["--steps", "12", "--name", "branch", "--from", "trunk@6"]
    process = start([*tiny, *options], workdir)
    wait_for_rows(workdir / "results/runs/branch/train.csv", 1)
    process.kill()
    process.communicate()
    for path in (workdir / "results/runs/branch/checkpoints").glob("*.safetensors"):
        path.write_bytes(b"torn")
    done = smolctl("train", "--resume", "branch", cwd=workdir)
    assert done.returncode == 1
    assert "--from trunk@6" in done.stderr
