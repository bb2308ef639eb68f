"""SmolLM2 as a library: models, data, training, evaluation. Importing it does not import torch."""

from typing import TYPE_CHECKING, Any

from smollm2._version import __version__
from smollm2.config import VARIANTS, ModelConfig, variant

if TYPE_CHECKING:
    from smollm2.model import SmolLM2

__all__ = ["VARIANTS", "ModelConfig", "SmolLM2", "__version__", "variant"]


def __getattr__(name: str) -> Any:
    if name == "SmolLM2":  # on first use: torch takes seconds to import
        from smollm2.model import SmolLM2

        return SmolLM2
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
