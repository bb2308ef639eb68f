"""Any registered optimizer over fp32 master weights.

The model computes in its own dtype (bf16 or fp32); the optimizer keeps an fp32 master of every
parameter and sums the gradients of micro-batches in fp32, so rounding loses
neither small updates nor small summands.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from smollm2.model.config import ModelConfig
from smollm2.model.transformer import SmolLM2, matrices
from smollm2.protocol.optimizer_spec import OptimizerSpec
from smollm2.protocol.optimizers import find_optimizer
from smollm2.protocol.recipe import Recipe

# Numbers that a CPU updates at a time; their temporary fp32 copies take 4 to 20 MB. A group has at
# least GROUP_NUMBERS, a row part at most LEAF_NUMBERS.
GROUP_NUMBERS = 2**20
LEAF_NUMBERS = 2**22


def is_layer_matrix(name: str, tensor: Tensor) -> bool:
    """Whether a parameter or leaf is a matrix of a layer: no norm, embedding or head."""
    return tensor.ndim > 1 and not name.startswith(("embed.", "lm_head."))


@dataclass(frozen=True)
class Group:
    """Leaves that are updated together, their optimizers and the peak learning rate of each."""

    leaves: list[str]
    optimizers: list[tuple[torch.optim.Optimizer, float]]


class Moment(NamedTuple):
    """A moment of a leaf: the leaf's name and the optimizer's own for it, such as `exp_avg`."""

    leaf: str
    key: str


class Optimizer:
    """Owns the masters and moments of a model, which it converts to `dtype`.

    With one micro-batch per step, autograd's gradient is used as it is. With several, each gradient
    is added to an fp32 sum as soon as it exists and then freed, so that at most one exists in the
    model's dtype at a time.
    """

    def __init__(self, model: SmolLM2, recipe: Recipe, dtype: torch.dtype) -> None:
        self.config, self.recipe = model.config, recipe
        self.spec = find_optimizer(recipe.optimizer)
        self.parameters = dict(model.named_parameters())
        # In fp32 master and parameter are the same memory.
        self.masters = {name: p.detach() for name, p in self.parameters.items()}
        model.to(dtype)
        self.sums: dict[str, Tensor] = {}
        self.filled: set[str] = set()
        self.leaves = self.split(self.masters)
        self.weights = self.split({name: p.detach() for name, p in self.parameters.items()})
        self.collect_gradients()
        self.groups = [
            Group(names, self.spec.build({name: self.leaves[name] for name in names}, recipe))
            for names in self.grouped_leaves()
        ]

    def collect_gradients(self) -> None:
        """Have the gradients of several micro-batches added up, each as soon as it exists."""
        if self.recipe.grad_accum > 1:
            for name, parameter in self.parameters.items():
                self.sums[name] = torch.zeros_like(self.masters[name])
                parameter.register_post_accumulate_grad_hook(
                    collector(name, self.sums[name], self.filled)
                )

    def split(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Views of each parameter (master, weight or gradient) by leaf; see `split_leaves`."""
        return split_leaves(self.config, self.spec, tensors)

    def grouped_leaves(self) -> Iterator[list[str]]:
        """The leaves in order, in groups of at least `GROUP_NUMBERS`; on a GPU one group, since
        there one kernel for many leaves saves time."""
        names: list[str] = []
        for name, leaf in self.leaves.items():
            names.append(name)
            n_numbers = sum(self.leaves[other].numel() for other in names)
            if leaf.device.type == "cpu" and n_numbers >= GROUP_NUMBERS:
                yield names
                names = []
        if names:
            yield names

    @property
    def grads(self) -> dict[str, Tensor]:
        """The next step's gradient of every parameter: in the model's dtype, or an fp32 sum."""
        if self.sums:
            return self.sums
        grads = {name: p.grad for name, p in self.parameters.items() if p.grad is not None}
        assert len(grads) == len(self.parameters), self.parameters.keys() - grads.keys()
        return grads

    def leaf_grads(self) -> dict[str, Tensor]:
        """`grads` by leaf."""
        return self.split(self.grads)

    @torch.no_grad()
    def gradient_norm(self) -> Tensor:
        """Global L2 norm of the step's gradient, a scalar on the device, computed in fp32."""
        # On a CPU, torch's vector_norm takes eight times as long on freshly widened tensors.
        squares = [grad.float().square().sum() for grad in self.leaf_grads().values()]
        return torch.stack(squares).sum().sqrt()

    @torch.no_grad()
    def step(self, factor: float, gradient_norm: float) -> None:
        """Clip, update the masters at `factor` of the peak learning rates and refresh the model.
        The gradients are consumed."""
        clip = self.recipe.grad_clip
        scale = clip / (gradient_norm + 1e-6) if gradient_norm > clip else 1.0
        grads = self.leaf_grads()
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
        """Round these leaves of the masters into the model's parameters."""
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
        return self.final_weights() | whole_moments(self.moments())

    def final_weights(self) -> dict[str, Tensor]:
        """The masters, as `state` has them."""
        return {f"model.{name}": master for name, master in self.masters.items()}

    def moments(self) -> dict[Moment, Tensor]:
        """The moments of each leaf."""
        return {
            Moment(name, key): value
            for name, leaf, optimizer in self.owned()
            for key, value in optimizer.state.get(leaf, {}).items()
        }

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of `state`; takes ownership of the moments, which start at zero if absent."""
        for name, master in self.masters.items():
            master.copy_(tensors[f"model.{name}"])
        self.load_moments(self.parted(tensors))
        self.refresh(self.leaves)

    def parted(self, tensors: dict[str, Tensor]) -> dict[Moment, Tensor]:
        """The moments of each leaf from those of a state."""
        moments: dict[str, dict[str, Tensor]] = {}
        for label, tensor in tensors.items():
            if label.startswith("optimizer."):
                name, _, key = label.removeprefix("optimizer.").rpartition(".")
                moments.setdefault(name, {})[key] = tensor
        return {
            Moment(name, key): self.part_of(name, value)
            for name in (self.weights if moments else ())
            for key, value in moments[row_owner(name)].items()
        }

    def load_moments(self, moments: dict[Moment, Tensor]) -> None:
        """Set the moments of each leaf, if there are any."""
        by_leaf: dict[str, dict[str, Tensor]] = {}
        for (name, key), value in moments.items():
            by_leaf.setdefault(name, {})[key] = value.to(self.weights[name].device)
        if by_leaf:
            for name, leaf, optimizer in self.owned():
                optimizer.state[leaf] = by_leaf[name]

    def part_of(self, name: str, moment: Tensor) -> Tensor:
        """The part of a parameter's moment that belongs to leaf `name`; a scalar is copied."""
        if "#" not in name:
            return moment
        return moment.clone() if moment.ndim == 0 else self.split({row_owner(name): moment})[name]


def split_leaves(
    config: ModelConfig, spec: OptimizerSpec, tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Views of each parameter (master, weight or gradient) by leaf: the matrices that it fuses if
    the optimizer needs them whole, else parts of its rows (`NAME#0`, ...) if it is large."""
    leaves: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if spec.whole_matrices and is_layer_matrix(name, tensor):
            leaves |= matrices(config, name, tensor)
            continue
        parts = tensor.split(max(1, LEAF_NUMBERS * len(tensor) // tensor.numel()))
        labels = [f"{name}#{n}" for n in range(len(parts))] if len(parts) > 1 else [name]
        leaves |= dict(zip(labels, parts, strict=True))
    return leaves


def whole_moments(moments: Mapping[Moment, Tensor]) -> dict[str, Tensor]:
    """The moments as `state` has them: parts of one parameter are joined; they share scalars."""
    parts: dict[str, list[Tensor]] = {}
    for (name, key), value in moments.items():
        parts.setdefault(f"optimizer.{row_owner(name)}.{key}", []).append(value)
    return {
        label: values[0] if len(values) == 1 or values[0].ndim == 0 else torch.cat(values)
        for label, values in parts.items()
    }


def row_owner(name: str) -> str:
    """The name of the tensor that a leaf is a part of: `NAME` for `NAME#0`."""
    return name.partition("#")[0]


def collector(name: str, buffer: Tensor, filled: set[str]) -> Callable[[Tensor], None]:
    """A hook that moves a parameter's gradient into its fp32 buffer.

    It holds no reference to the optimizer: model and optimizer would be a cycle, and their
    gigabytes would outlive their last use.
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
