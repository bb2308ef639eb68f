"""Several runs of a study at once."""

import dataclasses
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest
import torch
from support.command import run_main
from support.tinies import runs_of

from smolctl.studies import at_once
from smolctl.studies.runner import Session
from smolctl.studies.study_file import read_study
from smollm2.errors import UserError
from smollm2.files import write_json


@pytest.fixture
def session(study_file) -> Session:
    return Session(read_study(study_file), Path("results"))


@pytest.fixture
def four_cores(monkeypatch) -> None:
    """Four cores on which every study is worth a measurement, which says three."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr(at_once, "WORTH_SECONDS", 0.0)
    monkeypatch.setattr(at_once, "fastest", lambda protocol, data, cores, most: min(3, most))


def test_a_measurement_says_how_many(session, four_cores):
    assert at_once.runs_at_once(session, None) == (3, 1)


@pytest.mark.parametrize(("asked", "number"), [(1, (1, 4)), (2, (2, 2)), (9, (4, 1))])
def test_as_many_as_asked_for_and_left(session, four_cores, asked, number):
    assert at_once.runs_at_once(session, asked) == number


@pytest.mark.parametrize("why", ["short", "core", "gpu", "seconds"])
def test_one_at_a_time(session, four_cores, monkeypatch, why):
    if why == "short":
        monkeypatch.setattr(at_once, "WORTH_SECONDS", 20.0)
    elif why == "core":
        monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    elif why == "gpu":
        session.final = [
            dataclasses.replace(run, resolved=dataclasses.replace(run.resolved, device="cuda"))
            for run in session.final
        ]
    else:
        session.study = dataclasses.replace(session.study, equal="seconds")
        with pytest.raises(UserError, match="equal seconds of the machine"):
            at_once.runs_at_once(session, 2)
    assert at_once.runs_at_once(session, None) == (1, 1 if why == "core" else 4)


def test_a_study_goes_on_with_the_threads_of_its_runs(capsys, workdir, study_file, four_cores):
    assert run_main(capsys, "study", str(study_file), "--at-once", "1")[0] == 0
    for threads, runs in ((4, 1), (2, 2), (1, 2), (9, 1)):
        rewrite(workdir, threads=threads)
        session = Session(read_study(study_file), Path("results"))
        assert at_once.runs_at_once(session, None) == (runs, min(4, threads))
        assert at_once.runs_at_once(session, 2) == (2, min(4, threads))
    rewrite(workdir, device_name="another")
    assert at_once.runs_at_once(session, None) == (2, 2)  # of the three that the measurement says


def rewrite(workdir: Path, **environment) -> None:
    """Change the environment of all runs, and let those of one arm be unfinished."""
    for name, run in runs_of(workdir).items():
        state = "finished" if name.startswith("two") else "running"
        changed = run.manifest["environment"] | environment
        write_json(run.path / "run.json", run.manifest | {"environment": changed, "state": state})


@pytest.mark.parametrize(
    ("rates", "best"),
    [
        ({1: 10.0, 2: 10.4, 4: 10.4}, 1),
        ({1: 10.0, 2: 10.6, 4: 10.7}, 2),
        ({1: 10.0, 2: 9.0, 4: 12.0}, 4),
        ({1: 10.0, 2: 11.0}, 2),  # four are killed
    ],
)
def test_the_fastest_number_is_chosen(monkeypatch, capsys, session, rates, best):
    def together(protocol, data, processes, threads):
        assert processes * threads == 4
        if processes not in rates:
            raise BrokenProcessPool("one was killed")
        return rates[processes]

    monkeypatch.setattr(at_once, "together", together)
    protocol = session.planned()[0].resolved
    assert at_once.fastest(protocol, session.data.path, 4, 4) == best
    said = capsys.readouterr().err
    assert ("4 runs at once do not work here: one was killed" in said) == (4 not in rates)
    assert said.endswith(f"Chosen: {best}.\n")


@pytest.mark.slow
def test_processes_are_timed_together(session):
    protocol = session.planned()[0].resolved
    assert at_once.together(protocol, session.data.path, processes=2, threads=1) > 0


@pytest.mark.slow
def test_two_workers_train_each_run_once(capsys, workdir, study_file):
    code, _, err = run_main(capsys, "study", str(study_file), "--at-once", "2")
    assert code == 0, err
    assert "Training 2 runs at once" in err
    ended = re.findall(r"(\S+): step 6/6", err)
    assert sorted(ended) == ["three-s0", "three-s1", "two-s0", "two-s1"]
    runs = runs_of(workdir).values()
    assert [run.manifest["environment"]["threads"] for run in runs] == [1] * 4
    assert [run.at_once for run in runs] == [2] * 4
    assert all(run.is_finished for run in runs)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGKILL"])
def test_workers_stop_with_their_parent_and_go_on_later(capsys, workdir, study_file, name):
    study_file.write_text(study_file.read_text().replace("steps = 6", "steps = 20000"))
    command = [sys.executable, "-m", "smolctl", "study", str(study_file), "--at-once", "2"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ) as parent:
        assert parent.stderr is not None
        begun = set()
        while len(begun) < 2:
            line = parent.stderr.readline()
            assert line, "the study ended"
            begun |= {*re.findall(r"(\S+): step [1-9]\d*/", line)}
        parent.send_signal(getattr(signal, name))
        code = parent.wait(timeout=60)
    assert code == {"SIGINT": 130, "SIGTERM": 143, "SIGKILL": -9}[name]
    for _ in range(600):
        runs = runs_of(workdir).values()
        if not any(run.is_being_written for run in runs):
            break
        time.sleep(0.1)
    steps = [max(run.checkpoints.steps(), default=0) for run in runs]
    assert len(steps) == 2
    assert all(0 < step < 20000 for step in steps)
