"""What a user typed -> a model to use, with its tokenizer."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from smollm2.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from smollm2.model import SmolLM2
    from smollm2.runs import Run


@dataclass(frozen=True)
class Loaded:
    """A run's model, in evaluation mode, and the tokenizer it was trained with."""

    run: "Run"
    model: "SmolLM2"
    tokenizer: "Tokenizer"


def load_one(
    target: str, results: Path, study: str, device: str | None, dtype: str | None
) -> Loaded:
    """The one model that `target` names, by default on the run's own device and in its dtype.

    Raises:
        UserError: as `runs_of`, it names several runs, or the run's tokenizer or weights are
            missing, damaged or others.
    """
    from smolctl.scoring import machine
    from smolctl.targets import runs_of
    from smollm2.runs import load_model, load_run_tokenizer

    runs = runs_of(target, results, study)
    if len(runs) > 1:
        names = ", ".join(run.name for run in runs)
        raise UserError(f"{target!r} names {len(runs)} runs; choose one of {names}.")
    (run,) = runs
    tokenizer = load_run_tokenizer(run)
    return Loaded(run, load_model(run, *machine(run, device, dtype)), tokenizer)
