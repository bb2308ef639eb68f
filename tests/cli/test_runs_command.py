"""`smolctl runs`: what there is, and a run is deleted whole or not at all."""

import json
import os
import pty
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from support.command import run_main

from smolctl.cli.run_list import age
from smollm2.runs.run import Run


@pytest.fixture
def copies(workdir, template):
    """Makes runs of the current directory: copies of a finished one, their manifests changed."""

    def make(study: str, name: str, **manifest) -> Path:
        path = workdir / "results" / study / name
        shutil.copytree(template, path)
        run = Run(path)
        run.update(name=name, **manifest)
        return path

    return make


def listed(capsys, *arguments: str) -> dict[tuple[str, str], dict]:
    code, out, err = run_main(capsys, "runs", "--json", *arguments)
    assert code == 0, err
    return {(row["study"], row["run"]): row for row in json.loads(out)}


def test_the_runs_of_all_studies_are_listed_with_what_their_files_say(capsys, copies, template):
    copies("gqa", "b")
    path = copies("runs", "a")
    rows = listed(capsys)
    assert list(rows) == [("gqa", "b"), ("runs", "a")]
    row, run = rows["runs", "a"], Run(template)
    assert row["test_loss"] == float(run.test_scores()["loss"])
    assert row["bytes"] == sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    assert (row["state"], row["step"], row["steps"]) == ("finished", 10, 10)
    assert (row["variant"], row["scale"]) == ("tiny", "full")
    assert list(listed(capsys, "--study", "gqa")) == [("gqa", "b")]
    code, out, err = run_main(capsys, "runs")
    assert code == 0
    assert f"{row['test_loss']:.4f}" in out
    assert "2 runs" in err


def test_the_state_of_an_unfinished_run_is_shown(capsys, copies):
    for name, state in (("s", "stopped"), ("f", "failed"), ("k", "running")):
        path = copies("runs", name, state=state, finished_at=None)
        checkpoints = path / "checkpoints"
        for suffix in ("safetensors", "json"):
            (checkpoints / f"final.{suffix}").rename(checkpoints / f"step-7.{suffix}")
    rows = listed(capsys)
    states = {name: (row["state"], row["step"]) for (_, name), row in rows.items()}
    assert states == {"s": ("stopped", 7), "f": ("failed", 7), "k": ("interrupted", 7)}
    with Run(Path("results/runs/k")).writing():
        row = listed(capsys)["runs", "k"]
        assert (row["state"], row["step"]) == ("running", 10)  # of its last row
    assert "7 of 10 steps" in run_main(capsys, "runs")[1]


def test_a_broken_directory_is_reported_and_skipped(capsys, copies):
    copies("runs", "good")
    (copies("runs", "bad") / "run.json").write_text("{")
    Path("results/runs/notes").mkdir()
    code, out, err = run_main(capsys, "runs", "--json")
    assert code == 0
    assert [row["run"] for row in json.loads(out)] == ["good"]
    assert "bad/run.json cannot be read" in err
    assert "notes is not a run" in err


def test_without_runs_the_list_is_empty(capsys, workdir):
    assert run_main(capsys, "runs", "--json")[:2] == (0, "[]\n")
    code, out, err = run_main(capsys, "runs")
    assert (code, out) == (0, "")
    assert "There are no runs in results yet" in err


def test_a_run_is_shown_in_words_and_whole_in_json(capsys, copies):
    path = copies("runs", "a")
    code, out, _ = run_main(capsys, "runs", "show", "a")
    assert code == 0
    words = " ".join(out.split())
    run = Run(path)
    for said in (
        f"finished at {run.manifest['finished_at']}",
        f"{run.manifest['parameters']['total']:,} parameters",
        "width 32, 4 heads (2 of keys and values), 2 layers",
        "10 steps of 64 tokens",
        f"{run.test_scores()['loss']:.4f}",
        run.manifest["environment"]["torch"],
    ):
        assert said in words, said
    found = json.loads(run_main(capsys, "runs", "show", "a", "--json")[1])
    assert found["manifest"] == run.manifest
    final = path / "checkpoints/final.safetensors"
    assert found["weights_bytes"] == {"final": final.stat().st_size}
    losses = [row["value"] for row in found["scores"] if row["metric"] == "loss"]
    assert losses == [float(run.test_scores()["loss"])]


def test_a_run_that_is_not_there_is_looked_for_in_other_studies(capsys, copies):
    copies("gqa", "a")
    code, _, err = run_main(capsys, "runs", "show", "a")
    assert code == 2
    assert "There is no run 'a'." in err
    assert "--study gqa" in err
    code, _, err = run_main(capsys, "runs", "--study", "gqz")
    assert code == 2
    assert "Did you mean 'gqa'?" in err


def test_runs_are_removed_whole_and_the_freed_space_is_reported(capsys, copies):
    for name in "abc":
        copies("runs", name)
    sizes = [listed(capsys)["runs", name]["bytes"] for name in "abc"]
    code, out, err = run_main(capsys, "runs", "remove", "a", "b", "--yes")
    assert (code, out) == (0, "")
    assert err.splitlines() == [
        f"Removed {name}: {n / 1000:.1f} kB freed." for name, n in zip("ab", sizes, strict=False)
    ]
    assert list(Path("results/runs").iterdir()) == [Path("results/runs/c")]


@pytest.mark.parametrize("is_first", [True, False])
@pytest.mark.parametrize("other", ["nothing", "../../outside", "busy", "linked"])
def test_nothing_is_removed_if_one_of_them_cannot_be(
    capsys, copies, workdir, template, other, is_first
):
    copies("runs", "a"), copies("runs", "busy")
    outside = workdir / "outside"
    shutil.copytree(template, outside)
    Path("results/runs/linked").symlink_to(outside)
    with Run(Path("results/runs/busy")).writing():
        names = [other, "a"] if is_first else ["a", other]
        code, _, err = run_main(capsys, "runs", "remove", *names, "--yes")
    assert code == 2, err
    assert Run(Path("results/runs/a")).is_finished
    assert Run(Path("results/runs/busy")).is_finished
    assert Run(outside).is_finished


def test_a_study_behind_a_link_is_left_alone(capsys, copies, workdir):
    copies("runs", "a")
    Path("elsewhere").mkdir()
    Path("elsewhere/runs").symlink_to(workdir / "results/runs")
    code, _, err = run_main(capsys, "runs", "remove", "a", "--yes", "--results", "elsewhere")
    assert code == 2
    assert "behind a link" in err
    assert Run(Path("results/runs/a")).is_finished


def test_without_a_terminal_removing_wants_yes(capsys, copies):
    path = copies("runs", "a")
    code, _, err = run_main(capsys, "runs", "remove", "a")
    assert code == 2
    assert "--yes" in err
    assert path.exists()


@pytest.mark.parametrize(("answer", "code"), [("n", 1), ("y", 0)])
def test_on_a_terminal_removing_asks(copies, answer, code):
    path = copies("runs", "a")
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "smolctl", "runs", "remove", "a"],
        stdin=theirs,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        os.write(ours, f"{answer}\n".encode())
        _, err = process.communicate(timeout=60)
    os.close(ours), os.close(theirs)
    assert process.returncode == code
    assert "Remove a (" in err
    assert path.exists() == (answer == "n")


def test_options_before_the_subcommand_are_refused_rather_than_lost(capsys, copies):
    copies("gqa", "a")
    code, _, err = run_main(capsys, "runs", "--study", "gqa", "show", "a")
    assert code == 2
    assert "after the word show" in err


def test_a_manifest_that_lacks_something_is_named_and_left_out(capsys, copies):
    path = copies("runs", "a")
    copies("runs", "b")
    manifest = json.loads((path / "run.json").read_text())
    del manifest["environment"]
    (path / "run.json").write_text(json.dumps(manifest))
    code, _, err = run_main(capsys, "runs", "show", "a")
    assert code == 2
    assert "a/run.json is damaged: its environment is None" in err
    assert list(listed(capsys)) == [("runs", "b")]


def test_a_score_that_is_not_a_number_is_null_in_json(capsys, copies):
    path = copies("runs", "a")
    table = (path / "eval.csv").read_text().splitlines(keepends=True)
    loss = next(line for line in table if ",loss," in line)
    value = loss.split(",")[2]
    (path / "eval.csv").write_text("".join(table).replace(loss, loss.replace(value, "nan")))
    assert listed(capsys)["runs", "a"]["test_loss"] is None


def test_the_newest_run_is_first(capsys, copies):
    copies("gqa", "old", created_at="2026-01-01T00:00:00+00:00")
    copies("runs", "new", created_at="2026-02-01T00:00:00+00:00")
    copies("gqa", "newest", created_at="2026-03-01T00:00:00+00:00")
    assert [name for _, name in listed(capsys)] == ["newest", "new", "old"]
    lines = run_main(capsys, "runs")[1].splitlines()
    names = [word for line in lines for word in line.split() if word in ("newest", "new", "old")]
    assert names == ["newest", "new", "old"]


def test_the_list_is_one_table_on_a_narrow_terminal(capsys, copies, monkeypatch):
    copies("gqa", "a-run-with-a-name-of-27-s0")
    copies("runs", "b", state="failed")
    pack(capsys, "gqa")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("FORCE_COLOR", "1")
    for arguments in ((), ("gqa",)):
        code, out, _ = run_main(capsys, "runs", *arguments)
        assert code == 0
        assert out.count("┏") == 1
        assert "…" not in out


def pack(capsys, study: str) -> None:
    """Pack a study; its weights are lost."""
    code, _, err = run_main(capsys, "runs", "pack", study, "--drop-weights")
    assert code == 0, err
    assert f"smolctl runs unpack {study}" in err


def test_a_packed_study_is_one_line_and_its_runs_are_listed_by_its_name(capsys, copies, template):
    protocol = Run(template).manifest["protocol"]
    for seed in range(3):
        copies("gqa", f"a-s{seed}", arm="a", protocol=protocol | {"seed": seed})
    copies("gqa", "b-s0", arm="b")
    copies("runs", "c")
    rows = listed(capsys)
    pack(capsys, "gqa")
    code, out, err = run_main(capsys, "runs")
    assert code == 0
    words = " ".join(out.replace("│", " ").split())
    assert "packed: 2 arms × 1 to 3 seeds, 4 runs" in words
    assert "a-s0" not in words
    assert "1 run and 1 packed study" in err
    code, out, _ = run_main(capsys, "runs", "gqa")
    assert code == 0
    assert all(name in out for name in ("a-s0", "a-s1", "a-s2", "b-s0"))
    for path, row in listed(capsys).items():
        same = {key: value for key, value in row.items() if key not in ("bytes", "packed")}
        assert same.items() <= rows[path].items()
        assert row["packed"] == (path[0] == "gqa")
    shown = json.loads(run_main(capsys, "runs", "show", "a-s0", "--study", "gqa", "--json")[1])
    assert shown["path"] == "results/gqa/a-s0"
    assert shown["weights_bytes"] == {}


def test_an_unknown_study_is_refused_and_options_go_after_its_name(capsys, copies):
    copies("gqa", "a")
    code, _, err = run_main(capsys, "runs", "gqz")
    assert code == 2
    assert "Did you mean 'gqa'?" in err
    code, _, err = run_main(capsys, "runs", "--json", "gqa")
    assert code == 2
    assert "after the name of the study" in err


@pytest.mark.parametrize(
    "command",
    [
        ("eval", "a"),
        ("runs", "remove", "a", "--yes"),
        ("train", "--resume", "a"),
        ("train", "--from", "a", "--name", "b"),
        ("generate", "a", "--prompt", "x"),
    ],
)
def test_writing_into_a_packed_study_is_refused_with_what_to_type(capsys, copies, tiny, command):
    copies("gqa", "a")
    pack(capsys, "gqa")
    before = sorted(Path("results").rglob("*"))
    code, _, err = run_main(capsys, *command, "--study", "gqa")
    assert code == 2, err
    if "--resume" not in command:
        assert "Study 'gqa' is packed" in err
        assert err.endswith("Unpack it first: smolctl runs unpack gqa\n")
    assert sorted(Path("results").rglob("*")) == before


def test_weights_are_not_lost_unasked(capsys, copies):
    path = copies("gqa", "a")
    code, _, err = run_main(capsys, "runs", "pack", "gqa")
    assert code == 2
    assert "--drop-weights" in err
    assert (path / "checkpoints/final.safetensors").exists()


def test_a_study_is_unpacked_in_place_or_as_a_copy(capsys, copies):
    path = copies("gqa", "a")
    manifest = (path / "run.json").read_bytes()
    pack(capsys, "gqa")
    assert run_main(capsys, "runs", "unpack", "gqa", "--to", "copy")[0] == 0
    assert Path("copy/a/run.json").read_bytes() == manifest
    assert not path.exists()
    assert run_main(capsys, "runs", "unpack", "gqa")[0] == 0
    assert (path / "run.json").read_bytes() == manifest
    assert run_main(capsys, "runs", "unpack", "gqa")[0] == 2


def test_a_damaged_pack_is_one_sentence_and_the_other_studies_are_listed(capsys, copies):
    copies("gqa", "a"), copies("runs", "b")
    pack(capsys, "gqa")
    Path("results/gqa/pack/pack.json").write_text('{"format": 9}')
    for command in (
        ("runs", "gqa"),
        ("compare", "a", "b", "--study", "gqa"),
        ("runs", "unpack", "gqa"),
    ):
        code, out, err = run_main(capsys, *command)
        assert (code, out) == (2, "")
        assert err.count("\n") == 1
        assert "has format 9, and this version reads up to 1" in err
    code, out, err = run_main(capsys, "runs")
    assert code == 0
    assert "runs b" in out
    assert "has format 9" in err


@pytest.mark.parametrize(
    ("arguments", "left"),
    [
        (["--state", "failed"], {"a1", "b1"}),
        (["a"], {"b1", "b2"}),
        (["a", "--state", "failed"], {"a1", "b1", "b2"}),
        (["a1", "b"], {"a2"}),
    ],
)
def test_runs_are_removed_by_name_arm_and_state(capsys, copies, arguments, left):
    for arm in "ab":
        copies("runs", f"{arm}1", arm=arm)
        copies("runs", f"{arm}2", arm=arm, state="failed")
    code, _, err = run_main(capsys, "runs", "remove", *arguments)
    assert code == 2
    gone = {"a1", "a2", "b1", "b2"} - left
    assert all(f"{name} (" in err for name in gone)
    assert {path.name for path in Path("results/runs").iterdir()} == gone | left
    assert run_main(capsys, "runs", "remove", *arguments, "--yes")[0] == 0
    assert {path.name for path in Path("results/runs").iterdir()} == left


def test_removing_says_what_it_needs(capsys, copies):
    copies("runs", "a")
    assert "--state" in run_main(capsys, "runs", "remove")[2]
    assert "Available: finished" in run_main(capsys, "runs", "remove", "--state", "old")[2]
    assert "is stopped" in run_main(capsys, "runs", "remove", "--state", "stopped", "--yes")[2]
    assert Path("results/runs/a").exists()


def test_removing_follows_no_link_in_a_run(capsys, copies, workdir):
    path = copies("runs", "a")
    outside = workdir / "outside.txt"
    outside.write_text("stays")
    (path / "items").mkdir(exist_ok=True)
    (path / "items/link").symlink_to(workdir)
    assert run_main(capsys, "runs", "remove", "a", "--yes")[0] == 0
    assert outside.read_text() == "stays"
    assert run_main(capsys, "runs", "remove", "a", "--study", "../runs", "--yes")[0] == 2


def test_a_run_from_the_future_has_no_age():
    """The clock may have been set back since."""
    later = datetime.now(UTC) + timedelta(hours=3)
    assert age(later.isoformat()) == "–"
    assert age((later - timedelta(hours=5)).isoformat()) == "2 h"
