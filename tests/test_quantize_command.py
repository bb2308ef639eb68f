"""`smolctl quantize`: rows, saved models as targets, and what is refused."""

import json
import shutil
from pathlib import Path

import pytest
from conftest import run_main

from smollm2.quantize.store import quantized_names
from smollm2.runs import Run

ARGUMENTS = ("--group-size", "32", "--tokens", "256", "--no-compile")


@pytest.fixture
def run(template: Path, workdir: Path) -> Run:
    """A finished run `run`, the test's own."""
    shutil.copytree(template, workdir / "results/runs/run")
    return Run(workdir / "results/runs/run")


def quantized(capsys, *arguments: str) -> list[dict]:
    """The rows that `smolctl quantize --json` prints."""
    code, out, err = run_main(capsys, "quantize", *ARGUMENTS, *arguments, "--json")
    assert code == 0, err
    return json.loads(out)


def test_a_run_is_quantized_measured_and_saved(capsys, run):
    original, row = quantized(capsys)
    assert (original["name"], row["name"]) == ("bf16", "int4-g32")
    assert row["quantized_share"] > 0.99
    assert row["disk_bytes"] == (run.path / "quantized/int4-g32/model.safetensors").stat().st_size
    assert row["disk_bytes"] < 0.6 * original["disk_bytes"]
    assert row["loss_delta"] == pytest.approx(row["loss"] - original["loss"])
    assert 0 < row["loss_delta_stderr"] < 0.1
    assert row["n"] == 256
    assert row["decode_ratio"] > 0
    assert "compiled_decode_ratio" not in row  # was not asked for
    assert quantized_names(run) == ["int4-g32"]

    table = run.table("quantize").set_index("name")
    assert table.loc["int4-g32", "loss"] == row["loss"]
    assert table.loc["bf16", "loss_delta"] == 0


def test_the_same_again_replaces_its_rows_and_others_stay(capsys, run):
    quantized(capsys)
    run_main(capsys, "quantize", "run", "--bits", "8", "--tokens", "256", "--no-speed")
    quantized(capsys)
    assert list(run.table("quantize")["name"]) == ["int8", "bf16", "int4-g32"]


def test_a_quantized_model_is_a_target_of_eval_with_a_record_of_its_own(capsys, run):
    quantized(capsys)
    before = (run.path / "eval.csv").read_bytes()
    code, out, _ = run_main(capsys, "eval", "run+int4-g32", "--tasks", "test", "--json")
    assert code == 0
    rows = json.loads(out)
    assert {row["run"] for row in rows} == {"run+int4-g32"}
    assert (run.path / "eval.csv").read_bytes() == before
    assert (run.path / "quantized/int4-g32/eval.csv").exists()

    code, out, _ = run_main(capsys, "eval", "run", "--tasks", "test", "--json")
    assert json.loads(out)[0]["value"] != rows[0]["value"]


def test_tasks_are_scored_for_both(capsys, run, workdir):
    questions = workdir / "eval"
    questions.mkdir()
    lines = [
        {
            "id": str(i),
            "question": "abc",
            "choices": {"text": ["ab", "cd"], "label": ["A", "B"]},
            "answerKey": "A",
        }
        for i in range(4)
    ]
    (questions / "arc_easy_test.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    quantized(capsys, "--tasks", "arc_easy", "--data-dir", "eval")
    kept = Run(run.path).table("eval")
    found = Run(run.path).path / "quantized/int4-g32/eval.csv"
    assert "arc_easy" in set(kept["task"])
    assert "arc_easy" in found.read_text()


def test_a_sweep_measures_what_runs_and_says_why_the_rest_does_not(capsys, run):
    code, out, err = run_main(
        capsys, "quantize", "run", "--sweep", "--tokens", "256", "--no-speed", "--json"
    )
    assert code == 0, err
    rows = {row["name"]: row for row in json.loads(out)}
    assert len(rows) == 11
    assert rows["int4-g128"]["reason"].startswith("No layer can be quantized: groups of 128")
    assert "loss" not in rows["int4-g128"]
    assert rows["int4-g64"]["skipped"].startswith("2 × blocks.N.attn.qkv.weight: groups of 64")
    assert rows["int8"]["loss"] > 0
    assert set(quantized_names(run)) >= {"int8", "int4-g32", "int4-g64", "llm-int8"}


BAD = {
    "three bits": (("--bits", "3"), "--bits takes 8 or 4, not 3"),
    "a group size that divides nothing": (
        ("--group-size", "256"),
        "Groups of 256 divide no layer of run 'run'",
    ),
    "an unknown backend": (("--backend", "bitsandbites"), "Did you mean 'bitsandbytes'"),
    "an unknown method": (("--method", "gptq"), "Unknown method"),
    "an unknown embedding": (("--embedding", "16"), "--embedding takes 8, 4 or none"),
    "a quantized target": (("run+int8",), "is quantized already; give the run"),
    "a sweep of one": (("--sweep", "--group-size", "32"), "leave them out"),
    "no tokens": (("--tokens", "0"), "--tokens must be at least 1"),
    "questions without a task": (("--limit", "5"), "name some with --tasks"),
    "an unknown target": (("rnu",), "is no run or variant"),
}


@pytest.mark.parametrize("case", BAD, ids=str)
def test_what_cannot_be_quantized_is_refused_with_a_sentence(capsys, run, case):
    arguments, sentence = BAD[case]
    code, out, err = run_main(capsys, "quantize", *arguments)
    assert (code, out) == (2, "")
    assert sentence in err
    assert not (run.path / "quantize.csv").exists()


def test_a_run_without_weights_is_refused(capsys, run):
    (run.path / "checkpoints/final.safetensors").unlink()
    code, _, err = run_main(capsys, "quantize", "run")
    assert code == 2
    assert "has no weights" in err


def test_a_backend_that_is_not_installed_is_a_row_and_an_error(capsys, run, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "bitsandbytes.functional", None)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    code, out, err = run_main(
        capsys, "quantize", "run", "--backend", "bitsandbytes", *ARGUMENTS, "--json"
    )
    assert code == 1
    assert "No configuration could be measured" in err
    assert "bitsandbytes" in json.loads(out)[1]["reason"]


def test_a_name_that_is_no_quantized_model_lists_those_that_are(capsys, run):
    code, _, err = run_main(capsys, "eval", "run+int4")
    assert code == 2
    assert "Make one: smolctl quantize run" in err
    quantized(capsys, "--no-speed")
    code, _, err = run_main(capsys, "eval", "run+int4")
    assert code == 2
    assert "There are run+int4-g32." in err
