"""Creates a run directory, whole or not at all."""

import contextlib
import errno
from collections.abc import Iterator, Set
from pathlib import Path
from typing import TYPE_CHECKING

from smollm2.errors import RunError, RunExists, UserError
from smollm2.files import FULL, make_folder, replace_file, replacing, write_json
from smollm2.leftovers import clear_leftovers
from smollm2.protocol.run_config import ResolvedConfig, RunConfig
from smollm2.runs.checkpoints import Checkpoint
from smollm2.runs.load_run import brought_bounds
from smollm2.runs.manifest import Role, new_manifest
from smollm2.runs.names import run_path
from smollm2.runs.packed import require_unpacked
from smollm2.runs.run import Run
from smollm2.runs.text_settings import text_settings_of, write_text_settings

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def create_run(
    results: Path,
    study: str,
    name: str,
    request: RunConfig,
    protocol: ResolvedConfig,
    tokenizer: "Tokenizer | None" = None,
    start: Checkpoint | None = None,
    parent: Run | None = None,
    started_from: str | None = None,
    origin: str | None = None,
    arm: str | None = None,
    role: Role = Role.FINAL,
    equal: str = "tokens",
    keep_steps: Set[int] = frozenset(),
) -> Run:
    """Create the directory of a new run in state `running`.

    Args:
        arm: of a study; None is the variant.
        role: `sweep` keeps the run out of comparisons.
        equal: what every arm of the study gets the same amount of: tokens, flops or seconds.
        start: becomes the run's first checkpoint, so that it depends on no other run.
        parent: the run that `start` belongs to; what an imported model brought to it for its text
            is kept.
        started_from: the manifest's name for `start`; its checksum is kept too, since names are not
            unique.
        origin: `Run.origin` of the run that `start` belongs to.
        keep_steps: of checkpoints to keep permanently.

    Raises:
        RunExists: there is such a run.
        UserError: the name is not plain, or the directory cannot be created.
    """
    path = run_path(results, study, name)
    if path.exists():
        raise RunExists(
            f"Run {name!r} exists. Continue it with `resume={name}` if it is unfinished, or give "
            "this one another `name`."
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
        manifest["keep_steps"] = sorted(keep_steps)
        bounds = parent and brought_bounds(parent)
        if bounds and bounds.ends:
            manifest["bounds"] = {
                "bos_token_id": bounds.begin,
                "eos_token_id": list(bounds.ends),
                "pad_token_id": bounds.pad,
            }
        if parent:
            write_text_settings(folder, text_settings_of(parent))
        write_json(folder / "run.json", manifest)
        if tokenizer is not None:
            replace_file(folder / "tokenizer.json", tokenizer.to_str(pretty=True))
        if start is not None:
            start.copy_to(folder / "checkpoints")
    return Run(path)


@contextlib.contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """A temporary folder that is renamed to the run directory `path` at the end, so that no
    incomplete directory ever exists there.

    Raises:
        RunExists: the path exists by then.
        UserError: it cannot be created.
        RunError: the disk is full.
    """
    require_unpacked(path.parent)
    try:
        make_folder(path.parent)
        clear_leftovers(path.parent)
        with replacing(path) as folder:
            (folder / "checkpoints").mkdir(parents=True)
            yield folder
    except OSError as error:
        if error.errno in FULL:
            raise RunError(f"Cannot create run {path.name!r}: {error.strerror}.") from None
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY) and path.exists():
            raise RunExists(
                f"Another process has just created run {path.name!r}; try again."
            ) from None
        raise UserError(
            f"Cannot write to {path.parents[1]}: {error.strerror}; choose another `results`."
        ) from None
