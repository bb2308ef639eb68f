"""Files that several readers want are parsed once, and nobody sees another's changes."""

import json

import pytest
from pyarrow import csv
from support.planted import planted

from smollm2.errors import UserError
from smollm2.runs.manifest import read_manifest
from smollm2.runs.run import Run


@pytest.fixture
def run(workdir, template) -> Run:
    return planted(template, "orig", 0, 5.0)


def test_a_manifest_is_read_again_once_it_has_changed(run):
    path = run.path / "run.json"
    first = read_manifest(run.path)
    first["arm"] = "changed in memory"
    assert read_manifest(run.path)["arm"] == "orig"
    path.write_text(path.read_text().replace('"orig"', '"pow2"'))  # as long as before
    assert Run(run.path).arm == "pow2"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"arm": 1}))
    for _ in range(2):
        with pytest.raises(UserError, match="its arm is 1"):
            read_manifest(run.path)


def test_a_table_is_parsed_once_for_all_of_its_readers(run, monkeypatch):
    parsed, read_csv = [], csv.read_csv
    monkeypatch.setattr(csv, "read_csv", lambda *args: parsed.append(1) or read_csv(*args))
    first = run.table("eval")
    first.loc[:, "value"] = 0.0
    assert float(Run(run.path).test_scores()["loss"]) == 5.0
    assert len(parsed) == 1
    run.replace("eval", [row | {"value": 6.0} for row in run.rows("eval")])
    assert float(run.test_scores()["loss"]) == 6.0
    assert len(parsed) == 2
