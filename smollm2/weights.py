"""Weights from a safetensors file, checked before anything computes with them."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from smollm2.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor


def read_weights(path: Path, name: str, device: str = "cpu") -> "dict[str, Tensor]":
    """The tensors of a safetensors file by name.

    Args:
        name: of the file in messages.

    Raises:
        UserError: it is not a safetensors file, or a weight is NaN or infinite.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path, device=device)
    except (OSError, SafetensorError, ValueError, TypeError, OverflowError) as error:
        raise UserError(f"{name} is damaged ({error!s:.200}); copy or fetch it again.") from None
    require_finite(tensors, name)
    return tensors


def require_finite(tensors: "Mapping[str, Tensor]", name: str) -> None:
    """Raise `UserError` if a weight is NaN or infinite. An optimizer's moments may be infinite:
    training goes on, and as before.

    Args:
        name: of their file in messages.
    """
    for label, tensor in tensors.items():
        if label.startswith("optimizer.") or not is_checked(tensor):
            continue
        # The extremes are NaN if any number is; nothing of the tensor's size is allocated.
        low, high = tensor.aminmax()
        if not (low.isfinite() and high.isfinite()):
            value = "infinite" if low.isinf() or high.isinf() else "not a number (NaN)"
            raise UserError(
                f"{name} is broken: in {label.removeprefix('model.')} a weight is {value}. Take "
                "weights from before that, or train them again."
            )


def is_checked(tensor: "Tensor") -> bool:
    """Whether a tensor's numbers can be NaN or infinite and can be compared."""
    import torch

    dtypes = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    return tensor.dtype in dtypes and tensor.numel() > 0
