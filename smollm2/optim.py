"""AdamW and Muon over fp32 master weights, and the learning rate of step k.

The model computes in its own dtype (bf16 or fp32); the optimizer keeps an fp32 master of every
parameter and sums the gradients of micro-batches in fp32, so that neither small updates nor small
summands are rounded away.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from smollm2.model import SmolLM2, matrices
from smollm2.protocol import Recipe

# Numbers of a group of parameters, which is updated at a time: what of it is fp32 for that alone,
# 4 MB, then stays in a processor's cache.
GROUP_NUMBERS = 2**20


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


@dataclass(frozen=True)
class Group:
    """Parameters that are updated together, the optimizers of their leaves, and the peak learning
    rate of each of these."""

    names: list[str]
    optimizers: list[tuple[torch.optim.Optimizer, float]]


class Optimizer:
    """Owns the masters and moments of a model, which it converts to `dtype`.

    The gradient of a step is that of its only micro-batch as autograd leaves it, or the fp32 sum of
    several; then each is added as soon as it is there and freed, so that at most one exists in the
    model's dtype at a time.
    """

    def __init__(self, model: SmolLM2, recipe: Recipe, dtype: torch.dtype) -> None:
        self.config, self.recipe = model.config, recipe
        self.parameters = dict(model.named_parameters())
        # In fp32 master and parameter are the same memory.
        self.masters = {name: p.detach() for name, p in self.parameters.items()}
        model.to(dtype)
        self.sums: dict[str, Tensor] = {}
        self.filled: set[str] = set()
        if recipe.grad_accum > 1:
            for name, parameter in self.parameters.items():
                self.sums[name] = torch.zeros_like(self.masters[name])
                parameter.register_post_accumulate_grad_hook(
                    collector(name, self.sums[name], self.filled)
                )
        # What is updated: whole parameters, or for Muon the matrices that they fuse.
        self.leaves: dict[str, Tensor] = {}
        for name, master in self.masters.items():
            self.leaves |= self.split(name, master)
        self.groups = [self.group(names) for names in self.grouped_names()]

    def split(self, name: str, tensor: Tensor) -> dict[str, Tensor]:
        """The leaves of parameter `name`, whose master or gradient `tensor` is."""
        return matrices(self.config, name, tensor) if self.is_muons(name) else {name: tensor}

    def is_muons(self, name: str) -> bool:
        is_matrix = self.masters[name].ndim > 1 and name not in ("embed.weight", "lm_head.weight")
        return self.recipe.optimizer == "muon" and is_matrix

    def grouped_names(self) -> Iterator[list[str]]:
        """The parameters, in their order, as many together as `GROUP_NUMBERS` asks for."""
        names: list[str] = []
        for name in self.masters:
            names.append(name)
            if sum(self.masters[other].numel() for other in names) >= GROUP_NUMBERS:
                yield names
                names = []
        if names:
            yield names

    def group(self, names: list[str]) -> Group:
        recipe = self.recipe
        decayed: list[Tensor] = []
        plain: list[Tensor] = []
        orthogonal: list[Tensor] = []
        for name in names:
            kind = plain if self.masters[name].ndim == 1 else decayed
            leaves = self.split(name, self.masters[name])
            (orthogonal if self.is_muons(name) else kind).extend(self.leaves[x] for x in leaves)
        optimizers: list[tuple[torch.optim.Optimizer, float]] = []
        if decayed or plain:
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
            optimizers.append((adamw, recipe.lr))
        if orthogonal:
            muon = torch.optim.Muon(
                orthogonal, lr=recipe.muon_lr, momentum=recipe.momentum, weight_decay=0.0
            )
            optimizers.append((muon, recipe.muon_lr))
        return Group(names, optimizers)

    def gradient(self, name: str) -> Tensor:
        """Of parameter `name` for the coming step: in the model's dtype, or the fp32 sum."""
        if self.sums:
            return self.sums[name]
        grad = self.parameters[name].grad
        assert grad is not None, name
        return grad

    @torch.no_grad()
    def gradient_norm(self) -> Tensor:
        """Global L2 norm of the step's gradient, a scalar on the device, computed in fp32."""
        # vector_norm of what has just been widened takes eight times as long on a CPU.
        squares = [self.gradient(name).float().square().sum() for name in self.masters]
        return torch.stack(squares).sum().sqrt()

    @torch.no_grad()
    def step(self, factor: float, gradient_norm: float) -> None:
        """Clip, update the masters at `factor` of the peak learning rates, refresh the model and
        free the gradients."""
        clip = self.recipe.grad_clip
        scale = clip / (gradient_norm + 1e-6) if gradient_norm > clip else 1.0
        for group in self.groups:
            for name in group.names:
                grad = self.gradient(name).float()
                if scale != 1.0:
                    grad.mul_(scale)
                for leaf, part in self.split(name, grad).items():
                    self.leaves[leaf].grad = part
            for optimizer, peak in group.optimizers:
                for settings in optimizer.param_groups:
                    settings["lr"] = peak * factor
                optimizer.step()
                optimizer.zero_grad()
            self.refresh(group.names)
            for name in group.names:
                self.parameters[name].grad = None
        self.filled.clear()

    @torch.no_grad()
    def refresh(self, names: Iterable[str]) -> None:
        """Round the masters of `names` into the model's parameters."""
        for name in names:
            if self.parameters[name].dtype != torch.float32:
                self.parameters[name].copy_(self.masters[name])

    def is_finite(self) -> bool:
        """Whether every master weight is a finite number."""
        return all(bool(master.isfinite().all()) for master in self.masters.values())

    def state(self) -> dict[str, Tensor]:
        """Masters (`model.*`) and moments (`optimizer.*`): all that a checkpoint holds."""
        tensors = {f"model.{name}": master for name, master in self.masters.items()}
        names = {id(leaf): name for name, leaf in self.leaves.items()}
        for optimizer in self.optimizers():
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
        for optimizer in self.optimizers():
            for group in optimizer.param_groups:
                for leaf in group["params"]:
                    moments = with_prefix(tensors, f"optimizer.{names[id(leaf)]}.")
                    if moments:
                        optimizer.state[leaf] = {k: v.to(leaf.device) for k, v in moments.items()}
        self.refresh(self.masters)

    def optimizers(self) -> Iterator[torch.optim.Optimizer]:
        for group in self.groups:
            yield from (optimizer for optimizer, _ in group.optimizers)


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
