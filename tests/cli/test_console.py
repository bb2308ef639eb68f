"""Tables on a terminal: however narrow it is, names and numbers stay whole."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smolctl.cli.console import parts, print_table, progress

HEADER = ("run", "arm", "test loss", "tokens per second", "interval")
ROWS = [
    ("pow2-nano-300-s0-a1b2c3", "pow2:n_kv_heads=1", "5.4321", "12,345", "-0.0200 to +0.0100"),
    ("pow2-nano-300-s1-a1b2c3", "pow2:n_kv_heads=1", "5.4322", "12,346", "-0.0201 to +0.0101"),
]


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_no_name_and_no_number_is_broken(capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("rich.console.Console.is_terminal", True)
    print_table("Every run", HEADER, ROWS, n_words=2)
    lines = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out).splitlines()
    assert max(map(len, lines)) <= columns
    for row in ROWS:
        for cell in (row[0], *row[2:]):
            assert any(f" {cell} " in line for line in lines), cell
    # Every part begins with what the rows are called.
    n_parts = sum(line.startswith("┏") for line in lines)
    assert n_parts == {60: 2, 80: 2, 120: 1}[columns]
    assert sum(ROWS[0][0] in line for line in lines) == n_parts


@pytest.mark.parametrize(
    ("columns", "width"),
    [("60", 60), ("200", 200), ("", 120), ("0", 120), ("-5", 120), ("wide", 120), ("9" * 30, 120)],
)
def test_a_pipe_is_as_wide_as_columns_says(capsys, monkeypatch, columns, width):
    monkeypatch.setenv("COLUMNS", columns)
    print_table("Every run", HEADER, [(*row[:4], "x" * 90) for row in ROWS], n_words=2)
    lines = capsys.readouterr().out.splitlines()
    tables = [line for line in lines if line.startswith("┏")]
    assert len(tables) == {60: 3, 120: 2, 200: 1}[width]
    if width > 60:  # the last column is wider than that
        assert max(map(len, lines)) <= width


CELLS = st.text(st.characters(categories=["L", "N"]), max_size=12)


@given(st.data(), st.integers(1, 8), st.integers(40, 130))
def test_every_column_is_shown_and_fits_where_it_can(data, n_columns, width):
    row = st.tuples(*[CELLS] * n_columns)
    header, rows = data.draw(row), data.draw(st.lists(row, max_size=5))
    n_words = data.draw(st.integers(1, n_columns))
    divided = parts(header, rows, n_words, width)
    assert {index for part in divided for index in part} == set(range(n_columns))
    keys = [index for index in divided[0] if all(index in part for part in divided)]
    assert keys[0] == 0
    for part in divided:
        assert sum(part.values()) + 3 * len(part) + 1 <= width or len(part) <= n_words + 1


def test_work_of_unknown_length_is_reported_without_a_terminal(capsys, monkeypatch):
    clock = iter(range(0, 1000, 20))
    monkeypatch.setattr("smolctl.cli.console.time.monotonic", lambda: next(clock))
    with progress() as show:
        for done in range(1, 4):
            show("Tokenizing", 1000 * done, None)
    assert capsys.readouterr().err == "Tokenizing: 2,000\n"
