"""Running the command line, in this process or in one of its own."""

import subprocess
import sys

import pytest

from smolctl.cli.app import main


def run_main(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of the command line in this process."""
    with pytest.raises(SystemExit) as exit_:
        main(list(arguments))
    captured = capsys.readouterr()
    return int(exit_.value.code or 0), captured.out, captured.err


def smolctl(*arguments: str, timeout: float = 120, **options) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    command = [sys.executable, "-m", "smolctl", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, **options)
