"""documents.csv: the final test document by document, checked like every table of a run."""

import pytest
from support.planted import planted

from smollm2.errors import UserError
from smollm2.runs.document_sums import read_documents
from smollm2.runs.pack import pack_study, unpack_study
from smollm2.runs.run import Run, open_run
from smollm2.runs.tables import TABLES


def test_the_documents_add_up_to_the_test_scores(template):
    run = Run(template)
    found, eval_rows = read_documents(run), run.table("eval").set_index("metric")
    assert tuple(found) == TABLES["documents"]
    assert found["n_tokens"].sum() == eval_rows["n"]["loss"] == run.protocol.test_tokens
    assert len(found["document"]) == eval_rows["clusters"]["loss"] > 1
    assert found["nats"].sum() / found["n_tokens"].sum() == pytest.approx(run.test_scores()["loss"])
    hits = found["hits"].sum() / found["n_tokens"].sum()
    assert hits == pytest.approx(run.test_scores()["accuracy"])
    assert (found["text_nats"] <= found["nats"]).all()
    assert (found["n_bytes"] >= found["n_tokens"] - 1).all()


def test_a_run_of_an_older_version_has_none(template, workdir):
    run = planted(template, "a", 0, 5.0)
    (run.path / "documents.csv").unlink()
    assert read_documents(run) is None


def test_a_packed_run_has_the_same_documents(template, workdir):
    run = planted(template, "a", 0, Run(template).test_scores()["loss"])
    text, before = (run.path / "documents.csv").read_bytes(), read_documents(run)
    pack_study(run.path.parent, drop_weights=True)
    assert (run.path.parent / "pack/documents.csv").is_file()
    packed = read_documents(open_run(run.path.parents[1], "s", "a-s0"))
    assert all((packed[name] == before[name]).all() for name in TABLES["documents"])
    unpack_study(run.path.parent)
    assert (run.path / "documents.csv").read_bytes() == text


WRONG = {
    "a number of tokens of 0": {"n_tokens": 0},
    "a loss that is not finite": {"nats": "inf"},
    "an empty cell": {"text_nats": ""},
    "a document twice": {"document": 1},
    "a negative count": {"hits": -1},
    "a fraction of a token": {"n_tokens": 10.5},
    "a word": {"nats": "many"},
    "another loss": {"nats": 1.0},
    "tokens that were not scored": {"n_tokens": 10_000},
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_table_that_no_training_writes_is_named(template, workdir, wrong):
    run = planted(template, "a", 0, Run(template).test_scores()["loss"])
    rows = run.rows("documents")
    assert read_documents(run) is not None
    run.replace("documents", [rows[0] | WRONG[wrong], *rows[1:]])
    with pytest.raises(UserError, match=r"a-s0/documents\.csv "):
        read_documents(run)


@pytest.mark.parametrize("text", ["", "document\n", "\0", "document,n_tokens\n1,2,3\n"])
def test_a_file_that_is_no_such_table_is_named(template, workdir, text):
    run = planted(template, "a", 0, 5.0)
    (run.path / "documents.csv").write_text(text)
    with pytest.raises(UserError, match=r"a-s0/documents\.csv "):
        read_documents(run)
