"""How the scores in eval.csv were made, in the columns of this version and of older ones."""

import csv
from pathlib import Path

import pandas as pd
import pytest

from smollm2.errors import UserError
from smollm2.runs.conditions import CONDITIONS, describe
from smollm2.runs.tables import TABLES, TableFolder

RESULTS = Path(__file__).parents[2] / "results"
COMMITTED = sorted(RESULTS.rglob("eval.csv"))

OLD = (
    "task,metric,value,stderr,n,total,clusters,chance,protocol,fingerprint,items\n"
    'test,loss,4.645478007876891,0.0005,1024,2048,2,,"{}",0123,\n'
)
SENTENCES = {
    "windows of 256, bfloat16, cpu, at the end of training": ("final-test", "", "test", "256"),
    "windows of 512, bfloat16, cpu, spread": ("spread-text", "", "test", "512"),
    "windows of 512, bfloat16, cpu": ("text", "", "test", "512"),
    "lm-eval, 0-shot, validation split, context 2048, bfloat16, cpu": (
        *("lm-eval", "0", "validation", "2048"),
    ),
}


def raw(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("sentence", SENTENCES)
def test_the_sentence_of_an_older_version_is_read_into_columns(tmp_path, sentence):
    (tmp_path / "eval.csv").write_text(OLD.format(sentence))
    (row,) = TableFolder(tmp_path).rows("eval")
    assert list(row) == list(TABLES["eval"])
    assert tuple(row[name] for name in CONDITIONS) == (*SENTENCES[sentence], "bfloat16", "cpu")
    assert (row["value"], row["fingerprint"]) == ("4.645478007876891", "0123")
    (found,) = TableFolder(tmp_path).table("eval").to_dict("records")
    assert list(found) == list(TABLES["eval"])
    assert (found["value"], found["fingerprint"]) == (4.645478007876891, "0123")
    assert pd.isna(found["shots"]) == (row["shots"] == "")
    assert describe(row) == describe(found) == sentence


def test_an_older_table_is_rewritten_in_columns(tmp_path):
    path = tmp_path / "eval.csv"
    path.write_text(OLD.format("windows of 512, bfloat16, cpu"))
    rows = TableFolder(tmp_path).rows("eval")
    TableFolder(tmp_path).replace("eval", rows)
    assert path.read_text().splitlines()[0] == ",".join(TABLES["eval"])
    assert raw(path) == rows == TableFolder(tmp_path).rows("eval")


def test_an_unknown_column_is_dropped(tmp_path):
    header, row = OLD.format("windows of 512, bfloat16, cpu").splitlines()
    (tmp_path / "eval.csv").write_text(f"mine,{header}\n1,{row}\n")
    tables = TableFolder(tmp_path)
    assert list(tables.table("eval").columns) == list(TABLES["eval"])
    tables.replace("eval", tables.rows("eval"))
    assert "mine" not in (tmp_path / "eval.csv").read_text()
    assert tables.table("eval")["value"].item() == 4.645478007876891


def test_a_sentence_of_no_version_is_an_error(tmp_path):
    for sentence in ("windows of 512, bfloat16, cpu, at noon", "lm-eval, few shots", ""):
        (tmp_path / "eval.csv").write_text(OLD.format(sentence))
        for read in (TableFolder(tmp_path).table, TableFolder(tmp_path).rows):
            with pytest.raises(UserError, match=r"eval\.csv has a protocol that cannot be read"):
                read("eval")


def test_committed_studies_keep_their_scores():
    assert COMMITTED
    for path in COMMITTED:
        before, after = raw(path), TableFolder(path.parent).rows("eval")
        unchanged = set(before[0]) & set(TABLES["eval"])
        assert len(unchanged) >= len(TABLES["eval"]) - len(CONDITIONS)
        assert [{name: row[name] for name in unchanged} for row in after] == [
            {name: row[name] for name in unchanged} for row in before
        ]
        if "protocol" in before[0]:
            assert [describe(row) for row in after] == [row["protocol"] for row in before]
        assert TableFolder(path.parent).table("eval").equals(typed(path))


def typed(path: Path) -> pd.DataFrame:
    """The table with its numbers read straight from the file."""
    frame = TableFolder(path.parent).table("eval")
    numbers = pd.read_csv(path)[["value", "stderr", "n", "total", "clusters", "chance"]]
    return frame.assign(**{name: numbers[name] for name in numbers})
