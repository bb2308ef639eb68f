"""An optimizer registered from outside is trained, resumed, planned and swept like any other."""

import dataclasses
import subprocess
import sys

import pytest
import torch
from support.outcome import outcome

from smolctl.studies.study_file import study_of
from smollm2 import SmolLM2
from smollm2.errors import UserError
from smollm2.protocol.optimizer_spec import OptimizerSpec
from smollm2.protocol.optimizers import FOLDER, OPTIMIZERS, find_optimizer, register
from smollm2.protocol.recipe import Recipe
from smollm2.protocol.resolve import resolve
from smollm2.runs.create import create_run
from smollm2.training.loop import Observer, Stopped, train
from smollm2.training.masters import Optimizer


def build_sgd(leaves, recipe):
    sgd = torch.optim.SGD(leaves.values(), lr=recipe.lr, momentum=recipe.momentum)
    return [(sgd, recipe.lr)]


SGD = OptimizerSpec(
    name="sgd",
    build=build_sgd,
    rates=("lr",),
    state_bytes=4,
    layer_matrix_state_bytes=4,
)


@pytest.fixture
def sgd(monkeypatch):
    """The name of an optimizer that only this test knows."""
    monkeypatch.setattr("smollm2.protocol.optimizers.OPTIMIZERS", dict(OPTIMIZERS))
    register(SGD)
    return SGD.name


class StopAt(Observer):
    """Asks to stop once `step` updates are made."""

    def __init__(self, step: int) -> None:
        self.is_there, self.step = False, step

    def on_step(self, row) -> None:
        self.is_there = row["step"] == self.step

    def should_stop(self) -> bool:
        return self.is_there


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_registered_optimizer_learns_and_resumes_bit_for_bit(sgd, asked, data, tmp_path, dtype):
    request = dataclasses.replace(asked, optimizer=sgd, lr=0.1, steps=40, dtype=dtype)
    protocol = resolve(request).on(data)
    whole, stopped = (
        create_run(tmp_path, "runs", name, request, protocol) for name in ("whole", "stopped")
    )
    train(whole, data, Observer())
    losses = whole.table("val")["loss"]
    assert losses.iloc[-1] < losses.iloc[0] - 0.3
    with pytest.raises(Stopped):
        train(stopped, data, StopAt(13))
    assert stopped.checkpoints.steps() == [13]
    train(stopped, data, Observer())
    assert outcome(stopped.path) == outcome(whole.path)


def test_a_registered_optimizer_makes_its_own_steps(sgd, asked, data):
    protocol = resolve(dataclasses.replace(asked, optimizer=sgd))
    model, plain = SmolLM2(protocol.model, 0), SmolLM2(protocol.model, 0)
    optimizer = Optimizer(model, protocol.recipe, torch.float32)
    reference = torch.optim.SGD(plain.parameters(), lr=0.05, momentum=protocol.recipe.momentum)
    tokens = torch.arange(64).view(2, 32)
    for _ in range(3):
        for one in (model, plain):
            one.loss(tokens, tokens).cross_entropy.backward()
        optimizer.step(0.05 / protocol.recipe.lr, 0.0)
        reference.step()
        reference.zero_grad()
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)
    held = [tensor for name, tensor in optimizer.state().items() if name.startswith("optimizer.")]
    n_bytes = sum(tensor.nbytes for tensor in held)
    weights_and_gradients = 8 * sum(p.numel() for p in model.parameters())
    assert protocol.recipe.state_bytes(protocol.model, "float32") == n_bytes + weights_and_gradients


def test_a_sweep_of_lr_tunes_a_registered_optimizer(sgd):
    table = {"arms": ["orig", "pow2"], "sweep": {"lr": [1e-3, 2e-3]}}
    train = {"scale": "nano", "steps": 3}
    study = study_of(table | {"train": train | {"optimizer": sgd}}, "s")
    assert study.tuning is not None
    with pytest.raises(UserError, match="muon_lr"):
        study_of(table | {"train": train | {"optimizer": "muon"}}, "s")


def test_an_unknown_optimizer_is_refused_with_the_names_of_all(sgd, asked):
    for refused in (
        lambda: find_optimizer("adam"),
        lambda: Recipe(optimizer="adam"),
        lambda: resolve(dataclasses.replace(asked, optimizer="adam")),
    ):
        with pytest.raises(UserError, match=r"Did you mean 'adamw'\? .*adamw, muon, sgd"):
            refused()


def test_a_name_is_registered_once(sgd):
    with pytest.raises(ValueError, match="already an optimizer 'sgd'"):
        register(SGD)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_rate_is_a_field_of_the_recipe(name):
    assert list(Recipe(optimizer=name).rates) == list(OPTIMIZERS[name].rates)


def test_every_file_of_an_optimizer_is_registered_without_torch():
    code = f"""
import pkgutil, sys, {FOLDER} as folder
from smollm2.protocol.optimizers import OPTIMIZERS
assert list(OPTIMIZERS) == [module.name for module in pkgutil.iter_modules(folder.__path__)]
assert 'torch' not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_any_file_of_an_optimizer_can_be_imported_first(name):
    subprocess.run([sys.executable, "-c", f"import {FOLDER}.{name}"], check=True)
