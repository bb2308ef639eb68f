"""A model in a GGUF file, as llama.cpp and programs built on it read them."""

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from smollm2.errors import UserError
from smollm2.files import checksum
from smollm2.interop.gguf import from_gguf, to_gguf
from smollm2.interop.gguf_config import read_dimensions, require_llama
from smollm2.interop.gguf_file import GgufFile, TensorPlace, read_gguf
from smollm2.interop.gguf_tokenizer import (
    kept_settings,
    read_text_bounds,
    rebuilt_tokenizer,
    tokens_in,
)
from smollm2.interop.hf import from_hf, to_hf
from smollm2.interop.source import Source
from smollm2.model.config import ModelConfig
from smollm2.model.transformer import SmolLM2

ROPE_FACTORS = "rope_freqs.weight"
WHOLE = ("F32", "F16", "BF16", "F64")  # types that are not quantized
HALVES = {"F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class GgufSource(Source):
    """A GGUF file whose fields have been read."""

    layout = "gguf"

    file: GgufFile

    @cached_property
    def fingerprint(self) -> str:
        return checksum(self.file.path)[:16]

    @property
    def grid(self) -> str | None:
        """See `Source`: the type of most weights of its matrices."""
        weights: dict[str, int] = {}
        for name, place in self.file.tensors.items():
            if is_large(name, place) and place.kind.name not in WHOLE:
                kind = place.kind.name
                weights[kind] = weights.get(kind, 0) + math.prod(place.shape)
        return max(weights, key=weights.__getitem__) if weights else None

    def read_state(self) -> dict[str, Tensor]:
        """See `Source`. Quantized weights become float32; 16 bits are kept where no weight has
        more."""
        require_tensors(self.file, self.config)
        dtype = dtype_of(self.file)
        tensors = {
            name: self.file.values(name).to(dtype)
            for name in self.file.tensors
            if name != ROPE_FACTORS
        }
        published = from_gguf(tensors, published_places(self.config), self.config)
        return from_hf(published, self.config, dtype)

    def read_tokenizer(self) -> Tokenizer:
        return rebuilt_tokenizer(self.file.fields)

    def tokenizer_json(self) -> bytes:
        return self.read_tokenizer().to_str(pretty=True).encode()


def open_gguf(path: Path, name: str) -> GgufSource:
    """The model in the file `path`.

    Raises:
        UserError: as `read_gguf`, or the fields describe an unsupported model.
    """
    file = read_gguf(path)
    require_llama(file.fields)
    config = read_dimensions(file, len(tokens_in(file.fields)))
    settings = kept_settings(file.fields, config.max_seq_len)
    return GgufSource(name, config, read_text_bounds(file.fields), settings, file)


def published_places(config: ModelConfig) -> dict[str, Tensor]:
    """The model's tensors by published name, without values."""
    return to_hf(SmolLM2(config, seed=None).state_dict(), config)


def require_tensors(file: GgufFile, config: ModelConfig) -> None:
    """Raise `UserError` unless a file has the tensors of a model of this `config`, no others."""
    found = {name: place.shape for name, place in file.tensors.items()}
    numbers = {name.split(".")[1] for name in found if name.startswith("blk.")}
    if len(numbers) < config.n_layers:  # building the model takes time for each
        raise UserError(
            f"it has tensors of {len(numbers)} layers, but llama.block_count is {config.n_layers}."
        )
    expected = to_gguf(published_places(config), config)
    for name, tensor in expected.items():
        if name not in found:
            raise UserError(f"it lacks the tensor {name}.")
        if found[name] != tuple(tensor.shape):
            raise UserError(
                f"its {name} has shape {found[name]}, but the fields give the model "
                f"{tuple(tensor.shape)}."
            )
    if unexpected := sorted(found.keys() - expected.keys() - {ROPE_FACTORS}):
        raise UserError(
            f"it has a tensor {unexpected[0]}, for which the model has no place, so it cannot be "
            "imported."
        )
    if ROPE_FACTORS in found and not bool((file.values(ROPE_FACTORS) == 1).all()):
        raise UserError(
            f"its {ROPE_FACTORS} has factors other than 1 (scaled rotary positions), and only 1 "
            "can be imported."
        )


def dtype_of(file: GgufFile) -> torch.dtype:
    """The dtype that holds every weight of a file exactly: 16 bits if the matrices have no more and
    the vectors and routers, which are stored in 32, fit as well."""
    matrices = {place.kind.name for name, place in file.tensors.items() if is_large(name, place)}
    if len(matrices) > 1 or not matrices <= HALVES.keys():
        return torch.float32
    half = HALVES[matrices.pop()]
    for name, place in file.tensors.items():
        if not is_large(name, place):
            values = file.values(name)
            if not torch.equal(values.to(half).float(), values):
                return torch.float32
    return half


def is_large(name: str, place: TensorPlace) -> bool:
    """Whether a tensor is one of those that quantization is for: not a vector, nor a router."""
    return len(place.shape) > 1 and ".ffn_gate_inp." not in name
