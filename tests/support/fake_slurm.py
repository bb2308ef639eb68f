"""The programs of Slurm as scripts that write down what they are told; the test runs the jobs."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SBATCH = """
import json, pathlib, sys
folder = pathlib.Path({folder!r})
if (folder / "refused").exists():
    refused = (folder / "refused").read_text()
    if refused in sys.argv[-1] + sys.argv[4]:
        sys.exit("sbatch: error: invalid partition specified: gpu")
number = 11 + len(list(folder.glob("*.job")))
job = {{"words": sys.argv[1:], "script": sys.stdin.read()}}
(folder / f"{{number}}.job").write_text(json.dumps(job))
print(f"{{number}};cluster")
"""
SQUEUE = """
import pathlib, sys
folder = pathlib.Path({folder!r})
if (folder / "broken").exists():
    sys.exit("squeue: error: Unable to contact slurm controller")
print((folder / "states").read_text() if (folder / "states").exists() else "")
"""
SCANCEL = """
import pathlib, sys
folder = pathlib.Path({folder!r})
(folder / "cancelled").write_text(" ".join(sys.argv[1:]))
(folder / "states").unlink(missing_ok=True)
"""


class FakeSlurm:
    """A folder with sbatch, squeue and scancel, first on the PATH, and what they were told."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        for name, code in (("sbatch", SBATCH), ("squeue", SQUEUE), ("scancel", SCANCEL)):
            path = folder / name
            path.write_text(f"#!{sys.executable} -S\n{code.format(folder=str(folder))}")
            path.chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    def jobs(self) -> dict[str, dict[str, Any]]:
        """The words and the script of each job, by its number."""
        return {
            path.stem: json.loads(path.read_text()) for path in sorted(self.folder.glob("*.job"))
        }

    def words(self, job: str) -> list[str]:
        """What sbatch was told about a job, without the paths."""
        return [
            word
            for word in self.jobs()[job]["words"]
            if not word.startswith(("--chdir=", "--output="))
        ]

    def say(self, **states: str) -> None:
        """Have squeue say these states, by the jobs' numbers with a `j` before them."""
        lines = [f"{job.removeprefix('j')} {state}" for job, state in states.items()]
        (self.folder / "states").write_text("\n".join(lines))

    def refuse(self, word: str) -> None:
        """Have sbatch refuse jobs with that word in their name or last option."""
        (self.folder / "refused").write_text(word)

    def cancelled(self) -> str:
        """What scancel was told."""
        return (self.folder / "cancelled").read_text()

    def run(self, job: str, index: int | None = None) -> "subprocess.CompletedProcess[str]":
        """Run a job, or one task of an array, as Slurm does."""
        task = {} if index is None else {"SLURM_ARRAY_TASK_ID": str(index)}
        return subprocess.run(
            ["bash", "-s"],
            input=self.jobs()[job]["script"],
            capture_output=True,
            text=True,
            timeout=240,
            env=os.environ | task | {"SLURM_CPUS_ON_NODE": "1"},
        )
