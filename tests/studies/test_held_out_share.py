"""The share of the documents that is held out: as asked, as before without asking, and refused
where a split would have no spread."""

import json
import shutil

import pytest
from support.command import run_main
from support.stories import STORY, stories, text_of, write_jsonl
from support.tinies import runs_of

from smollm2.data import find_prepared, open_prepared, prepare
from smollm2.data.splits import HELD_OUT
from smollm2.errors import UserError
from smollm2.runs.run import Run


@pytest.mark.parametrize(("count", "share", "expected"), [(100, 0.2, 20), (60, 0.4, 24)])
def test_as_many_documents_as_asked_are_held_out(tmp_path, tokenizer, count, share, expected):
    source = write_jsonl(tmp_path / "a.jsonl", stories(count))
    data = prepare(source, tokenizer, held_out=share)
    assert data.documents["validation"] == data.documents["test"] == expected
    assert data.documents["train"] == count - 2 * expected
    assert data.held_out == open_prepared(data.path).held_out == share


def test_a_larger_share_of_many_documents_holds_the_smaller_one(tmp_path, tokenizer):
    source = write_jsonl(tmp_path / "a.jsonl", stories(1500))
    usual, more = prepare(source, tokenizer), prepare(source, tokenizer, held_out=0.2)
    assert 230 < more.documents["test"] < 370
    held_out = {text for split in ("validation", "test") for text in text_of(usual, split)}
    assert held_out < {text for s in ("validation", "test") for text in text_of(more, s)}


def test_stretches_have_the_share(tmp_path, tokenizer):
    texts = [f"{name} " + STORY * 40 for name in ("Ann", "Bob", "Cid")]
    data = prepare(write_jsonl(tmp_path / "a.jsonl", texts), tokenizer, held_out=0.25)
    total = sum(data.n_bytes.values())
    for split, share in (("train", 0.5), ("validation", 0.25), ("test", 0.25)):
        assert data.n_bytes[split] / total == pytest.approx(share, abs=0.01)


@pytest.mark.parametrize("count", [3, 100])
def test_the_usual_share_is_the_same_folder_asked_for_or_not(tmp_path, tokenizer, count):
    source = write_jsonl(tmp_path / "a.jsonl", [f"{n} {STORY * 20}" for n in range(count)])
    usual = prepare(source, tokenizer)
    assert prepare(source, tokenizer, held_out=HELD_OUT).path == usual.path
    other = prepare(source, tokenizer, held_out=0.1)
    assert other.path != usual.path
    assert other.fingerprint != usual.fingerprint
    assert find_prepared(other.fingerprint, other.tokenizer_fingerprint) == other.path


@pytest.mark.parametrize("share", [0, -0.1, 0.41, 1, 5, float("nan"), float("inf"), 1e-9])
def test_a_share_that_leaves_nothing_is_refused(story_file, tokenizer, share):
    with pytest.raises(UserError, match=r"a share of the documents above 0 and at most 0\.4"):
        prepare(story_file, tokenizer, held_out=share)


def test_a_single_held_out_document_is_refused_only_where_the_share_was_asked_for(
    tmp_path, tokenizer
):
    source = write_jsonl(tmp_path / "a.jsonl", stories(24))
    sentence = r"leaves too few documents for validation \(22 for train, 1 for validation, 1 for"
    with pytest.raises(UserError, match=sentence):
        prepare(source, tokenizer, held_out=HELD_OUT)
    assert prepare(source, tokenizer).documents["test"] == 1
    with pytest.raises(UserError, match=sentence):  # also when the cache has it
        prepare(source, tokenizer, held_out=HELD_OUT)
    with pytest.raises(UserError, match=sentence):
        prepare(source, tokenizer, held_out=0.04, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert prepare(source, tokenizer, held_out=0.1).documents["test"] == 2


def test_a_prepared_folder_has_its_own_share(story_file, tokenizer, tmp_path):
    folder = tmp_path / "out"
    made = prepare(story_file, tokenizer, held_out=0.2, out=folder)
    assert prepare(str(folder), None, held_out=0.2).fingerprint == made.fingerprint
    with pytest.raises(UserError, match=r"'out' was prepared with the share 0.2 .*, not 0.1: omit"):
        prepare(str(folder), None, held_out=0.1)


def test_a_folder_of_an_older_version_has_the_usual_share(data, tmp_path):
    folder = shutil.copytree(data.path, tmp_path / "older")
    info = json.loads((folder / "data.json").read_text())
    del info["held_out"]
    (folder / "data.json").write_text(json.dumps(info))
    assert open_prepared(folder).held_out == HELD_OUT
    for wrong in (None, "0.1", 0, 0.5, -0.1, True, [0.1]):
        (folder / "data.json").write_text(json.dumps(info | {"held_out": wrong}))
        with pytest.raises(UserError, match="held_out is missing or not what `prepare` writes"):
            open_prepared(folder)


# The command line and studies


def test_a_run_is_trained_scored_and_resumed_on_its_share(capsys, workdir, tiny, corpus):
    options = ("--steps", "4", "--held-out", "0.2", "--name", "r")
    code, _, err = run_main(capsys, *tiny, *options)
    assert code == 0, err
    run = Run(workdir / "results/runs/r")
    assert run.manifest["request"]["held_out"] == 0.2
    fingerprint = run.protocol.data.fingerprint
    code, out, err = run_main(capsys, "eval", "r", "--data", str(corpus), "--json")
    assert code == 0, err
    assert {row["clusters"] for row in json.loads(out)} == {12}
    assert {row["fingerprint"] for row in json.loads(out)} == {fingerprint}
    run.update(state="stopped")
    code, _, err = run_main(capsys, "train", "--resume", "r", "--held-out", "0.1")
    assert code == 2
    assert "this differs: held_out: 0.2 there, 0.1 requested" in err
    code, _, err = run_main(capsys, "train", "--resume", "r", "--held-out", "0.2")
    assert code == 0, err
    code, _, err = run_main(capsys, *tiny, "--steps", "4", "--held-out", "0.02")
    assert code == 2
    assert "--held-out 0.02 leaves too few documents" in err
    code, _, err = run_main(capsys, *tiny, "--steps", "4", "--held-out", "0.9")
    assert code == 2
    assert "--held-out is 0.9: expected a share" in err


def test_prepare_takes_the_share(capsys, workdir, corpus):
    options = ("--data", str(corpus), "--tokenizer", "train:300", "--out", "made")
    code, _, err = run_main(capsys, "prepare", *options, "--held-out", "0.3")
    assert code == 0, err
    assert open_prepared(workdir / "made").documents["test"] == 18


def test_a_study_takes_the_share(capsys, workdir, study_file):
    study_file.write_text(study_file.read_text().replace("[train]", "[train]\nheld_out = 0.1"))
    code, _, err = run_main(capsys, "study", str(study_file))
    assert code == 0, err
    runs = runs_of(workdir).values()
    assert {run.manifest["request"]["held_out"] for run in runs} == {0.1}
    assert "held_out = 0.1" in (workdir / "results/tinies/study.toml").read_text()
    study_file.write_text(study_file.read_text().replace("held_out = 0.1", "held_out = 0.2"))
    code, _, err = run_main(capsys, "study", str(study_file))
    assert code == 2
    assert "was made with different settings" in err
