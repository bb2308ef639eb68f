"""What ends a training, as a sentence."""

import torch

from smollm2.errors import RunError
from smollm2.runs.run import Run


class NoMemory(RunError):
    """The model, its optimizer or a batch does not fit into memory."""


def as_run_error(run: Run, error: Exception) -> Exception:
    """The error as a sentence if the disk or memory is full; any other error unchanged."""
    if isinstance(error, OSError):
        return RunError(
            f"Run {run.name!r} could not write its files: {error}. What was saved before is "
            "unharmed."
        )
    if run.protocol.compile:
        from torch._dynamo.exc import TorchDynamoException

        if isinstance(error, TorchDynamoException):
            reason = str(error).strip().partition("\n")[0]
            return RunError(f"The layers cannot be compiled here ({reason}); use `compile=False`.")
    # A CPU allocation that fails is a plain RuntimeError, in these words on Windows and Linux.
    no_memory = any(words in str(error) for words in ("not enough memory", "can't allocate memory"))
    if no_memory or isinstance(error, MemoryError | torch.OutOfMemoryError):
        return NoMemory(
            "There is not enough memory for this model with this batch; try half the "
            "`micro_batch_size` with `grad_accum=2`, a shorter `seq_len`, or a smaller model."
        )
    return error
