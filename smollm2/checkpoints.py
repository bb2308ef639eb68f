"""A run's checkpoints: weights as safetensors, and beside them a sidecar of what goes with them.

    step-N.safetensors + .json    while running, and for good where a step is kept
    final.safetensors  + .json    afterwards

Weights count only with a sidecar whose checksum they have, and it is written last: a death while
saving leaves the checkpoint before in force. The run's tables are synced to disk before that, so
they may run ahead of the newest checkpoint but never lack a row from before it.
"""

import dataclasses
import json
import shutil
from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from smollm2.errors import RunError, UserError
from smollm2.files import checksum, sync_file, write_json

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Checkpoint:
    """Weights after `step` updates; all but final ones have the optimizer's moments with them.

    Args:
        seconds: of timed training up to there.
        sha256: of the file at `path`, in hexadecimal.
    """

    path: Path
    step: int
    seconds: float
    sha256: str

    def tensors(self) -> "dict[str, Tensor]":
        from safetensors.torch import load_file

        return load_file(self.path)

    def copy_to(self, folder: Path) -> None:
        """Make it a step's checkpoint in the folder of another run."""
        path = folder / f"step-{self.step}.safetensors"
        shutil.copyfile(self.path, path)
        dataclasses.replace(self, path=path).write_sidecar()

    def write_sidecar(self) -> None:
        facts = {"step": self.step, "seconds": self.seconds, "sha256": self.sha256}
        write_json(self.path.with_suffix(".json"), facts)


class Checkpoints:
    """The checkpoints in the folder `checkpoints` of a run.

    Args:
        tables: the files that a checkpoint must not run ahead of.
    """

    def __init__(self, folder: Path, tables: Iterable[Path]) -> None:
        self.folder = folder
        self.tables = list(tables)

    def steps(self) -> list[int]:
        """Steps with a checkpoint that can be resumed from, verified or not, in order."""
        numbers = (path.stem.removeprefix("step-") for path in self.folder.glob("step-*.json"))
        return sorted(int(number) for number in numbers if number.isdecimal())

    def files(self) -> list[Path]:
        """Of the weights that count, verified or not: those of `steps`, then the final ones."""
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

    def latest(self, warnings: list[str]) -> Checkpoint | None:
        """The newest checkpoint whose checksum holds; each one passed over adds a warning.

        Raises:
            RunError: one cannot be read.
        """
        for step in reversed(self.steps()):
            try:
                return self.at(step)
            except UserError as error:
                warnings.append(f"{error} Falling back to the checkpoint before it.")
        return None

    def has_any(self) -> bool:
        """Whether the checkpoint of a step has been saved, good or not. One file of weights alone
        is what a death while saving the first one leaves."""
        return bool(self.steps()) or len(list(self.folder.glob("step-*.safetensors"))) > 1

    def final(self) -> Checkpoint | None:
        """The weights that training ended with, None if there are none.

        Raises:
            UserError: they are damaged.
            RunError: they cannot be read.
        """
        path = self.folder / "final.safetensors"
        try:
            return verified(path) if path.exists() else None
        except UserError as error:
            raise UserError(
                f"{error} Copy the run here again, or train it again under another --name."
            ) from None

    def save(
        self, tensors: "dict[str, Tensor]", step: int, seconds: float, *, is_final: bool = False
    ) -> None:
        """Write the checkpoint of `step`, or the final weights; see the module on the order.

        Raises:
            RunError: the disk is full or cannot be written; nothing half-written stays.
        """
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        name = "final" if is_final else f"step-{step}"
        path = self.folder / f"{name}.safetensors"
        temporary = self.folder / f".{name}.tmp"
        for table in self.tables:
            sync_file(table)
        tensors = {key: value.detach().contiguous() for key, value in tensors.items()}
        try:
            save_file(tensors, temporary)
            temporary.chmod(0o644)  # its own is for one user only
            sync_file(temporary)
            saved = Checkpoint(path, step, seconds, checksum(temporary))
            temporary.replace(path)
            saved.write_sidecar()
        except (OSError, SafetensorError) as error:
            temporary.unlink(missing_ok=True)
            raise RunError(
                f"Could not write checkpoint {name} of run {self.folder.parent.name!r}: {error}. "
                "The checkpoint before it is unharmed."
            ) from error

    def drop(self, keep: AbstractSet[int]) -> None:
        """Remove the checkpoints of steps not in `keep`, and what a death left half-written."""
        kept = {f"step-{step}" for step in keep}
        # Sidecars first: without one the weights do not count.
        for pattern in ("step-*.json", "step-*.safetensors"):
            for path in self.folder.glob(pattern):
                if path.stem not in kept:
                    path.unlink()
        for leftover in self.folder.glob(".*.tmp"):
            leftover.unlink()


def verified(path: Path) -> Checkpoint:
    """The checkpoint at `path`, its checksum compared with its sidecar's.

    Raises:
        UserError: a file is missing or altered.
        RunError: a file cannot be read, which says nothing of what it holds.
    """
    name = f"Checkpoint {path.stem} of run {path.parent.parent.name!r}"
    try:
        facts = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        checkpoint = Checkpoint(path, facts["step"], facts["seconds"], facts["sha256"])
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
