"""SmolLM2 as a library: models, data, training, evaluation, quantization.

It prints nothing. Names are imported on first use, since torch takes seconds to load.
"""

from typing import TYPE_CHECKING, Any

from smollm2._version import __version__

if TYPE_CHECKING:
    from smollm2.model.config import VARIANTS, ModelConfig, variant
    from smollm2.model.transformer import SmolLM2

__all__ = ["VARIANTS", "ModelConfig", "SmolLM2", "__version__", "variant"]


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name == "SmolLM2":
        return import_module("smollm2.model.transformer").SmolLM2
    if name in __all__:
        return getattr(import_module("smollm2.model.config"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
