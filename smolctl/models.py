"""Models that a target names: what a run ended with, a model from elsewhere, or RUN+NAME, which was
quantized from one of them."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from smolctl.importing import runs_or_imported
from smollm2.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from smollm2.checkpoints import Checkpoint
    from smollm2.model import SmolLM2
    from smollm2.quantize.store import Quantized
    from smollm2.runs import Run
    from smollm2.tables import Tables


@dataclass(frozen=True)
class Model:
    """A trained model whose files have been verified.

    Args:
        quantized: None for the model as it was trained.
    """

    run: "Run"
    final: "Checkpoint"
    quantized: "Quantized | None" = None

    @property
    def label(self) -> str:
        """RUN or RUN+NAME."""
        return self.run.name if self.quantized is None else self.quantized.label

    @property
    def tables(self) -> "Tables":
        """Where its scores are."""
        return self.run if self.quantized is None else self.quantized.tables

    @property
    def weights(self) -> str:
        """The checksum of its weights' file."""
        return self.final.sha256 if self.quantized is None else self.quantized.sha256

    def load(self, device: str, dtype: str) -> "SmolLM2":
        """The model in evaluation mode.

        Raises:
            UserError: its weights are not of the run's architecture.
        """
        if self.quantized is None:
            from smollm2.runs import load_model

            return load_model(self.run, device, dtype, self.final)
        from smolctl.console import hush
        from smollm2.quantize.store import load_quantized

        hush()
        return load_quantized(self.quantized, device, dtype)


@dataclass(frozen=True)
class Loaded:
    """A model in evaluation mode, and the tokenizer it was trained with."""

    source: Model
    model: "SmolLM2"
    tokenizer: "Tokenizer"


def load_one(
    target: str, results: Path, study: str, device: str | None, dtype: str | None
) -> Loaded:
    """The one model that `target` names, by default on the run's own device and in its dtype.

    Raises:
        UserError: as `one_model`, or there is no such device or dtype, or the run's tokenizer is
            missing or damaged.
    """
    from smolctl.scoring import machine, require_machine
    from smollm2.runs import load_run_tokenizer

    require_machine(device, dtype)
    source = one_model(target, results, study)
    tokenizer = load_run_tokenizer(source.run)
    return Loaded(source, source.load(*machine(source.run, device, dtype)), tokenizer)


def one_model(target: str, results: Path, study: str) -> Model:
    """The one model that `target` names.

    Raises:
        UserError: as `models_of`, or it names several.
    """
    models = models_of(target, results, study)
    if len(models) > 1:
        names = ", ".join(model.label for model in models)
        raise UserError(f"{target!r} names {len(models)} runs; choose one of {names}.")
    return models[0]


def models_of(target: str, results: Path, study: str) -> list[Model]:
    """The models that `target` names: RUN, a variant, a path or hf:ORG/NAME, each also with +NAME,
    or the path of a quantized model.

    Raises:
        UserError: there is none, or its files are missing or damaged.
        RunError: the disk is full, where one is imported.
    """
    from smollm2.runs import final_weights

    base, name = split_quantized(target)
    runs = runs_or_imported(base, results, study)
    if name is None:
        return [Model(run, final_weights(run)) for run in runs]
    from smollm2.quantize.store import open_quantized, quantized_names

    found = [run for run in runs if name in quantized_names(run)]
    if not found:
        there = sorted({f"{base}+{known}" for run in runs for known in quantized_names(run)})
        raise UserError(
            f"There is no quantized model {target!r}. "
            + (f"There are {', '.join(there)}." if there else f"Make one: smolctl quantize {base}")
        )
    return [Model(run, final_weights(run), open_quantized(run, name)) for run in found]


def split_quantized(target: str) -> tuple[str, str | None]:
    """The run that `target` names and, of its quantized models, which; None for itself."""
    path = Path(target)
    # Of transformers, with whatever other files and with a + in its name or not.
    if path.joinpath("config.json").exists():
        return target, None
    if path.joinpath("model.json").exists():  # RUN/quantized/NAME
        return str(path.resolve().parents[1]), path.name
    folder, slash, last = target.rpartition("/")  # as may the folder that a run is in
    last, plus, name = last.partition("+")
    return folder + slash + last, name if plus else None
