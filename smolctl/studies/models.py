"""Finds the models that a target names: trained here, imported, or quantized (RUN+NAME)."""

import dataclasses
import logging
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from smolctl.command_line import command
from smolctl.studies.import_model import runs_or_imported
from smolctl.studies.machine import machine_for, require_machine
from smolctl.studies.targets import is_brought
from smolctl.talk import say
from smollm2.errors import UserError
from smollm2.model.transformer import SmolLM2
from smollm2.quantize.registry import BACKENDS
from smollm2.quantize.store import QuantizedModel, load_quantized, open_quantized, quantized_names
from smollm2.runs.checkpoints import Checkpoint
from smollm2.runs.load_run import final_weights, load_model, load_run_tokenizer
from smollm2.runs.run import Run
from smollm2.runs.tables import TableFolder


@dataclass(frozen=True)
class Model:
    """A trained model whose files have been verified.

    Args:
        quantized: None for the model as it was trained.
    """

    run: Run
    final: Checkpoint
    quantized: QuantizedModel | None = None

    @property
    def label(self) -> str:
        """RUN or RUN+NAME."""
        return self.run.name if self.quantized is None else self.quantized.label

    @property
    def tables(self) -> TableFolder:
        """Where its scores are kept."""
        return self.run if self.quantized is None else self.quantized.tables

    @property
    def weights(self) -> str:
        """The checksum of the file of its weights."""
        return self.final.sha256 if self.quantized is None else self.quantized.sha256

    def machine(self, device: str | None, dtype: str | None) -> tuple[str, str]:
        """Device and dtype to load it for, by default those of `machine_for`."""
        return machine_for(self.run, device, dtype, is_quantized=self.quantized is not None)

    def load(self, device: str, dtype: str) -> SmolLM2:
        """The model in evaluation mode.

        Raises:
            UserError: its weights do not fit the run's architecture.
        """
        if self.quantized is None:
            return load_model(self.run, device, dtype, self.final)

        hush()
        return load_quantized(self.quantized, device, dtype)


@dataclass(frozen=True)
class Loaded:
    """A model in evaluation mode, and the tokenizer it was trained with."""

    source: Model
    model: SmolLM2
    tokenizer: Tokenizer


def load_one(
    target: str, results: Path, study: str, device: str | None, dtype: str | None
) -> Loaded:
    """The model that `target` names, by default on the machine of `machine_for`. Of an arm with
    several seeds it is that of the first one, which is said.

    Raises:
        UserError: as `one_model`; or the device or dtype is not available; or the run's tokenizer
            is missing or damaged.
    """
    require_machine(device, dtype)
    models = models_of(target, results, study)
    if are_seeds(models):
        models = [min(models, key=lambda model: model.run.protocol.seed)]
        say(f"{target} has several seeds; this is the first, {models[0].label}.")
    source = require_one(models, target)
    tokenizer = load_run_tokenizer(source.run)
    return Loaded(source, source.load(*source.machine(device, dtype)), tokenizer)


def one_model(target: str, results: Path, study: str) -> Model:
    """The one model that `target` names.

    Raises:
        UserError: as `models_of`, or it names several.
    """
    return require_one(models_of(target, results, study), target)


def are_seeds(models: list[Model]) -> bool:
    """Whether the models are several of one arm whose runs differ in nothing but their seeds."""
    protocols = [model.run.protocol for model in models]
    alike = [dataclasses.replace(each, seed=0, data_seed=0) for each in protocols]
    has_one_arm = len({model.run.arm for model in models}) == 1
    are_distinct = len({each.seed for each in protocols}) == len(models) > 1
    return has_one_arm and are_distinct and all(each == alike[0] for each in alike)


def require_one(models: list[Model], target: str) -> Model:
    """The one model; raises `UserError` if `target` names several."""
    if len(models) > 1:
        names = ", ".join(model.label for model in models)
        raise UserError(f"{target!r} names {len(models)} runs; choose one of {names}.")
    return models[0]


def models_of(target: str, results: Path, study: str) -> list[Model]:
    """The models that `target` names: RUN, a variant, a path (also of a GGUF file) or hf:ORG/NAME,
    each also with +NAME, or the path of a quantized model.

    Raises:
        UserError: there is none, or its files are missing or damaged.
        RunError: the disk is full, where one is imported.
    """
    base, name = split_quantized(target)
    runs = runs_or_imported(base, results, study)
    if name is None:
        return [Model(run, final_weights(run)) for run in runs]

    found = [run for run in runs if name in quantized_names(run)]
    if not found:
        make = command("quantize", base, study=study, results=results)
        there = sorted({f"{base}+{known}" for run in runs for known in quantized_names(run)})
        raise UserError(
            f"There is no quantized model {target!r}. "
            + (f"Available: {', '.join(there)}." if there else f"Make one: {make}")
        )
    return [Model(run, final_weights(run), open_quantized(run, name)) for run in found]


def split_quantized(target: str) -> tuple[str, str | None]:
    """The run that `target` names, and the name of its quantized model; None for the run itself."""
    path = Path(target)
    # The name of a model from elsewhere, whatever else is in its folder, may have a +.
    if is_brought(path):
        return target, None
    if path.joinpath("model.json").exists():  # RUN/quantized/NAME
        return str(path.resolve().parents[1]), path.name
    folder, slash, last = target.rpartition("/")  # and so may the folder of a run
    last, plus, name = last.rpartition("+")  # names of quantizations have none
    return (folder + slash + last, name) if plus else (target, None)


def hush() -> None:
    """Silence the quantization libraries' messages on import about kernels for other machines."""
    packages = [backend.package for backend in BACKENDS.values()]
    for name in (*packages, "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)
