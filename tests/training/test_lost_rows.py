"""A checkpoint counts only with every row from before it, and a finished run has every row."""

import pytest
from support.interrupted import Interrupted, dead_run, new_run
from support.outcome import outcome

from smollm2.errors import RunError
from smollm2.runs.run import Run
from smollm2.runs.step_rows import start_step
from smollm2.training.loop import Observer, train


def lose_first(rows: list[str]) -> list[str]:
    return rows[1:]


def lose_from_nine(rows: list[str]) -> list[str]:
    return rows[:8]


def lose_all(rows: list[str]) -> list[str]:
    return []


def tear_ten(rows: list[str]) -> list[str]:
    return [*rows[:9], "10,8\n", *rows[10:]]


def swap(rows: list[str]) -> list[str]:
    return [*rows[:9], rows[10], rows[9], *rows[11:]]


class Listening(Observer):
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def on_warning(self, text: str) -> None:
        self.warnings.append(text)


@pytest.mark.parametrize("harm", [lose_first, lose_from_nine, lose_all, tear_ten, swap])
def test_rows_lost_before_a_checkpoint_are_trained_again_or_missed(case, harm):
    """A checkpoint counts only with every row from before it."""
    _, data, _, undisturbed = case
    run = dead_run(case)
    path = run.path / "train.csv"
    header, *rows = path.read_text().splitlines(keepends=True)
    path.write_text(header + "".join(harm(rows)))
    before = path.read_bytes()
    listener = Listening()
    if harm in (lose_first, lose_all):
        with pytest.raises(RunError, match="Put back what is missing, or start it again"):
            train(run, data, listener)
        assert path.read_bytes() == before
        assert len(listener.warnings) == 2
    else:
        train(run, data, listener)
        assert outcome(run.path) == undisturbed
    step = {lose_first: 1, lose_all: 1, lose_from_nine: 9, tear_ten: 10, swap: 10}[harm]
    assert f"{run.name}/train.csv lacks the row of step {step}." in listener.warnings[0]


@pytest.mark.parametrize("table", ["val", "experts"])
def test_a_lost_table_is_missed(case, table):
    _, data, _, _ = case
    run = dead_run(case)
    path = run.path / f"{table}.csv"
    if not path.exists():
        assert table == "experts"
        return
    path.unlink()
    with pytest.raises(RunError, match="Put back what is missing"):
        train(run, data, Observer())
    assert not path.exists()


def test_rows_lost_during_the_training_are_missed_at_its_end(case):
    asked, data, folder, undisturbed = case
    run = new_run(asked, data, folder)

    class LoseRows(Observer):
        def on_step(self, row) -> None:
            if row["step"] == 20:
                path = run.path / "train.csv"
                path.write_text("".join(path.read_text().splitlines(keepends=True)[:16]))

    with pytest.raises(RunError, match=r"train.csv lacks the row of step 16: .* Resume"):
        train(run, data, LoseRows(), checkpoint_every=10)
    assert not Run(run.path).is_finished
    train(Run(run.path), data, Observer())
    assert outcome(run.path) == undisturbed


def test_a_death_right_after_the_end_leaves_no_checkpoint(case, monkeypatch):
    _, data, _, undisturbed = case
    run = dead_run(case, keep_steps=frozenset({12}))

    def killed(self, keep) -> None:
        raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr("smollm2.runs.checkpoints.Checkpoints.drop", killed)
        with pytest.raises(Interrupted):
            train(run, data, Observer())
    run = Run(run.path)
    assert run.is_finished
    assert run.checkpoints.steps() == [6, 12]
    run.tidy()
    assert run.checkpoints.steps() == [12]
    assert outcome(run.path) == undisturbed


@pytest.mark.parametrize(
    ("start", "step"), [(None, 0), ("a", 0), ("a@12", 12), ("./a@12", 0), ("hf:a/b@12", 0)]
)
def test_rows_begin_where_a_run_branches_from_another(case, start, step):
    asked, data, folder, _ = case
    run = new_run(asked, data, folder)
    run.manifest["started_from"] = start
    assert start_step(run) == step
