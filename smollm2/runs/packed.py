"""A packed study, opened: its run directories, restored once into the cache and only read.

    results/STUDY/pack/       instead of results/STUDY/RUN/ for every run; see `pack_format`

Other files in the study's folder are untouched. While `pack/` exists, it alone defines the runs: a
run directory next to it was left by an interrupted packing or unpacking.
"""

import contextlib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from smollm2.errors import RunError, UserError
from smollm2.files import cache_dir, discard_folder, replacing
from smollm2.runs.pack_format import (
    MANIFEST,
    Contents,
    DamagedPack,
    PackManifest,
    from_pack,
    manifests,
    matches,
    read_pack_manifest,
    require_whole,
    sha256,
)

PACK = "pack"


class PackedStudy(UserError):
    """A write to a packed study was refused; `study` is its folder."""

    def __init__(self, study: Path) -> None:
        self.study = study
        super().__init__(
            f"Study {study.absolute().name!r} is packed: it has no weights, and nothing is written "
            "into it."
        )


def require_unpacked(study: Path) -> None:
    """Raise `PackedStudy` if the study in that folder is packed."""
    if is_packed(study):
        raise PackedStudy(study)


def is_packed(study: Path) -> bool:
    """Whether the runs of the study in that folder are packed."""
    return (study / PACK / MANIFEST).is_file()


def packed_runs(study: Path) -> tuple[str, ...]:
    """The names of the runs of a packed study.

    Raises:
        UserError: its pack is damaged or of a later version.
    """
    return runs_of_version(study.absolute(), pack_version(study))


def packed_manifests(study: Path) -> list[dict[str, Any]]:
    """The run.json of every run of a packed study, without unpacking it.

    Raises:
        UserError: its pack is damaged or of a later version.
    """
    with naming(study):
        return manifests(read_pack(study))


def open_packed(study: Path) -> Path:
    """The folder of a packed study's run directories, which nobody may change.

    Raises:
        UserError: the pack is damaged or of a later version.
        RunError: the cache cannot be written.
    """
    return restore(study.absolute(), pack_version(study))


def pack_version(study: Path) -> tuple[int, int]:
    """Identifies the pack of a study, to detect another in its place."""
    found = (study / PACK / MANIFEST).stat()
    return found.st_mtime_ns, found.st_ino


@lru_cache
def runs_of_version(study: Path, version: tuple[int, int]) -> tuple[str, ...]:
    """See `packed_runs`."""
    with naming(study):
        return read_pack_manifest(read_packed(study / PACK, MANIFEST)).runs


@lru_cache
def restore(study: Path, version: tuple[int, int]) -> Path:
    """See `open_packed`; what an earlier command restored is checked and used again."""
    pack = read_pack(study)
    manifest = read_pack_manifest(pack[MANIFEST])
    folder = cache_dir() / "packs" / sha256(pack[MANIFEST])[:32] / study.name
    try:
        if is_as_packed(folder, manifest):
            return folder
        with naming(study):
            files = from_pack(pack)
        folder.parent.mkdir(parents=True, exist_ok=True)
        if folder.exists():  # altered by hand, or partly lost
            discard_folder(folder)
        with replacing(folder, durable=False) as made:  # checked whenever it is opened
            write_files(made, files)
    except OSError as error:
        if is_as_packed(folder, manifest):  # another command has just restored it
            return folder
        raise RunError(
            f"Cannot open the pack of study {study.name!r} in {folder}: {error}."
        ) from None
    return folder


@contextlib.contextmanager
def naming(study: Path) -> Iterator[None]:
    """A context manager that turns a `DamagedPack` into a sentence that names the study."""
    try:
        yield
    except DamagedPack as error:
        raise UserError(f"The pack of study {study.absolute().name!r} {error}.") from None


def read_pack(study: Path) -> Contents:
    """The files of a study's pack, whole as they were written.

    Raises:
        UserError: one is missing or altered, or the pack is of a later version.
    """
    folder = study / PACK
    with naming(study):
        pack = {MANIFEST: read_packed(folder, MANIFEST)}
        manifest = read_pack_manifest(pack[MANIFEST])
        pack |= {name: read_packed(folder, name) for name in manifest.files}
        require_whole(manifest, pack)
        return pack


def read_files(study: Path) -> Contents:
    """The files of the runs of a packed study.

    Raises:
        UserError: as `read_pack`.
    """
    with naming(study):
        return from_pack(read_pack(study))


def read_packed(folder: Path, name: str) -> bytes:
    """One file of a pack, which is never read through a link."""
    path = folder / name
    if folder.is_symlink() or path.parent.is_symlink() or path.is_symlink():
        raise DamagedPack(f"is damaged: {name} is behind a link")
    if not path.is_file():
        raise DamagedPack(f"is damaged: it has no {name}")
    try:
        return path.read_bytes()
    except OSError as error:
        raise DamagedPack(f"cannot be read: {name}: {error.strerror}") from None


def is_as_packed(folder: Path, manifest: PackManifest) -> bool:
    """Whether the run directories in `folder` are exactly the packed ones."""
    files = {
        path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()
    }
    return files.keys() == manifest.contents.keys() and all(
        matches(manifest, name, path.read_bytes()) for name, path in files.items()
    )


def write_files(folder: Path, files: Contents) -> None:
    """Write `files`, whose paths have been checked, into a new folder."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
