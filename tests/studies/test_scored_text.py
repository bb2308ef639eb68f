"""What the runs of a study are scored on, and in which order they are trained: older studies go on
as they began, and a run that tunes never sees the test."""

import json

import pytest
from support.command import run_main
from support.tinies import runs_of

from smolctl.analysis.run_metrics import tuning_loss
from smollm2.files import write_json
from smollm2.runs.manifest import Role, RunState
from smollm2.runs.run import Run


def words(workdir, field) -> set[str]:
    return {getattr(run.protocol, field) for run in runs_of(workdir).values()}


@pytest.mark.parametrize(
    ("field", "new", "older"),
    [("held_out_windows", "spread", "first"), ("data_order", "feistel", "shuffled")],
)
def test_a_study_that_an_older_version_began_goes_on_as_it_began(
    capsys, workdir, study_file, field, new, older
):
    assert run_main(capsys, "study", str(study_file))[0] == 0
    assert words(workdir, field) == {new}
    for run in runs_of(workdir).values():
        manifest = json.loads((run.path / "run.json").read_text())
        del manifest["protocol"][field], manifest["request"][field]
        write_json(run.path / "run.json", manifest)
    study_file.write_text(study_file.read_text().replace("seeds = [0, 1]", "seeds = [0, 1, 2]"))
    code, _, err = run_main(capsys, "study", str(study_file))
    assert code == 0, err
    assert len(runs_of(workdir)) == 6
    assert words(workdir, field) == {older}
    code, out, err = run_main(capsys, "compare", "two", "three", "--study", "tinies", "--json")
    assert code == 0, err
    assert json.loads(out)["arms"][0]["seeds"] == [0, 1, 2]
    # The kept file repeats the study elsewhere as it was.
    kept = workdir / "results/tinies/study.toml"
    assert f'{field} = "{older}"' in kept.read_text()


def test_a_study_that_began_uncompiled_goes_on_uncompiled(capsys, monkeypatch, workdir, study_file):
    assert run_main(capsys, "study", str(study_file))[0] == 0
    monkeypatch.setattr("smollm2.protocol.resolve.COMPILE_TOKENS", {"nano": 1, "full": 1})
    study_file.write_text(study_file.read_text().replace("seeds = [0, 1]", "seeds = [0, 1, 2]"))
    code, _, err = run_main(capsys, "study", str(study_file))
    assert code == 0, err
    assert len(runs_of(workdir)) == 6
    assert {run.protocol.compile for run in runs_of(workdir).values()} == {False}


def test_windows_are_chosen_by_name(capsys, workdir, study_file):
    study_file.write_text(
        study_file.read_text().replace("[train]", '[train]\nheld_out_windows = "last"')
    )
    code, _, err = run_main(capsys, "study", str(study_file))
    assert code == 2
    assert "takes first or spread, not 'last'" in err


def test_the_sweep_is_scored_on_validation_alone(capsys, workdir, study_file):
    with study_file.open("a") as file:
        file.write("[sweep]\nlr = [1e-8, 1e-2]\nseeds = [100]\n")
    assert run_main(capsys, "study", str(study_file))[0] == 0
    tuning = [run for run in runs_of(workdir).values() if run.role is Role.SWEEP]
    assert len(tuning) == 4
    for run in tuning:
        assert set(run.table("eval")["suite"]) == {"final-validation"}
    code, out, err = run_main(capsys, "runs", "tinies", "--json")
    assert code == 0, err
    losses = {row["role"]: row["test_loss"] for row in json.loads(out)}
    assert losses["sweep"] is None
    assert losses["final"] > 0
    name = tuning[0].name
    for command in (["runs", "show", name], ["runs", "tinies"], ["compare", "two", "three"]):
        options = [] if "tinies" in command else ["--study", "tinies"]
        code, out, err = run_main(capsys, *command, *options)
        assert code == 0, err
    assert "at the end of tuning" in run_main(capsys, "runs", "show", name, "--study", "tinies")[1]


def test_a_tuning_run_that_is_resumed_by_hand_says_its_validation_loss(capsys, workdir, study_file):
    with study_file.open("a") as file:
        file.write("[sweep]\nlr = [1e-8, 1e-2]\nseeds = [100]\n")
    assert run_main(capsys, "study", str(study_file))[0] == 0
    run = next(run for run in runs_of(workdir).values() if run.role is Role.SWEEP)
    options = ("--resume", run.name, "--study", "tinies")
    (run.path / "eval.csv").unlink()
    run.update(state=RunState.STOPPED, finished_at=None)
    for table in ("train", "val"):
        (run.path / f"{table}.csv").unlink()
    code, out, err = run_main(capsys, "train", *options, "--json")
    assert code == 0, err
    again = Run(run.path)
    assert json.loads(out)["validation"]["loss"] == tuning_loss(again)
    assert "test" not in json.loads(out)
