"""`smolctl train --dry-run`: what a run would do and cost on this machine."""

import dataclasses
import json
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from smollm2.data import TokenData
    from smollm2.protocol import Protocol


def show_plan(
    protocol: "Protocol", data: "TokenData", path: str, first_step: int, as_json: bool
) -> None:
    """What a run from `first_step` on would do and cost here; sequences are trained to know."""
    from smolctl.console import count, duration, facts, say, warn_if_busy
    from smollm2.cost import parameters, training_flops_per_token, training_state_bytes
    from smollm2.data import epochs
    from smollm2.device import device_name
    from smollm2.train import probe

    size, recipe = parameters(protocol.model), protocol.recipe
    steps = protocol.steps - first_step
    tokens = steps * protocol.tokens_per_step
    say("Measuring a step on this machine ...")
    warn_if_busy()
    measured = probe(protocol, data)
    eta = measured.step_seconds * steps
    state = training_state_bytes(protocol.model, recipe, protocol.dtype)
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
            "activation_bytes": measured.activation_bytes,
            "step_seconds": measured.step_seconds,
            "eta_seconds": eta,
        }
        json.dump(plan, sys.stdout)
        sys.stdout.write("\n")
        return
    active = f", {size.active:,} active" if size.active != size.total else ""
    every = "every step"
    if protocol.validation_every > 1:
        every = f"every {protocol.validation_every:,} steps"
    gb = 1e9
    memory = (
        f"{(state + measured.activation_bytes) / gb:.2f} GB: weights, gradients, optimizer "
        f"{state / gb:.2f}, activations {measured.activation_bytes / gb:.2f}"
    )
    facts(
        f"Plan: {protocol.variant} ({protocol.scale}), steps {first_step + 1:,} to "
        f"{protocol.steps:,}",
        [
            ("parameters", f"{size.total:,}{active}, {size.embedding:,} embedding"),
            ("FLOPs", f"{count(flops)} a token, {tokens * flops:.2e} in all"),
            (
                "a step",
                f"{protocol.tokens_per_step:,} tokens: {recipe.grad_accum} × "
                f"{protocol.batch_size} sequences of {protocol.seq_len}",
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
            ("memory", f"about {memory}"),
            (
                "time",
                f"about {duration(eta)} of training ({measured.step_seconds:.2f} s a step"
                f"{', uncompiled; the run compiles its layers' if protocol.compile else ''})",
            ),
            ("run", path),
        ],
    )


def schedule_text(protocol: "Protocol") -> str:
    """`adamw, wsd: to 1.0e-03 by step 250, constant to 4000, then to 0 at 5000`."""
    from smollm2.optim import decay_start, warmup_steps

    recipe, steps = protocol.recipe, protocol.steps
    peak = f"{recipe.lr:.1e}" + (
        f" (muon {recipe.muon_lr:.1e})" if recipe.optimizer == "muon" else ""
    )
    text = f"{recipe.optimizer}, {recipe.schedule}: to {peak} by step {warmup_steps(recipe, steps)}"
    if recipe.schedule == "wsd":
        text += f", constant to {decay_start(recipe, steps)}"
    end = round(steps * recipe.schedule_length)
    cut = f" (the run ends at {steps})" if end > steps else ""
    return f"{text}, then to {recipe.final_lr * recipe.lr:g} at {end}{cut}"
