"""A disk that is full at any moment is a sentence, and leaves nothing half-written."""

import errno
import itertools
import json
import os
import shutil
from pathlib import Path

import pytest
from support.command import run_main

COMMANDS = {
    "eval": "eval run --tasks validation --tokens 128",
    "quantize": "quantize run --bits 8 --tokens 128 --no-speed --no-compile",
    "export": "export run --to hf exported",
    "report": "report --study runs --out card.md --html card.html --appendix appendix.md",
    "pack": "runs pack runs --drop-weights",
}


@pytest.fixture
def results(template: Path, workdir: Path) -> Path:
    """A finished run `run` in the study `runs`."""
    shutil.copytree(template, workdir / "results/runs/run")
    return workdir / "results"


def full_from(monkeypatch, number: int) -> None:
    """Have every flush to disk fail from the `number`-th on."""
    calls, flush = itertools.count(1), os.fsync

    def failing(file: int) -> None:
        if next(calls) >= number:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        flush(file)

    monkeypatch.setattr(os, "fsync", failing)


@pytest.mark.parametrize("number", [1, 2, 4])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_disk_full_at_any_moment(capsys, monkeypatch, results, command, number):
    before = {path: path.read_bytes() for path in results.rglob("*") if path.is_file()}
    with monkeypatch.context() as patch:
        full_from(patch, number)
        code, _, err = run_main(capsys, *COMMANDS[command].split())
    assert code == 1, err
    assert os.strerror(errno.ENOSPC) in err
    assert "unexpectedly" not in err
    assert "Traceback" not in err
    assert not [path for path in Path().rglob(".*") if path.name.endswith(".tmp")]
    for path in Path().rglob("*.json"):
        json.loads(path.read_text())
    assert all(
        path.read_bytes() == content
        for path, content in before.items()
        if path.suffix == ".safetensors"
    )
    code, _, err = run_main(capsys, *COMMANDS[command].split())
    assert code == 0, err
