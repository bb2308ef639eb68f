"""run.json: a run's configuration, request and state."""

import dataclasses
from datetime import UTC, datetime
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from typing import Any

from smollm2.errors import UserError
from smollm2.files import absolute
from smollm2.model.cost import parameters, training_flops_per_token
from smollm2.parse import MAX_JSON, json_table, read_file, unreadable
from smollm2.protocol.run_config import ResolvedConfig, RunConfig, with_current_names
from smollm2.runs.manifest_types import wrong_field

FORMAT = 1
MOST_KEPT = 4096  # manifests in memory, of some 10 KB each


class RunState(StrEnum):
    """How far a run has come, as run.json keeps it. A killed run stays RUNNING."""

    RUNNING = "running"
    STOPPED = "stopped"
    FAILED = "failed"
    FINISHED = "finished"


class Role(StrEnum):
    """What a run is for."""

    FINAL = "final"  # it is compared
    SWEEP = "sweep"  # it tunes the learning rate
    IMPORTED = "imported"  # its training happened elsewhere


def new_manifest(
    name: str, request: RunConfig | None, protocol: ResolvedConfig, **labels: str | None
) -> dict[str, Any]:
    """run.json as it stands before the first step; `labels` are as given.

    Args:
        request: None for an imported run.
    """
    from smollm2.device import environment

    return {
        "format": FORMAT,
        "name": name,
        **labels,
        "state": RunState.RUNNING,
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


def read_manifest(path: Path) -> dict[str, Any]:
    """run.json of the run at `path`, with the field names of this version.

    Raises:
        UserError: it is missing, damaged (a field of another type, a size below zero) or of another
            version.
    """
    name = absolute(path).name
    try:
        content = read_file(path / "run.json", MAX_JSON)
    except FileNotFoundError:
        raise UserError(f"{name} is not a run: it has no run.json.") from None
    except (OSError, ValueError) as error:
        raise unreadable_manifest(name, error) from None
    return dict(manifest_in(content, name))


def unreadable_manifest(name: str, error: OSError | ValueError) -> UserError:
    """The error for the manifest of the run `name`."""
    reason = unreadable(name, "JSON", error).reason
    return UserError(f"{name}/run.json cannot be read: {reason}.")


@lru_cache(maxsize=MOST_KEPT)
def manifest_in(content: bytes, name: str) -> dict[str, Any]:
    """The manifest in the content of run.json of the run `name`; raises as `read_manifest`.

    A command lists the runs of a study several times, and equal content is checked once. So the
    manifest is shared: its fields may be replaced in a copy, but nested values never changed.
    """
    try:
        manifest = json_table(content)
    except ValueError as error:
        raise unreadable_manifest(name, error) from None
    is_known = manifest.get("format") == FORMAT and manifest.get("state") in list(RunState)
    if not (is_known and manifest.get("role") in list(Role)):
        raise UserError(f"{name}/run.json is not a manifest of this version.")
    is_imported = manifest["role"] == Role.IMPORTED
    if problem := wrong_field(manifest, is_imported=is_imported):
        raise UserError(f"{name}/run.json is damaged: {problem}.")
    try:
        manifest["protocol"] = with_current_names(manifest["protocol"])
        ResolvedConfig.from_dict(manifest["protocol"])
        if not is_imported:
            manifest["request"] = with_current_names(manifest["request"])
            RunConfig.from_dict(manifest["request"])
    except UserError as error:
        raise UserError(f"{name}/run.json: {error}") from None
    return manifest


def now() -> str:
    """The time as ISO 8601 in UTC, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
