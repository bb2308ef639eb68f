"""Several processes train a run to the rows and weights of one."""

import dataclasses
import os
import re
import signal
import sys
import time
from pathlib import Path

import pytest
from support.command import run_main, smolctl
from support.outcome import STEPS, outcome
from support.processes import wait_for_rows
from support.together import ONE_THREAD, process_of_rank, torchrun, torchrun_started

from smollm2.errors import UserError
from smollm2.protocol.processes import require_processes
from smollm2.protocol.resolve import resolve
from smollm2.runs.run import Run

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="torchrun is tested on Linux only")

RUN = ["--steps", str(STEPS), "--name", "r", "--go-on"]
KINDS = {  # of models and optimizers
    "adamw": ("tiny", []),
    "muon": ("tiny", ["--optimizer", "muon"]),
    "moe": ("tinymoe", []),
}


@pytest.fixture(scope="module")
def line(tiny) -> list[str]:
    """A run with four micro-batches in a step, saved every four steps."""
    return [*tiny, *RUN, "--grad-accum", "4", "--checkpoint-every", "4"]


@pytest.fixture(scope="module")
def alone(line, tmp_path_factory) -> dict[str, object]:
    """What one process leaves of it."""
    return outcome_alone(line, tmp_path_factory.mktemp("alone"))


def outcome_alone(line: list[str], folder: Path) -> dict[str, object]:
    folder.mkdir(exist_ok=True)
    done = smolctl(*line, cwd=folder, env=os.environ | ONE_THREAD)
    assert done.returncode == 0, done.stderr
    return outcome(folder / "results/runs/r")


def test_two_processes_leave_what_one_does(line, alone, workdir):
    done = torchrun(2, line, workdir)
    assert done.returncode == 0, done.stderr
    assert "2 processes train it together" in done.stderr
    run = Run(workdir / "results/runs/r")
    assert outcome(run.path) == alone
    assert run.processes == [2]
    again = torchrun(2, line, workdir)  # a finished run is done at once
    assert again.returncode == 0, again.stderr
    assert outcome(run.path) == alone


# Processes and micro-batches of every kind and dtype, and others of one.
NUMBERS = [
    *((n, 4, kind, dtype) for n in (2, 4) for kind in KINDS for dtype in ("fp32", "bf16")),
    (2, 2, "adamw", "fp32"),
    (3, 6, "moe", "bf16"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("n", "grad_accum", "kind", "dtype"), NUMBERS)
def test_any_number_of_processes_leaves_what_one_does(
    tiny, variants, workdir, n, grad_accum, kind, dtype
):
    variant, options = KINDS[kind]
    line = [*tiny, *options, "--dtype", dtype, "--grad-accum", str(grad_accum), *RUN]
    line[line.index("--variant") + 1] = str(variants / f"{variant}.toml")
    expected = outcome_alone(line, workdir / "alone")
    done = torchrun(n, line, workdir)
    assert done.returncode == 0, done.stderr
    assert outcome(workdir / "results/runs/r") == expected


@pytest.mark.slow
def test_stopped_on_two_it_goes_on_on_four_and_ends_on_one(capsys, line, alone, workdir):
    rows = workdir / "results/runs/r/train.csv"
    for n, so_many in ((2, 6), (4, 14)):
        with torchrun_started(n, line, workdir) as process:
            wait_for_rows(process, rows, so_many)
            process.send_signal(signal.SIGTERM)
            process.wait(60)
        assert Run(rows.parent).manifest["state"] == "stopped"
    done = smolctl(*line, cwd=workdir, env=os.environ | ONE_THREAD)
    assert done.returncode == 0, done.stderr
    assert outcome(rows.parent) == alone


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_is_replaced(line, alone, workdir, rank):
    rows = workdir / "results/runs/r/train.csv"
    with torchrun_started(2, line, workdir, restarts=5) as process:
        wait_for_rows(process, rows, 9)
        os.kill(process_of_rank(process.pid, rank), signal.SIGKILL)
        _, said = process.communicate(timeout=200)
    assert process.returncode == 0, said
    assert outcome(rows.parent) == alone


@pytest.mark.slow
def test_after_a_killed_torchrun_the_same_line_goes_on(line, alone, workdir):
    rows = workdir / "results/runs/r/train.csv"
    with torchrun_started(2, line, workdir) as process:
        wait_for_rows(process, rows, 9)
        process.kill()
    done = torchrun(2, line, workdir)
    assert done.returncode == 0, done.stderr
    assert outcome(rows.parent) == alone


@pytest.mark.slow
def test_sigterm_beside_a_dead_process_ends_soon_and_is_no_failure(line, workdir):
    rows = workdir / "results/runs/r/train.csv"
    with torchrun_started(2, line, workdir) as process:
        wait_for_rows(process, rows, 9)
        os.kill(process_of_rank(process.pid, 1), signal.SIGKILL)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
    assert "Traceback (most recent call last)" not in said.partition("torch/distributed")[0]
    assert Run(rows.parent).manifest["state"] != "failed"


def test_processes_that_cannot_share_a_step_are_refused(tiny, workdir):
    done = torchrun(2, [*tiny, *RUN, "--grad-accum", "3"], workdir)
    assert done.returncode != 0
    sentences = [text for text in done.stderr.splitlines() if text.startswith("Error: ")]
    assert len(sentences) == 1
    assert "2 processes cannot share the micro-batches of a step evenly" in sentences[0]
    assert "exitcode  : 2" in done.stderr
    assert not (workdir / "results").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "within"), [("fp32", 5e-6), ("bf16", 2e-2)])
@pytest.mark.parametrize("kind", ["adamw", "moe"])
def test_divided_weights_give_the_same_losses_to_rounding(
    tiny, variants, workdir, kind, dtype, within
):
    variant, _ = KINDS[kind]
    line = [*tiny, "--steps", "8", "--name", "r", "--dtype", dtype, "--grad-accum", "2"]
    line[line.index("--variant") + 1] = str(variants / f"{variant}.toml")
    expected = outcome_alone(line, workdir / "alone")
    done = torchrun(2, [*line, "--parallel", "fsdp"], workdir)
    assert done.returncode == 0, done.stderr
    run = Run(workdir / "results/runs/r")
    assert run.manifest["parallel"] == "fsdp"
    ours, theirs = outcome(run.path)["train"], expected["train"]
    assert len(ours) == len(theirs) == 8
    for row, other in zip(ours, theirs, strict=True):
        assert float(row["loss"]) == pytest.approx(float(other["loss"]), abs=within)
        assert float(row["grad_norm"]) == pytest.approx(float(other["grad_norm"]), rel=10 * within)


@pytest.mark.slow
def test_with_divided_weights_it_goes_on_from_any_and_for_any(line, alone, workdir):
    rows = workdir / "results/runs/r/train.csv"
    for n, so_many, more in ((1, 5, []), (2, 11, ["--parallel", "fsdp"])):
        with torchrun_started(n, [*line, *more], workdir) as process:
            wait_for_rows(process, rows, so_many)
            process.send_signal(signal.SIGTERM)
            process.wait(60)
    done = torchrun(4, line, workdir)
    assert done.returncode == 0, done.stderr
    found, expected = outcome(rows.parent)["train"], alone["train"]
    assert found[:4] == expected[:4]  # trained by one process alone
    for row, other in zip(found, expected, strict=True):
        # Rounding grows from step to step; a step lowers the loss by more.
        assert float(row["loss"]) == pytest.approx(float(other["loss"]), abs=2e-3)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"optimizer": "muon"}, "muon needs whole matrices, which fsdp cuts"),
        ({"compile": True}, "fsdp does not compile layers; set `compile=False`"),
        ({"grad_accum": 3}, "2 processes cannot share the micro-batches of a step evenly"),
    ],
)
def test_what_cannot_be_divided_is_refused(asked, monkeypatch, fields, sentence):
    monkeypatch.setattr("smollm2.protocol.processes.processes", lambda: 2)
    request = dataclasses.replace(asked, **{"grad_accum": 2} | fields)
    with pytest.raises(UserError, match=re.escape(sentence)):
        require_processes(resolve(request), is_sharded=True)


def test_dividing_takes_several_processes(capsys, tiny, workdir):
    code, _, err = run_main(capsys, *tiny, "--steps", "4", "--parallel", "fsdp")
    assert code == 2
    assert "start them with torchrun" in err


HUNG = """
from smollm2.training import world
world.TIMEOUT_SECONDS = 5.0
from smolctl.cli.app import main
main()
"""


@pytest.mark.slow
def test_a_process_that_hangs_ends_the_training_with_a_sentence(line, workdir):
    (workdir / "impatient.py").write_text(HUNG)
    rows = workdir / "results/runs/r/train.csv"
    with torchrun_started(2, line, workdir, module="impatient") as process:
        wait_for_rows(process, rows, 9)
        os.kill(process_of_rank(process.pid, 1), signal.SIGSTOP)
        time.sleep(0.1)
        _, said = process.communicate(timeout=120)
    assert "no answer for 5 s" in said
    assert "Step 8 is saved: type the same line again with --go-on" in said
    assert Run(rows.parent).manifest["state"] == "running"  # it counts as interrupted


def test_go_on_makes_a_run_and_refuses_another_of_its_name(capsys, tiny, workdir):
    line = [*tiny, "--steps", "4", "--name", "r", "--go-on"]
    assert run_main(capsys, *line)[0] == 0
    before = outcome(Path("results/runs/r"))
    code, out, err = run_main(capsys, *line, "--json")
    assert (code, '"run": "r"' in out) == (0, True), err
    assert outcome(Path("results/runs/r")) == before
    code, _, err = run_main(capsys, *line, "--lr", "0.5")
    assert code == 2
    assert "Run 'r' exists with other settings: recipe.lr: " in err
