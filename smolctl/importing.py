"""Models that were trained elsewhere as targets: a folder in the layout of transformers (`./NAME`),
or `hf:ORG/NAME`. The first use makes a run of one, which later uses find again."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from smolctl.targets import is_path, runs_of
from smollm2.errors import RunExists, UserError

if TYPE_CHECKING:
    from smollm2.hf_import import Source
    from smollm2.runs import Run

HUB = "hf:"


def is_elsewhere(target: str) -> bool:
    """Whether `target` names a model that is no run: on the hub, or a folder of transformers."""
    if target.startswith(HUB):
        return True
    folder = Path(target)
    is_run = (folder / "run.json").exists()
    return is_path(target) and not is_run and (folder / "config.json").exists()


def runs_or_imported(target: str, results: Path, study: str) -> "list[Run]":
    """The finished runs that `target` names, or the one that a model from elsewhere becomes.

    Raises:
        UserError: as `runs_of` and `imported`.
        RunError: as `imported`.
    """
    if is_elsewhere(target):
        return [imported(target, results, study)]
    require_either(target)
    return runs_of(target, results, study)


def start_of(spec: str, results: Path, study: str) -> "tuple[Run, str | None]":
    """The run that `--from` names, finished or not, and the step after its `@`, if there is one.

    Raises:
        UserError, RunError: as `runs_or_imported`.
    """
    from smollm2.runs import Run, open_run

    target, step = split_step(spec)
    if is_elsewhere(target):
        require_no_step(target, step)
        return imported(target, results, study), None
    require_either(target)
    run = Run(Path(target)) if is_path(target) else open_run(results, study, target)
    if run.is_imported:
        require_no_step(target, step)
    return run, step


def split_step(spec: str) -> tuple[str, str | None]:
    """RUN@STEP as RUN and STEP; without a step, None."""
    if (Path(spec) / "config.json").exists():  # of transformers, and may have an @ in its name
        return spec, None
    folder, slash, last = spec.rpartition("/")  # as may the folder that a run is in
    name, at, step = last.rpartition("@")
    return (folder + slash + name, step) if at else (spec, None)


def require_no_step(target: str, step: str | None) -> None:
    """Raise `UserError` if a step is given, of a model from elsewhere."""
    if step is not None:
        raise UserError(
            f"{target} was trained elsewhere and has no step {step} to continue; start from its "
            f"weights: --from {target}."
        )


def require_either(target: str) -> None:
    """Raise `UserError` if `target` is a path, and neither of a run nor of a model."""
    from smollm2.runs import absolute

    if is_path(target) and not (Path(target) / "run.json").exists():
        raise UserError(
            f"{absolute(Path(target)).name!r} is neither a run nor a model in the layout of "
            "transformers: it has neither run.json nor config.json."
        )


def imported(target: str, results: Path, study: str) -> "Run":
    """The run of the model that `target` names, made now if the study has none.

    Raises:
        UserError: the model cannot be had, read or imported, or its name is taken.
        RunError: the disk is full.
    """
    from smolctl.console import count, say, warn
    from smollm2.hf_import import import_run
    from smollm2.runs import run_path

    with in_words_of(target):
        source = find(target)
        if run := known(source, results, study):
            return run
        name = name_of(source)
        try:
            require_free(run_path(results, study, name), source)
            run = import_run(results, study, name, source)
        except RunExists:  # of the same model, if two commands used it first at the same moment
            if run := known(source, results, study):
                return run
            raise
    size = run.manifest["parameters"]["total"]
    dtype = run.manifest["source"]["dtype"]
    say(f"Imported {target} ({count(size)} parameters, {dtype}) as run {name}: {run.path}")
    if prefix := added_tokens(run):
        warn(
            f"Its tokenizer adds {prefix} to a text by itself. Here nothing is added, neither by "
            "eval nor by generate, so expect other numbers where the model needs it."
        )
    return run


def find(target: str) -> "Source":
    """The model that `target` names, fetched if it is on the hub."""
    from smollm2.hf_import import fetch, open_source
    from smollm2.runs import absolute

    if target.startswith(HUB):
        return open_source(fetch(target.removeprefix(HUB)), target)
    folder = absolute(Path(target))
    return open_source(folder, f"./{folder.name}")


def known(source: "Source", results: Path, study: str) -> "Run | None":
    """The run that the study has of the model."""
    from smollm2.runs import list_runs

    for run in list_runs(results, study)[0]:
        if run.is_imported and run.manifest["source"]["fingerprint"] == source.fingerprint:
            return run
    return None


def name_of(source: "Source") -> str:
    """What its run is called: as its folder or repository, where a run can be called so."""
    from smollm2.protocol import plain_name
    from smollm2.runs import LONGEST_NAME, RESERVED

    name = plain_name(source.name.rpartition("/")[2])[:LONGEST_NAME]
    if not name:
        return f"model-{source.fingerprint}"
    return f"{name}-hf" if name in RESERVED else name


def require_free(path: Path, source: "Source") -> None:
    """Raise `RunExists`, which says what is there, if the run directory `path` exists."""
    from smollm2.runs import Run

    if not path.exists():
        return
    remedy = "give another --study" + ("" if source.name.startswith(HUB) else ", rename the folder")
    taken = f"it would be called {path.name}, and there is such a run"
    with contextlib.suppress(UserError):  # no run that can be read, so not the same model either
        run = Run(path)
        if run.is_imported:
            taken = f"run {path.name} was imported from {run.manifest['source']['name']}, and this"
            taken += " is another model or has changed since"
            remedy += f", or remove {path} to import it again"
    raise RunExists(f"{taken}; {remedy}.")


def added_tokens(run: "Run") -> str:
    """The tokens that the tokenizer of a run adds to a text unless it is told not to; empty for
    none."""
    from smollm2.runs import load_run_tokenizer

    return " ".join(load_run_tokenizer(run).encode("").tokens)


@contextlib.contextmanager
def in_words_of(target: str) -> Iterator[None]:
    """Inside, errors begin with what the user typed."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{target}: {error}") from None
