"""SmolLM2 as a library: models, data, training, evaluation.

Importing it loads nothing: torch takes seconds, and even the variants would show in `--help`.
"""

from typing import TYPE_CHECKING, Any

from smollm2._version import __version__

if TYPE_CHECKING:
    from smollm2.config import VARIANTS, ModelConfig, variant
    from smollm2.model import SmolLM2

__all__ = ["VARIANTS", "ModelConfig", "SmolLM2", "__version__", "variant"]


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name == "SmolLM2":
        return import_module("smollm2.model").SmolLM2
    if name in __all__:
        return getattr(import_module("smollm2.config"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
