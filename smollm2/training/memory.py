"""Whether a training can fit into the memory of this machine, before anything is allocated."""

from typing import TYPE_CHECKING

from smollm2.device import machine_bytes
from smollm2.errors import UserError
from smollm2.model.cost import parameters
from smollm2.protocol.run_config import ResolvedConfig

if TYPE_CHECKING:
    from smollm2.training.world import World


class TooLarge(UserError):
    """A training that can never fit into the memory of this machine."""


def least_bytes(protocol: ResolvedConfig) -> tuple[int, int]:
    """Bytes of weights, gradients and optimizer, and at the very least of the activations that one
    micro-batch saves for its backward pass: the residual stream (B, T, D) at every layer."""
    model = protocol.model
    width = 2 if protocol.dtype == "bfloat16" else 4
    rows = protocol.micro_batch_size * protocol.seq_len
    activations = rows * model.d_model * model.n_layers * width
    return protocol.recipe.state_bytes(model, protocol.dtype), activations


def require_memory(protocol: ResolvedConfig, world: "World | None" = None) -> None:
    """Raise `TooLarge` if a training of `protocol` cannot fit, whatever else is running.

    Args:
        world: the processes that divide it among themselves, each with such a memory.
    """
    state, activations = least_bytes(protocol)
    if world is not None:
        width = 2 if protocol.dtype == "bfloat16" else 4
        # Weights and gradients of all; with fsdp these are divided too.
        whole = 0 if world.is_sharded else 2 * width * parameters(protocol.model).total
        state = whole + (state - whole) // world.size
    there = machine_bytes(protocol.device)
    if state + activations <= there:
        return
    what = "the machine" if protocol.device != "cuda" else "the GPU"
    remedy = "a smaller model"
    if activations > there - state > 0:
        remedy = "a smaller `micro_batch_size` with a larger `grad_accum`, or a shorter `seq_len`"
    raise TooLarge(
        f"Training takes at least {(state + activations) / 1e9:,.1f} GB of memory (weights, "
        f"gradients and optimizer {state / 1e9:,.1f}, activations {activations / 1e9:,.1f}), and "
        f"{what} has {there / 1e9:,.1f} GB; use {remedy}."
    )
