"""Whatever interrupts a run, resuming gives the rows and weights of one never interrupted."""

import dataclasses
import errno
import json
import math
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.interrupted import DieAt, Interrupted, StopAt, dead_run, new_run
from support.outcome import STEPS, outcome

from smollm2.errors import RunError, UserError
from smollm2.files import write_json
from smollm2.runs.run import Run
from smollm2.training.loop import Observer, Stopped, train
from smollm2.training.trainer import NotFinite, StepResult, Trainer


@settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(stops=st.lists(st.integers(0, STEPS), min_size=1, max_size=3), every=st.integers(3, 9))
def test_stopped_or_dying_anywhere_a_resumed_run_ends_the_same(case, stops, every):
    asked, data, folder, undisturbed = case
    run = new_run(asked, data, folder)
    for index, step in enumerate(stops):
        if run.is_finished:  # the stop before came too late
            break
        observer = (StopAt if index % 2 else DieAt)(step)
        try:
            train(run, data, observer, checkpoint_every=every)
        except (Stopped, Interrupted):
            run = Run(run.path)
    if not run.is_finished:
        train(run, data, Observer(), checkpoint_every=every)
    assert outcome(run.path) == undisturbed
    assert run.checkpoints.steps() == []


def test_a_damaged_checkpoint_is_passed_over_with_a_warning(case):
    _, data, _, undisturbed = case
    run = dead_run(case)
    assert run.checkpoints.steps() == [6, 12]
    newest = run.path / "checkpoints/step-12.safetensors"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)

    class Listener(Observer):
        warnings: list[str] = []  # noqa: RUF012

        def on_warning(self, text: str) -> None:
            self.warnings.append(text)

    listener = Listener()
    train(run, data, listener, checkpoint_every=6)
    assert f"step-12 of run {run.name!r} is damaged" in listener.warnings[0]
    assert outcome(run.path) == undisturbed


def spoil_weights(folder: Path) -> None:
    for path in folder.glob("*.safetensors"):
        path.write_bytes(b"torn")


def lose_weights(folder: Path) -> None:
    for path in folder.glob("*.safetensors"):
        path.unlink()


def lose_sidecars(folder: Path) -> None:
    for path in folder.glob("*.json"):
        path.unlink()


def spoil_sidecars(folder: Path) -> None:
    for path in folder.glob("*.json"):
        path.write_text("[]")


@pytest.mark.parametrize("harm", [spoil_weights, lose_weights, spoil_sidecars, lose_sidecars])
def test_without_a_good_checkpoint_a_run_stops_and_loses_nothing(case, harm):
    _, data, _, _ = case
    run = dead_run(case)
    harm(run.path / "checkpoints")
    tables = {path: path.read_bytes() for path in run.path.glob("*.csv")}
    files = sorted(run.path.rglob("*"))
    with pytest.raises(RunError, match=r"no good checkpoint left .* under another `name`"):
        train(run, data, Observer())
    assert {path: path.read_bytes() for path in run.path.glob("*.csv")} == tables
    assert sorted(run.path.rglob("*")) == files


def test_a_death_inside_the_first_checkpoint_starts_over(case):
    asked, data, folder, undisturbed = case
    run = new_run(asked, data, folder)
    with pytest.raises(Interrupted):
        train(run, data, DieAt(4))
    (run.path / "checkpoints/step-4.safetensors").write_bytes(b"weights without a sidecar")
    train(run, data, DieAt(99))
    assert outcome(run.path) == undisturbed


def test_a_checkpoint_that_cannot_be_read_is_not_called_damaged(case, monkeypatch):
    _, data, _, undisturbed = case
    run = dead_run(case)

    def unreadable(path: Path) -> str:
        raise OSError(errno.EIO, "Input/output error", str(path))

    with monkeypatch.context() as patch:
        patch.setattr("smollm2.runs.checkpoints.checksum", unreadable)
        with pytest.raises(RunError, match=r"step-12 of run .* cannot be read: Input/output error"):
            train(run, data, Observer())
    assert run.checkpoints.steps() == [6, 12]
    train(run, data, Observer())
    assert outcome(run.path) == undisturbed


def test_files_that_are_not_step_checkpoints_are_ignored(case):
    run = dead_run(case)
    (run.path / "checkpoints/step-abc.json").write_text("{}")
    assert run.checkpoints.steps() == [6, 12]


LINUX = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes. Error code 12"


@pytest.mark.parametrize("text", [LINUX, "DefaultCPUAllocator: not enough memory: you tried"])
def test_a_model_without_memory_leaves_no_run(case, monkeypatch, text):
    asked, data, folder, _ = case

    def full(*_: object) -> None:
        raise RuntimeError(f"[enforce fail at alloc_cpu.cpp:127] {text}")

    run = new_run(asked, data, folder)
    monkeypatch.setattr("smollm2.training.trainer.Optimizer", full)
    with pytest.raises(RunError, match="There is not enough memory"):
        train(run, data, Observer())
    assert not run.path.exists()


def test_a_resumed_run_without_memory_stays(case, monkeypatch):
    _, data, _, undisturbed = case
    run = dead_run(case)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "gradients", lambda trainer: (_ for _ in ()).throw(MemoryError()))
        with pytest.raises(RunError, match="There is not enough memory"):
            train(run, data, Observer())
    assert Run(run.path).manifest["state"] == "failed"
    train(run, data, Observer())
    assert outcome(run.path) == undisturbed


@pytest.mark.parametrize("fails", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file_alone(tmp_path, monkeypatch, fails):
    path = tmp_path / "run.json"
    write_json(path, {"old": 1})

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        if fails == "fsync":
            patch.setattr("os.fsync", full)
        else:
            patch.setattr(Path, "replace", full)
        with pytest.raises(OSError, match="No space left"):
            write_json(path, {"new": 2})
    assert json.loads(path.read_text()) == {"old": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_a_half_written_last_line_is_cut(case):
    _, data, _, undisturbed = case
    run = dead_run(case)
    with (run.path / "train.csv").open("a") as file:
        file.write("15,19")
    train(run, data, Observer())
    assert outcome(run.path) == undisturbed


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_state(case, monkeypatch):
    asked, data, folder, undisturbed = case
    run = new_run(asked, data, folder)
    honest = Trainer.gradients

    def poisoned(trainer: Trainer) -> StepResult:
        result = honest(trainer)
        return dataclasses.replace(result, loss=math.nan) if trainer.step == 9 else result

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "gradients", poisoned)
        with pytest.raises(NotFinite, match=r"At step 10 the loss is nan .* after step 9 is kept"):
            train(run, data, Observer())
    assert run.checkpoints.steps() == [9]
    assert Run(run.path).manifest["state"] == "failed"
    assert "step 10" in Run(run.path).manifest["error"]
    train(run, data, Observer())  # the state that was kept is the one before the bad update
    assert outcome(run.path) == undisturbed


def test_a_last_update_that_spoils_the_weights_does_not_finish_the_run(case):
    asked, data, folder, _ = case
    asked = dataclasses.replace(asked, steps=1, lr=1e38, optimizer="adamw")
    run = new_run(asked, data, folder)
    with pytest.raises(NotFinite):
        train(run, data, Observer())
    assert run.checkpoints.final() is None
    assert Run(run.path).manifest["state"] == "failed"


def test_a_run_finished_in_the_meantime_is_left_as_it_is(case):
    asked, data, folder, undisturbed = case
    late = new_run(asked, data, folder)
    train(Run(late.path), data, Observer())
    with pytest.raises(UserError, match="finished by another process"):
        train(late, data, Observer())
    assert outcome(late.path) == undisturbed
    assert Run(late.path).is_finished


def test_another_number_of_threads_is_reported_on_resuming(case):
    asked, data, folder, _ = case
    run = new_run(asked, data, folder)
    run.update(environment=run.manifest["environment"] | {"threads": 99})
    heard: list[str] = []

    class Listener(Observer):
        def on_warning(self, text: str) -> None:
            heard.append(text)

    train(run, data, Listener())
    assert any("threads was 99" in text for text in heard)


def test_two_processes_do_not_write_one_run(case):
    asked, data, folder, _ = case
    run = new_run(asked, data, folder)
    with run.writing(), pytest.raises(UserError, match="Another process"), Run(run.path).writing():
        pass


def test_a_kept_step_survives_a_resume(case):
    _, data, _, undisturbed = case
    run = dead_run(case, keep_steps=frozenset({4, STEPS}))
    train(Run(run.path), data, Observer())
    assert run.checkpoints.steps() == [4, STEPS]
    assert outcome(run.path) == undisturbed
