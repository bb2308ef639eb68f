"""Files are replaced whole, whoever else writes them."""

import subprocess
import sys

import pytest

from smollm2.files import replace_file

REPLACING = """
import sys
from pathlib import Path
from smollm2.files import replace_file
for _ in range(300):
    replace_file(Path(sys.argv[1]), sys.argv[2] * 10_000)
"""


def test_processes_that_replace_one_file_leave_the_whole_of_one(tmp_path):
    path = tmp_path / "study.toml"
    commands = [[sys.executable, "-c", REPLACING, str(path), letter] for letter in "ab"]
    both = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for command in commands]
    said = [process.communicate(timeout=120)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert path.read_text() in ("a" * 10_000, "b" * 10_000)
    assert list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_written_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    replace_file(path, "old")
    with pytest.raises(UnicodeEncodeError):
        replace_file(path, "\ud800")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
