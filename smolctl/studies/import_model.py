"""Imports models that were trained elsewhere: a folder in the layout of transformers (`./NAME`), a
GGUF file (`./model.gguf`) or `hf:ORG/NAME`. The first use makes a run of the model; later uses find
that run."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from smolctl.studies.targets import (
    GGUF,
    WEIGHTS,
    is_brought,
    is_gguf,
    is_path_target,
    no_model,
    runs_of,
)
from smolctl.talk import say, warn
from smolctl.units import count
from smollm2.errors import RunExists, UserError
from smollm2.files import absolute
from smollm2.interop.hf_import import fetch, open_folder
from smollm2.interop.source import Source, adopt, import_run
from smollm2.protocol.run_config import plain_name
from smollm2.runs.load_run import load_run_tokenizer
from smollm2.runs.names import LONGEST_NAME, RESERVED, run_path
from smollm2.runs.run import Run, list_runs, open_run, open_run_at
from smollm2.runs.text_settings import FOLDER

HUB = "hf:"


def is_elsewhere(target: str) -> bool:
    """Whether `target` names a model that is not a run: on the hub, a transformers folder, or a
    GGUF file, which is known by its ending and so needs no `./`."""
    path = Path(target)
    if target.startswith(HUB) or is_gguf(path):
        return True
    is_run = (path / "run.json").exists()
    return is_path_target(target) and not is_run and is_brought(path)


def runs_or_imported(target: str, results: Path, study: str) -> list[Run]:
    """The finished runs that `target` names, or the run that its model is imported as.

    Raises:
        UserError: as `runs_of` and `imported`.
        RunError: as `imported`.
    """
    if is_elsewhere(target):
        return [imported(target, results, study)]
    require_either(target)
    return runs_of(target, results, study)


def start_of(spec: str, results: Path, study: str) -> tuple[Run, str | None]:
    """The run that `--from` names, finished or not, and the step after its `@`, if any.

    Raises:
        UserError, RunError: as `runs_or_imported`.
    """
    target, step = split_step(spec)
    if is_elsewhere(target):
        require_no_step(target, step)
        return imported(target, results, study), None
    if step is None and (run := imported_before(target, results, study)):
        return run, None
    require_either(target)
    run = open_run_at(Path(target)) if is_path_target(target) else open_run(results, study, target)
    if run.is_imported:
        require_no_step(target, step)
    return run, step


def split_step(spec: str) -> tuple[str, str | None]:
    """RUN@STEP as RUN and STEP; without a step, None."""
    if is_brought(Path(spec)):  # the name of a model from elsewhere may have an @
        return spec, None
    folder, slash, last = spec.rpartition("/")  # and so may the folder of a run
    name, at, step = last.rpartition("@")
    return (folder + slash + name, step) if at else (spec, None)


def require_no_step(target: str, step: str | None) -> None:
    """Raise `UserError` if a step of an imported model is requested."""
    if step is not None:
        raise UserError(
            f"{target} was trained elsewhere and has no step {step} to continue; start from its "
            f"weights: --from {target}."
        )


def require_either(target: str) -> None:
    """Raise `UserError`, which says what is there, if `target` is a path to neither a run nor a
    model."""
    path = Path(target)
    is_weights = path.suffix.lower() in WEIGHTS and path.is_file()
    if (is_path_target(target) or is_weights) and not (path / "run.json").exists():
        raise UserError(no_model(path))


def imported(target: str, results: Path, study: str) -> Run:
    """The run of the model that `target` names, created now if the study has none.

    Raises:
        UserError: the model cannot be found, read or imported, or its name is taken.
        RunError: the disk is full.
    """
    with in_words_of(target):
        source = find(target)
        if run := known(source, results, study):
            return run
        name = name_of(source)
        try:
            require_free(run_path(results, study, name), source)
            run = import_run(results, study, name, source)
        except RunExists:  # two commands may import the same model at once
            if run := known(source, results, study):
                return run
            raise
    size = run.manifest["parameters"]["total"]
    dtype = run.manifest["source"]["dtype"]
    say(f"Imported {target} ({count(size)} parameters, {dtype}) as run {name}: {run.path}")
    if prefix := added_tokens(run):
        warn(
            f"Its tokenizer adds {prefix} to every text. eval and generate add nothing here, so "
            "expect other numbers if the model needs it."
        )
    return run


def imported_before(target: str, results: Path, study: str) -> Run | None:
    """The run that a model was imported as from the folder or file `target`, which is not here:
    cards have it by its base name."""
    if Path(target).exists() or not target.startswith("./"):
        return None
    for run in list_runs(results, study)[0]:
        if run.is_imported and run.manifest["source"]["name"] == target:
            say(f"Using run {run.name}, which was imported from {target}: that is not here.")
            return run
    return None


def find(target: str) -> Source:
    """The model that `target` names, downloaded if it is on the hub."""
    if target.startswith(HUB):
        return open_folder(fetch(target.removeprefix(HUB)), target)
    path = absolute(Path(target))
    if is_gguf(path):
        from smollm2.interop.gguf_import import open_gguf  # imports torch

        return open_gguf(path, f"./{path.name}")
    return open_folder(path, f"./{path.name}")


def known(source: Source, results: Path, study: str) -> Run | None:
    """The run of the model in the study, if there is one."""
    for run in list_runs(results, study)[0]:
        fingerprint = run.is_imported and run.manifest["source"]["fingerprint"]
        if fingerprint == source.fingerprint:
            return run
        if fingerprint == source.older_fingerprint and not (run.path / FOLDER).exists():
            adopt(run, source)
            return run
    return None


def name_of(source: Source) -> str:
    """The name of its run: a valid name made from its folder, file or repository."""
    name = plain_name(source.name.rpartition("/")[2])
    name = name.removesuffix(GGUF)[:LONGEST_NAME]
    if not name:
        return f"model-{source.fingerprint}"
    return f"{name}-{source.layout}" if name in RESERVED else name


def require_free(path: Path, source: Source) -> None:
    """Raise `RunExists`, which says what is there, if the run directory `path` exists."""
    if not path.exists():
        return
    remedy = "give another --study"
    if not source.name.startswith(HUB):
        remedy += f", rename the {'file' if source.layout == 'gguf' else 'folder'}"
    taken = f"its run would be called {path.name}, and that name is taken"
    with contextlib.suppress(UserError):  # an unreadable run is not the same model
        run = Run(path)
        if run.is_imported:
            taken = f"run {path.name} was imported from {run.manifest['source']['name']}, and this"
            taken += " is another model or has changed since"
            remedy += f", or remove {path} to import it again"
    raise RunExists(f"{taken}; {remedy}.")


def added_tokens(run: Run) -> str:
    """The tokens that a run's tokenizer adds to a text by default; empty for none."""
    return " ".join(load_run_tokenizer(run).encode("").tokens)


@contextlib.contextmanager
def in_words_of(target: str) -> Iterator[None]:
    """A context manager that starts errors with what the user typed."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{target}: {error}") from None
