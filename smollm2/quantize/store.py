"""Quantized models on disk, in the folder of the run they were made from.

results/STUDY/RUN/quantized/NAME/
    model.safetensors   codes and scales, and in bf16 what is not quantized
    model.json          the configuration, the names of the calibration texts, and the checksums of
                        that file and of the run's final weights
    eval.csv  items/    scores of this model
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from smollm2.device import DTYPES
from smollm2.errors import RunError, UserError
from smollm2.files import (
    checksum,
    discard_folder,
    make_folder,
    replacing,
    write_json,
    write_tensors,
)
from smollm2.leftovers import remove, temporary_of
from smollm2.model.transformer import SmolLM2
from smollm2.parse import Unreadable, read_json
from smollm2.quantize.convert import QuantizedState, assemble
from smollm2.quantize.quant_config import QuantConfig
from smollm2.quantize.registry import embedding_format
from smollm2.runs.load_run import final_weights
from smollm2.runs.run import Run
from smollm2.runs.tables import TableFolder
from smollm2.weights import read_weights, require_finite

FORMAT = 2  # 1 had no shorter last groups
READABLE = (1, FORMAT)


@dataclass(frozen=True)
class QuantizedModel:
    """A quantized model of `run` on disk."""

    run: Run
    config: QuantConfig
    path: Path
    sha256: str  # of model.safetensors
    skipped: dict[str, str]  # why parameters are not quantized, by name

    @property
    def label(self) -> str:
        """Its name as a target."""
        return f"{self.run.name}+{self.config.name}"

    @property
    def tables(self) -> TableFolder:
        """eval.csv of this model."""
        return TableFolder(self.path)


def save(
    run: Run,
    weights: str,
    config: QuantConfig,
    state: QuantizedState,
    calibration: Sequence[str] = (),
) -> QuantizedModel:
    """Write a quantized model to its run's folder, replacing one of the same name.

    If the same model is there already, it stays with its scores; a different one is replaced and
    its scores are deleted.

    Args:
        weights: the checksum of the final weights that it was made from.
        calibration: the names of the texts that it was calibrated on.

    Raises:
        UserError: another process is writing the run, or a scale is not finite.
        RunError: the disk is full or cannot be written.
    """
    folder = run.path / "quantized" / config.name
    made = temporary_of(run.path / f"quantized-{config.name}")  # moved as a whole
    path = made / "model.safetensors"
    tensors = {name: tensor.cpu().contiguous() for name, tensor in state.tensors().items()}
    require_finite(tensors, f"{run.name}+{config.name}")  # scales of huge weights overflow
    try:
        made.mkdir()
        write_tensors(path, tensors)
        quantized = QuantizedModel(run, config, folder, checksum(path), state.skipped)
        facts = {
            "format": FORMAT,
            "config": dataclasses.asdict(config),
            "weights": weights,
            "calibration": list(calibration),
            "skipped": state.skipped,
            "sha256": quantized.sha256,
        }
        write_json(made / "model.json", facts)
        with run.writing():
            if not is_saved(quantized):
                if folder.exists():
                    discard_folder(folder)
                make_folder(folder.parent)
                with replacing(folder) as place:
                    made.rename(place)
    except OSError as error:
        raise RunError(f"Could not write {run.name}+{config.name}: {error}.") from error
    finally:
        remove(made)
    return quantized


def is_saved(quantized: QuantizedModel) -> bool:
    """Whether the same model is there already, undamaged."""
    try:
        return open_quantized(quantized.run, quantized.config.name) == quantized
    except UserError:
        return False


def quantized_names(run: Run) -> list[str]:
    """The names of the quantized models of a run, sorted."""
    return sorted(path.parent.name for path in run.path.glob("quantized/[!.]*/model.json"))


def open_quantized(run: Run, name: str) -> QuantizedModel:
    """A quantized model of a run, its checksum verified.

    Raises:
        UserError: it is missing, damaged, of another version, or made from other final weights
            than the run has now.
    """
    folder = run.path / "quantized" / name
    label = f"{run.name}+{name}"
    again = f"quantize run {run.name!r} again"
    try:
        facts = read_json(folder / "model.json", "model.json")
        if facts["format"] not in READABLE:
            raise UserError(f"{label} was written by another version; {again}.")
        config = QuantConfig(**facts["config"])
        sha256 = checksum(folder / "model.safetensors")
        is_whole, weights = sha256 == facts["sha256"], facts["weights"]
        skipped = dict(facts["skipped"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, UserError) and not isinstance(error, Unreadable):
            raise
        why = f"its model.json has no {error}" if isinstance(error, KeyError) else error
        raise UserError(f"{label} is missing or damaged ({why}); {again}.") from None
    if not is_whole:
        raise UserError(f"{label} is damaged (its checksum does not hold); {again}.")
    if final_weights(run).sha256 != weights:
        raise UserError(f"{label} was made from other weights than the run has now; {again}.")
    return QuantizedModel(run, config, folder, sha256, skipped)


def read_quantized_state(quantized: QuantizedModel, device: str) -> QuantizedState:
    """The tensors of its file.

    Raises:
        UserError: it is not a safetensors file, or a weight or scale is not finite.
    """
    tensors = read_weights(quantized.path / "model.safetensors", quantized.label, device)
    named = dict(SmolLM2(quantized.run.protocol.model, seed=None).named_parameters())
    kept = {name: tensors.pop(name) for name in list(tensors) if name in named}
    matrices: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        name, _, part = key.rpartition(".")
        matrices.setdefault(name, {})[part] = tensor
    return QuantizedState(matrices, kept, quantized.skipped)


def load_quantized(quantized: QuantizedModel, device: str, dtype: str) -> SmolLM2:
    """The model, packed for the kernels of `device`, computing in `dtype`.

    Raises:
        UserError: it cannot compute on `device`.
    """
    bits = quantized.config.embedding_bits
    format = None if bits is None else embedding_format(bits)
    if format is not None and device not in format.row_devices:
        raise UserError(
            f"{quantized.label} has an embedding of {bits} bits, whose rows can only be looked up "
            f"on {' and '.join(format.row_devices)}; give `device=cpu`, or quantize with "
            "`embedding_bits=8`.",
            field="device",
        )
    state = read_quantized_state(quantized, device)
    config = quantized.run.protocol.model
    return assemble(config, quantized.config, state, DTYPES[dtype])
