"""A run's checkpoints: weights as safetensors, each with a JSON sidecar.

    step-N.safetensors + .json    while running; permanent if the step is kept
    final.safetensors  + .json    afterwards

Weights are valid only with a sidecar that has their checksum, and it is written last: if the
process dies while saving, the previous checkpoint stays valid. The run's tables are synced to disk
before that, so they may be ahead of the newest checkpoint but never lack a row from before it.
"""

import dataclasses
import shutil
from collections.abc import Callable, Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from smollm2.errors import RunError, UserError
from smollm2.files import checksum, sync, sync_folder, write_json, write_tensors
from smollm2.leftovers import clear_leftovers
from smollm2.parse import MAX_JSON, parse_json, read_file
from smollm2.weights import read_weights

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Checkpoint:
    """Weights after `step` updates; all but the final ones include the optimizer's moments.

    Args:
        seconds: timed training until then.
        sha256: of the file at `path`, in hexadecimal.
    """

    path: Path
    step: int
    seconds: float
    sha256: str

    @property
    def name(self) -> str:
        """What it is called in messages."""
        return checkpoint_name(self.path)

    def tensors(self) -> "dict[str, Tensor]":
        """Its tensors by name.

        Raises:
            UserError: a weight is not finite, or the file is not what a checkpoint is.
        """
        return read_weights(self.path, self.name)

    def copy_to(self, folder: Path) -> None:
        """Copy it to another run's folder as the checkpoint of its step.

        Raises:
            UserError: as `tensors`.
        """
        self.tensors()
        path = folder / f"step-{self.step}.safetensors"
        shutil.copyfile(self.path, path)
        dataclasses.replace(self, path=path).write_sidecar()

    def write_sidecar(self) -> None:
        facts = {"step": self.step, "seconds": self.seconds, "sha256": self.sha256}
        write_json(self.path.with_suffix(".json"), facts)


class Checkpoints:
    """The checkpoints in the folder `checkpoints` of a run.

    Args:
        tables: files that are synced before a checkpoint is valid.
    """

    def __init__(self, folder: Path, tables: Iterable[Path]) -> None:
        self.folder = folder
        self.tables = list(tables)

    def steps(self) -> list[int]:
        """Steps with a checkpoint that can be resumed from, verified or not, in order."""
        numbers = (path.stem.removeprefix("step-") for path in self.folder.glob("step-*.json"))
        return sorted(int(number) for number in numbers if number.isdecimal())

    def files(self) -> list[Path]:
        """Weight files, verified or not: those of `steps`, then the final one."""
        names = [*(f"step-{step}" for step in self.steps()), "final"]
        paths = (self.folder / f"{name}.safetensors" for name in names)
        return [path for path in paths if path.exists()]

    def at(self, step: int) -> Checkpoint:
        """The checkpoint of one of `steps`.

        Raises:
            UserError: it is missing or damaged.
            RunError: it cannot be read.
        """
        return verified(self.folder / f"step-{step}.safetensors")

    def latest(
        self, warnings: list[str], missing: "Callable[[int], str]" = lambda step: ""
    ) -> Checkpoint | None:
        """The newest checkpoint whose checksum holds; each skipped one adds a warning.

        Args:
            missing: what is missing besides for resuming from a step; empty if nothing is.

        Raises:
            RunError: one cannot be read.
        """
        for step in reversed(self.steps()):
            if what := missing(step):
                warnings.append(f"{what}. Falling back to the checkpoint before step {step}.")
                continue
            try:
                return self.at(step)
            except UserError as error:
                warnings.append(f"{error} Falling back to the checkpoint before it.")
        return None

    def has_any(self) -> bool:
        """Whether any checkpoint of a step was ever saved, valid or not. A single file without a
        sidecar does not count: the process died while saving the first one."""
        return bool(self.steps()) or len(list(self.folder.glob("step-*.safetensors"))) > 1

    def final(self) -> Checkpoint | None:
        """The final weights; None if there are none.

        Raises:
            UserError: they are damaged.
            RunError: they cannot be read.
        """
        path = self.folder / "final.safetensors"
        try:
            return verified(path) if path.exists() else None
        except UserError as error:
            raise UserError(
                f"{error} Copy the run here again, or train it again under another `name`."
            ) from None

    def save(
        self, tensors: "dict[str, Tensor]", step: int, seconds: float, *, is_final: bool = False
    ) -> None:
        """Write the checkpoint of `step`, or the final weights, in the order given above.

        Raises:
            RunError: the disk is full or cannot be written; nothing half-written stays.
        """
        name = "final" if is_final else f"step-{step}"
        path = self.folder / f"{name}.safetensors"
        tensors = {key: value.detach().contiguous() for key, value in tensors.items()}
        try:
            for table in self.tables:
                sync(table)
            for folder in {table.parent for table in self.tables}:
                sync_folder(folder)
            write_tensors(path, tensors)
            Checkpoint(path, step, seconds, checksum(path)).write_sidecar()
        except OSError as error:
            raise RunError(
                f"Could not write checkpoint {name} of run {self.folder.parent.name!r}: {error}. "
                "The checkpoint before it is unharmed."
            ) from error

    def drop(self, keep: AbstractSet[int]) -> None:
        """Remove the checkpoints of steps not in `keep`, and half-written files."""
        kept = {f"step-{step}" for step in keep}
        # Sidecars first: weights without one are invalid.
        for pattern in ("step-*.json", "step-*.safetensors"):
            for path in self.folder.glob(pattern):
                if path.stem not in kept:
                    path.unlink()
        clear_leftovers(self.folder)


def checkpoint_name(path: Path) -> str:
    """What the checkpoint at `path` is called in messages."""
    return f"Checkpoint {path.stem} of run {path.parent.parent.name!r}"


def is_of_step(path: Path, step: int) -> bool:
    """Whether a checkpoint's file may hold the weights of a step: the final ones of any."""
    return path.stem in ("final", f"step-{step}")


def verified(path: Path) -> Checkpoint:
    """The checkpoint at `path`, after comparing its checksum with its sidecar.

    Raises:
        UserError: a file is missing or altered.
        RunError: a file cannot be read, which does not mean that it is damaged.
    """
    name = checkpoint_name(path)
    if path.exists() and not path.is_file():  # reading a pipe would wait forever
        raise UserError(f"{name} is damaged: {path.name} is not a file.")
    try:
        facts = parse_json(read_file(path.with_suffix(".json"), MAX_JSON))
        checkpoint = Checkpoint(path, facts["step"], facts["seconds"], facts["sha256"])
        if type(checkpoint.step) is not int or type(checkpoint.seconds) not in (int, float):
            raise TypeError
        if checkpoint.step < 0 or checkpoint.seconds < 0 or not is_of_step(path, checkpoint.step):
            raise ValueError
        is_whole = checksum(path) == checkpoint.sha256
    except FileNotFoundError as error:
        raise UserError(f"{name} is damaged: it has no {Path(error.filename).name}.") from None
    except OSError as error:
        raise RunError(f"{name} cannot be read: {error.strerror}.") from error
    except (ValueError, KeyError, TypeError):
        sidecar = path.with_suffix(".json").name
        raise UserError(f"{name} is damaged: {sidecar} is not what was written.") from None
    if not is_whole:
        raise UserError(f"{name} is damaged: its checksum differs.")
    return checkpoint
