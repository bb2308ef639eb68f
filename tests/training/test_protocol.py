"""Requests become protocols: defaults, horizons, names, and what must agree."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smollm2.errors import UserError
from smollm2.model.cost import training_flops_per_token
from smollm2.protocol.recipe import RECIPES
from smollm2.protocol.resolve import resolve
from smollm2.protocol.run_config import ResolvedConfig, RunConfig, default_run_name

CPU = {"device": "cpu", "dtype": "fp32"}


def nano(**changes) -> ResolvedConfig:
    return resolve(RunConfig("pow2", "nano", **CPU, **({"steps": 300} | changes)))


def test_the_default_batch_is_that_of_the_scale():
    full = resolve(RunConfig("pow2", steps=1, **CPU))
    assert (full.micro_batch_size, full.seq_len, full.tokens_per_step) == (4, 2048, 8192)
    assert (nano().micro_batch_size, nano().seq_len, nano().tokens_per_step) == (4, 256, 1024)


@given(tokens=st.integers(1, 10**12))
def test_a_horizon_in_tokens_is_met_to_half_a_step(tokens):
    protocol = nano(steps=None, tokens=float(tokens))
    assert protocol.steps >= 1
    trained = protocol.steps * protocol.tokens_per_step
    assert abs(trained - tokens) <= max(protocol.tokens_per_step / 2, 1024)


@given(flops=st.floats(1e9, 1e20))
def test_a_horizon_in_flops_is_met_to_half_a_step(flops):
    protocol = nano(steps=None, flops=flops)
    per_token = training_flops_per_token(protocol.model, protocol.seq_len)
    assert protocol.flops_per_step == protocol.tokens_per_step * per_token
    assert abs(protocol.steps * protocol.flops_per_step - flops) <= protocol.flops_per_step


def test_short_runs_are_validated_less_often_than_twenty_times():
    every = {steps: nano(steps=steps).validation_every for steps in (1, 3, 10, 150, 200, 300, 5000)}
    assert every == {1: 1, 3: 3, 10: 10, 150: 10, 200: 10, 300: 15, 5000: 250}
    assert nano(steps=10, val_every=1).validation_every == 1


def test_a_protocol_survives_its_manifest():
    for variant in ("orig", "moe-160m", "pow2:n_kv_heads=8"):
        protocol = resolve(RunConfig(variant, "nano", steps=3, recipe="seed", **CPU))
        assert ResolvedConfig.from_dict(protocol.to_dict()) == protocol


def test_a_manifest_of_something_else_is_refused():
    broken = nano().to_dict() | {"unknown": 1}
    with pytest.raises(UserError, match="Unknown field 'unknown'"):
        ResolvedConfig.from_dict(broken)


def test_settings_reach_the_model_and_the_recipe():
    protocol = nano(settings=("n_layers=3", "weight_decay=0.5", "lr=1"))
    assert protocol.model.n_layers == 3
    assert protocol.recipe.weight_decay == 0.5
    assert protocol.recipe.lr == 1.0
    assert protocol.variant == "pow2:n_layers=3"


@pytest.mark.parametrize(
    "setting",
    ["lr=nan", "lr=0", "beta1=1", "decay=1.5", "final_lr=-1", "schedule_length=0.5", "grad_clip=0",
     "weight_decay=-1", "grad_accum=0", "warmup=inf", "lr=inf"],
)  # fmt: skip
def test_a_recipe_out_of_range_is_refused(setting):
    with pytest.raises(UserError, match=setting.partition("=")[0]):
        nano(settings=(setting,))


def test_the_seed_recipe_is_what_that_code_did():
    recipe = RECIPES["seed"]
    assert (recipe.optimizer, recipe.muon_lr, recipe.momentum) == ("muon", 0.02, 0.95)
    assert (recipe.lr, recipe.weight_decay, recipe.grad_accum) == (0.003, 0.2, 12)
    assert (recipe.schedule, recipe.final_lr, recipe.schedule_length) == ("cosine", 0.1, 12)


def name(**changes) -> str:
    request = RunConfig(**({"variant": "pow2", "scale": "nano", "steps": 300} | changes))
    return default_run_name(request, resolve(dataclasses.replace(request, **CPU)))


def test_default_names_are_short_and_others_carry_a_hash():
    assert name() == "pow2-nano-300-s0"
    assert name(seed=1) == "pow2-nano-300-s1"
    assert name(scale="full", steps=5000) == "pow2-5000-s0"
    assert name(lr=2e-3).startswith("pow2-nano-300-s0-")
    assert name(lr=2e-3) != name(lr=3e-3)


def test_a_run_that_starts_from_another_never_has_a_plain_name():
    request = RunConfig("pow2", "nano", steps=300)
    protocol = resolve(dataclasses.replace(request, **CPU))
    names = {default_run_name(request, protocol, start) for start in (None, "a", "a@10")}
    assert len(names) == 3
    assert all(name.startswith("pow2-nano-300-s0") for name in names)


def test_comparable_runs_carry_the_same_hash():
    ends = {name(variant=v, lr=2e-3, seed=s)[-6:] for v in ("orig", "pow2") for s in (0, 1)}
    assert len(ends) == 1


def test_every_default_name_is_a_plain_name():
    assert name(variant="pow2:n_kv_heads=8") == "pow2-n_kv_heads-8-nano-300-s0"


def test_what_differs_between_arms_is_not_controlled():
    base = nano()
    for changes in ({"lr": 5e-3}, {"seed": 3}, {"micro_batch_size": 2, "grad_accum": 2}):
        assert nano(**changes).controlled() == base.controlled(), changes
    assert resolve(RunConfig("orig", "nano", steps=300, **CPU)).controlled() == base.controlled()


def test_what_must_agree_is_controlled():
    base = nano()
    for changes in (
        {"micro_batch_size": 2}, {"seq_len": 128}, {"schedule": "cosine"}, {"optimizer": "muon"},
        {"val_tokens": 256}, {"test_tokens": 256}, {"dtype": "bf16"}, {"compile": True},
    ):  # fmt: skip
        request = RunConfig("pow2", "nano", **(CPU | {"steps": 300} | changes))
        assert resolve(request).controlled() != base.controlled(), changes


@pytest.mark.parametrize("cxx", ["exit 0", "exit 1"])
def test_a_long_run_on_a_cpu_is_compiled_if_there_is_a_compiler(tmp_path, monkeypatch, cxx):
    path = tmp_path / "compiler"
    path.write_text(f"#!/bin/sh\ncat > /dev/null\n{cxx}\n")
    path.chmod(0o700)
    monkeypatch.setenv("CXX", str(path))
    for variant in ("orig", "pow2", "moe-160m"):
        for tokens, asked, expected in (
            (1_999_872, None, False),
            (1_999_872, True, True),
            (2_000_896, None, cxx == "exit 0"),
            (2_000_896, False, False),
        ):
            request = RunConfig(variant, "nano", tokens=tokens, device="cpu", compile=asked)
            assert resolve(request).compile is expected
