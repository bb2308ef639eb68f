"""Running the command line, in this process or in one of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from smolctl.cli.app import main


def run_main(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of the command line in this process."""
    with pytest.raises(SystemExit) as exit_:
        main(list(arguments))
    captured = capsys.readouterr()
    return int(exit_.value.code or 0), captured.out, captured.err


def require_refused(capsys: pytest.CaptureFixture[str], target: str, sentence: str) -> None:
    """Check that commands refuse the model of a file alone in the current directory with a sentence
    and leave nothing behind."""
    for command in (
        ("generate", target, "--prompt", "abc"),
        ("train", "--from", target, "--steps", "2"),
        ("export", target, "out", "--to", "hf"),
    ):
        code, out, err = run_main(capsys, *command)
        assert (code, out) == (2, "")
        assert err.startswith(f"Error: {target}: ")
        assert err.count("\n") == 1
        assert sentence in err
        assert os.listdir() == [Path(target).name]


def smolctl(*arguments: str, timeout: float = 120, **options) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    command = [sys.executable, "-m", "smolctl", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, **options)
