"""How many processes train a run together. The protocol does not say: the result is the same."""

import os

from smollm2.errors import UserError
from smollm2.protocol.optimizers import find_optimizer
from smollm2.protocol.run_config import ResolvedConfig


def processes() -> int:
    """How many processes the environment says train together; 1 without a launcher.

    Raises:
        UserError: the environment is not what a launcher sets.
    """
    text = os.environ.get("WORLD_SIZE", "1")
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"WORLD_SIZE is {text!r:.40}, not a number of processes.")
    return int(text)


def require_processes(protocol: ResolvedConfig, is_sharded: bool) -> None:
    """Check that the processes of the environment can train a run together.

    Args:
        is_sharded: whether they are to divide the weights too; see `training.fully_sharded`.

    Raises:
        UserError: they cannot share the micro-batches of a step evenly, or divide this model.
    """
    n_processes, n_micro_batches = processes(), protocol.recipe.grad_accum
    if n_micro_batches % n_processes:
        raise UserError(
            f"{n_processes} processes cannot share the micro-batches of a step evenly, of which "
            f"there are {n_micro_batches} (`grad_accum`): start as many as divide it, or set it to "
            f"a multiple of {n_processes} with a smaller `micro_batch_size`.",
            field="grad_accum",
        )
    if is_sharded and n_processes == 1:
        raise UserError("fsdp divides a model among processes: start them with torchrun.")
    if is_sharded and find_optimizer(protocol.recipe.optimizer).whole_matrices:
        raise UserError(
            f"{protocol.recipe.optimizer} needs whole matrices, which fsdp cuts; use "
            "`optimizer=adamw`, or processes that have all weights."
        )
    if is_sharded and protocol.compile:
        raise UserError("fsdp does not compile layers; set `compile=False`.")
