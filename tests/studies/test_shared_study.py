"""A study that is stopped, and one that several processes work on."""

import dataclasses
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from filelock import Timeout
from support.command import run_main
from support.tinies import runs_of

from smolctl.studies.runner import Session
from smolctl.studies.study_file import read_study
from smollm2.errors import RunBusy, UserError
from smollm2.runs.run import list_runs
from smollm2.training.loop import Observer, train

STOPPED = """
import os, signal, sys
from smollm2.training.loop import Loop
from smolctl.cli.app import main

original, number = Loop.train_step, getattr(signal, sys.argv.pop(1))

def train_step(self):
    original(self)
    if self.run.name == "three-s0" and self.trainer.step == 3:
        os.kill(os.getpid(), number)

Loop.train_step = train_step
main()
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGKILL"])
def test_a_stopped_study_continues_where_it_was(capsys, workdir, study_file, name):
    command = [sys.executable, "-c", STOPPED, name, "study", str(study_file)]
    process = subprocess.run(command, capture_output=True, text=True, timeout=240, env=os.environ)
    number = getattr(signal, name)
    assert process.returncode == (130 if name == "SIGINT" else -number), process.stderr
    if name == "SIGINT":
        assert "The same command continues the study" in process.stderr
    states = {run.name: run.is_finished for run in runs_of(workdir).values()}
    assert states == {"two-s0": True, "three-s0": False}
    stopped = dict(runs_of(workdir))
    code, _, err = run_main(capsys, "study", str(study_file))
    assert code == 0
    if name == "SIGINT":
        assert re.search("three-s0.*, continued from step 3\n", err)
    runs = runs_of(workdir)
    assert len(runs) == 4
    assert all(run.is_finished for run in runs.values())
    assert runs["two-s0"].manifest["finished_at"] == stopped["two-s0"].manifest["finished_at"]


def test_two_processes_share_a_study(workdir, study_file):
    command = [sys.executable, "-m", "smolctl", "study", str(study_file)]
    both = [
        subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [process.communicate(timeout=240)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    runs, _ = list_runs(Path("results"), "tinies")
    assert [len(run.rows("train")) for run in runs] == [6, 6, 6, 6]
    ended = re.findall(r"(\S+): step 6/6", "".join(said))  # each once
    assert sorted(ended) == ["three-s0", "three-s1", "two-s0", "two-s1"]


@pytest.fixture
def sessions(study_file):
    """Sessions of two processes, as far as locks and files can tell them apart."""
    return [Session(read_study(study_file), Path("results")) for _ in range(2)]


def test_a_run_that_another_process_has_is_waited_for(monkeypatch, sessions):
    ours, theirs = sessions
    first = ours.planned()[0]
    held = theirs.claim(first).writing()
    held.__enter__()
    waits = []

    def sleep(seconds):
        waits.append([ours.existing(planned).is_finished for planned in ours.planned()])
        if len(waits) == 2:
            held.__exit__(None, None, None)  # as if it had died

    ours_alone = SimpleNamespace(sleep=sleep, monotonic=time.monotonic)  # locks sleep too
    monkeypatch.setattr("smolctl.studies.runner.time", ours_alone)
    ours.run()
    assert waits == [[False, True, True, True]] * 2
    assert ours.existing(first).is_finished


def test_a_run_that_failed_in_another_process_is_not_tried_again(monkeypatch, sessions):
    ours, theirs = sessions
    run = theirs.claim(ours.planned()[0])
    run.update(state="failed", error="The disk was full.", failed_at="2000-01-01T00:00:00Z")
    ours.run()
    assert ours.failed == {"two-s0": "The disk was full."}
    assert not run.rows("train")
    other = Session(ours.study, ours.results)
    run.update(error="The disk was full again.", failed_at="2000-01-02T00:00:00Z")  # by a third one
    other.run()
    assert other.failed == {"two-s0": "The disk was full again."}
    again = Session(ours.study, ours.results)
    again.run()
    assert not again.failed
    assert again.existing(ours.planned()[0]).is_finished


def test_a_run_that_fails_elsewhere_while_it_is_claimed_is_left_alone(sessions):
    ours, theirs = sessions
    run, same = (session.claim(ours.planned()[0]) for session in (ours, theirs))
    same.update(state="failed", error="The disk was full.", failed_at="2000-01-01T00:00:00Z")
    with pytest.raises(RunBusy, match="has just failed in another process"):
        train(run, ours.data, Observer())


def test_a_run_knows_whether_others_were_trained_meanwhile(sessions):
    ours, theirs = sessions
    first, second = ours.planned()[:2]
    with theirs.claim(first).writing():
        assert ours.train(second)
    assert ours.train(first)
    assert [ours.existing(planned).at_once for planned in (first, second)] == [1, 2]


def test_equal_seconds_are_for_one_process(monkeypatch, workdir, study_file):
    study = dataclasses.replace(read_study(study_file), equal="seconds")
    ours, theirs = (Session(study, Path("results")) for _ in range(2))
    with theirs.lock.alone(), pytest.raises(UserError, match="Another process is running study"):
        ours.run()


def test_one_process_at_a_time_evaluates(monkeypatch, sessions):
    ours, theirs = sessions
    evaluated = []

    def evaluate(self, planned):
        with pytest.raises(Timeout):
            theirs.lock.file.acquire(timeout=0)
        evaluated.append(planned.name)

    monkeypatch.setattr(Session, "measure", evaluate)
    ours.run()
    assert len(evaluated) == 4
    with theirs.lock.alone():
        pass
