"""Requests of runs, with what an undisturbed run of each leaves."""

import dataclasses

import pytest
from support.interrupted import new_run
from support.outcome import STEPS, outcome

from smollm2.training.loop import Observer, train


@pytest.fixture(
    scope="module",
    params=["tiny-float32-1", "tiny-bfloat16-1", "tiny-bfloat16-2", "tinymoe-float32-2"],
)
def case(request, asked, data, variants, tmp_path_factory):
    """A request, its tokens, and what an undisturbed run of it leaves."""
    variant, dtype, grad_accum = request.param.split("-")
    layers = ":n_layers=1" if variant == "tinymoe" else ""  # half the matrices for Muon
    asked = dataclasses.replace(
        asked,
        variant=str(variants / f"{variant}.toml") + layers,
        steps=STEPS,
        micro_batch_size=2,
        grad_accum=int(grad_accum),
        dtype=dtype,
        optimizer="muon" if variant == "tinymoe" else "adamw",
    )
    folder = tmp_path_factory.mktemp(request.param)
    run = new_run(asked, data, folder)
    train(run, data, Observer())
    return asked, data, folder, outcome(run.path)
