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

# Numbers that a CPU updates at a time: what of them is fp32 for that alone takes 4 to 20 MB.
# A group has at least as many, a leaf of AdamW at most.
GROUP_NUMBERS = 2**20
LEAF_NUMBERS = 2**22


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
    """Leaves that are updated together, their optimizers and the peak learning rate of each."""

    leaves: list[str]
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
        self.leaves = self.split(self.masters)
        self.weights = self.split({name: p.detach() for name, p in self.parameters.items()})
        self.groups = [self.group(leaves) for leaves in self.grouped_leaves()]

    def split(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Views of what is updated of each parameter, from its master, weight or gradient: of
        Muon's the matrices that it fuses, of AdamW's parts of the rows (`NAME#0`, ...) if large."""
        leaves: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            if self.is_muons(name, tensor):
                leaves |= matrices(self.config, name, tensor)
                continue
            parts = tensor.split(max(1, LEAF_NUMBERS * len(tensor) // tensor.numel()))
            labels = [f"{name}#{n}" for n in range(len(parts))] if len(parts) > 1 else [name]
            leaves |= dict(zip(labels, parts, strict=True))
        return leaves

    def is_muons(self, name: str, tensor: Tensor) -> bool:
        is_matrix = tensor.ndim > 1 and not name.startswith(("embed.", "lm_head."))
        return self.recipe.optimizer == "muon" and is_matrix

    def grouped_leaves(self) -> Iterator[list[str]]:
        """The leaves, in their order, as many together as `GROUP_NUMBERS` asks for; all of them
        on a GPU, where a kernel for many is what saves time."""
        names: list[str] = []
        for name, leaf in self.leaves.items():
            names.append(name)
            n_numbers = sum(self.leaves[other].numel() for other in names)
            if leaf.device.type == "cpu" and n_numbers >= GROUP_NUMBERS:
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
            leaf = self.leaves[name]
            adamws = plain if leaf.ndim == 1 else decayed
            (orthogonal if self.is_muons(name, leaf) else adamws).append(leaf)
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

    @property
    def grads(self) -> dict[str, Tensor]:
        """The coming step's gradient of each parameter, all of which have one: in the model's
        dtype, or an fp32 sum."""
        if self.sums:
            return self.sums
        grads = {name: p.grad for name, p in self.parameters.items() if p.grad is not None}
        assert len(grads) == len(self.parameters), self.parameters.keys() - grads.keys()
        return grads

    @torch.no_grad()
    def gradient_norm(self) -> Tensor:
        """Global L2 norm of the step's gradient, a scalar on the device, computed in fp32."""
        # torch's vector_norm of what has just been widened takes eight times as long on a CPU.
        squares = [grad.float().square().sum() for grad in self.split(self.grads).values()]
        return torch.stack(squares).sum().sqrt()

    @torch.no_grad()
    def step(self, factor: float, gradient_norm: float) -> None:
        """Clip, update the masters at `factor` of the peak learning rates and refresh the model;
        the gradients are used up."""
        clip = self.recipe.grad_clip
        scale = clip / (gradient_norm + 1e-6) if gradient_norm > clip else 1.0
        grads = self.split(self.grads)
        for group in self.groups:
            for name in group.leaves:
                grad = grads[name].float()
                self.leaves[name].grad = grad if scale == 1.0 else grad.mul_(scale)
            for optimizer, peak in group.optimizers:
                for settings in optimizer.param_groups:
                    settings["lr"] = peak * factor
                optimizer.step()
                optimizer.zero_grad()
            self.refresh(group.leaves)
        for parameter in self.parameters.values():
            parameter.grad = None
        self.filled.clear()

    @torch.no_grad()
    def refresh(self, leaves: Iterable[str]) -> None:
        """Round what of the masters has been updated into the model's parameters."""
        for name in leaves:
            if self.weights[name].dtype != torch.float32:
                self.weights[name].copy_(self.leaves[name])

    def is_finite(self) -> bool:
        """Whether every master weight is a finite number."""
        return all(bool(master.isfinite().all()) for master in self.masters.values())

    def owned(self) -> Iterator[tuple[str, Tensor, torch.optim.Optimizer]]:
        """Each leaf's name, itself and the optimizer that updates it."""
        names = {id(leaf): name for name, leaf in self.leaves.items()}
        for group in self.groups:
            for optimizer, _ in group.optimizers:
                for settings in optimizer.param_groups:
                    yield from ((names[id(leaf)], leaf, optimizer) for leaf in settings["params"])

    def state(self) -> dict[str, Tensor]:
        """Masters (`model.*`) and moments (`optimizer.*`): all that a checkpoint holds."""
        tensors = {f"model.{name}": master for name, master in self.masters.items()}
        parts: dict[str, list[Tensor]] = {}
        for name, leaf, optimizer in self.owned():
            for key, value in optimizer.state.get(leaf, {}).items():
                parts.setdefault(f"optimizer.{whole(name)}.{key}", []).append(value)
        for label, values in parts.items():  # of a parameter in parts; a scalar is that of each
            is_whole = len(values) == 1 or values[0].ndim == 0
            tensors[label] = values[0] if is_whole else torch.cat(values)
        return tensors

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of `state`, which takes the moments over; without any they start at zero."""
        for name, master in self.masters.items():
            master.copy_(tensors[f"model.{name}"])
        moments: dict[str, dict[str, Tensor]] = {}
        for label, tensor in tensors.items():
            if label.startswith("optimizer."):
                name, _, key = label.removeprefix("optimizer.").rpartition(".")
                moments.setdefault(name, {})[key] = tensor.to(self.masters["norm.weight"].device)
        if moments:
            for name, leaf, optimizer in self.owned():
                found = moments[whole(name)].items()
                optimizer.state[leaf] = {k: self.part_of(name, value) for k, value in found}
        self.refresh(self.leaves)

    def part_of(self, name: str, moment: Tensor) -> Tensor:
        """What is leaf `name`'s of a moment of the parameter; a scalar is each one's own."""
        if "#" not in name:
            return moment
        return moment.clone() if moment.ndim == 0 else self.split({whole(name): moment})[name]


def whole(name: str) -> str:
    """The name of what a leaf is a part of."""
    return name.partition("#")[0]


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
