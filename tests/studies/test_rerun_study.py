"""A study is run again from the file that it keeps, wherever its text is now."""

import shlex
import shutil
from pathlib import Path

import pytest
from support.command import run_main
from support.tinies import runs_of
from support.tiny import changed, without

from smollm2.runs.run import Run

KEPT = "results/tinies/study.toml"


@pytest.fixture
def ended(capsys, workdir, study_file, corpus) -> Path:
    """The text of a study that has run, which its kept file names by its base name only."""
    text = workdir / "texts/stories.jsonl"
    text.parent.mkdir()
    shutil.copy(corpus, text)
    study_file.write_text(study_file.read_text().replace(str(corpus), str(text)))
    code, _, err = run_main(capsys, "study", str(study_file))
    assert code == 0, err
    assert 'data = "stories.jsonl"' in Path(KEPT).read_text()
    return text


def test_a_kept_study_is_run_again_wherever_its_text_is(
    capsys, workdir, ended, variants, monkeypatch, tmp_path_factory
):
    shutil.copy(variants / "tiny.toml", workdir)  # the kept file names it by its base name, too
    kept, manifests = Path(KEPT).read_text(), [run.manifest for run in runs_of(workdir).values()]
    fingerprint = manifests[0]["protocol"]["data"]["fingerprint"]
    code, _, err = run_main(capsys, "study", KEPT)  # the tokens are cached
    assert code == 0, err
    assert "Using the tokens that run three-s0 was trained on: stories.jsonl is not here." in err
    assert "4 of 4 runs are finished in results/tinies." in err

    monkeypatch.setenv("SMOLCTL_CACHE", str(tmp_path_factory.mktemp("cache")))
    code, _, err = run_main(capsys, "study", KEPT)
    assert code == 2
    assert f"give --data PATH (it was stories.jsonl, fingerprint {fingerprint};" in err
    (workdir / "other.jsonl").write_text('{"text": "' + "other words " * 400 + '"}\n')
    code, _, err = run_main(capsys, "study", KEPT, "--data", "other.jsonl")
    assert code == 2
    assert "--data other.jsonl is not what run 'three-s0' was trained on" in err
    assert f"the run's {fingerprint} (stories.jsonl)" in err

    moved = ended.rename(workdir / "moved.jsonl")  # another name is no other text
    code, _, err = run_main(capsys, "study", KEPT, "--data", str(moved))
    assert code == 0, err
    assert "4 of 4 runs are finished" in err
    assert Path(KEPT).read_text() == kept
    assert [run.manifest for run in runs_of(workdir).values()] == manifests


def test_a_study_without_runs_takes_the_text_that_is_given(capsys, workdir, study_file, corpus):
    study_file.write_text(study_file.read_text().replace(str(corpus), "gone.jsonl"))
    code, _, err = run_main(capsys, "study", str(study_file))
    assert (code, err) == (
        2,
        "Error: There is no file or folder 'gone.jsonl'; give --data PATH.\n",
    )
    code, _, err = run_main(capsys, "study", str(study_file), "--data", str(corpus))
    assert code == 0, err
    assert 'data = "corpus.jsonl"' in Path(KEPT).read_text()
    assert {run.manifest["request"]["data"] for run in runs_of(workdir).values()} == {
        "corpus.jsonl"
    }


def test_a_changed_study_is_refused_before_a_step_is_timed(
    capsys, workdir, study_file, monkeypatch
):
    assert run_main(capsys, "study", str(study_file))[0] == 0
    study_file.write_text(study_file.read_text().replace("steps = 6", "steps = 7"))

    def measured(*_: object) -> None:
        raise AssertionError("a step was timed")

    monkeypatch.setattr("smolctl.studies.step_times.measure", measured)
    for dry_run in (["--dry-run"], []):
        code, _, err = run_main(capsys, "study", str(study_file), *dry_run)
        assert code == 2
        assert "was made with different settings: steps: 6 there, 7 requested" in err


def test_a_study_file_without_its_ending_is_suggested(capsys, workdir, study_file):
    for name, hint in (
        ("tinies", " Did you mean 'tinies.toml'?"),
        ("tinie", " Did you mean 'tinies.toml'?"),
    ):
        code, _, err = run_main(capsys, "study", name)
        assert (code, err) == (2, f"Error: There is no study file '{name}'.{hint}\n")
    kept = workdir / "folder/tinies/study.toml"
    kept.parent.mkdir(parents=True)
    kept.touch()
    code, _, err = run_main(capsys, "study", "folder")
    assert code == 2
    assert "'folder' is a folder; name a study file, such as gqa.toml." in err
    assert "There are folder/tinies/study.toml." in " ".join(err.split())


def test_a_run_is_repeated_with_the_name_of_its_text(capsys, finished, tiny):
    again = changed(tiny, "--data", "corpus.jsonl")  # as a card prints it
    code, _, err = run_main(capsys, *again, "--steps", "6", "--seed", "1", "--name", "second")
    assert code == 0, err
    assert "Using the tokens that run first was trained on: corpus.jsonl is not here." in err
    first, second = Run(finished), Run(finished.with_name("second"))
    assert first.protocol.data == second.protocol.data
    assert second.manifest["request"]["data"] == "corpus.jsonl"
    for other in (without(again, "--tokenizer"), changed(again, "--data", "corpus.json")):
        code, _, err = run_main(capsys, *other, "--steps", "6", "--name", "third")
        assert code == 2
        assert "There is no file or folder" in err


def test_what_a_study_says_to_type_next_can_be_typed(capsys, workdir, study_file):
    place = workdir / "my results"
    code, _, err = run_main(capsys, "study", str(study_file), "--results", str(place))
    assert code == 0, err
    lines = [line.partition("smolctl ")[2] for line in err.splitlines() if "smolctl " in line]
    assert lines == [
        "compare two three --study tinies --results 'my results'",
        "report --out 'my results/tinies/MODEL_CARD.md' --study tinies --results 'my results'",
    ]
    for line in lines:
        code, _, err = run_main(capsys, *shlex.split(line))
        assert code == 0, err
    shutil.rmtree(place / "tinies/two-s0")
    err = run_main(capsys, "study", str(study_file), "--results", str(place))[2]
    assert "remove the whole folder 'my results/tinies' to start over" in err
