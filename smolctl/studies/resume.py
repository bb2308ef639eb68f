"""`smolctl train --resume`: continue an unfinished run with exactly its configuration."""

import dataclasses
from pathlib import Path
from typing import Any

from smolctl.analysis.study_plan import LEDGER, read_ledger
from smolctl.studies.tokens import tokens_of
from smollm2.data import TokenData
from smollm2.errors import UserError
from smollm2.model.config import replace_fields, split_setting
from smollm2.protocol.resolve import resolve, resolve_recipe
from smollm2.protocol.run_config import ResolvedConfig, RunConfig, differing
from smollm2.runs.run import Run, open_run


def reopen(results: Path, study: str, name: str, asked: dict[str, Any]) -> tuple[Run, TokenData]:
    """An unfinished run and its tokens.

    Args:
        asked: fields of a `RunConfig` that the user typed; they must not change the run.

    Raises:
        UserError: it is finished, `asked` changes it, or its tokens are not available.
    """
    run = open_run(results, study, name)
    protocol = run.protocol
    if run.is_finished:
        run.tidy()
        raise UserError(
            f"Run {name!r} is finished. To train its weights further, start a new run with "
            f"--from {name}."
        )
    require_result_open(run)
    data = tokens_of(run, asked.pop("data", None), asked.pop("tokenizer", None))
    share = asked.pop("held_out", data.held_out)
    now, wanted = protocol.to_dict() | {"held_out": data.held_out}, {"held_out": share}
    wanted |= with_changes(run, asked).on(data).to_dict() if asked else protocol.to_dict()
    if fields := differing(now, wanted):
        raise UserError(
            f"A resumed run keeps its configuration, but this differs: {fields}. Omit these "
            "options, or start a new run with another --name."
        )
    return run, data


def require_result_open(run: Run) -> None:
    """Raise `UserError` if the run diverged, and its study has this as its result."""
    ledger = read_ledger(run.study_path)
    if ledger and run.name in ledger.results and ledger.results[run.name].diverged:
        raise UserError(
            f"Run {run.name!r} diverged, and {LEDGER} has this as its result: to go on would give "
            "the seed another chance. Start a new run with another --name."
        )


def with_changes(run: Run, asked: dict[str, Any]) -> ResolvedConfig:
    """The run's configuration, changed by `asked`."""
    protocol, saved = run.protocol, dict(run.manifest["request"])
    # A typed field replaces a saved option or setting of the same name.
    set_now = {split_setting(text)[0] for text in asked.get("settings", ())}
    saved |= dict.fromkeys(set_now & saved.keys())
    saved["settings"] = [s for s in saved["settings"] if split_setting(s)[0] not in asked]
    if not asked.keys().isdisjoint(("steps", "tokens", "flops")):
        saved |= {"steps": None, "tokens": None, "flops": None}
    kept = ("device", "dtype", "compile", "held_out_windows", "data_order")
    machine = {name: getattr(protocol, name) for name in kept}
    settings = {"settings": (*saved["settings"], *asked.get("settings", ()))}
    request = RunConfig(**saved | machine | asked | settings)
    if not asked.keys().isdisjoint(("variant", "scale")):
        return resolve(request)
    # The variant may be a file that no longer exists; its architecture is in the manifest.
    _, fields = resolve_recipe(request)
    changes = dict(field.split("=", 1) for field in fields)
    other = resolve(request, replace_fields(protocol.model, changes))
    return dataclasses.replace(other, variant=protocol.variant)
