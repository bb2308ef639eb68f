"""AdamW and Muon over fp32 master weights, and the learning rate of step k.

The model computes in its own dtype (bf16 or fp32); the optimizer keeps an fp32 master and an fp32
gradient of every parameter, so that small updates and summed micro-batches are not rounded away.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from smollm2.model import SmolLM2, matrices
from smollm2.protocol import Recipe


def warmup_steps(recipe: Recipe, steps: int) -> int:
    """Updates until the peak learning rate."""
    total = round(steps * recipe.schedule_length)
    return min(max(1, round(total * recipe.warmup)), recipe.max_warmup_steps)


def decay_start(recipe: Recipe, steps: int) -> int:
    """Updates before the wsd schedule's final decay."""
    total = round(steps * recipe.schedule_length)
    return total - max(1, round(total * recipe.decay))


def lr_factor(recipe: Recipe, step: int, steps: int) -> float:
    """The learning rate of update `step` (0 is the first of `steps`) as a share of the peak."""
    total, warmup = round(steps * recipe.schedule_length), warmup_steps(recipe, steps)
    if step < warmup:
        return (step + 1) / warmup
    if recipe.schedule == "cosine":
        progress = (step - warmup) / max(1, total - warmup)
        share = 0.5 * (1 + math.cos(math.pi * progress))
    else:
        share = min(1.0, (total - step) / (total - decay_start(recipe, steps)))
    return recipe.final_lr + (1 - recipe.final_lr) * share


class Optimizer:
    """Owns the masters, gradients and moments of a model, which it converts to `dtype`.

    After a backward pass each gradient is moved into its fp32 buffer (added, from the second
    micro-batch of a step on) and the parameter's own is freed, so at most one gradient exists in
    the model's dtype at a time.
    """

    def __init__(self, model: SmolLM2, recipe: Recipe, dtype: torch.dtype) -> None:
        self.recipe = recipe
        self.parameters = dict(model.named_parameters())
        # In fp32 master and parameter are the same memory.
        self.masters = {name: p.detach() for name, p in self.parameters.items()}
        model.to(dtype)
        self.grads = {name: torch.zeros_like(master) for name, master in self.masters.items()}
        self.filled: set[str] = set()
        for name, parameter in self.parameters.items():
            parameter.register_post_accumulate_grad_hook(
                collector(name, self.grads[name], self.filled)
            )

        # What the optimizers update: whole parameters, or for Muon the matrices they fuse.
        self.leaves: dict[str, Tensor] = {}
        decayed: list[Tensor] = []
        plain: list[Tensor] = []
        orthogonal: list[Tensor] = []
        for name, master in self.masters.items():
            is_matrix = master.ndim > 1 and name not in ("embed.weight", "lm_head.weight")
            if recipe.optimizer == "muon" and is_matrix:
                leaves = matrices(model.config, name, master)
                grads = matrices(model.config, name, self.grads[name])
                group = orthogonal
            else:
                leaves, grads = {name: master}, {name: self.grads[name]}
                group = decayed if master.ndim > 1 else plain
            for leaf_name, leaf in leaves.items():
                leaf.grad = grads[leaf_name]
                self.leaves[leaf_name] = leaf
                group.append(leaf)

        adamw = torch.optim.AdamW(
            [
                {"params": decayed, "weight_decay": recipe.weight_decay},
                {"params": plain, "weight_decay": 0.0},
            ],
            lr=recipe.lr,
            betas=(recipe.beta1, recipe.beta2),
            eps=recipe.eps,
            fused=True,
        )
        self.peaks: list[tuple[torch.optim.Optimizer, float]] = [(adamw, recipe.lr)]
        if orthogonal:
            muon = torch.optim.Muon(
                orthogonal, lr=recipe.muon_lr, momentum=recipe.momentum, weight_decay=0.0
            )
            self.peaks.append((muon, recipe.muon_lr))

    def gradient_norm(self) -> Tensor:
        """Global L2 norm of the collected gradients, a scalar on the device."""
        return torch.nn.utils.get_total_norm(list(self.grads.values()))

    @torch.no_grad()
    def step(self, factor: float, gradient_norm: float) -> None:
        """Clip, update the masters at `factor` of the peak learning rates, refresh the model."""
        if gradient_norm > self.recipe.grad_clip:
            torch._foreach_mul_(
                list(self.grads.values()), self.recipe.grad_clip / (gradient_norm + 1e-6)
            )
        for optimizer, peak in self.peaks:
            for group in optimizer.param_groups:
                group["lr"] = peak * factor
            optimizer.step()
        self.filled.clear()
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Round the masters into the model's parameters."""
        for name, parameter in self.parameters.items():
            if parameter.dtype != torch.float32:
                parameter.copy_(self.masters[name])

    def is_finite(self) -> bool:
        """Whether every master weight is a finite number."""
        return all(bool(master.isfinite().all()) for master in self.masters.values())

    def state(self) -> dict[str, Tensor]:
        """Masters (`model.*`) and moments (`optimizer.*`): all that a checkpoint holds."""
        tensors = {f"model.{name}": master for name, master in self.masters.items()}
        names = {id(leaf): name for name, leaf in self.leaves.items()}
        for optimizer, _ in self.peaks:
            for leaf, moments in optimizer.state.items():
                for key, value in moments.items():
                    tensors[f"optimizer.{names[id(leaf)]}.{key}"] = value
        return tensors

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of `state`, which takes the moments over; without any they start at zero."""
        for name, master in self.masters.items():
            master.copy_(tensors[f"model.{name}"])
        names = {id(leaf): name for name, leaf in self.leaves.items()}
        for optimizer, _ in self.peaks:
            for group in optimizer.param_groups:
                for leaf in group["params"]:
                    moments = with_prefix(tensors, f"optimizer.{names[id(leaf)]}.")
                    if moments:
                        optimizer.state[leaf] = {k: v.to(leaf.device) for k, v in moments.items()}
        self.refresh()


def collector(name: str, buffer: Tensor, filled: set[str]) -> Callable[[Tensor], None]:
    """A hook that moves a parameter's gradient into its fp32 buffer.

    It knows no optimizer: with a reference back to one, model and optimizer would be a cycle, and
    their gigabytes would stay after the last use.
    """

    def collect(parameter: Tensor) -> None:
        assert parameter.grad is not None
        if name in filled:
            buffer.add_(parameter.grad)
        else:
            buffer.copy_(parameter.grad)
            filled.add(name)
        parameter.grad = None

    return collect


def with_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
