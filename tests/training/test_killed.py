"""A process is stopped, killed or out of disk: its run continues to the same rows and weights."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.command import run_main, smolctl
from support.full_disk import full_disk
from support.outcome import STEPS, outcome
from support.processes import started, wait_for_rows

from smolctl.cli.app import main
from smollm2.files import write_json
from smollm2.runs.run import Run
from smollm2.training.loop import Loop


@pytest.fixture(scope="module")
def undisturbed_cli(tiny, tmp_path_factory) -> dict[str, object]:
    folder = tmp_path_factory.mktemp("cli")
    with pytest.raises(SystemExit, match="0"):
        main([*tiny, "--steps", str(STEPS), "--name", "r", "--results", str(folder)])
    return outcome(folder / "runs/r")


@pytest.mark.parametrize("rows", [1, 8, 17])
def test_sigkill_then_resume_ends_the_same(capsys, tiny, workdir, undisturbed_cli, rows):
    options = ["--steps", str(STEPS), "--name", "r", "--checkpoint-every", "4"]
    with started([*tiny, *options], workdir) as process:
        wait_for_rows(process, workdir / "results/runs/r/train.csv", rows)
        process.kill()
    code, _, err = run_main(capsys, "train", "--resume", "r", "--checkpoint-every", "4")
    assert code == 0, err
    assert outcome(workdir / "results/runs/r") == undisturbed_cli


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_says_how_to_resume(capsys, tiny, workdir, undisturbed_cli, number):
    options = ["--steps", str(STEPS), "--name", "r", "--results", "elsewhere"]
    with started([*tiny, *options], workdir) as process:
        wait_for_rows(process, workdir / "elsewhere/runs/r/train.csv", 3)
        process.send_signal(number)
        _, said = process.communicate()
    assert process.returncode == 128 + number
    command = said.rpartition("Continue with: smolctl ")[2].split()
    assert Run(workdir / "elsewhere/runs/r").manifest["state"] == "stopped"
    code, _, err = run_main(capsys, *command)
    assert code == 0, err
    assert outcome(workdir / "elsewhere/runs/r") == undisturbed_cli


# Kill the process at the named function of smollm2.runs.checkpoints while it saves the second one:
# before the weights get their name, and between the weights and their checksum.
KILL_INSIDE_SAVING = """
import os, signal, sys
import smollm2.runs.checkpoints as checkpoints
from smolctl.cli.app import main
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
    capsys, tiny, workdir, undisturbed_cli, function, only_sidecars
):
    code = KILL_INSIDE_SAVING.format(function=function, only_sidecars=only_sidecars)
    options = ["--steps", str(STEPS), "--name", "r", "--checkpoint-every", "5"]
    killed = subprocess.run(
        [sys.executable, "-c", code, *tiny, *options], cwd=workdir, capture_output=True
    )
    assert killed.returncode == -signal.SIGKILL
    run = Run(workdir / "results/runs/r")
    assert run.checkpoints.steps() == [5]
    code, _, err = run_main(capsys, "train", "--resume", "r")
    assert code == 0, err
    assert outcome(run.path) == undisturbed_cli
    assert sorted(p.name for p in (run.path / "checkpoints").iterdir()) == [
        "final.json",
        "final.safetensors",
    ]


def test_a_full_disk_ends_with_a_sentence_and_spares_the_checkpoint(
    capsys, tiny, workdir, undisturbed_cli
):
    options = ["--steps", str(STEPS), "--name", "r", "--checkpoint-every", "4"]
    with started([*tiny, *options], workdir) as process:
        wait_for_rows(process, workdir / "results/runs/r/train.csv", 9)
        process.kill()
    before = Run(workdir / "results/runs/r").checkpoints.steps()
    with full_disk(150_000):
        code, _, err = run_main(capsys, "train", "--resume", "r", "--checkpoint-every", "4")
    assert code == 1
    assert "Could not write checkpoint" in err
    assert "Traceback" not in err
    run = Run(workdir / "results/runs/r")
    assert run.manifest["state"] == "failed"
    assert set(run.checkpoints.steps()) <= set(before)
    assert run.checkpoints.latest([]) is not None
    assert not list((run.path / "checkpoints").glob(".*"))
    code, _, err = run_main(capsys, "train", "--resume", "r")
    assert code == 0, err
    assert outcome(run.path) == undisturbed_cli


def test_a_branch_from_a_kept_step_equals_the_run_it_left(capsys, tiny, workdir, undisturbed_cli):
    options = ["--steps", str(STEPS), "--name", "trunk", "--keep-step", "10"]
    assert run_main(capsys, *tiny, *options)[0] == 0
    options = ["--steps", str(STEPS), "--name", "branch", "--from", "trunk@10"]
    code, _, err = run_main(capsys, *tiny, *options)
    assert code == 0, err
    branch = outcome(workdir / "results/runs/branch")
    assert branch["weights"] == undisturbed_cli["weights"]
    assert branch["train"] == undisturbed_cli["train"][10:]
    assert Run(workdir / "results/runs/branch").manifest["started_from"] == "trunk@10"


def test_a_branch_reads_the_batches_that_its_trunk_would(capsys, tiny, workdir):
    order = ["--seed", "3", "--data-seed", "5", "--batch-offset", "7"]
    trunk = [*tiny, "--steps", "8", "--name", "trunk", "--keep-step", "4", *order]
    assert run_main(capsys, *trunk)[0] == 0
    start, whole = [*tiny, "--steps", "8", "--from", "trunk@4"], outcome(Path("results/runs/trunk"))
    assert run_main(capsys, *start, "--name", "same")[0] == 0
    same = outcome(Path("results/runs/same"))
    assert (same["weights"], same["train"]) == (whole["weights"], whole["train"][4:])
    protocol = Run(workdir / "results/runs/same").protocol
    assert (protocol.seed, protocol.data_seed, protocol.batch_offset) == (3, 5, 7)
    for number, own in enumerate((["--seed", "9"], ["--data-seed", "9"], ["--batch-offset", "0"])):
        assert run_main(capsys, *start, *own, "--name", f"other{number}")[0] == 0
        assert outcome(Path(f"results/runs/other{number}"))["train"] != whole["train"][4:]


def test_a_branch_of_an_older_run_goes_on_in_its_order(capsys, tiny, workdir):
    trunk = workdir / "results/runs/trunk"
    assert run_main(capsys, *tiny, "--steps", "8", "--name", "trunk", "--keep-step", "4")[0] == 0
    manifest = json.loads((trunk / "run.json").read_text())
    del manifest["protocol"]["data_order"], manifest["request"]["data_order"]
    write_json(trunk / "run.json", manifest)
    for name, start in (("branch", "trunk@4"), ("tuned", "trunk")):
        options = ("--steps", "8", "--from", start, "--name", name)
        assert run_main(capsys, *tiny, *options)[0] == 0
    orders = {name: Run(trunk.parent / name).protocol.data_order for name in ("branch", "tuned")}
    assert orders == {"branch": "shuffled", "tuned": "feistel"}


def test_training_from_a_finished_run_starts_with_its_weights(capsys, tiny, workdir):
    assert run_main(capsys, *tiny, "--steps", "20", "--name", "first")[0] == 0
    options = ["--steps", "5", "--name", "second", "--from", "first"]
    assert run_main(capsys, *tiny, *options)[0] == 0
    first = Run(workdir / "results/runs/first").table("val")["loss"].iloc[-1]
    second = Run(workdir / "results/runs/second").table("val")["loss"].iloc[0]
    assert second == pytest.approx(first, abs=1e-6)


def test_the_order_of_the_process_environment_does_not_matter(tiny, workdir, undisturbed_cli):
    environment = os.environ | {"PYTHONHASHSEED": "7"}
    done = smolctl(*tiny, "--steps", str(STEPS), "--name", "r", cwd=workdir, env=environment)
    assert done.returncode == 0, done.stderr
    assert outcome(workdir / "results/runs/r") == undisturbed_cli


def test_a_branch_whose_start_is_lost_does_not_start_from_scratch(capsys, tiny, workdir):
    options = ["--steps", "12", "--name", "trunk", "--keep-step", "6"]
    assert run_main(capsys, *tiny, *options)[0] == 0
    options = ["--steps", "12", "--name", "branch", "--from", "trunk@6"]
    with started([*tiny, *options], workdir) as process:
        wait_for_rows(process, workdir / "results/runs/branch/train.csv", 1)
        process.kill()
    for path in (workdir / "results/runs/branch/checkpoints").glob("*.safetensors"):
        path.write_bytes(b"torn")
    code, _, err = run_main(capsys, "train", "--resume", "branch")
    assert code == 1
    assert "--from trunk@6" in err


def test_a_run_knows_the_steps_to_keep_before_it_starts(capsys, workdir, tiny, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Loop, "restore", lambda self: os.kill(os.getpid(), signal.SIGTERM))
        options = ["--steps", "4", "--keep-step", "2", "--name", "r"]
        run_main(capsys, *tiny, *options)
    assert not (workdir / "results/runs/r/train.csv").exists()
    assert run_main(capsys, "train", "--resume", "r")[0] == 0
    assert (workdir / "results/runs/r/checkpoints/step-2.safetensors").exists()
