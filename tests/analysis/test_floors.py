"""The floor of an arm whose runs record different ones."""

from pathlib import Path

import pytest
from support.compared import compared, primary
from support.planted import FLOORS, planted

from smollm2.runs.run import Run


@pytest.fixture
def study(workdir, template) -> None:
    """Two arms of different models, three seeds each, far below the trigram."""
    for seed in range(3):
        planted(template, "a", seed, 5.0 + 0.001 * seed)
        planted(template, "b", seed, 4.9 + 0.002 * seed, model={"n_layers": 3})


def record(run: str, floors) -> None:
    Run(Path("results/s") / run).update(floors=floors)


def notes(found) -> list[str]:
    return [text for text in found["excluded"] if "trigram" in text]


def test_equal_floors_are_no_matter(capsys, study):
    found = compared(capsys, "a", "b")
    assert notes(found) == []
    assert "regime" not in primary(found)["b"]["missing"]


@pytest.mark.parametrize("run", ["a-s1", "b-s2"])
def test_different_floors_are_noted_and_the_lowest_counts(capsys, study, run):
    """The mean loss of its arm is about 5.0 or 4.9."""
    record(run, FLOORS | {"trigram": 4.8})
    found = compared(capsys, "a", "b")
    (note,) = notes(found)
    assert "different losses of a trigram (4.8000, 20.0000)" in note
    assert "regime" in primary(found)["b"]["missing"]
    (row,) = found["verdicts"]
    assert row["trigram_loss"] == (4.8 if run == "b-s2" else 20.0)


def test_a_higher_floor_of_one_run_helps_nobody(capsys, study):
    record("b-s0", FLOORS | {"trigram": 30.0})
    found = compared(capsys, "a", "b")
    assert len(notes(found)) == 1
    assert found["verdicts"][0]["trigram_loss"] == 20.0
    assert "regime" not in primary(found)["b"]["missing"]


def test_one_run_without_a_floor_leaves_the_regime_unknown(capsys, study):
    record("b-s0", None)
    found = compared(capsys, "a", "b")
    assert notes(found) == []
    assert found["verdicts"][0]["trigram_loss"] is None
    assert "regime" in primary(found)["b"]["missing"]


def test_arms_that_saw_more_tokens_have_another_floor(capsys, workdir, template):
    for seed in range(3):
        for arm, steps, trigram in (("a", 10, 20.0), ("b", 12, 19.0)):
            manifest = {"equal": "seconds", "floors": FLOORS | {"trigram": trigram}}
            planted(template, arm, seed, 5.0, steps=steps, manifest=manifest)
    assert notes(compared(capsys, "a", "b")) == []


def test_floors_of_older_versions_are_of_the_whole_test_split(capsys, study):
    older = {name: value for name, value in FLOORS.items() if name != "text"}
    names = [f"{arm}-s{seed}" for arm in "ab" for seed in range(3)]
    for name in names:
        record(name, older)
    found = compared(capsys, "a", "b")
    assert "regime" in primary(found)["b"]["missing"]
    assert found["verdicts"][0]["trigram_loss"] is None
    assert "the study command counts it again" in " ".join(found["conclusion"])
    for name in names:
        run = Run(Path("results/s") / name)
        run.replace("eval", [row | {"total": row["n"]} for row in run.rows("eval")])
    found = compared(capsys, "a", "b")
    assert "regime" not in primary(found)["b"]["missing"]
    assert found["verdicts"][0]["trigram_loss"] == 20.0
