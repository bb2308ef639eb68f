"""A model whose norms all differ."""

import torch

from smollm2 import SmolLM2


def perturbed(config):
    """A model whose norms differ from one another, so no two can be confused."""
    model = SmolLM2(config, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model
