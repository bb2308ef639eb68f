"""The learning rate of step k."""

import math

from smollm2.protocol.recipe import Recipe


def schedule_steps(recipe: Recipe, steps: int) -> int:
    """Updates in the whole schedule of a run of `steps`; the run may end before it."""
    return round(steps * recipe.schedule_length)


def warmup_steps(recipe: Recipe, steps: int) -> int:
    """Updates until the peak learning rate."""
    share = round(schedule_steps(recipe, steps) * recipe.warmup)
    return min(max(1, share), recipe.max_warmup_steps)


def decay_start(recipe: Recipe, steps: int) -> int:
    """Updates before the final decay of the wsd schedule."""
    total = schedule_steps(recipe, steps)
    return total - max(1, round(total * recipe.decay))


def lr_factor(recipe: Recipe, step: int, steps: int) -> float:
    """The learning rate of update `step` (0 is the first of `steps`) as a share of the peak."""
    total, warmup = schedule_steps(recipe, steps), warmup_steps(recipe, steps)
    if step < warmup:
        return (step + 1) / warmup
    if recipe.schedule == "cosine":
        progress = (step - warmup) / max(1, total - warmup)
        share = 0.5 * (1 + math.cos(math.pi * progress))
    else:
        share = min(1.0, (total - step) / (total - decay_start(recipe, steps)))
    return recipe.final_lr + (1 - recipe.final_lr) * share
