"""What is said before a study starts, and of a run that has just been made."""

import dataclasses
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from support.command import run_main
from support.planted import planted

from smolctl.analysis.study_plan import read_ledger
from smolctl.studies.ledger import planned_by, record_results, write_ledger
from smolctl.studies.runner import Session
from smolctl.studies.study_file import read_study
from smolctl.studies.study_warnings import warn_before
from smolctl.studies.targets import RunStatus, status_of
from smollm2.runs.run import Run, list_runs


@pytest.fixture
def busy(monkeypatch) -> None:
    """A machine with other work."""
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    monkeypatch.setattr("os.getloadavg", lambda: (3.0, 0, 0), raising=False)
    monkeypatch.setattr("smollm2.runs.run.LOCK_SECONDS", 0.01)


def made(session: Session) -> Run:
    """The first run of a study, made and not trained."""
    run = session.claim(session.planned()[0])
    assert run is not None
    return run


def test_other_work_is_warned_of_unless_it_shares_the_study(capsys, workdir, study_file, busy):
    session = Session(read_study(study_file), Path("results"))
    warn_before(session)
    assert "load 3.0 on 2 cores" in capsys.readouterr().err
    with made(session).writing():
        warn_before(session)
    assert "load" not in capsys.readouterr().err


def test_training_warns_of_a_busy_machine_once(capsys, workdir, tiny, busy):
    code, _, err = run_main(capsys, *tiny, "--steps", "1")
    assert code == 0
    assert err.count("load 3.0 on 2 cores") == 1


def test_one_seed_is_warned_of(capsys, workdir, study_file):
    text = study_file.read_text().replace("seeds = [0, 1]", "seeds = [0]")
    study_file.write_text(f"{text}[tune]\nlr = 1e-3\n")
    for command in (
        ["study", str(study_file), "--dry-run"],
        ["plan", str(study_file), "--detect", "0.1", "--pilot", "none"],
    ):
        err = " ".join(run_main(capsys, *command)[2].split())
        assert "Warning: one seed gives no verdict, and two, three has no more" in err
    warn_before(Session(read_study(study_file), Path("results")))
    assert "one seed gives no verdict" in capsys.readouterr().err


def test_a_dry_run_says_that_the_plan_has_changed(capsys, workdir, study_file, template):
    folder = Path("results/tinies")
    record_results(folder, [planted(template, "elsewhere", 0, 5.0, study="tinies")])
    ledger, plan = read_ledger(folder), planned_by(read_study(study_file))
    write_ledger(folder, dataclasses.replace(ledger, plan=plan))
    dry = ("study", str(study_file), "--dry-run")
    assert "The plan has changed" not in run_main(capsys, *dry)[2]
    before = (folder / "ledger.json").read_bytes()
    study_file.write_text(study_file.read_text().replace("seeds = [0, 1]", "seeds = [0, 1, 2]"))
    code, _, err = run_main(capsys, *dry)
    assert code == 0
    said = " ".join(err.split())
    assert "The plan has changed after 1 results, which the ledger notes." in said
    assert "give the file another name; looks, announced from the start," in said
    assert (folder / "ledger.json").read_bytes() == before


def test_a_run_that_was_just_made_is_running_and_later_interrupted(workdir, study_file):
    run = made(Session(read_study(study_file), Path("results")))
    assert not (run.path / "run.lock").exists()
    assert status_of(run) is RunStatus.RUNNING
    run.update(created_at=(datetime.now(UTC) - timedelta(minutes=5)).isoformat())
    assert [status_of(one) for one in list_runs(Path("results"), "tinies")[0]] == [
        RunStatus.INTERRUPTED
    ]
    run.update(created_at="yesterday")
    assert status_of(run) is RunStatus.INTERRUPTED


@pytest.mark.parametrize("command", [["plan", "x.toml"], ["compare", "a", "b"]])
def test_a_difference_in_percent_says_what_to_type(capsys, workdir, command):
    code, _, err = run_main(capsys, *command, "--detect", "1%")
    assert code == 2
    assert "'1%' is not a number of nats/token, such as 0.01, which is 1 %" in " ".join(
        err.replace("│", " ").split()
    )
