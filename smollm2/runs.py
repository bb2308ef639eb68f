"""A run's directory: manifest and CSV tables, and beside them what `checkpoints` keeps.

Nothing else reads or writes one.

    results/STUDY/RUN/
        run.json            manifest: request, protocol, environment, state
        train.csv  val.csv  experts.csv  eval.csv     append-only tables
        items/              scores item by item behind eval.csv: see `scores`
        tokenizer.json
        checkpoints/        step-N.safetensors + .json while running, final.safetensors afterwards
        run.lock            held by the one process that writes

Whatever moment a process dies at, the directory is either as before a write or as after it: files
are replaced whole, and tables may only run ahead of the newest checkpoint, to which resuming cuts
them back: they are synced to disk before a checkpoint counts.
"""

import contextlib
import dataclasses
import errno
import json
import os
import re
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smollm2.checkpoints import Checkpoint, Checkpoints
from smollm2.config import VARIANTS
from smollm2.cost import parameters, training_flops_per_token
from smollm2.errors import RunBusy, RunError, RunExists, UserError, did_you_mean
from smollm2.files import replace_file, write_json
from smollm2.protocol import Protocol, Request
from smollm2.tables import Tables

if TYPE_CHECKING:
    import pandas as pd
    from tokenizers import Tokenizer

    from smollm2.data import Bounds
    from smollm2.model import SmolLM2

FORMAT = 1
IMPORTED = "imported"  # the role of a run whose training happened elsewhere
RESERVED = {*VARIANTS, "figures"}  # names that mean something else
LONGEST_NAME = 100  # of a run or study; a file system takes 255 characters, with what is appended
SOURCE = {  # what an imported run's manifest says of the model
    *("name", "fingerprint", "tokenizer_fingerprint", "dtype", "bos_token_id", "eos_token_id"),
}
REQUIRED = {"name", "arm", "role", "equal", "state", "started_from", "request", "protocol"}
LOCK_SECONDS = 1.0  # to wait for the lock of a run
STEP_TABLES = ("train", "val", "experts")
# Columns that two runs of the same protocol need not share.
CLOCK_COLUMNS = frozenset({"seconds", "tokens_per_second", "mfu", "peak_memory_mb"})


class Run(Tables):
    """A run directory, opened; see the module's description of the files."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
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
    def protocol(self) -> Protocol:
        return Protocol.from_dict(self.manifest["protocol"])

    @property
    def arm(self) -> str:
        return str(self.manifest["arm"])

    @property
    def is_imported(self) -> bool:
        """Whether it was trained elsewhere: it has weights, but neither data nor losses."""
        return bool(self.manifest["role"] == IMPORTED)

    @property
    def origin(self) -> str | None:
        """The model from elsewhere that its weights began as, be it many runs ago."""
        if self.is_imported:
            return str(self.manifest["source"]["name"])
        # Older manifests only name what the run itself started from; a run's name has no slash.
        start = str(self.manifest["started_from"] or "")
        origin: str | None = self.manifest.get("origin", start if "/" in start else None)
        return origin

    @property
    def tokenizer_fingerprint(self) -> str | None:
        """Of the tokenizer that its weights go with, where that is recorded."""
        if self.is_imported:
            return str(self.manifest["source"]["tokenizer_fingerprint"])
        data = self.protocol.data
        return data.tokenizer_fingerprint if data else None

    @property
    def is_finished(self) -> bool:
        return bool(self.manifest["state"] == "finished")

    @property
    def is_being_written(self) -> bool:
        """Whether a process holds the run's lock."""
        if not (self.path / "run.lock").exists():
            return False
        try:
            with self.writing():
                return False
        except PermissionError:  # another user's, who alone can tell
            return False
        except RunBusy:
            return True

    @property
    def disk_bytes(self) -> int:
        """Of all of its files."""
        return folder_bytes(self.path)

    def weights_bytes(self) -> dict[str, int]:
        """Bytes on disk of what it keeps: `step-N` with the optimizer's moments, `final`, and each
        quantized model as `+NAME`."""
        kept = {path.stem: path.stat().st_size for path in self.checkpoints.files()}
        for path in sorted(self.path.glob("quantized/*/model.json")):
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
        """Hold the run's lock, which the system releases even when the process is killed.

        Raises:
            RunBusy: another process holds it.
        """
        from filelock import FileLock, Timeout

        try:
            # One that only asks whether the run is being written has the lock for a moment.
            with FileLock(self.path / "run.lock", timeout=LOCK_SECONDS):
                yield
        except Timeout:
            raise RunBusy(
                f"Another process is writing run {self.name!r}; wait until it is done."
            ) from None

    def require_removable(self) -> None:
        """Raise `UserError` if another process is writing the run, or it is a link, whose files are
        somewhere else."""
        path = absolute(self.path)
        if path.is_symlink() or path.parent.is_symlink():
            raise UserError(f"Run {self.name!r} lies behind a link; remove it where it really is.")
        if self.is_being_written:
            raise UserError(f"Run {self.name!r} is being written by another process; stop that.")

    def remove(self) -> int:
        """Delete the directory; returns the bytes freed.

        Raises:
            UserError: as `require_removable`.
            RunError: it cannot be deleted.
        """
        self.require_removable()
        path, freed = absolute(self.path), self.disk_bytes
        # Moved first, so that no half of a run ever stands there; the lock moves with it.
        doomed = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            with self.writing():
                path.rename(doomed)
            shutil.rmtree(doomed)
        except OSError as error:
            raise RunError(f"Cannot remove run {self.name!r}: {error}.") from error
        return freed

    def test_scores(self) -> "pd.Series":
        """The test scores at the end of training by metric: loss, accuracy, ...

        Raises:
            UserError: as `table`, or there are none.
        """
        table = self.table("eval")
        scores = table[table["protocol"] == self.protocol.final_test]
        if scores.empty:
            raise UserError(f"{self.name}/eval.csv has no test scores of the end of training.")
        return scores.set_index("metric")["value"]

    def cut(self, step: int) -> None:
        """Drop what the tables recorded after `step`, a half-written last line included."""
        for table in STEP_TABLES:
            path = self.path / f"{table}.csv"
            if path.exists():
                text = path.read_text(encoding="utf-8")
                header, *rows = text[: text.rfind("\n") + 1].splitlines(keepends=True) or [""]
                rows = [row for row in rows if int(row.partition(",")[0]) <= step]
                replace_file(path, header + "".join(rows))


def load_run_tokenizer(run: Run) -> "Tokenizer":
    """The tokenizer that the run was trained with.

    Raises:
        UserError: its file is missing, damaged or another one.
    """
    from smollm2.data import load_tokenizer, tokenizer_fingerprint

    tokenizer = load_tokenizer(str(run.path / "tokenizer.json"))
    wanted = run.tokenizer_fingerprint
    if wanted and tokenizer_fingerprint(tokenizer) != wanted:
        raise UserError(
            f"tokenizer.json of run {run.name!r} is not the tokenizer it was trained with "
            f"(fingerprint {wanted}); put the right one back."
        )
    return tokenizer


def text_bounds(run: Run, tokenizer: "Tokenizer") -> "Bounds":
    """What begins and ends a text of the run's model: of an imported one what came with it.

    Raises:
        UserError: the tokenizer of a run that was trained here has no token that ends a document.
    """
    from smollm2.data import Bounds, document_bounds

    if run.is_imported:
        source = run.manifest["source"]
        return Bounds(source["bos_token_id"], tuple(source["eos_token_id"]))
    return document_bounds(tokenizer)


def final_weights(run: Run) -> Checkpoint:
    """The verified checkpoint that training ended with.

    Raises:
        UserError: it is missing or damaged.
    """
    final = run.checkpoints.final()
    if final is None:
        raise UserError(
            f"Run {run.name!r} has no weights (checkpoints/final.safetensors); train it again "
            "under another --name."
        )
    return final


def load_model(run: Run, device: str, dtype: str, final: Checkpoint | None = None) -> "SmolLM2":
    """The trained model of a finished run, in evaluation mode.

    Args:
        final: its `final_weights`, where they have been verified before.

    Raises:
        UserError: its final weights are missing, damaged or of another architecture.
    """
    from smollm2.device import DTYPES
    from smollm2.model import SmolLM2

    tensors = (final or final_weights(run)).tensors()
    weights = {key.removeprefix("model."): value for key, value in tensors.items()}
    model = SmolLM2(run.protocol.model, seed=None)
    try:
        model.load_state_dict(weights, assign=True)
    except RuntimeError:
        raise UserError(
            f"The weights of run {run.name!r} are not of the architecture in its run.json; copy "
            "the run here again, or train it again under another --name."
        ) from None
    return model.to(device, DTYPES[dtype]).eval()


def create_run(
    results: Path,
    study: str,
    name: str,
    request: Request,
    protocol: Protocol,
    tokenizer: "Tokenizer | None" = None,
    start: Checkpoint | None = None,
    started_from: str | None = None,
    origin: str | None = None,
    arm: str | None = None,
    role: str = "final",
    equal: str = "tokens",
) -> Run:
    """Make the directory of a new run in state `running`.

    Args:
        arm: of a study; None is the variant.
        role: `sweep` keeps the run out of comparisons.
        equal: what the arms of the study get the same of: tokens, flops or seconds.
        start: becomes the run's first checkpoint, so that it depends on no other run.
        started_from: what the manifest calls `start`, with its checksum beside it, for two may be
            called alike.
        origin: of the run that `start` is of.

    Raises:
        RunExists: there is such a run.
        UserError: a name that is not plain, or a directory that cannot be made.
    """
    path = run_path(results, study, name)
    if path.exists():
        raise RunExists(
            f"Run {name!r} exists. Continue it with --resume {name} if it is unfinished, or give "
            "this one another --name."
        )
    with new_directory(path) as folder:
        manifest = new_manifest(
            name,
            request,
            protocol,
            arm=arm or protocol.variant,
            role=role,
            equal=equal,
            started_from=started_from,
            started_from_sha256=start.sha256[:16] if start else None,
            origin=origin,
        )
        write_json(folder / "run.json", manifest)
        if tokenizer is not None:
            replace_file(folder / "tokenizer.json", tokenizer.to_str(pretty=True))
        if start is not None:
            start.copy_to(folder / "checkpoints")
    return Run(path)


@contextlib.contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """A folder that becomes the run directory `path` at the end: it is made aside and renamed, so
    that no incomplete directory ever stands there.

    Raises:
        RunExists: by now there is something in its place.
        UserError: it cannot be made.
        RunError: the disk is full.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        (temporary / "checkpoints").mkdir(parents=True)
        yield temporary
        temporary.rename(path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise RunError(f"Cannot make run {path.name!r}: {error.strerror}.") from None
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY) and path.exists():
            raise RunExists(
                f"Another process has just made run {path.name!r}; try again."
            ) from None
        raise UserError(
            f"Cannot write to {path.parents[1]}: {error.strerror}; choose another --results."
        ) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def new_manifest(
    name: str, request: Request | None, protocol: Protocol, **labels: str | None
) -> dict[str, Any]:
    """run.json as it stands before the first step; `labels` are as given.

    Args:
        request: None for a run that nobody asked to train.
    """
    from smollm2.device import environment

    return {
        "format": FORMAT,
        "name": name,
        **labels,
        "state": "running",
        "error": None,
        "created_at": now(),
        "finished_at": None,
        "keep_steps": [],
        "request": request and dataclasses.asdict(request.without_paths()),
        "protocol": protocol.to_dict(),
        "parameters": dataclasses.asdict(parameters(protocol.model)),
        "training_flops_per_token": training_flops_per_token(protocol.model, protocol.seq_len),
        "environment": environment(protocol.device),
    }


def run_path(results: Path, study: str, name: str) -> Path:
    """Where a run lives.

    Raises:
        UserError: a study or run name that is not plain.
    """
    if name in RESERVED:
        raise UserError(f"{name!r} means something else; choose a name such as {name}-s0.")
    require_plain("study", study)
    require_plain("run", name)
    return results / study / name


def require_plain(what: str, name: str) -> None:
    """Raise `UserError` if `name` could not be a directory's everywhere."""
    if len(name) > LONGEST_NAME:
        raise UserError(
            f"The name of a {what} has at most {LONGEST_NAME} characters, not {len(name)}; give a "
            f"shorter {'--name' if what == 'run' else 'one'}."
        )
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", name):
        raise UserError(
            f"{name!r} is no name for a {what}; use lower-case letters, digits, '.', '_' and "
            "'-', such as pow2-s0."
        )


def open_run(results: Path, study: str, name: str) -> Run:
    """An existing run by name.

    Raises:
        UserError: there is none, with the nearest name.
    """
    if name not in VARIANTS:
        path = run_path(results, study, name)
        if (path / "run.json").exists():
            return Run(path)
    require_plain("study", study)
    what = f"{name!r} is a variant, not a run" if name in VARIANTS else f"There is no run {name!r}"
    names = [run.name for run in list_runs(results, study)[0]]
    there = f" There are {', '.join(names)}." if names else f" {results}/{study} has no runs yet."
    raise UserError(f"{what}.{did_you_mean(name, names)}{there}")


def list_runs(results: Path, study: str) -> tuple[list[Run], list[str]]:
    """The runs of a study in order of name, and a sentence on each directory that is none."""
    runs, broken = [], []
    for path in sorted((results / study).glob("*/")):
        if path.name.startswith(".") or path.name == "figures":
            continue
        try:
            runs.append(Run(path))
        except UserError as error:
            broken.append(str(error))
    return runs, broken


def folder_bytes(folder: Path) -> int:
    """Of all files in a folder and in those in it; links are not followed."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # a running run drops checkpoints
                total += os.lstat(os.path.join(parent, name)).st_size
    return total


def absolute(path: Path) -> Path:
    """`path` without `.` and `..`, which have no name; links stay, for a run is called after its
    own."""
    return Path(os.path.abspath(path))


def read_manifest(path: Path) -> dict[str, Any]:
    """run.json of the run at `path`.

    Raises:
        UserError: it is missing, damaged or of another version.
    """
    name = absolute(path).name
    try:
        manifest = json.loads((path / "run.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{name} is not a run: it has no run.json.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{name}/run.json cannot be read: {error}.") from None
    is_known = isinstance(manifest, dict) and manifest.get("format") == FORMAT
    if is_known and manifest.get("role") == IMPORTED:
        source = manifest.get("source")
        is_known = isinstance(source, dict) and source.keys() >= SOURCE
    if not (is_known and manifest.keys() >= REQUIRED):
        raise UserError(f"{name}/run.json is not a manifest of this version.")
    try:
        Protocol.from_dict(manifest["protocol"])
    except UserError as error:
        raise UserError(f"{name}/run.json: {error}") from None
    return manifest


def now() -> str:
    """The time as ISO 8601 in UTC, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
