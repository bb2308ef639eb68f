"""A model whose weights are divided among the processes too (FSDP2 of torch), for one that does not
fit a single device.

torch adds up gradients in an order that depends on the number of processes, so a run agrees with
that of one process to rounding: in fp32 the losses of 8 steps are within 5e-6. Checkpoints are
those of any run: process 0 gathers them, one parameter at a time, and any number of processes, with
or without this, goes on from them.
"""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor, distribute_tensor

from smollm2.model.transformer import SmolLM2
from smollm2.protocol.optimizers import find_optimizer
from smollm2.protocol.recipe import Recipe
from smollm2.training.world import World


class FullySharded:
    """Has the methods of `Optimizer`, for a model whose fp32 weights are divided by rows."""

    def __init__(
        self, model: SmolLM2, recipe: Recipe, dtype: torch.dtype, device: str, world: World
    ) -> None:
        self.recipe, self.world = recipe, world
        policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
        mesh = init_device_mesh(device, (world.size,))
        for block in model.blocks:
            fully_shard(block, mesh=mesh, mp_policy=policy)
        fully_shard(model, mesh=mesh, mp_policy=policy)
        register_fsdp_forward_method(model, "hidden")
        for module in model.modules():
            if isinstance(module, FSDPModule):
                # A plain sum, as the loss is divided by the micro-batches, and gloo has no other.
                module.set_force_sum_reduction_for_comms(True)
                module.set_gradient_divide_factor(1.0)
        self.parameters: dict[str, DTensor] = dict(model.named_parameters())  # type: ignore[arg-type]
        self.optimizers = find_optimizer(recipe.optimizer).build(dict(self.parameters), recipe)

    @torch.no_grad()
    def gradient_norm(self) -> Tensor:
        """Global L2 norm of the step's gradient, a scalar on the device, computed in fp32."""
        squares = [local(p.grad).float().square().sum() for p in self.parameters.values()]
        return self.world.sum(torch.stack(squares).sum()).sqrt()

    @torch.no_grad()
    def step(self, factor: float, gradient_norm: float) -> None:
        """See `Optimizer`."""
        clip = self.recipe.grad_clip
        if gradient_norm > clip:
            for parameter in self.parameters.values():
                local(parameter.grad).mul_(clip / (gradient_norm + 1e-6))
        for optimizer, peak in self.optimizers:
            for settings in optimizer.param_groups:
                settings["lr"] = peak * factor
            optimizer.step()
            optimizer.zero_grad()

    def is_finite(self) -> bool:
        """Whether every weight of every process is a finite number."""
        bad = sum(not bool(local(p).isfinite().all()) for p in self.parameters.values())
        return not self.world.sum(torch.tensor([bad]))

    def state(self) -> dict[str, Tensor]:
        """See `Optimizer`; on process 0 that of all processes, elsewhere nothing."""
        return self.final_weights() | self.whole(
            (f"optimizer.{name}.{key}", value)
            for name, parameter in self.parameters.items()
            for optimizer, _ in self.optimizers
            for key, value in optimizer.state.get(parameter, {}).items()
        )

    def final_weights(self) -> dict[str, Tensor]:
        """See `state`."""
        return self.whole((f"model.{name}", p.detach()) for name, p in self.parameters.items())

    @torch.no_grad()
    def whole(self, parts: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
        """The tensors that are divided, on the CPU of process 0."""
        found = {}
        for name, part in parts:
            tensor = part.full_tensor() if isinstance(part, DTensor) else part
            if self.world.leads:
                found[name] = tensor.cpu()
        return found

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor]) -> None:
        """See `Optimizer`; those of process 0 count."""
        for name, parameter in self.parameters.items():
            local(parameter).copy_(local(self.divided(tensors.get(f"model.{name}"), parameter)))
        facts = {label: tensor.ndim for label, tensor in tensors.items()}
        for label, n_dimensions in self.world.told(facts).items():
            if label.startswith("optimizer."):
                name, _, key = label.removeprefix("optimizer.").rpartition(".")
                parameter, value = self.parameters[name], tensors.get(label)
                if n_dimensions:
                    moment: Tensor = self.divided(value, parameter)
                else:
                    number = self.world.told(None if value is None else value.item())
                    moment = torch.tensor(number, device=parameter.device)
                for optimizer, _ in self.optimizers:
                    optimizer.state[parameter][key] = moment

    def divided(self, tensor: Tensor | None, like: DTensor) -> DTensor:
        """The tensor of process 0, divided as `like` is."""
        if tensor is None:
            tensor = torch.empty(like.shape)
        whole = tensor.to(like.device, torch.float32)
        return distribute_tensor(whole, like.device_mesh, like.placements)


def local(tensor: Tensor | None) -> Tensor:
    """This process's rows of a tensor."""
    assert isinstance(tensor, DTensor)
    return tensor.to_local()
