"""The ledger: what was planned before the first result, and what became of it."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from support.command import run_main
from support.tinies import runs_of

from smolctl.analysis.arms import Arm
from smolctl.analysis.study_plan import (
    Ledger,
    TuningPlan,
    ledger_checksum,
    ledger_of,
    ledger_problems,
    read_ledger,
)
from smolctl.analysis.study_verdicts import lost_results
from smolctl.studies.ledger import begin_ledger, planned_by, write_ledger
from smolctl.studies.runner import Session
from smolctl.studies.study_file import read_study
from smollm2.errors import UserError
from smollm2.files import write_json
from smollm2.runs.manifest import now
from smollm2.training.loop import Loop
from smollm2.training.trainer import NotFinite

FOLDER = Path("results/tinies")


def changed(study_file, old, new):
    study_file.write_text(study_file.read_text().replace(old, new))


def done(capsys, study_file) -> str:
    code, _, err = run_main(capsys, "study", str(study_file))
    assert code == 0, err
    return err


def refused(capsys, study_file, *options) -> str:
    code, out, err = run_main(capsys, "study", str(study_file), *options)
    assert (code, out) == (2, "")
    return err


def test_the_plan_is_written_before_the_first_run_and_results_as_runs_finish(
    capsys, workdir, study_file, monkeypatch
):
    seen = []
    original = Session.claim

    def claim(self, planned):
        seen.append(len(read_ledger(self.folder).results))
        return original(self, planned)

    monkeypatch.setattr(Session, "claim", claim)
    study_file.write_text("margin = 0.01\n" + study_file.read_text())
    done(capsys, study_file)
    assert seen == [0, 1, 2, 3]
    ledger = read_ledger(FOLDER)
    assert ledger.plan.seeds == {"two": (0, 1), "three": (0, 1)}
    assert (ledger.plan.looks, ledger.plan.margin) == ((2,), 0.01)
    assert (ledger.plan.blocked, ledger.plan.alpha) == (True, 0.05)
    runs = runs_of(workdir)
    for name, result in ledger.results.items():
        assert result.test_loss == float(runs[name].test_scores()["loss"])
        assert (result.arm, result.seed) == (runs[name].arm, runs[name].protocol.seed)
    finished = [run.manifest["finished_at"] for run in runs.values()]
    assert ledger.first_result_at == min(finished)
    assert ledger.planned_at < min(run.manifest["created_at"] for run in runs.values())
    assert ledger_problems(ledger, runs.values()) == []


def test_what_changes_after_results_is_noted_with_how_many_there_were(capsys, workdir, study_file):
    done(capsys, study_file)
    changed(study_file, "seeds = [0, 1]", "seeds = [0, 1, 2]\nmargin = 0.5\nlooks = [2, 3]")
    err = done(capsys, study_file)
    assert "The plan has changed after 4 results" in err
    ledger = read_ledger(FOLDER)
    (change,) = ledger.changes
    assert (change.results, change.plan.looks, change.plan.margin) == (4, (2, 3), 0.5)
    assert ledger.current is change.plan
    assert ledger.binding is ledger.plan
    assert ledger.binding.seeds["two"] == (0, 1)
    assert len(ledger.results) == 6
    done(capsys, study_file)
    assert read_ledger(FOLDER) == ledger


def test_a_plan_that_changes_before_the_first_result_binds(capsys, workdir, study_file):
    session = Session(read_study(study_file), Path("results"))
    session.write_records()
    changed(study_file, "seeds = [0, 1]", "seeds = [0, 1, 2]")
    assert "The plan has changed" not in done(capsys, study_file)
    ledger = read_ledger(FOLDER)
    assert ledger.binding.seeds["two"] == (0, 1, 2)
    assert ledger.binding.seeds["two"] == (0, 1, 2)


def test_the_tuning_is_in_the_plan_but_not_in_that_of_an_older_ledger(workdir, study_file):
    plain = planned_by(read_study(study_file))
    assert plain.tuning == TuningPlan()
    study_file.write_text(study_file.read_text() + "[tune]\nlr = [1e-3, 1.4e-3]\n")
    tuned = planned_by(read_study(study_file))
    assert tuned.tuning == TuningPlan((1e-3, 1.4e-3), (100, 101, 102), grows=True)
    FOLDER.mkdir(parents=True)
    study = read_study(study_file)
    older = Ledger(now(), None, dataclasses.replace(tuned, tuning=None), {}, ())
    write_ledger(FOLDER, older)
    begin_ledger(study, FOLDER, [])
    assert read_ledger(FOLDER) == older
    write_ledger(FOLDER, dataclasses.replace(older, plan=plain))
    begin_ledger(study, FOLDER, [])
    assert read_ledger(FOLDER).current == tuned


def test_a_run_whose_process_died_before_the_ledger_was_written_is_added(
    capsys, workdir, study_file, monkeypatch
):
    monkeypatch.setattr(Session, "record_results", lambda self: None)
    done(capsys, study_file)
    assert read_ledger(FOLDER).results == {}
    monkeypatch.undo()
    monkeypatch.chdir(workdir)
    study_file.write_text("margin = 0.5\n" + study_file.read_text())  # after the results
    done(capsys, study_file)
    ledger = read_ledger(FOLDER)
    assert len(ledger.results) == ledger.changes[0].results == 4
    assert ledger.binding.margin is None


def test_a_removed_run_is_not_trained_again(capsys, workdir, study_file):
    done(capsys, study_file)
    shutil.rmtree(FOLDER / "two-s1")
    before = sorted(workdir.rglob("*"))
    for options in ([], ["--dry-run"]):
        err = refused(capsys, study_file, *options)
        assert "runs whose folders were removed: two-s1." in err
        assert "Put the folders back, give the study file another name, or remove" in err
    assert sorted(workdir.rglob("*")) == before
    assert "removed: two-s1" in ledger_problems(read_ledger(FOLDER), runs_of(workdir).values())[0]
    shutil.rmtree(FOLDER)
    done(capsys, study_file)


def test_a_final_run_that_diverged_is_a_result_and_is_not_tried_again(
    capsys, workdir, study_file, monkeypatch
):
    original = Loop.train_step

    def failing(self):
        if self.run.name == "two-s0":
            raise NotFinite("At step 1 the loss is nan.")
        original(self)

    monkeypatch.setattr(Loop, "train_step", failing)
    seen = []
    claim = Session.claim

    def seeing(self, planned):
        seen.append(len(read_ledger(self.folder).results))
        return claim(self, planned)

    monkeypatch.setattr(Session, "claim", seeing)
    code, _, err = run_main(capsys, "study", str(study_file))
    assert code == 1
    said = "Diverged: two-s0. That is a result, which is not tried again."
    assert said in err
    assert "Failed: " not in err
    assert seen == [0, 1, 2, 3]
    result = read_ledger(FOLDER).results["two-s0"]
    assert (result.test_loss, result.diverged) == (None, True)
    # Nothing diverges any more, and the study is complete, also packed.
    monkeypatch.setattr(Loop, "train_step", original)
    changed(study_file, "seeds = [0, 1]", "margin = 0.5\nseeds = [0, 1]")
    assert said in done(capsys, study_file)
    ledger, run = read_ledger(FOLDER), runs_of(workdir)["two-s0"]
    assert run.has_diverged
    assert ledger.changes[0].results == 4
    assert ledger_problems(ledger, runs_of(workdir).values())[1:] == []
    code, out, _ = run_main(capsys, "study", str(study_file), "--dry-run", "--json")
    assert json.loads(out)["seconds_left"] == 0
    # Trained again by hand, it would get another chance.
    code, _, err = run_main(capsys, "train", "--resume", "two-s0", "--study", "tinies")
    assert code == 2
    assert "'two-s0' diverged, and ledger.json has this as its result" in " ".join(err.split())
    run.update(state="finished", finished_at=now())
    assert lost_results(Arm("two", ()), ledger) == ["two-s0", "two-s1"]
    assert lost_results(Arm("two", (), diverged=(0,)), ledger) == ["two-s1"]
    assert "replaced an older run with the same seed" in refused(capsys, study_file)


def test_removing_a_run_warns_that_its_result_stays_in_the_ledger(capsys, workdir, study_file):
    done(capsys, study_file)
    remove = ("runs", "remove", "two-s1", "--study", "tinies")
    warning = "Warning: the ledger of study 'tinies' keeps the result of two-s1: the study will not"
    code, _, err = run_main(capsys, *remove)
    assert code == 2
    assert err.startswith(warning)
    assert (FOLDER / "two-s1").exists()
    code, _, err = run_main(capsys, *remove, "--yes")
    assert code == 0
    assert err.startswith(warning)
    assert "runs whose folders were removed: two-s1." in refused(capsys, study_file)
    (FOLDER / "ledger.json").write_text("{")
    assert run_main(capsys, *remove[:2], "two-s0", *remove[3:], "--yes")[0] == 0


def test_a_run_that_replaces_an_older_one_is_refused(capsys, workdir, study_file):
    done(capsys, study_file)
    kept = (FOLDER / "ledger.json").read_bytes()
    shutil.rmtree(FOLDER)
    done(capsys, study_file)
    (FOLDER / "ledger.json").write_bytes(kept)
    err = refused(capsys, study_file)
    assert "of study 'tinies' replaced an older run with the same seed" in err
    assert "trained again" in ledger_problems(read_ledger(FOLDER), runs_of(workdir).values())[0]


def test_a_study_that_began_without_a_ledger_goes_on_without_one(capsys, workdir, study_file):
    done(capsys, study_file)
    (FOLDER / "ledger.json").unlink()
    changed(study_file, "seeds = [0, 1]", "seeds = [0, 1, 2]")
    assert "its verdicts are exploratory" in done(capsys, study_file)
    assert read_ledger(FOLDER) is None


def test_a_ledger_that_was_deleted_and_made_again_makes_verdicts_exploratory(
    capsys, workdir, study_file
):
    def exploratory() -> list[bool]:
        options = ("compare", "two", "three", "--study", "tinies", "--json")
        code, out, err = run_main(capsys, *options)
        assert code == 0, err
        return [each["exploratory"] for each in json.loads(out)["verdicts"]]

    done(capsys, study_file)
    assert exploratory() == [False]
    (FOLDER / "ledger.json").unlink()
    assert "its verdicts are exploratory" in done(capsys, study_file)
    assert exploratory() == [True]
    # With the results out of sight, a plan is made; then they come back.
    FOLDER.rename("away")
    Session(read_study(study_file), Path("results")).write_records()
    for path in Path("away").glob("*-s*"):
        path.rename(FOLDER / path.name)
    done(capsys, study_file)
    ledger = read_ledger(FOLDER)
    assert len(ledger.results) == 4
    assert ledger.first_result_at < ledger.planned_at
    assert exploratory() == [True]
    out = run_main(capsys, "compare", "two", "three", "--study", "tinies")[1]
    assert "a run that was trained again or is older than the plan" in " ".join(out.split())


def test_a_packed_study_carries_its_ledger(capsys, workdir, study_file):
    done(capsys, study_file)
    ledger = read_ledger(FOLDER)
    assert run_main(capsys, "runs", "pack", "tinies", "--drop-weights")[0] == 0
    assert read_ledger(FOLDER) == ledger
    done(capsys, study_file)
    assert run_main(capsys, "runs", "unpack", "tinies", "--to", "copy")[0] == 0
    assert read_ledger(Path("copy")) == ledger
    assert ledger_problems(ledger, runs_of(workdir).values()) == []


# The file


@pytest.fixture
def content() -> dict:
    plan = {"seeds": {"a": [0, 1]}, "looks": [2], "margin": None, "blocked": True, "alpha": 0.05}
    result = {"arm": "a", "seed": 0, "finished_at": "2026-01-01", "test_loss": 4.5}
    return {
        "format": 1,
        "planned_at": "2026-01-01",
        "first_result_at": None,
        "plan": plan,
        "results": {"a-s0": result},
        "changes": [{"at": "2026-01-02", "results": 1, "plan": plan}],
    }


def signed(content: dict) -> dict:
    return content | {"checksum": ledger_checksum(content)}


def test_a_ledger_that_was_edited_by_hand_is_refused(capsys, workdir, study_file):
    done(capsys, study_file)
    path = FOLDER / "ledger.json"
    edited = json.loads(path.read_text())
    edited["plan"]["margin"] = 0.5
    write_json(path, edited)
    err = refused(capsys, study_file)
    assert "ledger.json was changed by hand or damaged: its checksum is wrong. Restore it" in err
    path.write_text("{")
    assert "ledger.json cannot be read" in refused(capsys, study_file)


def test_a_look_comes_at_its_number_of_seeds(content):
    plan = ledger_of(signed(content)).plan
    assert [plan.next_look(n) for n in (0, 1, 2, 3)] == [2, 2, 2, 2]


DAMAGES = {
    "seeds": lambda c: c["plan"].update(seeds={"a": [-1]}),
    "no seeds": lambda c: c["plan"].update(seeds=[1]),
    "looks": lambda c: c["plan"].update(looks=[]),
    "margin": lambda c: c["plan"].update(margin=-0.1),
    "blocked": lambda c: c["plan"].update(blocked=1),
    "alpha": lambda c: c["plan"].update(alpha=1.5),
    "tuning": lambda c: c["plan"].update(tuning={"rates": [0], "seeds": [1], "grows": True}),
    "ladder": lambda c: c["plan"].update(ladder={"sizes": "1M", "at": "1M"}),
    "a loss": lambda c: c["results"]["a-s0"].update(test_loss="good"),
    "a time": lambda c: c["results"]["a-s0"].update(finished_at=3),
    "divergence": lambda c: c["results"]["a-s0"].update(diverged=1),
    "a seed": lambda c: c["results"]["a-s0"].update(seed=True),
    "a change": lambda c: c["changes"].append(3),
    "a missing key": lambda c: c.pop("results"),
    "a date": lambda c: c.update(planned_at=None),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_a_ledger_of_other_types_is_refused(content, case):
    ledger_of(signed(content))
    DAMAGES[case](content)
    with pytest.raises(UserError, match="not a ledger of this version"):
        ledger_of(signed(content))


def test_another_file_in_its_place_is_refused(content):
    for other in ({}, {"format": "1"}, {"runs": []}):
        with pytest.raises(UserError, match="is not the ledger of a study"):
            ledger_of(other)
    with pytest.raises(UserError, match="format 2, and this version reads up to 1"):
        ledger_of(signed(content | {"format": 2}))


@pytest.mark.parametrize("is_there", [True, False])
def test_a_ledger_that_is_a_link_out_is_refused(capsys, workdir, study_file, tmp_path, is_there):
    done(capsys, study_file)
    away = tmp_path / "away.json"
    (FOLDER / "ledger.json").rename(away)
    (FOLDER / "ledger.json").symlink_to(away)
    if not is_there:
        away.unlink()
    assert "ledger.json is a link that leads out of tinies" in refused(capsys, study_file)
