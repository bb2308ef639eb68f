"""The dtype that a quantized model of a run in fp32 computes in, and the scores that tell it."""

import json
import shutil
from types import SimpleNamespace

import pytest
from support.command import run_main
from support.questions import ROWS, write

from smolctl.analysis.task_scores import eval_options
from smollm2.runs.run import Run

PROMPT = ("--prompt", "abc de", "--max-new-tokens", "4", "--json")


@pytest.fixture
def run(capsys, monkeypatch, workdir, template) -> Run:
    """A finished run in fp32, quantized to 8 bits, on a machine where bf16 is native."""
    monkeypatch.setattr("smolctl.studies.machine.has_native_bfloat16", lambda device: True)
    shutil.copytree(template, workdir / "results/runs/run")
    run = Run(workdir / "results/runs/run")
    run.update(protocol=run.manifest["protocol"] | {"dtype": "float32"})
    code, _, err = run_main(capsys, "quantize", "run", "--bits", "8", "--no-speed")
    assert code == 0, err
    return run


def as_json(capsys, *words: str):
    code, out, err = run_main(capsys, *words)
    assert code == 0, err
    return json.loads(out)


def test_generate_takes_bf16_and_dtype_overrides_it(capsys, run):
    for target, options, expected in (
        ("run", (), "float32"),
        ("run+int8", (), "bfloat16"),
        ("run+int8", ("--dtype", "fp32"), "float32"),
        ("results/runs/run/quantized/int8", (), "bfloat16"),
    ):
        assert as_json(capsys, "generate", target, *PROMPT, *options)["dtype"] == expected


def test_scores_in_both_dtypes_are_kept_apart(capsys, run, tmp_path):
    questions = [ROWS["piqa"] | {"goal": f"dry {i}"} for i in range(4)]
    write(tmp_path, "piqa_validation.jsonl", questions)
    words = ("eval", "run+int8", "--data-dir", str(tmp_path), "--tasks", "piqa,test", "--json")
    older = as_json(capsys, *words, "--dtype", "fp32")  # as before there was a default
    newer = as_json(capsys, *words)
    assert {row["dtype"] for row in older} == {"float32"}
    assert {row["dtype"] for row in newer} == {"bfloat16"}
    assert {row["items"] for row in older}.isdisjoint(row["items"] for row in newer)
    kept = run.path / "quantized/int8/eval.csv"
    table = kept.read_text()
    assert table.count(",float32,") == len(older)
    assert as_json(capsys, *words) == newer
    assert kept.read_text() == table


@pytest.mark.parametrize(
    ("own", "dtype", "is_quantized", "expected"),
    [
        ("float32", "float32", False, ()),
        ("float32", "float32", True, ("--dtype", "float32")),
        ("float32", "bfloat16", True, ("--dtype", "bfloat16")),
        ("bfloat16", "bfloat16", True, ()),
        ("bfloat16", "float32", True, ("--dtype", "float32")),
    ],
)
def test_the_command_that_repeats_a_score_names_a_dtype_that_may_not_be_the_default(
    own, dtype, is_quantized, expected
):
    finished = SimpleNamespace(protocol=SimpleNamespace(dtype=own))
    row = {"n": 4, "total": 4, "dtype": dtype}
    assert eval_options(finished, row, is_quantized=is_quantized) == expected
