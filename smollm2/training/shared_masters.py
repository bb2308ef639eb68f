"""The optimizer of several processes: each leaf of the model has one owner.

The owner alone has a leaf's fp32 master, gradient sum and moments (as in ZeRO, Rajbhandari et al.
2020, arXiv:1910.02054). It receives the gradients of each micro-batch in the model's dtype, adds
them in the order of the micro-batches, updates the master and sends the rounded weights to all.
Every sum is that of one process alone, so the result is the same bit for bit.
"""

from collections.abc import Callable, Mapping
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor

from smollm2.model.transformer import SmolLM2
from smollm2.protocol.recipe import Recipe
from smollm2.training.masters import Optimizer, split_leaves, whole_moments
from smollm2.training.world import World


class SharedOptimizer(Optimizer):
    """`Optimizer` with the masters and moments of the leaves that this process owns.

    Its methods are collectives: every process calls them in the same order.
    """

    def __init__(self, model: SmolLM2, recipe: Recipe, dtype: torch.dtype, world: World) -> None:
        self.world = world
        super().__init__(model, recipe, dtype)

    def collect_gradients(self) -> None:
        """See `Optimizer`; the gradients of a leaf go to its owner, and its master stays there."""
        sizes = {name: leaf.numel() for name, leaf in self.leaves.items()}
        self.owners = owners_of(sizes, self.world.size)
        own = {n: leaf for n, leaf in self.leaves.items() if self.owners[n] == self.world.rank}
        if self.weights[next(iter(sizes))].dtype != torch.float32:
            own = {name: leaf.clone() for name, leaf in own.items()}  # the others' masters go
        self.leaves, self.masters = own, {}
        self.sums = {name: torch.zeros_like(leaf) for name, leaf in own.items()}
        split = partial(split_leaves, self.config, self.spec)
        self.exchange = Exchange(self.world, list(self.parameters), self.owners, self.sums, split)
        for name, parameter in self.parameters.items():
            parameter.register_post_accumulate_grad_hook(partial(self.exchange.take, name))

    def leaf_grads(self) -> dict[str, Tensor]:
        """The sums of the own leaves."""
        self.exchange.finish()
        return self.sums

    @torch.no_grad()
    def gradient_norm(self) -> Tensor:
        """See `Optimizer`: the squares of all leaves are added in the same order as there."""
        grads = self.leaf_grads()
        squares = torch.zeros(len(self.owners), device=self.weights["norm.weight"].device)
        for place, name in enumerate(self.owners):
            if name in grads:
                squares[place] = grads[name].square().sum()
        return self.world.sum(squares).sum().sqrt()

    @torch.no_grad()
    def step(self, factor: float, gradient_norm: float) -> None:
        """See `Optimizer`."""
        super().step(factor, gradient_norm)
        self.exchange.start_over()
        self.send_weights()

    def send_weights(self) -> None:
        """Have every process receive each leaf's weights from its owner."""
        with self.world.talking():
            sent = [
                dist.broadcast(self.weights[name], src=owner, async_op=True)
                for name, owner in self.owners.items()
            ]
            for work in sent:
                work.wait()

    def is_finite(self) -> bool:
        """Whether every master weight of every process is a finite number."""
        bad = sum(not bool(leaf.isfinite().all()) for leaf in self.leaves.values())
        return not self.world.sum(torch.tensor([bad]))

    def state(self) -> dict[str, Tensor]:
        """See `Optimizer`; on process 0 that of all processes, elsewhere nothing."""
        weights, moments = self.final_weights(), self.world.gathered(self.moments())
        order = {name: place for place, name in enumerate(self.owners)}
        whole = sorted(moments.items(), key=lambda item: order[item[0].leaf])
        return weights | whole_moments(dict(whole))

    @torch.no_grad()
    def final_weights(self) -> dict[str, Tensor]:
        """See `state`."""
        parameters = {name: p.detach() for name, p in self.parameters.items()}
        if next(iter(parameters.values())).dtype == torch.float32:  # all processes have them
            masters = parameters
        else:
            leaves = self.world.gathered(self.leaves)
            masters = {n: torch.empty(p.shape) for n, p in parameters.items() if leaves}
            for name, view in self.split(masters).items():
                view.copy_(leaves[name])
        return {f"model.{name}": master for name, master in masters.items()}

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor]) -> None:
        """See `Optimizer`; those of process 0 count."""
        masters = {n.removeprefix("model."): t for n, t in tensors.items() if n[:6] == "model."}
        for name, master in self.world.dealt(self.split(masters), self.owners).items():
            self.leaves[name].copy_(master)
        moments = self.parted(tensors)
        owners = {moment: self.owners[moment.leaf] for moment in moments}
        self.load_moments(self.world.dealt(moments, owners))
        self.refresh(self.leaves)
        self.send_weights()


class Exchange:
    """Sends gradients to the owners of their leaves while the backward pass goes on.

    A round is one micro-batch on each process. It is added up when the next one begins, or at
    `finish`. It has no reference to the parameters, for the reason given at `collector`.

    Args:
        names: of all parameters, in order.
        owners: of all leaves.
        sums: fp32, of the own leaves.
        split: parameters by name -> leaves by name.
    """

    def __init__(
        self,
        world: World,
        names: list[str],
        owners: Mapping[str, int],
        sums: Mapping[str, Tensor],
        split: Callable[[Mapping[str, Tensor]], dict[str, Tensor]],
    ) -> None:
        self.world, self.names, self.owners = world, names, owners
        self.sums, self.split = sums, split
        self.waiting: list[str] = []  # parameters of this round whose gradients were not sent
        self.ready: dict[str, Tensor] = {}
        self.sent: list[tuple[str, Tensor, list[Tensor], dist.Work]] = []
        self.filled: set[str] = set()

    def take(self, name: str, parameter: Tensor) -> None:
        """Take the gradient of a parameter, and send what is ready."""
        assert parameter.grad is not None
        if not self.waiting:
            self.finish()
            self.waiting = list(self.names)
        self.ready[name], parameter.grad = parameter.grad, None
        # All processes must send in one order: from the last parameter to the first, which is about
        # that of the backward pass.
        with self.world.talking():
            while self.waiting and self.waiting[-1] in self.ready:
                self.send(self.waiting.pop())

    def send(self, name: str) -> None:
        """Send the leaves of a parameter's gradient."""
        for leaf, part in self.split({name: self.ready.pop(name)}).items():
            part, owner, received = part.contiguous(), self.owners[leaf], list[Tensor]()
            if owner == self.world.rank:
                received = [torch.empty_like(part) for _ in range(self.world.size)]
            work = dist.gather(part, received or None, dst=owner, async_op=True)
            self.sent.append((leaf, part, received, work))

    @torch.no_grad()
    def finish(self) -> None:
        """Wait for the round, and add its gradients in the order of their micro-batches."""
        assert not self.waiting, f"no gradient of {self.waiting}"
        for leaf, _, received, work in self.sent:
            with self.world.talking():
                work.wait()
            for grad in received:
                if leaf in self.filled:
                    self.sums[leaf].add_(grad)
                else:
                    self.sums[leaf].copy_(grad)
                    self.filled.add(leaf)
        self.sent.clear()

    def start_over(self) -> None:
        """Begin the sums of the next step."""
        self.filled.clear()


def owners_of(sizes: Mapping[str, int], n_processes: int) -> dict[str, int]:
    """Which process owns each leaf: the largest leaf first, each goes to the process that has the
    fewest numbers by then (Graham 1969: the fullest has at most 4/3 of what the best division would
    give it)."""
    filled = [0] * n_processes
    owners = {}
    for name in sorted(sizes, key=lambda name: -sizes[name]):
        owners[name] = filled.index(min(filled))
        filled[owners[name]] += sizes[name]
    return {name: owners[name] for name in sizes}
