"""`smolctl runs`: what there is, and a run is deleted whole or not at all."""

import json
import os
import pty
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import run_main

from smollm2.runs import Run


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


def test_the_state_of_an_unfinished_run_is_told(capsys, copies):
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
    assert "stopped at step 7" in run_main(capsys, "runs")[1]


def test_a_broken_directory_is_named_and_left_out(capsys, copies):
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


def test_runs_are_removed_whole_and_what_is_freed_is_said(capsys, copies):
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
    assert "behind the word show" in err


def test_a_manifest_that_lacks_something_is_shown_as_far_as_it_goes(capsys, copies):
    path = copies("runs", "a")
    manifest = json.loads((path / "run.json").read_text())
    del manifest["environment"]
    (path / "run.json").write_text(json.dumps(manifest))
    code, _, err = run_main(capsys, "runs", "show", "a")
    assert code == 2
    assert "a/run.json lacks 'environment'" in err
    assert json.loads(run_main(capsys, "runs", "show", "a", "--json")[1])["manifest"] == manifest
    assert list(listed(capsys)) == [("runs", "a")]


def test_a_score_that_is_no_number_is_null_in_json(capsys, copies):
    path = copies("runs", "a")
    table = (path / "eval.csv").read_text().splitlines(keepends=True)
    loss = next(line for line in table if ",loss," in line)
    value = loss.split(",")[2]
    (path / "eval.csv").write_text("".join(table).replace(loss, loss.replace(value, "nan")))
    assert listed(capsys)["runs", "a"]["test_loss"] is None
