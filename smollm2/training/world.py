"""The processes that train one run together, as torchrun starts them.

Collectives here only move data: what is added is added by one process, in a fixed order, so no
result depends on how many there are.
"""

import contextlib
import ctypes
import os
import signal
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from enum import IntEnum, auto
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from smollm2.errors import RunError, UserError

# A process that does not answer for so long is lost. What process 0 does alone takes less, such as
# writing a checkpoint.
TIMEOUT_SECONDS = 600.0
START_SECONDS = 24 * 3600.0  # until process 0 has prepared its tokens
SET_PARENT_DEATH_SIGNAL = 1  # of prctl(2)


class Work(IntEnum):
    """What process 0 has all processes do; see `parallel`."""

    GRADIENTS = auto()
    UPDATE = auto()
    IS_FINITE = auto()
    STATE = auto()
    FINAL_WEIGHTS = auto()
    LOAD = auto()
    SCORES = auto()
    ROUND = auto()
    END = auto()


class ProcessLost(RunError):
    """Another process of the training has ended, or does not answer; the run can be continued."""


@dataclass
class World:
    """The processes of one training, seen from one of them.

    Args:
        rank: the number of this process; 0 leads.
        size: how many there are.
        is_sharded: whether they divide the weights too; see `fully_sharded`.
    """

    rank: int
    size: int
    is_sharded: bool
    start_group: "dist.ProcessGroup"
    has_ended: bool = field(default=False, init=False)
    is_busy: bool = field(default=False, init=False)  # with what process 0 has announced

    @property
    def leads(self) -> bool:
        """Whether this process runs the training's loop, writes and talks."""
        return self.rank == 0

    def own(self, n_micro_batches: int) -> range:
        """The micro-batches of a step that this process computes."""
        return range(self.rank, n_micro_batches, self.size)

    @contextlib.contextmanager
    def talking(self) -> Iterator[None]:
        """Turns the errors of collectives into `ProcessLost`."""
        try:
            yield
        except RuntimeError as error:
            # Its own lack of memory is not another's end.
            if isinstance(error, RunError | torch.OutOfMemoryError) or "memory" in str(error):
                raise
            reason = "it ended, or its connection"
            if "imed out" in str(error) or "imeout" in str(error):
                reason = f"no answer for {TIMEOUT_SECONDS:.0f} s"
            raise ProcessLost(
                f"Another of the {self.size} processes of this training was lost ({reason})."
            ) from error

    def told(self, value: Any, *, at_start: bool = False) -> Any:
        """What process 0 tells: its `value`, on every process.

        Args:
            at_start: whether the others wait for it to prepare, for as long as that takes.
        """
        box = [value]
        group = self.start_group if at_start else None
        with self.talking():
            dist.broadcast_object_list(box, src=0, group=group)
        return box[0]

    @contextlib.contextmanager
    def doing(self, work: Work) -> Iterator[None]:
        """Have the other processes do this while process 0 does. If it fails, they are in the
        middle of it, and nothing can be announced any more."""
        self._work(work)
        self.is_busy = True
        yield
        self.is_busy = False

    def announced(self) -> Work:
        """What process 0 does next."""
        return self._work(Work.END)

    def _work(self, work: Work) -> Work:
        box = torch.tensor([work])
        with self.talking():
            dist.broadcast(box, src=0)
        return Work(int(box))

    def release(self) -> None:
        """Let the others end: what follows, process 0 does alone. A second call does nothing."""
        if not (self.has_ended or self.is_busy):
            self.has_ended = True
            with contextlib.suppress(ProcessLost):
                self._work(Work.END)

    def require_ready(self, problem: str | None) -> None:
        """Wait until every process is ready to train, for as long as that takes.

        Args:
            problem: why this one is not.

        Raises:
            UserError: one is not; the message is that of the first.
        """
        problems: list[str | None] = [None] * self.size
        with self.talking():
            dist.all_gather_object(problems, problem, group=self.start_group)
        if found := next(filter(None, problems), None):
            raise UserError(found)

    def in_order(self, values: list[Tensor]) -> list[Tensor]:
        """Values of this process's micro-batches -> those of all micro-batches of the step."""
        if not values:
            return values
        mine = torch.stack(values)
        found = [torch.empty_like(mine) for _ in range(self.size)]
        with self.talking():
            dist.all_gather(found, mine)
        return [
            found[number % self.size][number // self.size]
            for number in range(self.size * len(values))
        ]

    def sum(self, value: Tensor) -> Tensor:
        """The sum of every process's `value`, exact where all but one are zero."""
        with self.talking():
            dist.all_reduce(value)
        return value

    def collected(self, value: Any) -> list[Any]:
        """On process 0 the values of all processes, in their order; elsewhere nothing."""
        found: list[Any] | None = [None] * self.size if self.leads else None
        with self.talking():
            dist.gather_object(value, found)
        return found or []

    def gathered(self, tensors: Mapping[Any, Tensor]) -> dict[Any, Tensor]:
        """On process 0 the tensors of all processes, on the CPU; elsewhere none."""
        shapes = {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}
        theirs = self.collected(shapes)
        with self.talking():
            if not self.leads:
                for tensor in tensors.values():
                    dist.send(tensor.detach().cpu().contiguous(), 0)
                return {}
            found = {name: tensor.detach().cpu() for name, tensor in tensors.items()}
            for source in range(1, self.size):
                for name, (shape, dtype) in theirs[source].items():
                    found[name] = torch.empty(shape, dtype=dtype)
                    dist.recv(found[name], source)
        return found

    def dealt(self, tensors: Mapping[Any, Tensor], owners: Mapping[Any, int]) -> dict[Any, Tensor]:
        """Those of process 0's tensors that this process owns, on the CPU.

        Args:
            tensors, owners: by name; only those of process 0 count.
        """
        facts = self.told({n: (owners[n], t.shape, t.dtype) for n, t in tensors.items()})
        found: dict[Any, Tensor] = {}
        with self.talking():
            for name, (owner, shape, dtype) in facts.items():
                if self.leads and owner == 0:
                    # A part of a larger tensor would keep all of it.
                    found[name] = tensors[name].clone()
                elif self.leads:
                    dist.send(tensors[name].detach().cpu().contiguous(), owner)
                elif owner == self.rank:
                    found[name] = torch.empty(shape, dtype=dtype)
                    dist.recv(found[name], 0)
        return found


@contextlib.contextmanager
def joining(device: str, is_sharded: bool = False) -> Iterator[World]:
    """This process among the others, as the environment variables of torchrun say.

    Args:
        device: that of the training: cuda has NCCL carry the gradients, else gloo does.
        is_sharded: see `World`.

    Raises:
        UserError: the environment lacks a variable, or this machine has too few GPUs.
        ProcessLost: the others did not come.
    """
    names = ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    if missing := [name for name in names if name not in os.environ]:
        raise UserError(
            f"WORLD_SIZE is set, and {missing[0]} is not: start the processes with torchrun."
        )
    if device == "mps":
        raise UserError("An Apple GPU trains in one process alone.", field="device")
    if device == "cuda":
        here, gpus = int(os.environ["LOCAL_WORLD_SIZE"]), torch.cuda.device_count()
        if here > gpus:
            raise UserError(f"{here} processes of this machine need a GPU each; it has {gpus}.")
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    stop_with_parent()
    backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
    wait = timedelta(seconds=TIMEOUT_SECONDS)
    try:
        store, rank, size = next(rendezvous("env://", timeout=wait))
        store = dist.PrefixStore(meeting(store, rank, size), store)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=wait)
        start = dist.new_group(backend="gloo", timeout=timedelta(seconds=START_SECONDS))
    except (RuntimeError, ValueError) as error:
        raise ProcessLost(f"The processes of this training did not meet: {error!s:.200}") from error
    try:
        yield World(rank, size, is_sharded, start)
    finally:
        with contextlib.suppress(RuntimeError):
            dist.destroy_process_group()


def meeting(store: dist.Store, rank: int, size: int) -> str:
    """A name under which these processes meet, and no others. torchrun keeps its store when it
    starts processes again, and in it the addresses of dead ones, for which the new ones would wait.

    Each process asks process 0 under a name of its own, and says that it has read the answer. What
    a dead one asked stays unconfirmed, until its successor asks.

    Raises:
        RuntimeError: not all came in time.
    """
    own = uuid.uuid4().hex
    if rank:
        store.set(f"asks-{rank}", own)
        store.wait([f"answer-{own}"])
        name = store.get(f"answer-{own}").decode()
        store.set(f"confirms-{name}-{rank}", "")
        return name
    until = time.monotonic() + TIMEOUT_SECONDS
    missing = set(range(1, size))
    while missing:
        for other in sorted(missing):
            if store.check([f"asks-{other}"]):
                store.set(f"answer-{store.get(f'asks-{other}').decode()}", own)
            if store.check([f"confirms-{own}-{other}"]):
                missing.remove(other)
        if time.monotonic() > until:
            raise RuntimeError(f"{len(missing)} did not come in {TIMEOUT_SECONDS:.0f} s.")
        time.sleep(0.02)
    return own


def stop_with_parent() -> None:
    """Have the system send SIGTERM to this process when the one that started it dies, which cannot
    do so itself after SIGKILL. Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(SET_PARENT_DEATH_SIGNAL, signal.SIGTERM)
