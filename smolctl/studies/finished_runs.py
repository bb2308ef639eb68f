"""What a study does with a final run that has finished: score it on tasks, and quantize it."""

from functools import partial

from smolctl.studies.models import Model
from smolctl.studies.quantizer import MeasureOptions, Quantizer, missing, reasons, row_summary
from smolctl.studies.scorer import Scorer
from smolctl.studies.study_file import Quantization, Study
from smolctl.talk import say, warn
from smollm2.data import TokenData
from smollm2.errors import RunError, UserError
from smollm2.evaluation.tasks import TaskItems
from smollm2.runs.load_run import final_weights
from smollm2.runs.run import Run
from smollm2.training.final_scores import count_floors_of


def complete(
    run: Run, study: Study, data: TokenData, questions: list[TaskItems] | None
) -> str | None:
    """Score and quantize a finished run as its study says, and count the floors of one that has
    none; what is recorded is not done again.

    Args:
        data: of the study.
        questions: of the study's tasks.

    Returns:
        Why it failed, which is also said; None if it did not.
    """
    steps = [("given its floors", partial(count_floors_of, run, data))]
    if study.evaluation and questions:
        steps.append(("scored", partial(score, run, questions, study.evaluation.dtype)))
    if study.quantization:
        steps.append(("quantized", partial(quantize_as_planned, run, study.quantization)))
    failed = None
    for done, step in steps:
        try:
            step()
        except (UserError, RunError) as error:
            warn(f"Run {run.name!r} could not be {done}: {error}")
            failed = str(error)
    return failed


def score(run: Run, questions: list[TaskItems], dtype: str | None) -> None:
    """Score a run on the questions of tasks."""
    scorer = Scorer(Model(run, final_weights(run)), dtype=dtype)
    for acc, *_ in scorer.score(scorer.load(), [], questions):
        say(f"{run.name} {acc['task']}: acc {acc['value']:.4f} ± {acc['stderr']:.4f}")


def quantize_as_planned(run: Run, plan: Quantization) -> None:
    """Quantize a run in the ways that have not been measured yet."""
    if todo := missing(run, plan.models):
        quantizer = Quantizer(Model(run, final_weights(run)), MeasureOptions(plan.tokens))
        rows = []
        for row in quantizer.measure(todo):
            rows.append(row)
            say(row_summary(run, row))
        for sentence in reasons(rows):
            say(f"{run.name}: {sentence}")
