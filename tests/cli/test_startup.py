"""A process without a home, a user name or a folder; one that is interrupted at once."""

import os
import pwd
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.command import run_main

from smolctl.cli import startup
from smollm2.files import cache_dir

NAMES = ("HOME", "SMOLCTL_CACHE", "XDG_CACHE_HOME", *startup.USER_NAMES)


@pytest.fixture
def nobody(monkeypatch, tmp_path) -> Path:
    """A process whose user the system does not know; the folder for its temporary files."""

    def unknown(number: int) -> None:
        raise KeyError(number)

    for name in NAMES:
        monkeypatch.setenv(name, "")  # restored afterwards, whatever the code sets
        monkeypatch.delenv(name)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def test_without_a_home_caches_are_in_a_private_temporary_folder(nobody):
    import getpass

    startup.provide_home()
    home = nobody / f"smolctl-{os.getuid()}"
    assert cache_dir() == home / ".cache/smolctl"
    assert home.stat().st_mode & 0o077 == 0
    assert getpass.getuser() == f"user{os.getuid()}"


def test_a_temporary_folder_that_another_made_is_not_used(nobody):
    (nobody / f"smolctl-{os.getuid()}").symlink_to(nobody)
    startup.provide_home()
    home = Path(os.environ["HOME"])
    assert home.name.startswith(f"smolctl-{os.getuid()}-")
    assert not home.is_symlink()


def test_without_a_home_and_temporary_files_it_asks_for_a_home(capsys, nobody, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(nobody / "missing/folder"))
    (nobody / "missing").touch()
    code, _, said = run_main(capsys, "runs")
    assert code == 2
    assert "set HOME" in said


def test_a_deleted_current_folder_is_a_sentence(tmp_path):
    gone = tmp_path / "gone"
    gone.mkdir()
    remove = 'rmdir "$PWD"; exec "$0" -c "from smolctl.cli.app import main; main()" runs'
    done = subprocess.run(
        ["sh", "-c", remove, sys.executable],
        cwd=gone,
        env=os.environ | {"PYTHONPATH": str(Path(startup.__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert done.stderr == "Error: The current folder no longer exists; change to another.\n"


# Sends a signal to the process when the command line imports a module.
INTERRUPTED = """
import builtins, os, signal
from smolctl.cli.app import main
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background of a shell
load = builtins.__import__
def interrupted(name, *more):
    if name == "{module}":
        builtins.__import__ = load
        os.kill(os.getpid(), {number})
    return load(name, *more)
builtins.__import__ = interrupted
main()
"""


@pytest.mark.parametrize("module", ["smolctl.cli", "typer", "rich.table"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_modules_load_leaves_no_traceback(workdir, module, number):
    code = INTERRUPTED.format(module=module, number=int(number))
    command = [sys.executable, "-c", code, "doctor"]
    done = subprocess.run(command, cwd=workdir, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (128 + number, "")
