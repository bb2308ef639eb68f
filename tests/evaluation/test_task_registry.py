"""A task is a declaration: one registered here is loaded, scored and refused like the others."""

import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.command import run_main
from support.questions import write

from smollm2.errors import UserError
from smollm2.evaluation.answers import ItemScore
from smollm2.evaluation.multiple_choice import summarize
from smollm2.evaluation.tasks import TASKS, Task, find_task, load_items, question, register


@pytest.fixture
def colours() -> Iterator[Task]:
    """A task `colours` that exists during one test."""
    task = Task(
        name="colours",
        repo="nobody/colours",
        config=None,
        splits=("test",),
        columns=("thing", "colour", "other"),
        to_item=lambda row: question(
            f"Grass is green.\n{row['thing']} is", [row["colour"], row["other"]], 0
        ),
        suite="house",
        shots=1,
        metrics=("bits_per_byte", "acc"),
    )
    register(task)
    yield task
    del TASKS["colours"]


ROWS = [
    {"thing": "Snow", "colour": "white", "other": "black"},
    {"thing": "Coal", "colour": "black", "other": "white"},
    {"thing": "Blood", "colour": "red", "other": "blue"},
]


def test_a_registered_task_makes_questions_of_rows(colours, tmp_path):
    loaded = load_items(find_task("colours"), write(tmp_path, "colours_test.jsonl", ROWS))
    assert loaded.items[1] == question("Grass is green.\nCoal is", ["black", "white"], 0)
    assert (loaded.split, loaded.total, loaded.is_usual_split) == ("test", 3, True)
    write(tmp_path, "colours_test.jsonl", [{"thing": "Snow"}])
    with pytest.raises(UserError, match="line 1: no column 'colour'; colours needs thing, colour"):
        load_items(colours, tmp_path)


def test_its_metrics_are_those_it_declares(colours):
    scores = [ItemScore(i, "0", 0, (-1.0, -2.0), (True, False), (5, 5), (6, 6)) for i in range(2)]
    bits, acc = summarize(colours, scores)
    assert (bits["metric"], bits["chance"]) == ("bits_per_byte", None)
    assert (acc["metric"], acc["chance"], acc["value"]) == ("acc", 0.5, 1)


def test_the_command_line_scores_it_under_its_own_suite(colours, capsys, template, workdir: Path):
    shutil.copytree(template, workdir / "results/runs/run")
    folder = write(workdir, "colours_test.jsonl", ROWS)
    code, out, err = run_main(
        capsys, "eval", "run", "--tasks", "colours", "--data-dir", str(folder), "--json"
    )
    assert code == 0, err
    rows = json.loads(out)
    assert [row["metric"] for row in rows] == ["bits_per_byte", "acc"]
    assert {(row["task"], row["suite"], row["shots"], row["n"]) for row in rows} == {
        ("colours", "house", 1, 3)
    }


def test_an_unknown_task_lists_the_registered_ones(colours):
    with pytest.raises(UserError, match=r"Did you mean 'colours'\? Available: .*, colours\."):
        find_task("colors")


def test_a_name_is_registered_once_and_an_output_type_must_be_known(colours):
    with pytest.raises(ValueError, match="already a task called 'colours'"):
        register(colours)
    other = dataclasses.replace(colours, name="other", output_type="generate_until")
    with pytest.raises(ValueError, match="Nothing scores 'generate_until'; choose multiple_choice"):
        register(other)
    assert "other" not in TASKS


def test_the_tasks_of_lm_eval_say_so():
    assert {(task.suite, task.shots, task.output_type) for task in TASKS.values()} == {
        ("lm-eval", 0, "multiple_choice")
    }
