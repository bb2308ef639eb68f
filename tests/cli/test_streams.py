"""Standard streams that are closed, full, narrow or not UTF-8."""

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from support.command import smolctl
from support.processes import started, wait_for_rows


def with_streams(arguments: list[str], streams: str, folder: Path) -> subprocess.CompletedProcess:
    """Run the command line under a shell that redirects its streams, e.g. `>&-`."""
    script = f'exec "$0" -m smolctl "$@" {streams}'
    command = ["sh", "-c", script, sys.executable, *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    ("streams", "reason"), [(">&-", "it is closed"), (">/dev/full", "No space left on device")]
)
@pytest.mark.parametrize("command", ["variants", "variants --json", "--version", "runs --help"])
def test_a_result_that_cannot_be_written_is_a_sentence(workdir, command, streams, reason):
    done = with_streams(command.split(), streams, workdir)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == f"Error: Standard output cannot be written: {reason}."
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("streams", ["2>&-", "2>/dev/full", "<&- 2>&-"])
def test_without_stderr_the_result_is_the_same(workdir, streams):
    done = with_streams(["variants"], streams, workdir)
    assert (done.returncode, done.stdout) == (0, smolctl("variants", cwd=workdir).stdout)


@pytest.mark.parametrize("command", ["variants --scale huge", "variants --nothing"])
def test_an_error_that_cannot_be_said_keeps_its_exit_code(workdir, command):
    for streams in (">&- 2>&-", "2>/dev/full", "<&- >&- 2>&-"):
        assert with_streams(command.split(), streams, workdir).returncode == 2


@pytest.mark.parametrize("streams", [">&- 2>&-", ">/dev/full 2>/dev/full"])
def test_a_training_ends_well_whatever_becomes_of_its_log(workdir, tiny, streams):
    done = with_streams([*tiny, "--steps", "4", "--name", "r"], streams, workdir)
    assert done.returncode == 0
    assert smolctl("runs", cwd=workdir).stdout.count("finished") == 1


def test_a_training_outlives_the_reader_of_its_log(workdir, tiny):
    with started([*tiny, "--steps", "24", "--name", "r"], workdir) as process:
        wait_for_rows(process, workdir / "results/runs/r/train.csv", 1)
        process.stderr.close()
        assert process.wait() == 0


def test_a_prompt_from_a_closed_stdin_is_empty(finished):
    done = with_streams(["generate", "first"], "<&-", Path())
    assert done.returncode == 2
    assert done.stderr.startswith("Error: The prompt is empty")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_characters_that_an_encoding_lacks_are_escapes(workdir, encoding):
    results = workdir / "caf\N{LATIN SMALL LETTER E WITH ACUTE} \N{CJK UNIFIED IDEOGRAPH-6D77}"
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    command = [sys.executable, "-m", "smolctl", "runs", "--results", results]
    done = subprocess.run(command, cwd=workdir, env=environment, capture_output=True, timeout=60)
    assert done.returncode == 0
    name = results.name.encode(encoding, errors="backslashreplace")
    assert name in done.stderr


@pytest.mark.parametrize("columns", ["0", "1", "-5", "abc", "²", "100000", "9" * 5000])
def test_any_width_of_a_terminal_will_do(workdir, columns):
    sizes = dict.fromkeys(("COLUMNS", "LINES", "TERMINAL_WIDTH"), columns)
    done = smolctl("runs", "--help", cwd=workdir, env=os.environ | sizes)
    assert done.returncode == 0, done.stderr
    assert "smolctl runs pack gqa" in " ".join(done.stdout.replace("│", " ").split())
    assert len(done.stdout) < 200_000


def test_names_reach_a_terminal_without_its_control_characters(workdir):
    (workdir / "results/ev\x1b]0;DIR\x07il\u202e/r").mkdir(parents=True)
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "smolctl", "runs", "no\x1b[31mne"]
    done = subprocess.run(command, cwd=workdir, stdout=theirs, stderr=theirs, timeout=60)
    os.close(theirs)
    said = os.read(ours, 10_000).decode()
    os.close(ours)
    assert done.returncode == 2
    assert "\\x1b]0;DIR\\x07il\\u202e" in said
    assert "\x1b]0;" not in said
    assert "\x1b[31m" not in said


def test_a_usage_error_repeats_no_control_characters(workdir):
    said = smolctl("train", "--\x1b[2J", cwd=workdir).stderr
    assert "--\\x1b[2J" in said
    assert "\x1b[2J" not in said
