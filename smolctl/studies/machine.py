"""The machine that work is done on: device, dtype, and whether it is idle."""

import os

from smolctl.talk import warn
from smollm2.device import has_native_bfloat16, resolve_device, resolve_dtype
from smollm2.errors import UserError
from smollm2.runs.run import Run


def require_machine(device: str | None, dtype: str | None) -> None:
    """Validate device and dtype before anything is imported or loaded.

    Raises:
        UserError: this machine does not have the device, or there is no such dtype.
    """
    resolve_dtype(dtype, resolve_device(device))


def machine_for(
    run: Run, device: str | None, dtype: str | None, *, is_quantized: bool = False
) -> tuple[str, str]:
    """Device and dtype for a run: as asked; by default the run's own, or the best available device
    where the run's own is missing.

    Args:
        is_quantized: whether it is for a quantized model of the run. That computes in bf16 where
            the device does so natively: in fp32 its kernels are several times slower.
    """
    own = run.protocol
    if device is not None:
        device = resolve_device(device)
    else:
        try:
            device = resolve_device(own.device)
        except UserError:
            device = resolve_device(None)
            warn(f"{run.name} was trained on {own.device}; here it runs on {device}.")
    default = "bfloat16" if is_quantized and has_native_bfloat16(device) else own.dtype
    return device, resolve_dtype(dtype or default, device)


def warn_if_busy() -> None:
    """Warn if other work may slow down what is trained or timed: threads that share a core with
    other work may wait for each other most of the time."""
    cores = os.cpu_count() or 1
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if load > cores / 2:
        warn(
            f"this machine has been busy for the last minute (load {load:.1f} on {cores} cores). "
            "What is trained or timed now may be many times too slow. Processes that share it are "
            f"each faster with fewer threads, such as OMP_NUM_THREADS={max(1, cores // 2)}."
        )
