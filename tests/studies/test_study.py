"""`smolctl study`: what a file describes is run, once and in order."""

import json
import re
import shutil
from pathlib import Path

import pytest
from support.command import run_main
from support.tinies import runs_of

from smollm2.errors import RunError


def test_a_study_runs_what_is_missing_and_nothing_twice(capsys, workdir, study_file):
    code, _, err = run_main(capsys, "study", str(study_file))
    assert code == 0
    assert "Run 1 of 4: two-s0\n" in err
    assert re.search(r"Run 4 of 4: three-s1, about [\d.]+ s of training left\n", err)
    runs = runs_of(workdir)
    assert set(runs) == {"two-s0", "three-s0", "two-s1", "three-s1"}
    assert [run.arm for run in runs.values()] == ["three", "three", "two", "two"]
    started = sorted(runs.values(), key=lambda run: run.manifest["created_at"])
    assert [run.name for run in started] == ["two-s0", "three-s0", "two-s1", "three-s1"]
    before = {name: run.manifest["finished_at"] for name, run in runs.items()}
    code, out, _ = run_main(capsys, "study", str(study_file), "--json")
    assert code == 0
    assert {run["state"] for run in json.loads(out)["runs"]} == {"finished"}
    assert {name: run.manifest["finished_at"] for name, run in runs_of(workdir).items()} == before


def test_the_card_of_a_study_repeats_it(capsys, workdir, study_file):
    assert run_main(capsys, "study", str(study_file))[0] == 0
    report = ("report", "--study", "tinies", "--appendix", "appendix.md")
    code, _, err = run_main(capsys, *report)
    assert code == 0, err
    card = Path("appendix.md").read_text()
    kept = (workdir / "results/tinies/study.toml").read_text()
    assert f"`tinies.toml`:\n\n```toml\n{kept}```\n\n```sh\nsmolctl study tinies.toml\n" in card
    assert "smolctl train" not in card
    (workdir / "results/tinies/study.toml").write_text("[")
    code, _, err = run_main(capsys, "report", "--study", "tinies")
    assert code == 2
    assert "not a readable TOML file" in err
    (workdir / "results/tinies/study.toml").unlink()
    assert run_main(capsys, *report)[0] == 0
    assert Path("appendix.md").read_text().count("\nsmolctl train") == 4


def test_a_dry_run_says_what_is_left_and_writes_nothing(capsys, workdir, study_file):
    code, out, _ = run_main(capsys, "study", str(study_file), "--dry-run", "--json")
    assert code == 0
    plan = json.loads(out)
    assert [run["state"] for run in plan["runs"]] == ["to do"] * 4
    assert plan["seconds_left"] == pytest.approx(sum(r["seconds_left"] for r in plan["runs"]))
    assert plan["seconds_left"] > 0
    assert not (workdir / "results").exists()
    assert run_main(capsys, "study", str(study_file))[0] == 0
    code, out, _ = run_main(capsys, "study", str(study_file), "--dry-run", "--json")
    assert json.loads(out)["seconds_left"] == 0


def test_a_dry_run_has_a_row_an_arm_and_calls_its_time_left_once_it_has_begun(
    capsys, workdir, study_file, monkeypatch
):
    monkeypatch.setattr("smolctl.studies.step_times.measure", lambda *_: {"two": 1.0, "three": 2.0})
    _, out, _ = run_main(capsys, "study", str(study_file), "--dry-run")
    assert [line.split()[1] for line in out.splitlines() if "to do" in line] == ["two", "three"]
    assert "time left" not in out
    assert "│ 0, 1  │" in out
    assert run_main(capsys, "study", str(study_file))[0] == 0
    _, out, _ = run_main(capsys, "study", str(study_file), "--dry-run")
    assert out.count("finished") == 2
    assert "time left" in out


def test_the_sweep_chooses_the_best_rate_on_validation(capsys, workdir, study_file):
    with study_file.open("a") as file:
        file.write("[sweep]\nlr = [1e-8, 1e-2]\n")
    assert run_main(capsys, "study", str(study_file))[0] == 0
    runs = runs_of(workdir)
    assert len(runs) == 8
    assert {run.protocol.recipe.lr for run in runs.values() if run.manifest["role"] == "final"} == {
        1e-2
    }
    # The sweep's runs are in no comparison.
    code, out, _ = run_main(capsys, "compare", "two", "three", "--study", "tinies", "--json")
    assert code == 0
    assert json.loads(out)["arms"][0]["runs"] == ["two-s0", "two-s1"]


def test_floors_of_an_older_version_are_counted_again(capsys, workdir, study_file):
    assert run_main(capsys, "study", str(study_file))[0] == 0
    recorded = {name: run.manifest["floors"] for name, run in runs_of(workdir).items()}
    for run in runs_of(workdir).values():
        run.update(floors={"tokens": 384, "unigram": 9.0, "trigram": 9.0})
    assert run_main(capsys, "study", str(study_file))[0] == 0
    assert {name: run.manifest["floors"] for name, run in runs_of(workdir).items()} == recorded


def test_a_failed_run_is_named_and_does_not_stop_the_rest(capsys, workdir, study_file, monkeypatch):
    from smollm2.training.loop import Loop

    original = Loop.train_step

    def failing(self):
        if self.run.name == "three-s0":
            raise RunError("The disk was full.")
        original(self)

    monkeypatch.setattr(Loop, "train_step", failing)
    code, _, err = run_main(capsys, "study", str(study_file))
    assert code == 1
    assert "Run 'three-s0' failed: The disk was full." in err
    assert "3 of 4 runs are finished" in err
    assert "Failed: three-s0. The same command tries them again." in err
    monkeypatch.setattr(Loop, "train_step", original)
    assert run_main(capsys, "study", str(study_file))[0] == 0


@pytest.fixture
def diverging(monkeypatch):
    """Training that fails above a rate, which the test may change."""
    from smollm2.training.loop import Loop
    from smollm2.training.trainer import NotFinite

    original, limit = Loop.train_step, {"lr": 0.01}

    def failing(self):
        if self.run.protocol.recipe.lr > limit["lr"]:
            raise NotFinite("At step 1 the loss is nan.")
        original(self)

    monkeypatch.setattr(Loop, "train_step", failing)
    return limit


def test_a_diverging_rate_is_a_result_of_the_sweep(capsys, workdir, study_file, diverging):
    with study_file.open("a") as file:
        file.write("[sweep]\nlr = [1e-3, 0.1]\n")
    code, _, err = run_main(capsys, "study", str(study_file))
    assert code == 0
    assert "not chosen: two-lr0.1-s100, three-lr0.1-s100" in err
    assert "6 of 8 runs are finished" in err
    # The same command continues without retrying the failed rate: the finals use the other.
    diverging["lr"] = 1.0
    code, out, _ = run_main(capsys, "study", str(study_file), "--dry-run", "--json")
    assert code == 0
    assert json.loads(out)["seconds_left"] == 0
    with study_file.open() as file:
        text = file.read()
    study_file.write_text(text.replace("seeds = [0, 1]", "seeds = [0, 1, 2]"))
    code, _, err = run_main(capsys, "study", str(study_file))
    assert code == 0
    assert "8 of 10 runs are finished" in err
    rates = {run.name: run.protocol.recipe.lr for run in runs_of(workdir).values()}
    assert rates["two-s2"] == 1e-3


def test_an_arm_that_fails_at_every_rate_reports_an_error(capsys, workdir, study_file, diverging):
    with study_file.open("a") as file:
        file.write("[sweep]\nlr = [0.1, 0.2]\n")
    code, _, err = run_main(capsys, "study", str(study_file))
    assert code == 1
    assert "Error: Arm 'two' failed at every learning rate from 0.1 to 0.2" in err
    # No final run has begun: the same command tries them again.
    diverging["lr"] = 1.0
    assert run_main(capsys, "study", str(study_file))[0] == 0


def test_a_changed_file_does_not_mix_with_what_was_run(capsys, workdir, study_file):
    assert run_main(capsys, "study", str(study_file))[0] == 0
    study_file.write_text(study_file.read_text().replace("steps = 6", "steps = 7"))
    code, _, err = run_main(capsys, "study", str(study_file))
    assert code == 2
    assert "steps: 6 there, 7 requested" in err


def test_equal_seconds_are_measured_once(capsys, workdir, study_file):
    study_file.write_text('equal = "seconds"\n' + study_file.read_text())
    assert run_main(capsys, "study", str(study_file))[0] == 0
    record = workdir / "results/tinies/study.json"
    before = record.read_bytes()
    assert json.loads(before)["step_seconds"].keys() == {"two", "three"}
    code, out, _ = run_main(capsys, "study", str(study_file), "--dry-run", "--json")
    assert code == 0
    assert json.loads(out)["seconds_left"] == 0
    assert record.read_bytes() == before


BROKEN_RECORDS = {
    "no JSON": (lambda record: "{", "cannot be read"),
    "a list": (lambda record: [1], "cannot be read"),
    "a missing key": (lambda record: {"step_seconds": record["step_seconds"]}, "lacks 'measured'"),
    "a zero": (
        lambda record: record | {"step_seconds": {"two": 0, "three": 1.0}},
        "not a positive number",
    ),
    "a missing arm": (lambda record: record | {"step_seconds": {"two": 1.0}}, "without arm"),
    "other threads": (
        lambda record: record | {"measured": record["measured"] | {"threads": 99}},
        "threads: 99 at the start",
    ),
    "another machine": (
        lambda record: record | {"measured": record["measured"] | {"device_name": "abacus"}},
        "device_name: abacus at the start",
    ),
}


def test_an_unusable_record_of_step_times_reports_an_error(capsys, workdir, study_file):
    study_file.write_text('equal = "seconds"\n' + study_file.read_text())
    assert run_main(capsys, "study", str(study_file))[0] == 0
    path = workdir / "results/tinies/study.json"
    good = json.loads(path.read_text())
    for case, (change, sentence) in BROKEN_RECORDS.items():
        bad = change(good)
        path.write_text(bad if isinstance(bad, str) else json.dumps(bad))
        code, _, err = run_main(capsys, "study", str(study_file))
        assert (code, sentence in err) == (2, True), (case, err)
    # Runs that were copied without it do not continue with times measured elsewhere.
    path.unlink()
    before = sorted(workdir.rglob("*"))
    code, _, err = run_main(capsys, "study", str(study_file))
    assert code == 2
    assert "study.json, which is gone; restore it, or give the study file another name" in err
    assert sorted(workdir.rglob("*")) == before
    # Nothing follows from it as long as there is no run.
    for run in runs_of(workdir).values():
        shutil.rmtree(run.path)
    (path.parent / "ledger.json").unlink()
    assert run_main(capsys, "study", str(study_file), "--dry-run")[0] == 0


def test_a_tokenizer_too_large_for_an_arm_is_refused_before_the_text_is_read(
    capsys, workdir, study_file, fresh_cache
):
    study_file.write_text(study_file.read_text().replace("n_layers=3", "vocab_size=400"))
    code, _, err = run_main(capsys, "study", str(study_file))
    assert code == 2
    assert "The tokenizer has 512 tokens, but the model only 400; use --tokenizer train:400" in err
    assert not any(fresh_cache.iterdir())


def test_a_study_scores_its_final_runs(capsys, workdir, study_file):
    from support.questions import ROWS, write

    (workdir / "questions").mkdir()
    write(workdir / "questions", "piqa_validation.jsonl", [ROWS["piqa"]] * 4)
    with study_file.open("a") as file:
        file.write('[eval]\ntasks = "piqa"\ndata_dir = "questions"\nlimit = 3\n')
    assert run_main(capsys, "study", str(study_file))[0] == 0
    for run in runs_of(workdir).values():
        table = run.table("eval")
        assert set(table[table["task"] == "piqa"]["n"]) == {3}


def test_missing_questions_are_said_before_anything_runs(capsys, workdir, study_file):
    with study_file.open("a") as file:
        file.write('[eval]\ntasks = "piqa"\ndata_dir = "nowhere"\n')
    code, _, err = run_main(capsys, "study", str(study_file))
    assert code == 2
    assert "no folder 'nowhere'" in err
    assert not (workdir / "results").exists()
