"""`smolctl train --dry-run`: what a run would do and cost on this machine."""

import dataclasses

from smolctl.cli.console import print_facts, print_json, say
from smolctl.studies.machine import warn_if_busy
from smolctl.studies.new_run import NewRun
from smolctl.units import count, duration
from smollm2.data import epochs
from smollm2.device import device_name
from smollm2.model.cost import parameters, training_flops_per_token
from smollm2.protocol.run_config import ResolvedConfig
from smollm2.training.memory import TooLarge, require_memory
from smollm2.training.schedule import decay_start, schedule_steps, warmup_steps
from smollm2.training.trainer import probe


def show_plan(new: NewRun, as_json: bool) -> None:
    """What a run would do and cost on this machine, which is measured by training a few steps; a
    model too large for the machine is not measured."""
    protocol, data, first_step = new.resolved, new.data, new.first_step
    path = f"{new.results}/{new.study}/{new.name}"
    size, recipe = parameters(protocol.model), protocol.recipe
    steps = protocol.steps - first_step
    tokens = steps * protocol.tokens_per_step
    measured, too_large = None, ""
    try:
        require_memory(protocol)
        say("Measuring a step on this machine ...")
        warn_if_busy()
        measured = probe(protocol, data)
    except TooLarge as error:
        too_large = str(error)
    eta = measured and measured.step_seconds * steps
    state = recipe.state_bytes(protocol.model, protocol.dtype)
    repeats = epochs(len(data.train), protocol.seq_len, tokens)
    flops = training_flops_per_token(protocol.model, protocol.seq_len)
    if as_json:
        plan = {
            "path": path,
            "first_step": first_step,
            "protocol": protocol.to_dict(),
            "parameters": dataclasses.asdict(size),
            "tokens": tokens,
            "epochs": repeats,
            "training_flops_per_token": flops,
            "state_bytes": state,
            "activation_bytes": measured and measured.activation_bytes,
            "step_seconds": measured and measured.step_seconds,
            "eta_seconds": eta,
        }
        print_json(plan)
        return
    active = f", {size.active:,} active" if size.active != size.total else ""
    every = "every step"
    if protocol.validation_every > 1:
        every = f"every {protocol.validation_every:,} steps"
    gb = 1e9
    cost = [("too large", too_large)]
    if measured is not None:
        memory = (
            f"{(state + measured.activation_bytes) / gb:.2f} GB: weights, gradients, optimizer "
            f"{state / gb:.2f}, activations {measured.activation_bytes / gb:.2f}"
        )
        cost = [
            ("memory", f"about {memory}"),
            (
                "time",
                f"about {duration(measured.step_seconds * steps)} of training "
                f"({measured.step_seconds:.2f} s per step"
                f"{', uncompiled; the run compiles its layers' if protocol.compile else ''})",
            ),
        ]
    print_facts(
        f"Plan: {protocol.variant} ({protocol.scale}), steps {first_step + 1:,} to "
        f"{protocol.steps:,}",
        [
            ("parameters", f"{size.total:,}{active}, {size.embedding:,} embedding"),
            ("FLOPs", f"{count(flops)} per token, {tokens * flops:.2e} in all"),
            (
                "step",
                f"{protocol.tokens_per_step:,} tokens: {recipe.grad_accum} × "
                f"{protocol.micro_batch_size} sequences of {protocol.seq_len}",
            ),
            ("tokens", f"{tokens:,}"),
            (
                "corpus",
                f"{data.source}: {len(data.train):,} training tokens, read {repeats:.2f} times",
            ),
            (
                "scored",
                f"{protocol.validation_tokens:,} validation tokens {every}, "
                f"{protocol.test_tokens:,} test tokens",
            ),
            ("schedule", schedule_text(protocol)),
            ("machine", f"{device_name(protocol.device)}, {protocol.dtype}"),
            *cost,
            ("run", path),
        ],
    )


def schedule_text(protocol: ResolvedConfig) -> str:
    """`adamw, wsd: to 1.0e-03 by step 250, constant to 4000, then to 0 at 5000`."""
    recipe, steps = protocol.recipe, protocol.steps
    others = "".join(f" ({k} {v:.1e})" for k, v in recipe.rates.items() if k != "lr")
    peak = f"{recipe.lr:.1e}{others}"
    text = f"{recipe.optimizer}, {recipe.schedule}: to {peak} by step {warmup_steps(recipe, steps)}"
    if recipe.schedule == "wsd":
        text += f", constant to {decay_start(recipe, steps)}"
    end = schedule_steps(recipe, steps)
    cut = f" (the run ends at {steps})" if end > steps else ""
    return f"{text}, then to {recipe.final_lr * recipe.lr:g} at {end}{cut}"
