"""Progress messages of a training run."""

import signal
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from support.command import run_main

from smolctl.cli.progress import TrainingProgress
from smollm2.runs.run import Run
from smollm2.training.trainer import Trainer


def test_speed_and_eta_of_a_line_are_of_the_same_steps(capsys):
    protocol = SimpleNamespace(steps=100, tokens_per_step=1000, compile=False)
    run = SimpleNamespace(name="r", protocol=protocol, checkpoints=SimpleNamespace(steps=list))
    progress = TrainingProgress(run)
    clock = 1000.0  # seconds
    progress.bar.get_time = lambda: clock
    for step in range(1, 11):
        clock += 100.0 if step % 2 == 0 else 300.0
        progress.on_step({"step": step, "loss": 5.0, "tokens_per_second": 10.0})
    progress.on_validation({"step": 10, "loss": 4.0})
    # Nine steps in 1700 s and 90 to go; the last one alone took 100 s.
    assert capsys.readouterr().err == (
        "r: step 10/100: validation loss 4.0000, 5 tokens/s, ETA 4 h 43 min\n"
    )
    progress.on_validation({"step": 100, "loss": 4.0})
    assert "ETA" not in capsys.readouterr().err


@pytest.fixture
def with_terminal() -> Iterator[None]:
    """SIGHUP as under a terminal, although the tests may run under nohup, which ignores it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
@pytest.mark.usefixtures("with_terminal")
def test_a_signal_while_the_model_is_built_stops_at_once(capsys, workdir, tiny, monkeypatch, name):
    number = getattr(signal, name)

    def build(*_):
        signal.raise_signal(number)
        raise AssertionError("The model is built to its end.")

    monkeypatch.setattr(Trainer, "__init__", build)
    code, _, said = run_main(capsys, *tiny, "--steps", "4", "--name", "r")
    assert code == 128 + number
    assert "Stopped before the first step. Continue with: smolctl train --resume r" in said
    assert Run(workdir / "results/runs/r").manifest["state"] == "stopped"
    monkeypatch.undo()
    monkeypatch.chdir(workdir)
    assert run_main(capsys, "train", "--resume", "r")[0] == 0


def test_a_closed_terminal_does_not_stop_what_nohup_started():
    protocol = SimpleNamespace(steps=1, tokens_per_step=1, compile=False)
    run = SimpleNamespace(name="r", protocol=protocol, checkpoints=SimpleNamespace(steps=list))
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with TrainingProgress(run) as progress:
            signal.raise_signal(signal.SIGHUP)
            assert not progress.should_stop()
    finally:
        signal.signal(signal.SIGHUP, before)
