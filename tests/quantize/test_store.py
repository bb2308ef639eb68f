"""Quantized models on disk."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from smollm2.errors import UserError
from smollm2.quantize.convert import assemble, quantize
from smollm2.quantize.quant_config import QuantConfig
from smollm2.quantize.store import load_quantized, open_quantized, quantized_names, save
from smollm2.runs.load_run import final_weights, load_model
from smollm2.runs.run import Run

INT8 = QuantConfig(8, group_size=None)
INT4 = QuantConfig(4)


@pytest.fixture
def run(template: Path, tmp_path: Path) -> Run:
    """A finished run, the test's own."""
    shutil.copytree(template, tmp_path / "results/runs/run")
    return Run(tmp_path / "results/runs/run")


@pytest.mark.parametrize("config", [INT8, QuantConfig(4, group_size=32, embedding_bits=4)])
def test_a_saved_model_is_read_back_to_the_same_logits_bit_for_bit(run, config):
    final = final_weights(run)
    model = load_model(run, "cpu", "bfloat16", final)
    plain = quantize(model, config)
    save(run, final.sha256, config, plain)
    assert quantized_names(run) == [config.name]

    made = assemble(model.config, config, plain, torch.bfloat16)
    read = load_quantized(open_quantized(run, config.name), "cpu", "bfloat16")
    for n in (5, 32):  # by the kernel, and dequantized
        tokens = torch.arange(n).view(1, n)
        with torch.inference_mode():
            assert torch.equal(made(tokens), read(tokens))


def test_a_quantized_model_that_is_not_what_was_saved_is_refused(run):
    final = final_weights(run)
    config = QuantConfig(4, group_size=32)
    saved = save(
        run, final.sha256, config, quantize(load_model(run, "cpu", "bfloat16", final), config)
    )
    sidecar = saved.path / "model.json"
    facts = json.loads(sidecar.read_text())

    sidecar.write_text(json.dumps(facts | {"weights": "0"}))
    with pytest.raises(UserError, match="other weights than the run has now; quantize run 'run'"):
        open_quantized(run, config.name)
    sidecar.write_text(json.dumps(facts | {"format": 0}))
    with pytest.raises(UserError, match="another version"):
        open_quantized(run, config.name)
    sidecar.write_text("{")
    with pytest.raises(UserError, match="missing or damaged"):
        open_quantized(run, config.name)
    sidecar.write_text(json.dumps(facts))
    file = saved.path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    with pytest.raises(UserError, match="checksum does not hold"):
        open_quantized(run, config.name)
    with pytest.raises(UserError, match="missing or damaged"):
        open_quantized(run, "int8")


def test_the_same_model_again_keeps_its_scores_and_another_does_not(run):
    final = final_weights(run)
    model = load_model(run, "cpu", "bfloat16", final)
    saved = save(run, final.sha256, INT8, quantize(model, INT8))
    saved.tables.append("eval", {"task": "arc_easy"})
    save(run, final.sha256, INT8, quantize(model, INT8))
    assert len(saved.tables.rows("eval")) == 1
    with torch.no_grad():
        model.embed.weight *= 2
    save(run, final.sha256, INT8, quantize(model, INT8))
    assert saved.tables.rows("eval") == []
    assert [path.name for path in run.path.glob("quantized/*")] == ["int8"]
