"""What a run can start from: the final weights of another run, or one of its checkpoints."""

import dataclasses
from dataclasses import dataclass

from smollm2.data import TokenData
from smollm2.errors import UserError
from smollm2.protocol.run_config import ResolvedConfig, differing
from smollm2.runs.checkpoints import Checkpoint
from smollm2.runs.run import Run


@dataclass(frozen=True)
class Start:
    """What a run starts from.

    Args:
        run: the run that the weights are from.
        checkpoint: its weights; with optimizer and step if `is_continued`.
        label: what the new run's manifest calls it.
        is_continued: whether the same training continues, as from RUN@STEP.
    """

    run: Run
    checkpoint: Checkpoint
    label: str
    is_continued: bool

    @property
    def tokenizer(self) -> str:
        """The tokenizer of the weights, as a path for `--tokenizer`."""
        return str(self.run.path / "tokenizer.json")

    def require_same_tokens(self, data: TokenData) -> None:
        """Raise `UserError` if the embeddings are not for the tokens of `data`, or if a continued
        run saw other data."""
        own, trained_on = self.run.tokenizer_fingerprint, self.run.protocol.data
        if own is not None and data.tokenizer_fingerprint != own:
            raise UserError(
                f"The embeddings of run {self.run.name!r} are for another tokenizer ({own}) than "
                f"that of {data.source} ({data.tokenizer_fingerprint}). Give --tokenizer "
                f"{self.tokenizer}, and a --data that is text or was prepared with it."
            )
        if self.is_continued and trained_on and data.fingerprint != trained_on.fingerprint:
            raise UserError(
                f"{self.label} must continue on the data of its run ({trained_on.source}, "
                f"{trained_on.fingerprint}), not on {data.source} ({data.fingerprint}); give "
                "the same --data, or start from final weights."
            )


def starting_point(run: Run, step_text: str | None, draft: ResolvedConfig) -> Start:
    """RUN (final weights, at step 0) or, with a step, RUN@STEP (weights and optimizer).

    Raises:
        UserError: there is no such checkpoint, the architecture differs, the horizon has passed,
            or a continued run would change its optimizer or batch.
    """
    if fields := differing(vars(run.protocol.model), vars(draft.model)):
        raise UserError(
            f"Run {run.name!r} has another architecture: {fields}. Omit --variant and the "
            "fields of the model; they come with the run."
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
            f"{checkpoints_of(run)}. Train with --keep-step to keep one."
        )
    label = f"{run.name}@{step_text}"
    if int(step_text) >= draft.steps:
        raise UserError(
            f"The new run ends at step {draft.steps}, which is not after step {step_text}; "
            "give more --steps (they count from the start of the first run)."
        )
    if run.protocol.recipe.optimizer != draft.recipe.optimizer:
        raise UserError(
            f"{label} continues {run.protocol.recipe.optimizer}, not {draft.recipe.optimizer}; "
            f"give --optimizer {run.protocol.recipe.optimizer}, or start from final weights."
        )
    # Tokens and FLOPs follow from the step, counted from the first run's start.
    if fields := differing(batch_of(run.protocol), batch_of(draft)):
        raise UserError(
            f"{label} was trained with steps of a different size: {fields}. Give the same "
            "--seq-len and as many sequences per step (--micro-batch-size times --grad-accum), or "
            "start from final weights."
        )
    return Start(run, run.checkpoints.at(int(step_text)), label, is_continued=True)


def batch_of(protocol: ResolvedConfig) -> dict[str, int]:
    """What a continued checkpoint must have in common with its run."""
    return {"tokens per step": protocol.tokens_per_step, "seq_len": protocol.seq_len}


def checkpoints_of(run: Run) -> str:
    """The run's checkpoints as `--from` names them, or `none`."""
    steps = run.checkpoints.steps()
    return ", ".join(f"{run.name}@{step}" for step in steps) if steps else "none"
