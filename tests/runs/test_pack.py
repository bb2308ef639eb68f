"""A study is packed and unpacked whole or not at all, and every reader sees the same runs."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from smollm2.errors import RunBusy, UserError
from smollm2.files import gzipped
from smollm2.runs.create import new_directory
from smollm2.runs.load_run import load_run_tokenizer
from smollm2.runs.pack import HasWeights, pack_study, unpack_study
from smollm2.runs.packed import PACK, PackedStudy, is_packed, open_packed
from smollm2.runs.run import Run, find_run, list_runs, open_run

SUPPORT = Path(__file__).parents[1]


@pytest.fixture
def study(workdir, template) -> Path:
    """results/s with two finished runs, one of them with scores of items and a quantized model."""
    folder = workdir / "results/s"
    for name in ("a", "b"):
        shutil.copytree(template, folder / name, ignore=shutil.ignore_patterns("*.lock"))
        shutil.rmtree(folder / name / "checkpoints")
        Run(folder / name).update(name=name)
    items = folder / "a/items"
    items.mkdir(exist_ok=True)
    (items / "validation-x.csv.gz").write_bytes(gzipped(b"window,nats\n0,1.250\n"))
    quantized = folder / "a/quantized/int4-g64"
    quantized.mkdir(parents=True)
    (quantized / "model.json").write_text(json.dumps({"format": 1}, indent=2) + "\n")
    shutil.copyfile(folder / "a/eval.csv", quantized / "eval.csv")
    (folder / "study.toml").write_text("steps = 10\n")
    return folder


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file in a folder but locks."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.suffix != ".lock"
    }


def test_a_study_is_packed_and_unpacked_to_the_same_bytes(study):
    before = snapshot(study)
    done = pack_study(study)
    assert (done.runs, done.bytes_after < done.bytes_before) == (2, True)
    assert {path.name for path in study.iterdir()} == {PACK, "study.toml"}
    assert unpack_study(study) == 2
    assert snapshot(study) == before
    assert {path.name for path in study.iterdir()} == {"a", "b", "study.toml"}


def test_a_copy_has_the_runs_and_the_plan_and_the_pack_stays(study, tmp_path):
    before = snapshot(study)
    pack_study(study)
    packed = snapshot(study)
    unpack_study(study, tmp_path / "copy")
    assert snapshot(tmp_path / "copy") == before
    assert snapshot(study) == packed
    with pytest.raises(UserError, match="not an empty folder"):
        unpack_study(study, tmp_path / "copy")


def test_a_packed_study_is_read_like_its_directories(study):
    before = [(run.name, run.manifest, run.rows("val")) for run in list_runs(study.parent, "s")[0]]
    scores = open_run(study.parent, "s", "a").test_scores()
    pack_study(study)
    runs, broken = list_runs(study.parent, "s")
    assert [(run.name, run.manifest, run.rows("val")) for run in runs] == before
    assert broken == []
    run = open_run(study.parent, "s", "a")
    assert run.test_scores() == scores
    assert (run.study, run.home, run.study_path) == ("s", study / "a", study)
    assert not run.is_being_written
    assert load_run_tokenizer(run).get_vocab_size() == 512
    assert find_run(Path("results/s/b")).name == "b"
    assert find_run(Path("results/s/c")) is None
    with pytest.raises(UserError, match=r"There is no run 'c'.* Available: a, b"):
        open_run(study.parent, "s", "c")


def test_nothing_is_written_into_a_packed_study(study):
    pack_study(study)
    before = snapshot(study)
    run = open_run(study.parent, "s", "a")
    with pytest.raises(PackedStudy, match="Study 's' is packed"), run.writing():
        pass
    with pytest.raises(PackedStudy):
        run.remove()
    with pytest.raises(PackedStudy), new_directory(study / "new"):
        pass
    assert snapshot(study) == before


def test_what_was_restored_is_used_again_and_repaired_where_it_was_altered(study, fresh_cache):
    pack_study(study)
    folder = open_packed(study)
    assert folder.is_relative_to(fresh_cache / "packs")
    table = folder / "a/val.csv"
    content = table.read_bytes()
    table.write_bytes(content + b"1,2\n")
    code = f"from smollm2.runs.packed import *; print(open_packed(Path({str(study)!r})))"
    again = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert again.stdout.strip() == str(folder)
    assert table.read_bytes() == content


def test_weights_are_dropped_only_when_that_is_asked_for(study):
    weights = study / "a/checkpoints/final.safetensors"
    weights.parent.mkdir()
    weights.write_bytes(b"weights")
    weights.with_suffix(".json").write_text("{}")
    before = snapshot(study)
    with pytest.raises(HasWeights, match="1 of 2 runs"):
        pack_study(study)
    assert snapshot(study) == before
    pack_study(study, drop_weights=True)
    unpack_study(study)
    assert set(before) - set(snapshot(study)) == {
        "a/checkpoints/final.safetensors",
        "a/checkpoints/final.json",
    }


@pytest.mark.parametrize("what", ["unfinished", "broken", "busy", "binary", "link", "linked run"])
def test_a_study_that_cannot_be_packed_stays_as_it_is(study, what, tmp_path):
    lock = Run(study / "b").writing()
    if what == "unfinished":
        Run(study / "a").update(state="stopped")
    elif what == "broken":
        (study / "a/run.json").write_text("{")
    elif what == "busy":
        lock.__enter__()
    elif what == "binary":
        (study / "a/events.bin").write_bytes(b"\xff\x00")
    elif what == "link":
        (study / "a/notes.txt").symlink_to(tmp_path / "elsewhere.txt")
        (tmp_path / "elsewhere.txt").write_text("not of the study")
    else:
        (study / "a").rename(tmp_path / "a")
        (study / "a").symlink_to(tmp_path / "a")
    before = snapshot(study)
    with pytest.raises((UserError, RunBusy)):
        pack_study(study)
    assert snapshot(study) == before
    assert not is_packed(study)
    if what == "busy":
        lock.__exit__(None, None, None)


def test_a_pack_that_would_not_unpack_is_not_made(study, monkeypatch):
    from smollm2.errors import RunError
    from smollm2.runs import pack_format

    monkeypatch.setattr(pack_format, "to_csv", lambda rows: "altered")
    before = snapshot(study)
    monkeypatch.setattr(pack_format, "parse_table", lambda content: [["step"], ["1"]])
    with pytest.raises(RunError, match="not packed"):
        pack_study(study)
    assert snapshot(study) == before


def test_packing_twice_or_unpacking_twice_is_refused(study):
    with pytest.raises(UserError, match="not packed"):
        unpack_study(study)
    pack_study(study)
    with pytest.raises(UserError, match="packed already"):
        pack_study(study)


def test_a_directory_that_differs_from_its_pack_is_never_removed(study):
    pack_study(study)
    unpack_study(study, study.parent / "copy")
    shutil.copytree(study.parent / "copy/a", study / "a")
    (study / "a/val.csv").write_text("step\n")
    for action in (pack_study, unpack_study):
        with pytest.raises(UserError, match="a differs from the run in the pack"):
            action(study)
    assert (study / "a/val.csv").read_text() == "step\n"
    assert open_run(study.parent, "s", "a").rows("val")[0].keys() > {"loss"}


KILLED = """
import os, shutil, sys
from pathlib import Path
from smollm2.runs.pack import pack_study, unpack_study
from smollm2.runs.packed import is_packed, read_files
from smollm2.runs.pack import read_run
from smollm2.runs.run import Run
import pyarrow.parquet

CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree", "os.link"}
action = {"pack": pack_study, "unpack": unpack_study}[sys.argv[1]]
source = Path(sys.argv[2])

def runs(study):
    if is_packed(study):
        return read_files(study)
    return {name: file for run in ("a", "b") for name, file in read_run(study / run).items()}

def killed_before_change(n, study):
    # Runs `action` in a process that dies before its n-th change to the disk; True if it did.
    child = os.fork()
    if child == 0:
        count = 0
        def hook(event, arguments):
            nonlocal count
            is_write = event == "open" and isinstance(arguments[2], int) and arguments[2] & 3
            count += bool(event in CHANGES or is_write)
            if count == n:
                os._exit(9)
        sys.addaudithook(hook)
        try:
            action(study)
        except BaseException as error:
            print(error, flush=True)
            os._exit(1)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 9), code
    return code == 9

expected, n = runs(source), 1
while True:
    study = source.parent / "killed"
    shutil.rmtree(study, ignore_errors=True)
    shutil.copytree(source, study)
    if not killed_before_change(n, study):
        break
    assert runs(study) == expected, n
    if is_packed(study) == (sys.argv[1] == "unpack"):
        action(study)
    elif sys.argv[1] == "pack":
        try:
            action(study)
        except ValueError as error:
            assert "packed already" in str(error)
    else:
        pack_study(study), action(study)
    assert runs(study) == expected, n
    kept = {"pack", "study.toml"} if sys.argv[1] == "pack" else {"a", "b", "study.toml"}
    assert {path.name for path in study.iterdir()} == kept, (n, list(study.iterdir()))
    n += 1
print(n)
"""


@pytest.mark.parametrize("action", ["pack", "unpack"])
def test_a_kill_at_any_moment_leaves_the_old_or_the_new(study, action):
    if action == "unpack":
        pack_study(study)
    run = subprocess.run(
        [sys.executable, "-c", KILLED, action, str(study)], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert int(run.stdout) > 20  # moments


@pytest.mark.parametrize("damage", ["truncated", "changed", "missing", "linked", "folder"])
def test_a_damaged_pack_is_named_and_nothing_is_left_behind(study, damage, tmp_path, fresh_cache):
    pack_study(study)
    file = study / PACK / "val.csv"
    content = file.read_bytes()
    if damage == "truncated":
        file.write_bytes(content[:-5])
    elif damage == "changed":
        file.write_bytes(content.replace(b"1", b"2", 1))
    elif damage == "linked":
        (tmp_path / "val.csv").write_bytes(content)
        file.unlink()
        file.symlink_to(tmp_path / "val.csv")
    else:
        file.unlink()
        if damage == "folder":
            file.mkdir()
    before = snapshot(study)
    for action in (unpack_study, open_packed, lambda folder: list_runs(folder.parent, "s")):
        with pytest.raises(UserError, match=r"pack of study 's' is damaged.*val.csv"):
            action(study)
    assert snapshot(study) == before
    assert not list(fresh_cache.rglob("*"))
