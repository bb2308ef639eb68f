"""A run's directory: manifest, CSV tables and checkpoints.

    results/STUDY/RUN/
        run.json            manifest: request, protocol, environment, state
        train.csv  val.csv  experts.csv  eval.csv     append-only tables
        documents.csv       the final test, document by document
        items/              scores item by item behind eval.csv: see `evaluation.records`
        tokenizer.json
        checkpoints/        step-N.safetensors + .json while running, final.safetensors afterwards
        run.lock            held by the one process that writes

Whenever a process dies, the directory is as before a write or as after it. Files are replaced
whole. Tables are synced to disk before a checkpoint counts, so they can only be ahead of the newest
one; resuming cuts them back to it.
"""

import contextlib
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from smollm2.errors import RunBusy, RunError, UserError, did_you_mean
from smollm2.files import absolute, discard_folder, folder_bytes, replace_file, write_json
from smollm2.leftovers import clear_leftovers
from smollm2.model.config import VARIANTS
from smollm2.protocol.run_config import ResolvedConfig
from smollm2.runs.checkpoints import Checkpoints
from smollm2.runs.conditions import FINAL_TEST, FINAL_VALIDATION
from smollm2.runs.links import require_own
from smollm2.runs.manifest import Role, RunState, read_manifest
from smollm2.runs.names import FILES, FOLDERS, require_plain, run_path
from smollm2.runs.packed import (
    PackedStudy,
    is_packed,
    open_packed,
    packed_runs,
)
from smollm2.runs.tables import TableFolder

LOCK_SECONDS = 1.0  # to wait for the lock of a run
BESIDE_SECONDS = 0.1  # for that of a run that is only asked about
STEP_TABLES = ("train", "val", "experts")


class Run(TableFolder):
    """A run directory, opened; see the module's description of the files.

    Args:
        path: where the files are.
        packed_in: the folder of its study where that is packed, and `path` a copy to be read only.
    """

    def __init__(self, path: Path, packed_in: Path | None = None) -> None:
        super().__init__(path)
        self.packed_in = packed_in
        self.manifest = read_manifest(path)
        tables = [path / f"{table}.csv" for table in STEP_TABLES]
        self.checkpoints = Checkpoints(absolute(path) / "checkpoints", tables)

    @property
    def name(self) -> str:
        return absolute(self.path).name

    @property
    def study(self) -> str:
        return absolute(self.path).parent.name

    @property
    def home(self) -> Path:
        """The directory the run is known by: `path`, or its place if it were unpacked."""
        return self.packed_in / self.name if self.packed_in else self.path

    @property
    def study_path(self) -> Path:
        """The folder of its study, with the study file and the step times; links are followed."""
        return (self.packed_in or self.path.resolve().parent).resolve()

    @property
    def protocol(self) -> ResolvedConfig:
        return ResolvedConfig.from_dict(self.manifest["protocol"])

    @property
    def arm(self) -> str:
        return str(self.manifest["arm"])

    @property
    def role(self) -> Role:
        return Role(self.manifest["role"])

    @property
    def state(self) -> RunState:
        return RunState(self.manifest["state"])

    @property
    def is_imported(self) -> bool:
        """Whether it was imported: it has weights, but neither data nor losses."""
        return self.role is Role.IMPORTED

    @property
    def origin(self) -> str | None:
        """The imported model that its weights descend from, however many runs ago."""
        if self.is_imported:
            return str(self.manifest["source"]["name"])
        # Older manifests only name what the run itself started from; a run's name has no slash.
        start = str(self.manifest["started_from"] or "")
        origin: str | None = self.manifest.get("origin", start if "/" in start else None)
        return origin

    @property
    def tokenizer_fingerprint(self) -> str | None:
        """The fingerprint of its tokenizer, if recorded."""
        if self.is_imported:
            return str(self.manifest["source"]["tokenizer_fingerprint"])
        data = self.protocol.data
        return data.tokenizer_fingerprint if data else None

    @property
    def is_finished(self) -> bool:
        return self.state is RunState.FINISHED

    @property
    def has_diverged(self) -> bool:
        """Whether it failed as its loss did not stay finite. That is assumed of the failed runs of
        older versions, which did not record it."""
        return self.state is RunState.FAILED and self.manifest.get("diverged") is not False

    @property
    def failed_at(self) -> str | None:
        """When it failed; None if it did not, or in an older version."""
        return self.manifest.get("failed_at")

    @property
    def at_once(self) -> int:
        """How many runs of the study the machine trained when this one started, itself included; of
        several starts the most."""
        return int(self.manifest.get("at_once", 1))

    @property
    def processes(self) -> list[int]:
        """How many processes trained it together; several numbers if it was continued by others."""
        return list(self.manifest.get("processes", [1]))

    @property
    def is_being_written(self) -> bool:
        """Whether a process holds the run's lock."""
        return self._is_held(LOCK_SECONDS)

    def others_being_written(self) -> int:
        """How many other runs of the study a process is writing: they share the machine."""
        held = 0
        for lock in self.study_path.glob("*/run.lock"):
            if lock.parent.name != self.name:
                with contextlib.suppress(UserError):  # no run
                    held += Run(lock.parent)._is_held(BESIDE_SECONDS)
        return held

    def _is_held(self, seconds: float) -> bool:
        """Whether the lock is held for so long."""
        if not (self.path / "run.lock").exists():
            return False
        try:
            with self._locked(seconds):
                return False
        except RunBusy:
            return True
        except (UserError, RunError):  # a lock that cannot be tested: another user's, or a link
            return False

    @property
    def disk_bytes(self) -> int:
        """Bytes of all of its files."""
        return folder_bytes(self.path)

    def weights_bytes(self) -> dict[str, int]:
        """Bytes on disk by kind of weights: `step-N` (with the optimizer's moments), `final`, and
        `+NAME` for each quantized model."""
        kept = {path.stem: path.stat().st_size for path in self.checkpoints.files()}
        for path in sorted(self.path.glob("quantized/[!.]*/model.json")):
            kept[f"+{path.parent.name}"] = folder_bytes(path.parent)
        return kept

    def read(self) -> None:
        """Read the manifest again."""
        self.manifest = read_manifest(self.path)

    def update(self, **fields: Any) -> None:
        """Change fields of the manifest."""
        self.manifest |= fields
        write_json(self.path / "run.json", self.manifest)

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the run's lock, which the system releases even when the process is killed. What
        killed processes left half-written is deleted first.

        Raises:
            RunBusy: another process holds it.
            PackedStudy: its study is packed.
        """
        self.require_unpacked()
        require_own(self.path)
        with self._locked():
            clear_leftovers(self.path.parent)
            for folder, _, _ in os.walk(self.path):
                clear_leftovers(Path(folder))
            yield

    def _drop_passed_checkpoints(self) -> None:
        """Delete what a process that died right after the end of the training left of it."""
        with contextlib.suppress(UserError):  # a manifest that cannot be read
            manifest = read_manifest(self.path)
            if manifest["state"] == RunState.FINISHED and "keep_steps" in manifest:
                self.checkpoints.drop(frozenset(manifest["keep_steps"]))

    def tidy(self) -> None:
        """Delete what dead processes left, unless another process is writing the run or it cannot
        be written (its disk, its owner or a link in it does not allow that)."""
        with contextlib.suppress(UserError, RunError, OSError), self.writing():
            self._drop_passed_checkpoints()

    @contextlib.contextmanager
    def _locked(self, seconds: float = LOCK_SECONDS) -> Iterator[None]:
        """`writing` without the rest; waits so long for the lock."""
        from filelock import FileLock, Timeout

        require_own(self.path, "run.lock")
        # `is_being_written` holds the lock for a moment.
        lock = FileLock(self.path / "run.lock", timeout=seconds)
        try:
            lock.acquire()
        except Timeout:
            raise RunBusy(
                f"Another process is writing run {self.name!r}; wait until it is done."
            ) from None
        except OSError as error:
            raise RunError(
                f"Run {self.name!r} cannot be written: {error.strerror or error}."
            ) from error
        try:
            yield
        finally:
            lock.release()

    def require_unpacked(self) -> None:
        """Raise `PackedStudy` if the run is of a packed study, which has no weights and stays as it
        is."""
        if self.packed_in:
            raise PackedStudy(self.packed_in)

    def require_removable(self) -> None:
        """Raise `UserError` if the run is packed, another process is writing it, or it is a link,
        whose files are somewhere else."""
        self.require_unpacked()
        path = absolute(self.path)
        if path.is_symlink() or path.parent.is_symlink():
            raise UserError(f"Run {self.name!r} is behind a link; remove it at its real path.")
        if self.is_being_written:
            raise UserError(
                f"Run {self.name!r} is being written by another process; stop it first."
            )

    def remove(self) -> int:
        """Delete the directory; returns the bytes freed.

        Raises:
            UserError: as `require_removable`.
            RunError: it cannot be deleted.
        """
        self.require_removable()
        path, freed = absolute(self.path), self.disk_bytes
        try:
            with self._locked():
                discard_folder(path)
        except OSError as error:
            reason = error.strerror or error
            raise RunError(f"Cannot remove run {self.name!r}: {reason}.") from error
        return freed

    def test_scores(self) -> dict[str, float]:
        """The test scores at the end of training by metric: loss, accuracy, ...

        Raises:
            UserError: as `columns`, or there are none, or two of one kind.
        """
        if not (scores := self._scores(FINAL_TEST)):
            raise UserError(f"{self.name}/eval.csv has no test scores of the end of training.")
        return scores

    def final_scores(self) -> dict[str, float]:
        """`test_scores`; of a run that tunes, those on all validation documents, which are empty in
        an older one."""
        is_tuning = self.role is Role.SWEEP
        return self._scores(FINAL_VALIDATION) if is_tuning else self.test_scores()

    def _scores(self, suite: str) -> dict[str, float]:
        scores = self.columns("eval")
        rows = zip(scores["suite"], scores["metric"], scores["value"].tolist(), strict=True)
        found = [(metric, value) for its, metric, value in rows if its == suite]
        if len(found) > len(dict(found)):
            raise UserError(f"{self.name}/eval.csv has two scores of one kind in {suite}.")
        return dict(found)

    def cut(self, step: int) -> None:
        """Drop the rows after `step`, and a half-written last line."""
        for table in STEP_TABLES:
            path = self.path / f"{table}.csv"
            if path.exists():
                text = path.read_text(encoding="utf-8")
                header, *rows = text[: text.rfind("\n") + 1].splitlines(keepends=True) or [""]
                numbers = (row.partition(",")[0] for row in rows)
                kept = [number.isdecimal() and int(number) <= step for number in numbers]
                rows = list(itertools.compress(rows, kept))
                replace_file(path, header + "".join(rows))


def open_run(results: Path, study: str, name: str) -> Run:
    """An existing run by name.

    Raises:
        UserError: there is none; the message suggests the nearest name.
    """
    if name not in VARIANTS:
        path = run_path(results, study, name)
        is_there = (path / "run.json").exists() or is_packed(path.parent)
        if is_there and (run := find_run(path)):
            return run
    require_plain("study", study)
    what = f"{name!r} is a variant, not a run" if name in VARIANTS else f"There is no run {name!r}"
    names = [run.name for run in list_runs(results, study)[0]]
    there = f" Available: {', '.join(names)}." if names else f" {results}/{study} has no runs yet."
    raise UserError(f"{what}.{did_you_mean(name, names)}{there}")


def find_run(path: Path) -> Run | None:
    """The run whose directory is `path`, packed or not; None if there is none.

    Raises:
        UserError: its manifest, or the pack of its study, is damaged.
    """
    study, name = path.parent, absolute(path).name
    if is_packed(study):
        return Run(open_packed(study) / name, study) if name in packed_runs(study) else None
    return Run(path) if path.exists() else None


def open_run_at(path: Path) -> Run:
    """The run whose directory is `path`, packed or not.

    Raises:
        UserError: there is none, or it is damaged.
    """
    run = find_run(path)
    return Run(path) if run is None else run


def list_runs(results: Path, study: str) -> tuple[list[Run], list[str]]:
    """The runs of a study in order of name, and a sentence on each directory that is not a run.

    Raises:
        UserError: the study is packed, and its pack damaged.
    """
    folder = results / study
    packed_in = folder if is_packed(folder) else None
    runs, broken = [], []
    for path in sorted((open_packed(folder) if packed_in else folder).glob("*/")):
        if path.name.startswith(".") or path.name in FOLDERS | FILES:
            continue
        try:
            runs.append(Run(path, packed_in))
        except UserError as error:
            broken.append(str(error))
    return runs, broken
