"""Packing a study and unpacking it, each whole or not at all.

The commit point is a rename: of the finished `pack/` into the study's folder, or out of it. A
process that dies before leaves the run directories or the pack as they were; one that dies after
leaves only files that the same command cleans up.
"""

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from smollm2.errors import RunError, UserError
from smollm2.files import discard_folder, folder_bytes, replacing, sync, sync_folder
from smollm2.leftovers import clear_leftovers, remove, temporary_of
from smollm2.runs.manifest import RunState
from smollm2.runs.pack_format import Contents, DamagedPack, digest, from_pack, to_pack
from smollm2.runs.packed import PACK, is_packed, packed_runs, read_files, write_files
from smollm2.runs.run import Run, list_runs

PACKED_STATES = (RunState.FINISHED, RunState.FAILED)
LOCK = "run.lock"
UNPACKED = "unpack"
WEIGHTS = ".safetensors"


class HasWeights(UserError):
    """Packing would lose weights."""


@dataclass(frozen=True)
class Packed:
    """What packing did: runs packed, bytes in the study's folder before and after."""

    runs: int
    bytes_before: int
    bytes_after: int


def pack_study(study: Path, *, drop_weights: bool = False) -> Packed:
    """Replace the run directories in the folder `study` by a pack, from which they follow byte for
    byte; or remove the ones that an interrupted packing left next to it.

    Args:
        drop_weights: whether weights may be lost, which a pack does not hold.

    Raises:
        UserError: there is nothing to pack, a run is unfinished, being written or has weights, or
            a file cannot be packed. Nothing changes.
        RunError: the pack cannot be written, or would not unpack to the same files. Nothing
            changes.
    """
    before = folder_bytes(study)
    if is_packed(study):
        packed, paths = read_files(study), leftovers(study)
        swept = {*clear_leftovers(study)} & {*packed_runs(study), PACK, UNPACKED}
        if not swept and not paths:
            raise UserError(f"Study {study.name!r} is packed already.")
        for path in paths:
            require_same(path, packed, drop_weights=drop_weights)
    else:
        paths = [run.path for run in packable_runs(study)]
    with writing_all(paths):
        files = {name: content for path in paths for name, content in read_run(path).items()}
        require_droppable(paths, drop_weights=drop_weights)
        if not is_packed(study):
            clear_leftovers(study)
            write_pack(study, files)
        for path in paths:
            discard_folder(path)
    return Packed(len(paths), before, folder_bytes(study))


def unpack_study(study: Path, to: Path | None = None) -> int:
    """Replace the pack in the folder `study` by its run directories; returns how many there are.

    Args:
        to: a new folder for the run directories and the study's own files; the pack stays.

    Raises:
        UserError: it is not packed, the pack is damaged, or something is in the way.
        RunError: the run directories cannot be written.
    """
    if not is_packed(study):
        clear_leftovers(study)
        raise UserError(f"Study {study.name!r} is not packed.")
    files, names = read_files(study), packed_runs(study)
    if to is not None:
        copy_study(study, files, to)
        return len(names)
    for path in leftovers(study):
        require_same(path, files, drop_weights=True)
    with failing_as(f"Cannot unpack study {study.name!r}"):
        clear_leftovers(study)
        made = temporary_of(study / UNPACKED)
        try:
            write_files(made, files)
            sync(made)
            for name in names:
                if not (study / name).exists():
                    (made / name).rename(study / name)
            sync_folder(study)
        finally:
            remove(made)
        discard_folder(study / PACK)
    return len(names)


def leftovers(study: Path) -> list[Path]:
    """Run directories next to the pack that have the names of its runs."""
    paths = [study / name for name in packed_runs(study)]
    return [path for path in paths if path.is_symlink() or path.exists()]


def packable_runs(study: Path) -> list[Run]:
    """Every run of a study that is to be packed.

    Raises:
        UserError: there is none, or one is unfinished, being written, linked or broken.
    """
    runs, broken = list_runs(study.parent, study.name)
    if broken:
        raise UserError(f"{broken[0]} Remove it, or move it elsewhere, before the study is packed.")
    if not runs:
        raise UserError(f"Study {study.name!r} has no runs to pack.")
    for run in runs:
        run.require_removable()
        if run.state not in PACKED_STATES:
            raise UserError(
                f"Run {run.name!r} is not finished; continue it or remove it before the study is "
                "packed."
            )
    return runs


@contextlib.contextmanager
def writing_all(paths: list[Path]) -> Iterator[None]:
    """Keep other processes from writing the runs."""
    with contextlib.ExitStack() as locks:
        for path in paths:
            locks.enter_context(Run(path).writing())
        yield


def read_run(path: Path) -> Contents:
    """The files of a run directory that are packed, under the run's name: all but weights and
    their sidecars.

    Raises:
        UserError: one is a link.
    """
    files = {}
    for file in sorted(path.rglob("*")):
        name = file.relative_to(path)
        if file.is_symlink() or path.is_symlink():
            raise UserError(f"{file} is a link; remove it before the study is packed.")
        if file.is_file() and not is_dropped(name):
            files[f"{path.name}/{name.as_posix()}"] = file.read_bytes()
    return files


def is_dropped(name: Path) -> bool:
    """Whether a file of a run directory is not packed: weights, the lock, half-written files."""
    return (
        name.parts[0] == "checkpoints"
        or name.suffix == WEIGHTS
        or name.name == LOCK
        or (name.name.startswith(".") and name.suffix == ".tmp")
    )


def require_droppable(paths: list[Path], *, drop_weights: bool) -> None:
    """Raise `HasWeights` if a run has weights, which a pack does not hold."""
    with_weights = [path.name for path in paths if any(path.rglob(f"*{WEIGHTS}"))]
    if with_weights and not drop_weights:
        raise HasWeights(
            f"A pack holds no weights, and {len(with_weights)} of {len(paths)} runs have some "
            f"({with_weights[0]} is one)."
        )


def require_same(path: Path, packed: Contents, *, drop_weights: bool) -> None:
    """Raise `UserError` unless the run directory next to a pack has the packed files."""
    wanted = {name: file for name, file in packed.items() if name.startswith(f"{path.name}/")}
    found = read_run(path) if path.is_dir() else {}
    is_same = found.keys() == wanted.keys() and all(
        digest(name, found[name]) == digest(name, wanted[name]) for name in found
    )
    if not is_same:
        raise UserError(f"{path} differs from the run in the pack next to it; move it elsewhere.")
    require_droppable([path], drop_weights=drop_weights)


def write_pack(study: Path, files: Contents) -> None:
    """Put the pack of `files` into the folder of a study, after it has been read back.

    Raises:
        UserError: a file cannot be packed.
        RunError: the pack cannot be written, or would not unpack to the same files.
    """
    pack = to_pack(files)

    try:
        with failing_as(f"Cannot pack study {study.name!r}"), replacing(study / PACK) as folder:
            write_files(folder, pack)
            from_pack({name: (folder / name).read_bytes() for name in pack})
    except DamagedPack as error:
        raise RunError(f"Study {study.name!r} is not packed: its pack {error}.") from None


def copy_study(study: Path, files: Contents, to: Path) -> None:
    """Write the run directories and the study's own files into the new folder `to`."""
    if to.is_symlink() or (to.exists() and (not to.is_dir() or any(to.iterdir()))):
        raise UserError(f"{to} exists and is not an empty folder; name another.")

    with failing_as(f"Cannot unpack study {study.name!r}"), replacing(to) as folder:
        write_files(folder, files)
        for path in study.iterdir():  # the study file and the step times
            is_own = path.is_file() and not path.is_symlink()
            if is_own and not path.name.endswith((".lock", ".tmp")):
                shutil.copyfile(path, folder / path.name)


@contextlib.contextmanager
def failing_as(what: str) -> Iterator[None]:
    """A context manager that turns disk errors into a `RunError` that begins with `what`."""
    try:
        yield
    except OSError as error:
        raise RunError(f"{what}: {error.strerror or error}.") from None
