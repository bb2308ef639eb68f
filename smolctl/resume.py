"""`smolctl train --resume`: an unfinished run is continued as it was, or not at all."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from smollm2.errors import UserError

if TYPE_CHECKING:
    from smollm2.data import TokenData
    from smollm2.runs import Run


def reopen(results: Path, study: str, name: str, asked: dict[str, Any]) -> "tuple[Run, TokenData]":
    """An unfinished run with its tokens, to be continued as it was.

    Raises:
        UserError: it is finished, something else was asked for, or its tokens are not to be had.
    """
    from smolctl.prepare import tokens_of
    from smollm2.protocol import Request, resolve
    from smollm2.runs import open_run

    run = open_run(results, study, name)
    protocol = run.protocol
    if run.is_finished:
        raise UserError(
            f"Run {name!r} is finished. To train on from its weights, start a new run with "
            f"--from {name}."
        )
    data = tokens_of(run, asked.pop("data", None), asked.pop("tokenizer", None))
    if asked:
        saved = run.manifest["request"]
        request = Request(**saved | {"settings": tuple(saved["settings"])} | asked)
        same_model = asked.keys().isdisjoint(("variant", "scale", "settings"))
        other = resolve(request, protocol.model if same_model else None).on(data)
        if fields := differing(protocol.to_dict(), other.to_dict()):
            raise UserError(
                f"A resumed run keeps its configuration, and this differs: {fields}. Leave these "
                f"options out, or start a new run under another --name."
            )
    return run, data


def differing(saved: dict[str, Any], asked: dict[str, Any], prefix: str = "") -> str:
    """The fields that differ, `lr: 0.001 there, 0.003 asked for`; nested ones dotted."""
    lines = []
    for key, old in saved.items():
        new = asked.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            if inner := differing(old, new, f"{prefix}{key}."):
                lines.append(inner)
        elif old != new:
            lines.append(f"{prefix}{key}: {old} there, {new} asked for")
    return "; ".join(lines)
