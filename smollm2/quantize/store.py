"""Quantized models on disk, beside the run that they were made of.

results/STUDY/RUN/quantized/NAME/
    model.safetensors   plain codes and scales, and in bf16 what is not quantized
    model.json          the configuration, and the checksums of that file and of the run's
                        final weights
    eval.csv  items/    what `smolctl eval RUN+NAME` adds
"""

import dataclasses
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from smollm2.device import DTYPES
from smollm2.errors import RunError, UserError
from smollm2.files import checksum, sync_file, write_json
from smollm2.model import SmolLM2
from smollm2.quantize.config import QuantConfig
from smollm2.quantize.convert import Plain, assemble
from smollm2.runs import Run, final_weights
from smollm2.tables import Tables

FORMAT = 1


@dataclass(frozen=True)
class Quantized:
    """A quantized model of `run` on disk."""

    run: Run
    config: QuantConfig
    path: Path
    sha256: str  # of model.safetensors
    skipped: dict[str, str]  # why parameters are not quantized, by name

    @property
    def label(self) -> str:
        """As a target is named."""
        return f"{self.run.name}+{self.config.name}"

    @property
    def tables(self) -> Tables:
        """eval.csv of this model."""
        return Tables(self.path)


def save(run: Run, weights: str, config: QuantConfig, plain: Plain) -> Quantized:
    """Write a quantized model beside its run, in the place of one of the same name.

    The same model again leaves the one before with its scores; those of another one go with it.

    Args:
        weights: the checksum of the final weights that it was made of.

    Raises:
        UserError: another process is writing the run.
        RunError: the disk is full or cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    folder = run.path / "quantized" / config.name
    made = run.path / f".quantized-{config.name}.{os.getpid()}.tmp"  # and moved, whole
    path = made / "model.safetensors"
    tensors = {name: tensor.cpu().contiguous() for name, tensor in plain.tensors().items()}
    try:
        made.mkdir()
        save_file(tensors, path)
        path.chmod(0o644)  # its own is for one user only
        sync_file(path)
        quantized = Quantized(run, config, folder, checksum(path), plain.skipped)
        facts = {
            "format": FORMAT,
            "config": dataclasses.asdict(config),
            "weights": weights,
            "skipped": plain.skipped,
            "sha256": quantized.sha256,
        }
        write_json(made / "model.json", facts)
        with run.writing():
            if not is_saved(quantized):
                shutil.rmtree(folder, ignore_errors=True)
                folder.parent.mkdir(exist_ok=True)
                made.rename(folder)
    except (OSError, SafetensorError) as error:
        raise RunError(f"Could not write {run.name}+{config.name}: {error}.") from error
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return quantized


def is_saved(quantized: Quantized) -> bool:
    """Whether the same model, undamaged, is there already."""
    try:
        return open_quantized(quantized.run, quantized.config.name) == quantized
    except UserError:
        return False


def quantized_names(run: Run) -> list[str]:
    """Of the quantized models of a run, in order."""
    return sorted(path.parent.name for path in run.path.glob("quantized/*/model.json"))


def open_quantized(run: Run, name: str) -> Quantized:
    """A quantized model of a run, its checksum verified.

    Raises:
        UserError: it is missing, damaged, of another version, or of other final weights than the
            run has.
    """
    folder = run.path / "quantized" / name
    label = f"{run.name}+{name}"
    again = f"quantize run {run.name!r} again"
    try:
        facts = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        if facts["format"] != FORMAT:
            raise UserError(f"{label} is of another version; {again}.")
        config = QuantConfig(**facts["config"])
        sha256 = checksum(folder / "model.safetensors")
        is_whole, weights = sha256 == facts["sha256"], facts["weights"]
        skipped = dict(facts["skipped"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{label} is missing or damaged ({error}); {again}.") from None
    if not is_whole:
        raise UserError(f"{label} is damaged (its checksum does not hold); {again}.")
    if final_weights(run).sha256 != weights:
        raise UserError(f"{label} is of other weights than the run has now; {again}.")
    return Quantized(run, config, folder, sha256, skipped)


def read_plain(quantized: Quantized, device: str) -> Plain:
    """The tensors of its file."""
    from safetensors.torch import load_file

    tensors = load_file(quantized.path / "model.safetensors", device=device)
    named = dict(SmolLM2(quantized.run.protocol.model, seed=None).named_parameters())
    kept = {name: tensors.pop(name) for name in list(tensors) if name in named}
    matrices: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        name, _, part = key.rpartition(".")
        matrices.setdefault(name, {})[part] = tensor
    return Plain(matrices, kept, quantized.skipped)


def load_quantized(quantized: Quantized, device: str, dtype: str) -> SmolLM2:
    """The model, packed for the kernels of `device`, computing in `dtype`.

    Raises:
        UserError: it cannot compute on `device`.
    """
    if device != "cpu" and quantized.config.embedding_bits == 4:
        raise UserError(
            f"{quantized.label} has an embedding of 4 bits, whose rows only a CPU looks up; give "
            "--device cpu, or quantize with --embedding 8."
        )
    plain = read_plain(quantized, device)
    config = quantized.run.protocol.model
    return assemble(config, quantized.config, plain, DTYPES[dtype])
