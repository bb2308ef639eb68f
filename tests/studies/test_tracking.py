"""`smolctl train --track`: trackers get the rows of the CSV files, and never stop a run."""

import csv
import json
import os
import signal
import sqlite3
import subprocess
import sys
import types
from pathlib import Path

import pytest
from support.command import run_main, smolctl
from support.processes import started, wait_for_rows

from smolctl.studies.trackers import TRACKERS, tracker
from smollm2.runs.run import Run

STEPS = 24


def rows_of(run: Run, table: str) -> list[dict[str, float]]:
    """A table's numbers by column, without empty cells."""
    with (run.path / f"{table}.csv").open(newline="") as file:
        return [
            {name: float(cell) for name, cell in row.items() if cell}
            for row in csv.DictReader(file)
        ]


def resumed(tiny: list[str], folder: Path, tracker: str, number: signal.Signals) -> Run:
    """A tracked run that a signal stopped, and that was resumed from its last checkpoint."""
    options = ["--name", "r", "--track", tracker, "--checkpoint-every", "10"]
    with started([*tiny, "--steps", str(STEPS), *options], folder) as process:
        wait_for_rows(process, folder / "results/runs/r/train.csv", 13)
        process.send_signal(number)
        process.communicate()
    done = smolctl("train", "--resume", "r", "--track", tracker, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "no longer tracks" not in done.stderr
    return Run(folder / "results/runs/r")


def test_tensorboard_has_the_rows_of_the_files_also_of_a_run_that_was_killed(workdir, tiny):
    pytest.importorskip("tensorboard", reason="needs the extra tensorboard, 60 MB")
    run = resumed(tiny, workdir, "tensorboard", signal.SIGKILL)
    read = (
        "import json, sys\n"
        "from tensorboard.backend.event_processing.event_accumulator import EventAccumulator\n"
        "events = EventAccumulator(sys.argv[1], size_guidance={'scalars': 0})\n"
        "events.Reload()\n"
        "json.dump({tag: [(e.step, e.value) for e in events.Scalars(tag)]\n"
        "           for tag in events.Tags()['scalars']}, sys.stdout)\n"
    )
    command = [sys.executable, "-c", read, str(run.path / "tensorboard")]
    found = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    expected: dict[str, list] = {}
    for table in ("train", "val"):
        for row in rows_of(run, table):
            for name in row.keys() - {"step"}:
                expected.setdefault(f"{table}/{name}", []).append((row["step"], row[name]))
    for metric, value in run.test_scores().items():
        expected[f"test/{metric}"] = [(STEPS, value)]
    assert found.keys() == expected.keys()
    for tag, points in expected.items():
        assert [step for step, _ in found[tag]] == [step for step, _ in points], tag
        values = [value for _, value in found[tag]]
        assert values == pytest.approx([value for _, value in points], rel=1e-6), tag


def test_trackio_has_the_rows_on_this_machine_under_one_run(workdir, tiny, monkeypatch):
    pytest.importorskip("trackio", reason="needs the extra trackio")
    monkeypatch.setenv("TRACKIO_DIR", str(workdir / "trackio"))
    run = resumed(tiny, workdir, "trackio", signal.SIGTERM)
    with sqlite3.connect(workdir / "trackio/smolctl.db") as database:
        logged = database.execute("select run_name, step, metrics from metrics").fetchall()
    assert len({name for name, _, _ in logged}) == 1
    losses = {}
    for _, step, metrics in logged:
        if "train/loss" in (values := json.loads(metrics)):
            losses[step] = values["train/loss"]
    assert losses == {row["step"]: row["loss"] for row in rows_of(run, "train")}


def history_of(file: Path) -> list[dict[str, float]]:
    """The rows in a record of W&B, which is a log as LevelDB writes it, in a process of its own."""
    read = """
import json, struct, sys
from wandb.proto.wandb_internal_pb2 import Record

content, at, data, found = open(sys.argv[1], "rb").read(), 7, b"", []
while at + 7 <= len(content):
    left = 32768 - at % 32768
    _, length, kind = struct.unpack_from("<IHB", content, at)
    if left < 7 or kind == 0:  # the rest of a block
        at += left
        continue
    data += content[at + 7 : at + 7 + length]
    at += 7 + length
    if kind in (1, 4):  # a whole record, or the last part of one
        record, data = Record.FromString(data), b""
        if record.HasField("history"):
            items = record.history.item
            found.append({i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in items})
json.dump(found, sys.stdout)
"""
    command = [sys.executable, "-c", read, str(file)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_wandb_records_offline_without_a_login(workdir, tiny, monkeypatch):
    pytest.importorskip("wandb", reason="needs the extra wandb, 60 MB")
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(workdir))  # no .netrc
    done = smolctl(*tiny, "--steps", "6", "--name", "r", "--track", "wandb", "--json", cwd=workdir)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["run"] == "r"
    assert "wandb is offline; later: wandb sync" in done.stderr
    run = Run(workdir / "results/runs/r")
    (file,) = run.path.glob("wandb/offline-run-*/*.wandb")
    history = history_of(file)
    assert file.name.startswith("run-r-20")  # name and time of creation: of one run for good
    losses = [row["train/loss"] for row in history if "train/loss" in row]
    assert losses == [row["loss"] for row in rows_of(run, "train")]
    assert [row["test/loss"] for row in history if "test/loss" in row] == [
        run.test_scores()["loss"]
    ]


# The rest replaces services with a module of their name.


class Service:
    """The functions of a tracker's module; `broken` raises."""

    def __init__(self, broken: str) -> None:
        self.broken, self.calls = broken, []

    def called(self, name: str):
        def call(*_: object, **__: object):
            self.calls.append(name)
            print("talk")
            if name == self.broken:
                raise ConnectionError("the service\nis away")
            return self

        return call

    def __getattr__(self, name: str):
        return self.called(name)


@pytest.mark.parametrize("broken", ["init", "log", "finish"])
def test_a_failing_service_gives_one_warning_and_the_run_continues(
    capsys, workdir, tiny, monkeypatch, broken
):
    service = Service(broken)
    monkeypatch.setitem(sys.modules, "trackio", service)
    options = ("--steps", "6", "--name", "r", "--track", "trackio", "--json")
    code, out, err = run_main(capsys, *tiny, *options)
    assert code == 0, err
    assert json.loads(out)["run"] == "r"  # and nothing that the service said
    assert [line for line in err.splitlines() if line.startswith("Warning: trackio")] == [
        "Warning: trackio no longer tracks r: ConnectionError: the service. The run continues."
    ]
    assert service.calls.count(broken) == 1
    assert len(rows_of(Run(workdir / "results/runs/r"), "train")) == 6


@pytest.mark.parametrize(
    ("tracker", "module"),
    [("wandb", "wandb"), ("trackio", "trackio"), ("tensorboard", "torch.utils.tensorboard")],
)
def test_a_missing_package_is_reported_before_the_first_step(
    capsys, workdir, tiny, monkeypatch, tracker, module
):
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setitem(sys.modules, tracker, None)
    code, _, err = run_main(capsys, *tiny, "--steps", "6", "--name", "r", "--track", tracker)
    assert code == 0
    lines = err.splitlines()
    said = [at for at, line in enumerate(lines) if f"pip install {tracker}" in line]
    steps = [at for at, line in enumerate(lines) if line.startswith("r: step")]
    assert len(said) == 1
    assert said[0] < steps[0]
    assert Run(workdir / "results/runs/r").is_finished


@pytest.fixture
def notebook():
    """A tracker registered here, and what it has received."""
    received = []

    @tracker("notebook")
    class Notebook:
        def __init__(self, run):
            received.append(run.name)

        def log(self, table, step, values):
            received.append((table, step))

        def close(self):
            received.append("closed")

    yield received
    del TRACKERS["notebook"]


def test_a_tracker_is_one_registered_class(capsys, workdir, tiny, notebook):
    code, _, err = run_main(capsys, *tiny, "--steps", "2", "--name", "r", "--track", "notebook")
    assert code == 0, err
    rows = [("val", 0), ("train", 1), ("train", 2), ("val", 2), ("test", 2)]
    assert notebook == ["r", *rows, "closed"]


def test_the_name_of_a_tracker_is_new():
    with pytest.raises(ValueError, match="already a tracker 'wandb'"):
        tracker("wandb")(object)


def test_an_unknown_tracker_is_refused_before_anything_is_done(capsys, workdir, tiny):
    code, _, err = run_main(capsys, *tiny, "--steps", "6", "--track", "wandbb")
    assert code == 2
    assert "Did you mean 'wandb'?" in err
    assert "Available: tensorboard, wandb, trackio." in err
    assert not Path("results").exists()


def test_a_stopped_run_says_to_track_it_again(workdir, tiny):
    options = ["--steps", "4000", "--name", "r", "--track", "trackio"]
    with started([*tiny, *options], workdir) as process:
        wait_for_rows(process, workdir / "results/runs/r/train.csv", 3)
        process.terminate()
        _, err = process.communicate()
    assert "smolctl train --resume r --track trackio" in err


def test_a_study_can_be_tracked(capsys, workdir, corpus, variants, monkeypatch):
    service = types.SimpleNamespace(calls=[])

    def init(project: str, name: str, **_: object) -> object:
        service.calls.append((project, name))
        return types.SimpleNamespace(log=lambda values, step: service.calls.append(step))

    service.init, service.finish = init, lambda: service.calls.append("finished")
    monkeypatch.setitem(sys.modules, "trackio", service)
    Path("s.toml").write_text(
        f'seeds = [0]\n[arms]\na = "{variants}/tiny.toml"\n'
        f'b = {{ variant = "{variants}/tiny.toml", set = ["n_layers=3"] }}\n'
        f'[train]\nsteps = 2\nseq_len = 32\ndata = "{corpus}"\ntokenizer = "train:512"\n'
        "val_tokens = 128\ntest_tokens = 256\n"
    )
    assert run_main(capsys, "study", "s.toml", "--track", "trackio")[0] == 0
    names = [call[1].rpartition("-")[0] for call in service.calls if isinstance(call, tuple)]
    assert names == ["a-s0", "b-s0"]
    assert service.calls.count("finished") == 2
    assert [call for call in service.calls if isinstance(call, int)] == [0, 1, 2, 2, 2] * 2
