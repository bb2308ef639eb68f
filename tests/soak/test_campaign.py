"""A few fixed trials of the campaign, and that a trial can fail."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from soak import inputs
from soak.child import CPU_SECONDS, Ended
from soak.disk import SIZES, harm, reason_to_skip
from soak.scenes import SCENES
from soak.state import difference, state, temporaries
from soak.summary import Ended as EndedCampaign
from soak.summary import document
from soak.trial import Reference, Result, Trial

ROOT = Path(__file__).parents[2]
TRIALS = [
    *("kill-train-0", "kill-prepare-0", "kill-export-hf-0", "bad-variant-4", "bad-manifest-5"),
    *("bad-jsonl-6", "bad-config-7", "share-train-0"),
]
DISKS = ["disk-train-9"]


@pytest.mark.skipif(sys.platform != "linux", reason="counts and kills by means of Linux")
def test_a_few_trials_of_the_campaign():
    names = TRIALS if reason_to_skip() else [*TRIALS, *DISKS]
    only = [word for name in names for word in ("--only", name)]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "tests")}
    done = subprocess.run(
        [sys.executable, "-m", "soak", *only],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith(f"{len(names)} trials, 0 failed.\n")
    shutil.rmtree(done.stdout.split()[3].rstrip("."))  # "Trials are in FOLDER."


def test_a_trial_is_named_by_its_part_subject_and_number():
    trial = Trial("kill", "export-hf", 12)
    assert trial.name == "kill-export-hf-12"
    assert Trial.named(trial.name) == trial
    assert trial.rng(0).random() == trial.rng(0).random() != trial.rng(1).random()


def test_states_differ_by_content_and_names_but_not_by_clocks(tmp_path):
    def folder(name: str, seconds: float, loss: float) -> Path:
        (tmp_path / name / "made").mkdir(parents=True)
        (tmp_path / name / "train.csv").write_text(f"step,seconds,loss\n1,{seconds},{loss}\n")
        (tmp_path / name / "run.json").write_text(f'{{"a": [{{"created_at": {seconds}}}]}}')
        return tmp_path / name

    before = state(folder("a", 1.0, 5.0))
    assert difference(before, state(folder("b", 2.0, 5.0))) is None
    assert difference(before, state(folder("c", 1.0, 5.5))) == "different: train.csv"
    other = folder("d", 1.0, 5.0)
    (other / "made/.x.tmp").touch()
    (other / "run.json").unlink()
    assert temporaries(other) == ["made/.x.tmp"]
    found = difference(before, state(other))
    assert found == "missing: made/, run.json; left over: made/.x.tmp"


GOOD = {"code": 2, "out": "", "err": "Error: It cannot be read.\n", "cpu": 0.5, "peak": 2**20}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, None),
        ({"code": 0}, None),
        ({"code": 1}, "exit code 1: Error: It cannot"),
        ({"code": -6}, "signal 6 ended it"),
        ({"code": -9}, "exit code -9"),
        ({"err": "Traceback (most recent call last):\n"}, "it printed a traceback"),
        ({"err": "Error: smolctl failed unexpectedly"}, "it failed unexpectedly"),
        ({"cpu": CPU_SECONDS + 1}, "it took more than"),
        ({"peak": 2**31}, "it took 2048 MB"),
    ],
)
def test_what_is_wrong_with_how_a_command_ends(changes, expected):
    found = inputs.wrong(Ended(("runs",), **GOOD | changes))
    assert found is None if expected is None else found.startswith(expected)


def test_harm_of_a_full_disk_is_found(tmp_path):
    for name in ("old", "made"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    whole = state(tmp_path)
    expected = Reference({"old/file": whole["old/file"]}, whole, 1, 1.0, 4096)
    assert harm(expected, ("made",), tmp_path) is None
    (tmp_path / "made/file").write_text("mad")
    assert harm(expected, ("made",), tmp_path) == "made is half-written: different: made/file"
    (tmp_path / "made/file").write_text("made")
    (tmp_path / "old/.file.tmp").touch()
    assert harm(expected, ("made",), tmp_path) == "left: old/.file.tmp"
    (tmp_path / "old/file").write_text("changed")
    assert harm(expected, ("made",), tmp_path) == "old/file was changed"


def test_inputs_are_the_same_for_a_seed():
    def draw(seed: str) -> list:
        inputs.batch.cache_clear()
        return inputs.batch(inputs.option_values, (), seed)

    assert draw("0/0") == draw("0/0") != draw("1/0")


def test_the_committed_page_is_what_the_campaign_writes():
    text = (ROOT / "docs/reliability.md").read_text(encoding="utf-8")
    written = document(EndedCampaign({"kill-train-0": Result()}, 0, 60.0, {}, "0123abcd"))
    place = "## What a trial is"
    assert text.partition(place)[1:] == written.partition(place)[1:]
    assert "| SIGKILL, then the same command again | 1 |  | 0 |" in written
    failed = document(
        EndedCampaign({"kill-train-0": Result(problem="x")}, 0, 60.0, {"disk": "y"}, "0123")
    )
    assert "- Skipped: disk: y.\n- Failed: `kill-train-0`: x\n\n## What" in failed


@pytest.mark.skipif(sys.platform != "linux", reason="kills by means of Linux")
def test_a_child_may_be_killed_before_it_does_anything(tmp_path):
    script = (
        "import sys; from pathlib import Path; from soak.child import Kill, command\n"
        "ended = command(['runs'], Path(sys.argv[1]), kill=Kill(cpu=1e-9))\n"
        "assert (ended.was_killed, ended.out, ended.err) == (True, '', '')\n"
    )
    (tmp_path / "work").mkdir()
    environment = os.environ | {"PYTHONPATH": str(ROOT / "tests")}
    command = [sys.executable, "-c", script, str(tmp_path / "work")]
    assert subprocess.run(command, env=environment, timeout=100).returncode == 0


def test_the_committed_counts_are_of_a_whole_campaign_without_a_failure():
    text = (ROOT / "docs/reliability.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([^|]+) \| ([\d,]+) \| ([^|]*) \| ([\d,]+) \|$", text, re.MULTILINE)
    assert {failed for *_, failed in rows} == {"0"}
    events = {
        name: int(n.replace(",", "")) for n, name in re.findall(r"(\d[\d,]*) ([a-z ]+)", text)
    }
    assert events["kills"] >= 200
    assert events["bad inputs"] >= 500
    disks = re.findall(r"^\| disk \| ([\w-]+) \| (\d+) \|", text, re.MULTILINE)
    assert {name for name, _ in disks} == set(SCENES) - {"import-quantize"}
    assert min(int(n) for _, n in disks) >= SIZES
