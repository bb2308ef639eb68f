"""Finds the runs that a user named, and describes unfinished ones.

A target is a run's name, an arm or variant (all its finished runs), or a path. `import_model` finds
models that are not runs yet, `start` the checkpoint RUN@STEP.
"""

from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path

from smolctl.analysis.kept_study import continue_command, kept_seeds
from smolctl.command_line import command, results_of
from smolctl.talk import warn
from smollm2.errors import UserError, did_you_mean, first_few
from smollm2.files import absolute, base_name
from smollm2.runs.manifest import Role, RunState
from smollm2.runs.packed import MANIFEST, require_unpacked
from smollm2.runs.run import Run, list_runs, open_run_at


def comparison_command(run: Run) -> str:
    """The command that compares a run with what it began as, or another arm of its study with its
    own; empty without one."""
    results = results_of(run)
    if start := run.manifest["started_from"]:
        base = str(start).rpartition("@")[0] or str(start)
        return command("compare", base, run.name, study=run.study, results=results)
    runs, _ = list_runs(results, run.study)
    arms = (one.arm for one in runs if one.is_finished and one.role is Role.FINAL)
    other = next((arm for arm in arms if arm != run.arm), None)
    if other is None or run.role is not Role.FINAL:
        return ""
    return command("compare", other, run.arm, study=run.study, results=results)


def unpack_command(study: Path) -> str:
    """The command that unpacks the study in that folder."""
    study = absolute(study)
    return command("runs", "unpack", study.name, results=study.parent)


MOST_NAMED = 20  # of the arms and runs that could have been meant
# Endings of files of weights, which without a configuration and a tokenizer are no model.
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
GGUF = ".gguf"  # which has all three


STARTING_SECONDS = 60.0  # from making a run to locking it, on a busy machine


class RunStatus(StrEnum):
    """What a run is doing now, as users see it; run.json keeps less, a `RunState`."""

    FINISHED = "finished"
    IMPORTED = "imported"
    RUNNING = "running"  # in a process
    STOPPED = "stopped"
    FAILED = "failed"
    INTERRUPTED = "interrupted"  # its process was killed


def status_of(run: Run) -> RunStatus:
    """The status of a run, which depends on whether a process is writing it."""
    if run.is_imported:
        return RunStatus.IMPORTED
    if not run.is_finished and (run.is_being_written or is_starting(run)):
        return RunStatus.RUNNING
    return RunStatus.INTERRUPTED if run.state is RunState.RUNNING else RunStatus(run.state)


def is_starting(run: Run) -> bool:
    """Whether a run was made a moment ago, and the process that made it has yet to lock it."""
    if run.state is not RunState.RUNNING or (run.path / "run.lock").exists():
        return False
    try:
        made = datetime.fromisoformat(str(run.manifest.get("created_at")))
        return 0 <= (datetime.now(UTC) - made).total_seconds() < STARTING_SECONDS
    except (ValueError, TypeError):  # not a time, or one without a zone
        return False


def saved_step(run: Run) -> int:
    """The step that an unfinished run continues from."""
    return max(run.checkpoints.steps(), default=0)


def unfinished(run: Run) -> str:
    """An unfinished run's state and how to continue it, to follow its name in a sentence:
    `stopped (saved: step 120 of 300): continue it with smolctl train --resume RUN`."""
    saved = f"(saved: step {saved_step(run)} of {run.protocol.steps})"
    status = status_of(run)
    if status is RunStatus.RUNNING:
        return f"is running in another process {saved}: wait for it"
    said = "was interrupted" if status is RunStatus.INTERRUPTED else status
    return f"{said} {saved}: continue it with {continue_command(run)}"


def require_new(path: Path) -> None:
    """Raise `UserError`, which says what is there, if the run directory `path` exists."""
    require_unpacked(path.parent)
    if not path.exists():
        return
    try:
        run = Run(path)
    except UserError as error:
        raise UserError(f"{path} exists, but {error} Choose another --name.") from None
    if run.is_finished:
        raise UserError(
            f"Run {run.name!r} exists and is finished. Choose another --name or, without --name, "
            "another --seed."
        )
    raise UserError(f"Run {run.name!r} exists: choose another --name. It {unfinished(run)}")


def finished_runs(results: Path, study: str) -> list[Run]:
    """The finished runs that a study compares, without its sweep and imported runs. Broken
    directories are reported and skipped.

    Raises:
        UserError: there is none.
    """
    runs = runs_in(results, study)
    finished = [run for run in runs if run.is_finished and run.role is Role.FINAL]
    if not finished:
        raise none_finished(runs, results, study)
    return finished


def runs_in(results: Path, study: str) -> list[Run]:
    """Every run of a study; broken directories are reported and skipped."""
    runs, broken = list_runs(results, study)
    for sentence in broken:
        warn(f"{sentence} It is skipped.")
    return runs


def studies_in(results: Path) -> list[str]:
    """The names of the studies that have runs, packed or not."""
    files = [*results.glob("*/*/run.json"), *results.glob(f"*/*/{MANIFEST}")]
    return sorted({path.parents[1].name for path in files})


def none_finished(runs: list[Run], results: Path, study: str) -> UserError:
    """The error for a study without finished runs; its sweep and imported runs do not count."""
    folder = results / study
    imported = ", ".join(run.name for run in runs if run.is_imported)
    there = f" but the imported {imported}" if imported else ""
    runs = [run for run in runs if not run.is_imported]
    if runs and kept_seeds(folder):
        from smolctl.studies.study_progress import why_none_finished  # imports torch

        return UserError(why_none_finished(folder, runs))
    others = [name for name in studies_in(results) if name != study]
    if not runs and others:
        return UserError(
            f"{folder} has no runs{there}.{did_you_mean(study, others)} {results} has the studies "
            f"{', '.join(others)}; name one with --study."
        )
    open_runs = [run for run in runs if not run.is_finished]
    if runs and not open_runs:
        return UserError(f"{folder} has only runs of a sweep so far; continue its study.")
    if open_runs:
        return UserError(
            f"{folder} has no finished runs, only {first_few([run.name for run in open_runs])}. "
            f"{open_runs[0].name} {unfinished(open_runs[0])}"
        )
    words = ("train", "--variant", "pow2", "--scale", "nano", "--steps", "300")
    missing = "" if results.exists() else f" (there is no directory {results} here)"
    return UserError(
        f"{folder} has no finished runs{there}{missing}. Train one: "
        f"{command(*words, study=study, results=results)}"
    )


def runs_of(
    target: str,
    results: Path,
    study: str,
    *,
    with_imported: bool = True,
    there: list[Run] | None = None,
) -> list[Run]:
    """The finished runs that `target` names.

    Args:
        there: every run of the study, where they have been read.
        with_imported: whether it may name an imported run; else the name may also be that of an arm
            that started from it.

    Raises:
        UserError: there is no such run, or it is not finished.
    """
    if is_path_target(target):
        run = open_run_at(Path(target))
        if not run.is_finished:
            raise UserError(f"Run {target} {unfinished(run)}")
        return [run]
    there = runs_in(results, study) if there is None else there
    runs = [run for run in there if with_imported or not run.is_imported]
    finished = [run for run in runs if run.is_finished]
    if found := called(target, finished):
        return found
    if found := called(target, runs):
        raise UserError("; ".join(f"Run {run.name!r} {unfinished(run)}" for run in found))
    if with_imported and (Path(target) / "config.json").exists():
        raise UserError(f"{target!r} is not a run or variant here; for the folder type ./{target}.")
    if Path(target).is_file():
        raise UserError(no_model(Path(target)))
    if all(run.role is Role.SWEEP for run in finished):
        raise none_finished(there, results, study)
    known = list(dict.fromkeys(run.arm for run in finished if run.role is Role.FINAL))
    known += [run.name for run in finished]
    raise UserError(
        f"{target!r} is not a run or variant in {results / study}."
        f"{did_you_mean(target, known)} Available: {first_few(known, MOST_NAMED)}."
    )


def is_path_target(target: str) -> bool:
    """Whether a target is a path and not a name."""
    return "/" in target or target.startswith(".")


def is_gguf(path: Path) -> bool:
    """Whether a GGUF file is at a path, by its name."""
    return path.suffix.lower() == GGUF and path.is_file()


def is_brought(path: Path) -> bool:
    """Whether a model from elsewhere is at a path: a transformers folder or a GGUF file."""
    return (path / "config.json").exists() or is_gguf(path)


def no_model(path: Path) -> str:
    """What is at a path that is neither a run nor a model, and what to name instead."""
    name = repr(base_name(absolute(path)))
    models = "a folder in the layout of transformers or a GGUF file (./model.gguf)"
    if not path.exists():
        near = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        return f"{str(path)!r} does not exist.{did_you_mean(path.name, near)}"
    if path.is_dir():
        files = sorted(entry.name for entry in path.glob(f"*{GGUF}"))
        remedy = f" Name the GGUF file in it: {path / files[0]}" if files else ""
        return (
            f"{name} is neither a run nor a model in the layout of transformers: it has neither "
            f"run.json nor config.json.{remedy}"
        )
    ending = path.suffix.lower()
    if ending in WEIGHTS:
        return (
            f"{name} is a file of weights, without a configuration and a tokenizer; name the run "
            "or the folder that it belongs to (a folder in the layout of transformers)."
        )
    return f"{name} is a file, not a model; name a run, or {models}."


def called(target: str, runs: list[Run]) -> list[Run]:
    """The run of that name, or else the final runs of that arm, or else those of that variant."""
    named = [run for run in runs if run.name == target]
    final = [run for run in runs if run.role is Role.FINAL]
    of_arm = [run for run in final if run.arm == target]
    return named or of_arm or [run for run in final if run.protocol.variant == target]
