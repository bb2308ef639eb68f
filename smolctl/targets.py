"""What a user typed -> runs and checkpoints.

A target is a run's name, a variant (all its finished runs), or a path; RUN@STEP is a checkpoint.
Models that are no runs yet are the business of `importing`.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from smolctl.options import RESULTS, STUDY
from smollm2.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from smollm2.checkpoints import Checkpoint
    from smollm2.data import TokenData
    from smollm2.protocol import Protocol
    from smollm2.runs import Run


def resume_command(run: "Run") -> str:
    """The command that continues a run, with what is not the default of where it lies."""
    from smollm2.runs import absolute

    where = "" if run.study == STUDY else f" --study {run.study}"
    results = absolute(run.path).parent.parent
    if results != absolute(RESULTS):
        here = Path.cwd()
        where += f" --results {results.relative_to(here) if here in results.parents else results}"
    return f"smolctl train --resume {run.name}{where}"


def state_of(run: "Run") -> str:
    """`finished`, `imported`, `running` (a process is at it), `stopped`, `failed` or `interrupted`,
    which is one that was killed."""
    if run.is_imported:
        return "imported"
    if run.is_finished:
        return "finished"
    if run.is_being_written:
        return "running"
    state = str(run.manifest["state"])
    return state if state in ("stopped", "failed") else "interrupted"


def saved_step(run: "Run") -> int:
    """The step that an unfinished run goes on from."""
    return max(run.checkpoints.steps(), default=0)


def unfinished(run: "Run") -> str:
    """How an unfinished run stands and how to go on, as the end of a sentence after its name:
    `stopped (saved: step 120 of 300): continue it with smolctl train --resume RUN`."""
    saved = f"(saved: step {saved_step(run)} of {run.protocol.steps})"
    state = state_of(run)
    if state == "running":
        return f"is running in another process {saved}: wait for it"
    said = "was interrupted" if state == "interrupted" else state
    return f"{said} {saved}: continue it with {resume_command(run)}"


def require_new(path: Path) -> None:
    """Raise `UserError`, which says what is there, if the run directory `path` exists."""
    from smollm2.runs import Run

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
    raise UserError(f"Run {run.name!r} exists and {unfinished(run)}, or choose another --name.")


def finished_runs(results: Path, study: str) -> "list[Run]":
    """Every finished run that was trained in a study, a sweep's aside; what is broken is named and
    left out.

    Raises:
        UserError: there is none.
    """
    runs = runs_in(results, study)
    finished = [run for run in runs if run.is_finished and run.manifest["role"] == "final"]
    if not finished:
        raise none_finished(runs, results, study)
    return finished


def runs_in(results: Path, study: str) -> "list[Run]":
    """Every run of a study; a directory that is broken is named and left out."""
    from smolctl.console import warn
    from smollm2.runs import list_runs

    runs, broken = list_runs(results, study)
    for sentence in broken:
        warn(f"{sentence} It is left out.")
    return runs


def none_finished(runs: "list[Run]", results: Path, study: str) -> UserError:
    """What to say where a study has no finished run, a sweep's and imported ones aside."""
    folder = results / study
    imported = ", ".join(run.name for run in runs if run.is_imported)
    there = f" but the imported {imported}" if imported else ""
    runs = [run for run in runs if not run.is_imported]
    others = sorted(path.parents[1].name for path in results.glob("*/*/run.json"))
    others = list(dict.fromkeys(name for name in others if name != study))
    if not runs and others:
        return UserError(
            f"{folder} has no runs{there}.{did_you_mean(study, others)} {results} has the studies "
            f"{', '.join(others)}; name one with --study."
        )
    open_runs = [run for run in runs if not run.is_finished]
    if runs and not open_runs:
        return UserError(f"{folder} has only runs of a sweep so far; go on with its study.")
    if open_runs:
        return UserError(
            f"{folder} has no finished runs, only {', '.join(run.name for run in open_runs)}. Go "
            f"on with one: {resume_command(open_runs[0])}"
        )
    where = "" if study == STUDY else f" --study {study}"
    missing = "" if results.exists() else f" (there is no directory {results} here)"
    return UserError(
        f"{folder} has no finished runs{there}{missing}. Train one: "
        f"smolctl train --variant pow2 --scale nano --steps 300{where}"
    )


def runs_of(target: str, results: Path, study: str, *, with_imported: bool = True) -> "list[Run]":
    """The finished runs that `target` names.

    Args:
        with_imported: whether it may be an imported run. Where not, its name may be that of an arm
            that was trained on from it.

    Raises:
        UserError: nothing is called so, or what is called so is not finished.
    """
    from smollm2.runs import Run

    if is_path(target):
        run = Run(Path(target))
        if not run.is_finished:
            raise UserError(f"Run {target} {unfinished(run)}")
        return [run]
    there = runs_in(results, study)
    runs = [run for run in there if with_imported or not run.is_imported]
    finished = [run for run in runs if run.is_finished]
    if found := called(target, finished):
        return found
    if found := called(target, runs):
        raise UserError("; ".join(f"Run {run.name!r} {unfinished(run)}" for run in found))
    if with_imported and (Path(target) / "config.json").exists():
        raise UserError(f"{target!r} is no run or variant here; for the folder give ./{target}.")
    if all(run.manifest["role"] == "sweep" for run in finished):
        raise none_finished(there, results, study)
    known = list(dict.fromkeys(run.arm for run in finished if run.manifest["role"] == "final"))
    known += [run.name for run in finished]
    raise UserError(
        f"{target!r} is no run or variant of {results / study}."
        f"{did_you_mean(target, known)} There are {', '.join(known)}."
    )


def is_path(target: str) -> bool:
    return "/" in target or target.startswith(".")


def called(target: str, runs: "list[Run]") -> "list[Run]":
    """The run of that name, else the final runs of that arm, else of that variant."""
    named = [run for run in runs if run.name == target]
    final = [run for run in runs if run.manifest["role"] == "final"]
    of_arm = [run for run in final if run.arm == target]
    return named or of_arm or [run for run in final if run.protocol.variant == target]


@dataclass(frozen=True)
class Start:
    """What a run starts from: a checkpoint of another run, and what to call it.

    is_continued: whether the same training goes on, as from RUN@STEP.
    """

    run: "Run"
    checkpoint: "Checkpoint"
    label: str
    is_continued: bool

    @property
    def tokenizer(self) -> str:
        """The tokenizer that the weights were trained with, as `--tokenizer` takes it."""
        return str(self.run.path / "tokenizer.json")

    def require_same_tokens(self, data: "TokenData") -> None:
        """Raise `UserError` if the embeddings would stand for other tokens than in `data`, or if a
        run to be continued saw other data."""
        own, trained_on = self.run.tokenizer_fingerprint, self.run.protocol.data
        if own is not None and data.tokenizer_fingerprint != own:
            raise UserError(
                f"Run {self.run.name!r} has another tokenizer "
                f"({own}) than {data.source} is to be read with "
                f"({data.tokenizer_fingerprint}), and its embeddings would stand for other tokens; "
                f"give --tokenizer {self.tokenizer}, and as --data a text or what is prepared "
                "with that."
            )
        if self.is_continued and trained_on and data.fingerprint != trained_on.fingerprint:
            raise UserError(
                f"{self.label} goes on with the data that its run began with "
                f"({trained_on.source}, {trained_on.fingerprint}), and this is {data.source} "
                f"({data.fingerprint}); give the same --data, or start from final weights."
            )


def starting_point(run: "Run", step_text: str | None, draft: "Protocol") -> Start:
    """RUN (final weights, at step 0) or, with a step, RUN@STEP (weights and optimizer).

    Raises:
        UserError: no such checkpoint, another architecture, a horizon already passed, or to be
            continued with another optimizer or batch.
    """
    from smollm2.protocol import differing

    if fields := differing(vars(run.protocol.model), vars(draft.model)):
        raise UserError(
            f"Run {run.name!r} is another architecture: {fields}. Leave out "
            "--variant and the fields of the model, which are those of the run."
        )
    if step_text is None:
        final = run.checkpoints.final()
        if final is None:
            raise UserError(
                f"Run {run.name!r} has no final weights; name one of its checkpoints "
                f"({checkpoints_of(run)})."
            )
        fresh = dataclasses.replace(final, step=0, seconds=0.0)
        name = run.manifest["source"]["name"] if run.is_imported else run.name
        return Start(run, fresh, name, is_continued=False)
    if step_text not in map(str, run.checkpoints.steps()):
        raise UserError(
            f"Run {run.name!r} has no checkpoint at step {step_text!r}; it has "
            f"{checkpoints_of(run)}. A run keeps one for later with --keep-step."
        )
    label = f"{run.name}@{step_text}"
    if int(step_text) >= draft.steps:
        raise UserError(
            f"The new run ends at step {draft.steps}, and step {step_text} is not before that; "
            "give more --steps (they count from the start of the first run)."
        )
    if run.protocol.recipe.optimizer != draft.recipe.optimizer:
        raise UserError(
            f"{label} continues {run.protocol.recipe.optimizer}, not {draft.recipe.optimizer}; "
            f"give --optimizer {run.protocol.recipe.optimizer}, or start from final weights."
        )
    # Tokens and FLOPs are counted from the first run's start, by the step.
    if fields := differing(batch_of(run.protocol), batch_of(draft)):
        raise UserError(
            f"{label} continues steps of another size: {fields}. Give the same --seq-len and as "
            "many sequences a step (--batch-size times --grad-accum), or start from final weights."
        )
    return Start(run, run.checkpoints.at(int(step_text)), label, is_continued=True)


def batch_of(protocol: "Protocol") -> dict[str, int]:
    return {"tokens a step": protocol.tokens_per_step, "seq_len": protocol.seq_len}


def checkpoints_of(run: "Run") -> str:
    steps = run.checkpoints.steps()
    return ", ".join(f"{run.name}@{step}" for step in steps) if steps else "none"
