"""`smolctl train --resume`: an unfinished run is continued as it was, or not at all."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smollm2.errors import UserError

if TYPE_CHECKING:
    from smollm2.data import TokenData
    from smollm2.protocol import Protocol
    from smollm2.runs import Run


def reopen(results: Path, study: str, name: str, asked: dict[str, Any]) -> "tuple[Run, TokenData]":
    """An unfinished run with its tokens, to be continued as it was.

    Raises:
        UserError: it is finished, something else was asked for, or its tokens are not to be had.
    """
    from smolctl.tokens import tokens_of
    from smollm2.protocol import differing
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
        other = with_changes(run, asked).on(data)
        if fields := differing(protocol.to_dict(), other.to_dict()):
            raise UserError(
                f"A resumed run keeps its configuration, and this differs: {fields}. Leave these "
                "options out, or start a new run under another --name."
            )
    return run, data


def with_changes(run: "Run", asked: dict[str, Any]) -> "Protocol":
    """What the run's protocol would be had `asked` been asked for as well."""
    from smollm2.config import replace_fields, split_setting
    from smollm2.protocol import Request, resolve, resolve_recipe

    protocol, saved = run.protocol, dict(run.manifest["request"])
    # An option and a setting of one name would contradict each other: what is asked now counts.
    set_now = {split_setting(text)[0] for text in asked.get("settings", ())}
    saved |= dict.fromkeys(set_now & saved.keys())
    saved["settings"] = [s for s in saved["settings"] if split_setting(s)[0] not in asked]
    if not asked.keys().isdisjoint(("steps", "tokens", "flops")):
        saved |= {"steps": None, "tokens": None, "flops": None}
    machine = {"device": protocol.device, "dtype": protocol.dtype, "compile": protocol.compile}
    settings = {"settings": (*saved["settings"], *asked.get("settings", ()))}
    request = Request(**saved | machine | asked | settings)
    if not asked.keys().isdisjoint(("variant", "scale")):
        return resolve(request)
    # The variant may be a file that is gone: its architecture is in the manifest.
    _, fields = resolve_recipe(request)
    changes = dict(field.split("=", 1) for field in fields)
    other = resolve(request, replace_fields(protocol.model, changes))
    return dataclasses.replace(other, variant=protocol.variant)
