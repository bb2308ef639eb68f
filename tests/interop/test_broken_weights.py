"""Broken weights are one sentence in every command, and nothing is saved."""

import dataclasses
import hashlib
import json
import math
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.command import run_main
from support.foreign import runs_here, tensors

from smollm2.errors import UserError
from smollm2.evaluation.text import score_text
from smollm2.runs.run import Run
from smollm2.training import trainer
from smollm2.weights import read_weights

UP = "model.layers.1.mlp.up_proj.weight"


def files_in(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file() and path.name != "run.lock"}


def rewrite(path: Path, content: bytes) -> None:
    """Replace a file of weights, and let its sidecar agree."""
    path.write_bytes(content)
    sidecar = path.with_suffix(".json")
    facts = json.loads(sidecar.read_text()) | {"sha256": hashlib.sha256(content).hexdigest()}
    sidecar.write_text(json.dumps(facts))


def spoil(path: Path, name: str, value: float) -> None:
    found = load_file(path)
    found[name].view(-1)[5] = value
    save_file(found, path)
    rewrite(path, path.read_bytes())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_weight_that_is_not_finite_is_named(tmp_path, dtype, value):
    path = tmp_path / "w.safetensors"
    good = {
        "model.a": torch.full((3, 5), torch.finfo(dtype).max, dtype=dtype),
        "model.codes": torch.zeros(4, dtype=torch.uint8),
        "model.none": torch.zeros(0, 7, dtype=dtype),
        "optimizer.a.exp_avg_sq": torch.full((3,), math.inf),
    }
    save_file(good, path)
    assert read_weights(path, "it").keys() == good.keys()
    good["model.a"][2, 3] = value
    save_file(good, path)
    with pytest.raises(UserError, match=r"it is broken: in a a weight is (not a number|infinite)"):
        read_weights(path, "it")


OF_ELSEWHERE = [
    "generate ./mine --prompt a",
    "eval ./mine --data CORPUS",
    "eval ./mine --tasks piqa --data-dir QUESTIONS",
    "quantize ./mine --data CORPUS",
    "export ./mine out --to hf",
    "export ./mine out --to gguf",
    "train --from ./mine --steps 2 --data CORPUS --seq-len 16",
]
OF_RUNS = [
    "generate first --prompt a",
    "eval first",
    "quantize first",
    "export first out --to hf",
    "train --from first --steps 2 --data CORPUS",
]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_broken_model_from_elsewhere(capsys, model, corpus, questions, value):
    tensors(lambda found: found[UP].view(-1)[:1].fill_(value))(model)
    before = files_in(Path())
    for command in OF_ELSEWHERE:
        words = command.replace("CORPUS", str(corpus)).replace("QUESTIONS", str(questions))
        code, out, err = run_main(capsys, *words.split())
        assert (code, out) == (2, "")
        assert f"model.safetensors is broken: in {UP.removeprefix('model.')} a weight is" in err
        assert err.count("Error") == 1
        assert files_in(Path()) == before
        assert runs_here() == []


@pytest.mark.parametrize("kind", ["nan", "no safetensors"])
def test_a_run_with_broken_weights(capsys, finished, corpus, kind):
    final = finished / "checkpoints" / "final.safetensors"
    if kind == "nan":
        spoil(final, "model.blocks.1.mlp.down.weight", math.nan)
    else:
        rewrite(final, os.urandom(4000))
    before = files_in(Path())
    for command in OF_RUNS:
        code, out, err = run_main(capsys, *command.replace("CORPUS", str(corpus)).split())
        assert (code, out) == (2, "")
        assert "Error: Checkpoint final of run 'first' is " in err
        assert ("in blocks.1.mlp.down.weight a weight" in err) == (kind == "nan")
        assert files_in(Path()) == before


def test_weights_whose_computation_overflows_give_no_score(capsys, finished, corpus):
    final = finished / "checkpoints" / "final.safetensors"
    found = load_file(final)
    found["model.blocks.0.mlp.gate_up.weight"].fill_(3e38)
    save_file(found, final)
    rewrite(final, final.read_bytes())
    table = (finished / "eval.csv").read_bytes()
    code, _, err = run_main(capsys, "eval", "first")
    assert code == 1
    assert "The scores of first are not finite" in err
    assert (finished / "eval.csv").read_bytes() == table
    code, _, err = run_main(capsys, "generate", "first", "--prompt", "a", "--max-new-tokens", "2")
    assert code == 1, err
    assert "logits are not finite" in err


def test_a_pipe_in_the_place_of_weights_is_not_waited_for(finished):
    final = finished / "checkpoints" / "final.safetensors"
    final.unlink()
    os.mkfifo(final)
    with pytest.raises(UserError, match=r"final\.safetensors is not a file"):
        Run(finished).checkpoints.final()


def test_a_loss_that_overflows_while_training_is_not_a_finished_run(
    capsys, workdir, tiny, monkeypatch
):
    def broken(*arguments):
        for scores in score_text(*arguments):
            yield [dataclasses.replace(score, nats=math.nan) for score in scores]

    monkeypatch.setattr(trainer, "score_text", broken)
    code, _, err = run_main(capsys, *tiny, "--steps", "2", "--name", "x")
    assert code == 1
    assert "After step 0 the validation loss is nan." in err
    assert Run(workdir / "results/runs/x").manifest["state"] == "failed"
    assert not (workdir / "results/runs/x/eval.csv").exists()
