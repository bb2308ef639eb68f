"""Compiled decoding has the eager tokens."""

import os
import subprocess
import sys

import pytest
import torch
from support.decoding import NANO, OTHER_PROMPT, PROMPT, greedy, quiet, replace_matrices
from support.perturbed import perturbed

from smollm2 import SmolLM2, variant
from smollm2.errors import RunError
from smollm2.inference.decoder import Decoder

pytestmark = pytest.mark.usefixtures("fresh_cache")  # code that it keeps, others would load


@pytest.mark.slow
@quiet
@pytest.mark.parametrize("name", ["orig", "pow2"])
def test_a_compiled_layer_gives_the_eager_tokens(name):
    model = perturbed(NANO[name])
    for max_len in (48, 64):
        compiled = Decoder(model, max_len, compiled=True)
        assert greedy(compiled) == greedy(Decoder(model, max_len))
        assert greedy(compiled, OTHER_PROMPT) == greedy(Decoder(model, max_len), OTHER_PROMPT)


@pytest.mark.slow
@quiet
def test_no_step_compiles_again_and_every_layer_shares_its_code(monkeypatch):
    """Where no whole step is compiled, as with earlier versions of torch."""
    from torch._dynamo.utils import counters

    monkeypatch.setattr("smollm2.inference.decoder.can_step", lambda model: False)
    torch._dynamo.reset()
    counters.clear()
    decoder = Decoder(perturbed(variant("pow2", scale="nano")), 48, compiled=True)
    assert counters["stats"]["unique_graphs"] == 1
    greedy(decoder)
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]


@pytest.mark.slow
@quiet
def test_compiled_decoders_keep_their_own_weights_and_caches():
    """Their code is alike and unguarded."""
    models = [perturbed(NANO["pow2"]), perturbed(NANO["pow2"]).bfloat16(), perturbed(NANO["orig"])]
    with torch.no_grad():
        models.append(perturbed(NANO["pow2"]))
        models[-1].norm.weight.mul_(torch.arange(128) % 3)
    pairs = [(Decoder(model, 64, compiled=True), Decoder(model, 64)) for model in models]
    for turn in range(2):
        for compiled, eager in pairs:
            for decoder in (compiled, eager):
                decoder.prefill(PROMPT[turn:])
            atol = 0.1 if eager.model.dtype == torch.bfloat16 else 1e-4
            for token in OTHER_PROMPT:
                torch.testing.assert_close(
                    compiled.step(token), eager.step(token), atol=atol, rtol=0.02
                )


@pytest.mark.slow
@quiet
def test_a_compiled_step_survives_a_change_of_threads():
    decoder, threads = Decoder(perturbed(NANO["pow2"]), 64, compiled=True), torch.get_num_threads()
    expected = greedy(decoder)
    try:
        for other in (1, threads + 1):
            torch.set_num_threads(other)
            assert greedy(decoder) == expected
    finally:
        torch.set_num_threads(threads)


@pytest.mark.slow
@quiet
def test_replaced_matrices_compile():
    model = perturbed(NANO["pow2"])
    replace_matrices(model)
    assert greedy(Decoder(model, 64, compiled=True)) == greedy(Decoder(model, 64))


def test_experts_in_float32_are_not_compiled():
    with pytest.raises(RunError, match="in bf16 only"):
        Decoder(SmolLM2(NANO["moe-160m"]), 16, compiled=True)


@pytest.mark.slow
def test_without_a_compiler_the_reason_is_reported(tmp_path):
    code = """
from smollm2 import SmolLM2, variant
from smollm2.errors import RunError
from smollm2.inference.decoder import Decoder
try:
    Decoder(SmolLM2(variant("pow2:n_layers=1", scale="nano")), 16, compiled=True)
except RunError as error:
    print(error)
"""
    environment = os.environ | {"CXX": "/nowhere/g++", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    assert found.stdout.startswith("The layer cannot be compiled here (InvalidCxxCompiler: ")
    assert found.stdout.endswith("use `compile=False`.\n")
