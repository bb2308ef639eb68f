"""Compiled steps are kept, and what is kept is checked before it is loaded."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.decoding import NANO, PROMPT, greedy
from support.perturbed import perturbed

from smollm2 import SmolLM2, variant
from smollm2.inference import compiled_step
from smollm2.inference.compiled_step import has_kept_step, step_key
from smollm2.inference.decoder import Decoder
from smollm2.inference.kept_code import code_folder, keep_code, kept_code

pytestmark = pytest.mark.usefixtures("fresh_cache")
KEY = "0123"


@pytest.fixture
def compilations(monkeypatch) -> list[str]:
    """The keys compiled so far, where nothing is: code is a text, and its logits are zeros."""
    found = []

    def compiled(step, tensors, folder: Path) -> Path:
        found.append(f"{step.config.d_ff}")
        made = folder / "step.pt2"
        made.write_text(f"{step.config.vocab_size} logits")
        return made

    class Zeros:
        def __init__(self, path: Path) -> None:
            self.n = int(path.read_text().removesuffix(" logits"))

        def boxed_run(self, inputs):
            return [torch.zeros(self.n)]

    monkeypatch.setattr(compiled_step, "compiled", compiled)
    monkeypatch.setattr(compiled_step, "loaded", Zeros)
    monkeypatch.setattr(compiled_step, "can_step", lambda model: not model.config.is_moe)
    monkeypatch.setattr("smollm2.inference.decoder.can_step", compiled_step.can_step)
    return found


@pytest.fixture
def made(tmp_path) -> Path:
    path = tmp_path / "step.pt2"
    path.write_bytes(b"code")
    return path


def kept_file() -> Path:
    (path,) = code_folder().iterdir()
    return path


def test_code_is_compiled_once_for_every_length_and_all_weights(compilations):
    for seed, max_len in ((1, 48), (1, 500), (2, 64)):
        decoder = Decoder(SmolLM2(NANO["pow2"], seed=seed), max_len, compiled=True)
        assert decoder.compiled
        decoder.prefill(PROMPT)
        assert not decoder.step(4).any()
    assert len(compilations) == 1
    assert has_kept_step(SmolLM2(NANO["pow2"]))


def test_another_shape_dtype_torch_or_number_of_threads_is_compiled_again(
    compilations, monkeypatch
):
    model = SmolLM2(NANO["pow2"])
    keys = {step_key(SmolLM2(NANO["orig"])), step_key(SmolLM2(NANO["pow2"]).bfloat16())}
    Decoder(model, 48, compiled=True)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        keys.add(step_key(model))
    finally:
        torch.set_num_threads(threads)
    monkeypatch.setattr(torch, "__version__", "2.13.99+cpu")
    keys.add(step_key(model))
    assert len(keys) == 4
    assert not any(kept_code(key) for key in keys)
    Decoder(model, 48, compiled=True)
    assert len(compilations) == 2


def test_without_kept_code_the_default_is_eager_and_with_it_compiled(compilations):
    model = SmolLM2(NANO["pow2"])
    assert not Decoder(model, 48, compiled=None).compiled
    assert compilations == []
    Decoder(model, 48, compiled=True)
    assert Decoder(model, 48, compiled=None).compiled
    assert not Decoder(model, 48).compiled
    assert not Decoder(SmolLM2(NANO["moe-160m"]), 48, compiled=None).compiled
    assert len(compilations) == 1


@pytest.mark.parametrize("content", [b"", b"4095 logits", b"\0" * 100])
def test_damaged_code_is_compiled_again(compilations, content):
    model = SmolLM2(NANO["pow2"])
    Decoder(model, 48, compiled=True)
    path, whole = kept_file(), kept_file().read_bytes()
    path.write_bytes(content)
    assert not Decoder(model, 48, compiled=None).compiled
    Decoder(model, 48, compiled=True)
    assert kept_file().read_bytes() == whole
    assert len(compilations) == 2


def test_a_cache_that_cannot_be_written_costs_only_the_next_compilation(
    compilations, monkeypatch, made
):
    monkeypatch.setenv("SMOLCTL_CACHE", str(made / "below-a-file"))
    for _ in range(2):
        assert Decoder(SmolLM2(NANO["pow2"]), 48, compiled=True).compiled
    assert len(compilations) == 2


def test_a_file_that_is_no_code_is_not_loaded(made):
    model = SmolLM2(NANO["pow2"])
    keep_code(step_key(model), made)
    assert kept_code(step_key(model)) is not None
    assert not Decoder(model, 48, compiled=None).compiled


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="Windows has no such owners")
def test_code_that_others_could_have_written_is_not_loaded(made):
    keep_code(KEY, made)
    path = kept_code(KEY)
    assert path.read_bytes() == b"code"
    for place, own in ((path, 0o600), (path.parent, 0o700)):
        assert place.stat().st_mode & 0o777 == own
        for others in (0o020, 0o002):
            place.chmod(own | others)
            assert kept_code(KEY) is None
        place.chmod(own)
    assert kept_code(KEY) == path
    moved = made.with_name("moved.pt2")
    path.rename(moved)
    path.symlink_to(moved)
    assert kept_code(KEY) is None


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="only root gives away")
def test_code_of_another_user_is_not_loaded(made):
    keep_code(KEY, made)
    os.chown(kept_code(KEY), 12345, 12345)
    assert kept_code(KEY) is None


SECOND = """
import json, sys, torch
from support.decoding import NANO, greedy
from support.perturbed import perturbed
from smollm2.inference.decoder import Decoder
torch.set_num_threads(int(sys.argv[1]))
decoder = Decoder(perturbed(NANO["pow2"]), 70, compiled=None)
has_compiler = "torch._inductor.compile_fx" in sys.modules
print(json.dumps([decoder.compiled, greedy(decoder), has_compiler]))
"""


@pytest.mark.slow
def test_a_second_process_loads_the_code_and_no_compiler():
    model = perturbed(NANO["pow2"])
    expected = greedy(Decoder(model, 48, compiled=True))
    assert expected == greedy(Decoder(model, 48))
    done = subprocess.run(
        [sys.executable, "-c", SECOND, str(torch.get_num_threads())],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(["tests", *sys.path])},
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [True, expected, False]


@pytest.mark.slow
def test_a_long_cache_is_read_up_to_the_token():
    model = perturbed(variant("pow2:n_layers=2", scale="nano"))
    compiled, eager = Decoder(model, 200, compiled=True), Decoder(model, 200)
    assert greedy(compiled, n=180) == greedy(eager, n=180)
