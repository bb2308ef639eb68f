"""What killed processes left is cleared, and nothing else."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from smollm2 import leftovers
from smollm2.files import discard_folder, replace_file, replacing, write_tensors
from smollm2.leftovers import clear_leftovers, host, started, temporary_of

KILLED = """
import os, signal, sys
from pathlib import Path
from smollm2.files import replacing
with replacing(Path(sys.argv[1])) as made:
    if sys.argv[2] == "folder":
        made.mkdir()
        made = made / "weights"
    made.write_text("half")
    print("ready", flush=True)
    os.kill(os.getpid(), signal.SIGSTOP)
"""


def dead_pid() -> int:
    """The number of a process that has ended."""
    return int(subprocess.run(["sh", "-c", "echo $$"], capture_output=True, check=True).stdout)


def half_written(path: Path, kind: str) -> "subprocess.Popen[str]":
    """A process that stopped itself while it wrote `path`."""
    command = [sys.executable, "-c", KILLED, str(path), kind]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_the_next_command_clears_what_a_killed_one_left_but_not_what_a_live_one_writes(
    tmp_path, kind
):
    process = half_written(tmp_path / "made", kind)
    (left,) = tmp_path.iterdir()
    replace_file(tmp_path / "other", "text")
    assert left.exists()
    process.kill()
    process.communicate()
    replace_file(tmp_path / "other", "text")
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_a_process_that_ended_unnoticed_by_its_parent_is_dead(tmp_path):
    process = half_written(tmp_path / "made", "file")
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert clear_leftovers(tmp_path) == ["made"]
    process.communicate()


def test_a_later_process_with_the_same_number_is_another(tmp_path):
    pid = os.getpid()
    (tmp_path / f".a.{host()}.{pid}-{started(pid)}.tmp").touch()
    (tmp_path / f".b.{host()}.{pid}-1.tmp").touch()
    assert clear_leftovers(tmp_path) == ["b"]


def test_another_host_has_a_week(tmp_path):
    path = tmp_path / f".a.elsewhere.{dead_pid()}-5.tmp"
    path.mkdir()
    (path / "file").touch()
    assert clear_leftovers(tmp_path) == []
    week_ago = time.time() - leftovers.WEEK - 60
    os.utime(path, (week_ago, week_ago))
    assert clear_leftovers(tmp_path) == []  # one of its files is young
    os.utime(path / "file", (week_ago, week_ago))
    assert clear_leftovers(tmp_path) == ["a"]


def test_this_machine_before_it_was_started_again_has_an_hour(tmp_path):
    here = host().replace(leftovers.boot(), "0123abcd")
    path = tmp_path / f".a.{here}.{dead_pid()}-5.tmp"
    path.touch()
    assert clear_leftovers(tmp_path) == []
    hour_ago = time.time() - leftovers.HOUR - 60
    os.utime(path, (hour_ago, hour_ago))
    assert clear_leftovers(tmp_path) == ["a"]
    other = tmp_path / f".b.{here}-4242.{dead_pid()}-5.tmp"  # a container of it
    other.touch()
    os.utime(other, (hour_ago, hour_ago))
    assert clear_leftovers(tmp_path) == []


def test_a_container_is_another_host(tmp_path, monkeypatch):
    before = host()
    stat = os.stat
    other = os.stat_result([0, 4242, *range(8)])
    monkeypatch.setattr(os, "stat", lambda path: other if "ns/pid" in str(path) else stat(path))
    host.cache_clear()
    try:
        assert host() == f"{before.partition('-4')[0]}-4242"
    finally:
        host.cache_clear()


@pytest.mark.parametrize(
    "name", [".run.json.PID.tmp", ".x.PID.tmp", ".quantized-int4-g64.PID.tmp", ".unpack.PID.tmp"]
)
def test_names_of_older_versions_are_cleared(tmp_path, name):
    (tmp_path / name.replace("PID", str(os.getpid()))).touch()
    left = tmp_path / name.replace("PID", str(dead_pid()))
    left.touch()
    clear_leftovers(tmp_path)
    assert not left.exists()
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("name", [".hf.a1b2c3d4.tmp", ".step-50.tmp", ".final.tmp", ".tmpAb12Xy"])
def test_older_names_without_a_process_are_cleared_once_they_rest(tmp_path, name):
    left = tmp_path / name
    left.touch()
    clear_leftovers(tmp_path)
    assert left.exists()
    hours_ago = time.time() - 2 * leftovers.HOUR
    os.utime(left, (hours_ago, hours_ago))
    clear_leftovers(tmp_path)
    assert not left.exists()


def test_what_looks_alike_stays(tmp_path):
    pid = dead_pid()
    names = [f"a.{host()}.{pid}-5.tmp", f".a.{host()}.{pid}-5", ".a.tmp", f".{pid}.tmp", ".tmp1"]
    names += [f".a.{pid}.tmp.bak", ".a.b.c.tmp", f".a.{host()}.{pid}.tmp.md", "tmpAb12Xy"]
    for name in names:
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (0, 0))
    names.append(".tmpfolder")
    (tmp_path / ".tmpfolder").mkdir()
    os.utime(tmp_path / ".tmpfolder", (0, 0))
    assert clear_leftovers(tmp_path) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)


def test_a_dead_process_with_our_number_is_in_no_ones_way(tmp_path, monkeypatch):
    monkeypatch.setattr(leftovers, "started", lambda pid: None)  # as where there is no /proc
    left = temporary_of(tmp_path / "made")
    left.mkdir()
    (left / "half").touch()
    with replacing(tmp_path / "made") as made:
        made.mkdir()
    assert [path.name for path in tmp_path.rglob("*")] == ["made"]


def test_among_the_files_of_others_only_the_own_older_name_is_cleared(tmp_path):
    pid = dead_pid()
    for name in (f".m.gguf.{pid}.tmp", f".other.{pid}.tmp"):
        (tmp_path / name).touch()
    with replacing(tmp_path / "m.gguf") as made:
        made.touch()
    assert sorted(p.name for p in tmp_path.iterdir()) == [f".other.{pid}.tmp", "m.gguf"]


def test_a_link_is_cleared_but_not_what_it_leads_to(tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "file").touch()
    results = tmp_path / "results"
    results.mkdir()
    (results / f".x.{host()}.{dead_pid()}-5.tmp").symlink_to(mine)
    assert clear_leftovers(results) == ["x"]
    assert (mine / "file").exists()


def test_weights_being_written_are_in_a_folder_of_ours(tmp_path, monkeypatch):
    """safetensors has a temporary file of its own beside the one that it is told to write."""
    import safetensors.torch
    import torch

    seen = []

    def save_file(tensors, path, metadata=None):
        seen.append(Path(path).parent)
        raise KeyboardInterrupt

    monkeypatch.setattr(safetensors.torch, "save_file", save_file)
    with pytest.raises(KeyboardInterrupt):
        write_tensors(tmp_path / "weights.safetensors", {"a": torch.zeros(3)})
    assert leftovers.TEMPORARY.fullmatch(seen[0].name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["x" * 250, "é" * 120, "\udcff" * 200, "a.b-c_d", "neue\nZeile"])
def test_any_name_of_a_file_has_a_temporary(tmp_path, name):
    path = tmp_path / name
    replace_file(path, "text")
    assert path.read_text() == "text"
    assert leftovers.TEMPORARY.fullmatch(temporary_of(path).name)


def test_a_folder_deleted_in_part_is_cleared(tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()

    def killed(path):
        raise KeyboardInterrupt

    monkeypatch.setattr("smollm2.files.shutil.rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        discard_folder(tmp_path / "run")
    monkeypatch.undo()
    (left,) = tmp_path.iterdir()
    left.rename(tmp_path / f".run.{host()}.{dead_pid()}-5.tmp")
    assert clear_leftovers(tmp_path) == ["run"]
    assert list(tmp_path.iterdir()) == []
