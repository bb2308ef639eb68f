"""Tables of a received run: one that cannot be read is named, and takes nothing else down."""

import os

import pytest
from support.command import run_main
from support.planted import planted

from smollm2.errors import UserError
from smollm2.runs.run import Run

LONG = "x" * 200_000


def latin(text: str) -> bytes:
    return text.replace("loss", "l\u00f6ss").encode("latin-1")


def with_row(text: str, row: str) -> bytes:
    return f"{text}{row}\n".encode()


DAMAGE = {
    "Latin-1": latin,
    "a long cell": lambda text: with_row(text, LONG + "," * text.split("\n")[0].count(",")),
    "a NUL": lambda text: text.encode().replace(b"5", b"\0", 1),
    "a line with too many cells": lambda text: with_row(text, text.split("\n")[1] + ",1"),
    "lines with more cells": lambda text: text.replace("\n", "\n1,").encode()[:-2],
    "a line with too few cells": lambda text: with_row(text, "1,2"),
    "a repeated column": lambda text: text.replace("\n", f",{text.split(',')[0]}\n", 1).encode(),
    "words for numbers": lambda text: with_row(text, "x" + ",x" * text.split("\n")[0].count(",")),
    "a quote": lambda text: with_row(text, '"'),
    "bytes": lambda text: bytes(range(256)),
    "nothing": lambda text: b"",
}  # fmt: skip


@pytest.fixture
def pair(template, workdir) -> list[Run]:
    """Two runs of each of two arms."""
    return [planted(template, arm, seed, 5.0 + seed) for arm in "ab" for seed in range(2)]


@pytest.mark.parametrize("table", ["train", "val", "eval"])
@pytest.mark.parametrize("damage", [*DAMAGE, "a folder", "a pipe", "a dangling link"])
def test_a_run_with_a_table_that_cannot_be_read_is_left_out(capsys, pair, table, damage):
    path = pair[0].path / f"{table}.csv"
    text = path.read_text()
    path.unlink()
    match damage:
        case "a folder":
            path.mkdir()
        case "a pipe":
            os.mkfifo(path)
        case "a dangling link":
            path.symlink_to("nowhere")
        case _:
            path.write_bytes(DAMAGE[damage](text))
    with pytest.raises(UserError, match=rf"a-s0.*{table}.csv|a-s0' has no {table}.csv"):
        pair[0].table(table)
    code, out, err = run_main(capsys, "runs", "s")
    assert code == 0, err
    assert all(run.name in out for run in pair)
    code, _, err = run_main(capsys, "compare", "a", "b", "--study", "s", "--json")
    assert code == 0, err
    assert "a-s0 is excluded" in err
    code, _, err = run_main(capsys, "runs", "show", "a-s0", "--study", "s")
    assert code in (0, 2), err


@pytest.mark.parametrize("cell", ["", "-1", "0.5", "1e400", "nan", "True", "9" * 400])
def test_a_count_in_a_table_is_a_count(pair, cell):
    rows = pair[0].rows("eval")
    rows[0]["clusters"] = cell
    pair[0].replace("eval", rows)
    with pytest.raises(UserError, match=r"a-s0/eval\.csv"):
        pair[0].table("eval")


def test_a_task_may_be_called_by_a_number(pair):
    rows = pair[0].rows("eval")
    rows[0]["task"] = "123"
    pair[0].replace("eval", rows)
    assert pair[0].table("eval")["task"].iloc[0] == "123"


def test_the_last_line_of_a_running_run_may_be_half_written(pair):
    before = pair[0].rows("train")
    with (pair[0].path / "train.csv").open("a") as file:
        file.write("11,7")
    assert pair[0].rows("train") == before


@pytest.mark.parametrize(
    "file",
    ['arms = ["a", "b"]', 'arms.a = "x"', "quantize = 3", "eval = {}", "arms.a.seeds = [[]]"],
)
def test_a_study_file_of_another_shape_is_a_sentence(capsys, pair, file):
    (pair[0].path.parent / "study.toml").write_text(file)
    code, _, err = run_main(capsys, "report", "--study", "s", "--section", "reproduction")
    assert code == 2
    assert "s/study.toml is damaged" in err
