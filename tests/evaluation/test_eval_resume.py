"""`smolctl eval`: saved scores, and resuming after a stop."""

import gzip
import shutil
import signal
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.command import run_main
from support.evaluated import evaluated, values

from smollm2.evaluation.answers import ItemScore
from smollm2.evaluation.score_file import ScoreFile
from smollm2.runs.run import Run
from smollm2.runs.tables import TABLES

# `smolctl eval`, which stops while it scores the batch of a given number.
STOPPING = """
import os, signal, sys, time
from smollm2.evaluation import records as scores
from smolctl.cli.app import main

original, left = scores.ScoreFile.extend, int(sys.argv.pop(1))

def killed(file):
    with file.growing.open("a") as growing:
        growing.write("7,half a li")
    os.kill(os.getpid(), signal.SIGKILL)

def waiting(file):
    print("waiting", flush=True)
    while True:
        time.sleep(0.05)

stop = globals()[sys.argv.pop(1)]

def extend(self, known, batches, on_scores):
    def stopping():
        for number, batch in enumerate(batches):
            if number == left:
                stop(self)
            yield batch
    return original(self, known, stopping(), on_scores)

scores.ScoreFile.extend = extend
main()
"""


@pytest.mark.parametrize("task", ["piqa", "test"])
def test_a_killed_evaluation_continues_with_what_is_missing(capsys, finished, questions, task):
    options = ["--tasks", task, "--batch-size", "2"]
    options += ["--data-dir", str(questions)] if task == "piqa" else []
    expected = evaluated(capsys, *options)
    shutil.rmtree(finished / "items")
    (finished / "eval.csv").write_text(",".join(TABLES["eval"]) + "\n")
    command = [sys.executable, "-c", STOPPING, "3", "killed", "eval", "first", *options]
    assert subprocess.run(command, timeout=120).returncode == -signal.SIGKILL
    (growing,) = finished.glob("items/*.csv")
    assert growing.read_text().endswith("half a li")
    assert Run(finished).table("eval").empty
    kept = {tuple(line.split(",")) for line in growing.read_text().splitlines()[1:-1]}
    assert kept
    # Nothing that is recorded is computed again: the kept rows are in the end result as they were.
    assert values(evaluated(capsys, *options)) == pytest.approx(values(expected))
    (path,) = finished.glob("items/*")
    rows = gzip.decompress(path.read_bytes()).decode().splitlines()[1:]
    assert kept <= {tuple(row.split(",")) for row in rows}
    assert len(rows) == len({tuple(row.split(",")[:2]) for row in rows})


def test_a_window_half_recorded_is_scored_again(capsys, finished):
    expected = evaluated(capsys)
    (path,) = finished.glob("items/test*.csv.gz")
    lines = gzip.decompress(path.read_bytes()).decode().splitlines(keepends=True)
    windows = [line.split(",")[0] for line in lines]
    first = next(i for i, window in enumerate(windows) if windows.count(window) > 1)
    path.unlink()
    path.with_suffix("").write_text("".join(lines[: first + 1]))
    assert evaluated(capsys) == expected


def test_ctrl_c_says_how_to_continue(finished, questions):
    options = ["--tasks", "piqa", "--batch-size", "2", "--data-dir", str(questions)]
    with subprocess.Popen(
        [sys.executable, "-c", STOPPING, "3", "waiting", "eval", "first", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A job that a shell started in the background ignores it, and so would what it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        assert process.stdout.readline() == "waiting\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate()
    assert process.returncode == 130
    assert "the same command continues" in err
    assert list(finished.glob("items/piqa*.csv"))


@given(
    st.lists(
        st.builds(
            ItemScore,
            item=st.integers(0, 10**6),
            question=st.text("0123456789abcdef", min_size=8, max_size=8),
            gold=st.integers(0, 1),
            log_likelihoods=st.tuples(st.floats(-1e4, 0), st.floats(-1e4, 0)),
            greedy=st.tuples(st.booleans(), st.booleans()),
            characters=st.tuples(st.integers(0, 9), st.integers(0, 9)),
            n_bytes=st.tuples(st.integers(1, 9), st.integers(1, 9)),
        ),
        unique_by=lambda score: score.item,
    )
)
def test_scores_are_read_as_they_were_written(tmp_path_factory, scores):
    file = ScoreFile(tmp_path_factory.mktemp("items") / "x" / "piqa.csv.gz", ItemScore)
    halves = [scores[: len(scores) // 2], scores[len(scores) // 2 :]]
    file.extend([], [half for half in halves if half], lambda scores: None)
    assert file.read() == sorted(scores, key=lambda score: score.item)


def test_a_damaged_record_reports_an_error(capsys, finished, questions):
    options = ["eval", "first", "--data-dir", str(questions), "--tasks", "piqa"]
    assert run_main(capsys, *options)[0] == 0
    (path,) = finished.glob("items/piqa*.csv.gz")
    whole = path.read_bytes()
    for damaged in (whole[:60], b"no gzip", gzip.compress(b"item,question\n1,2\n")):
        path.write_bytes(damaged)
        code, _, err = run_main(capsys, *options)
        assert code == 2
        assert f"{path.name} of run 'first' is damaged" in err
        assert "remove it" in err
