"""A model in the layout of transformers on disk.

Only config.json, generation_config.json, tokenizer.json and safetensors are read: no pickle and no
code.
"""

import hashlib
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from smollm2.errors import UserError
from smollm2.files import checksum
from smollm2.interop.hf_config import GENERATION, read_bounds, read_config, read_fields
from smollm2.interop.source import Source, dtype_name
from smollm2.runs.text_settings import FILES as TEXT_SETTINGS
from smollm2.runs.text_settings import read_text_settings
from smollm2.weights import read_weights

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from torch import Tensor

# Files that are fetched from a repository on the hub.
FILES = [
    *("tokenizer.json", "model*.safetensors", "model.safetensors.index.json"),
    *TEXT_SETTINGS,
]


@dataclass(frozen=True)
class FolderSource(Source):
    """A folder in the layout of transformers.

    Args:
        files: the weights.
    """

    layout = "hf"

    folder: Path
    files: tuple[Path, ...]

    @cached_property
    def fingerprint(self) -> str:
        digest = self._digest.copy()
        for name in sorted(self.settings.keys() - {GENERATION}):
            digest.update(f"{name} {hashlib.sha256(self.settings[name]).hexdigest()}\n".encode())
        return digest.hexdigest()[:16]

    @property
    def older_fingerprint(self) -> str:
        return self._digest.hexdigest()[:16]

    @cached_property
    def _digest(self) -> "hashlib._Hash":
        digest = hashlib.sha256()
        names = ["config.json", "tokenizer.json"]
        names += [GENERATION] if (self.folder / GENERATION).is_file() else []
        for path in (*(self.folder / name for name in names), *self.files):
            digest.update(f"{path.name} {checksum(path)}\n".encode())
        return digest

    def read_state(self) -> "dict[str, Tensor]":
        """See `Source`; float32 where the dtypes of the files are mixed."""
        import torch

        from smollm2.interop.hf import from_hf

        tensors: dict[str, Tensor] = {}
        for path in self.files:
            tensors |= read_weights(path, path.name)
        # Older versions of transformers saved these, which follow from rope_theta.
        tensors = {k: v for k, v in tensors.items() if not k.endswith(".rotary_emb.inv_freq")}
        for name, tensor in tensors.items():
            if tensor.dtype not in (torch.float32, torch.bfloat16, torch.float16):
                raise UserError(
                    f"{name} is in {dtype_name(tensor.dtype)}, and only float32, bfloat16 and "
                    "float16 can be imported."
                )
        if self.config.tie_embeddings and "lm_head.weight" in tensors:
            head = tensors.pop("lm_head.weight")
            embedding = tensors.get("model.embed_tokens.weight")
            if embedding is None or not torch.equal(head, embedding):
                raise UserError(
                    "config.json has tie_word_embeddings true, but the weights have an "
                    "lm_head.weight that differs from the embedding; set the field to false if the "
                    "head is untied."
                )
        dtypes = {tensor.dtype for tensor in tensors.values()}
        return from_hf(tensors, self.config, dtypes.pop() if len(dtypes) == 1 else torch.float32)

    def read_tokenizer(self) -> "Tokenizer":
        from smollm2.data import load_tokenizer

        tokenizer = load_tokenizer(str(self.folder / "tokenizer.json"))
        n_tokens = max(tokenizer.get_vocab().values(), default=-1) + 1
        if n_tokens > self.config.vocab_size:
            raise UserError(
                f"tokenizer.json has {n_tokens:,} tokens, and vocab_size in config.json is only "
                f"{self.config.vocab_size:,}: it is not the tokenizer of this model."
            )
        return tokenizer

    def tokenizer_json(self) -> bytes:
        return (self.folder / "tokenizer.json").read_bytes()


def open_folder(folder: Path, name: str) -> FolderSource:
    """The model in `folder`.

    Raises:
        UserError: a file is missing or damaged, or config.json describes an unsupported model.
    """
    config, files = read_config(folder), weight_files(folder)
    bounds = read_bounds(folder, config.vocab_size)
    if not (folder / "tokenizer.json").is_file():
        raise UserError(
            "it has no tokenizer.json: save its tokenizer there with transformers "
            "(AutoTokenizer.from_pretrained(...).save_pretrained(folder))."
        )
    return FolderSource(name, config, bounds, read_text_settings(folder), folder, files)


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The safetensors files of the model: one, or those that an index names.

    Raises:
        UserError: there is none, or the index is damaged or names a file that the folder lacks.
    """
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if whole.is_file():
        return (whole,)
    if not index.is_file():
        pickles = sorted(
            path.name for end in ("bin", "pt", "pth") for path in folder.glob(f"*.{end}")
        )
        there = (
            f"only {pickles[0]}, a pickle, which can run code when it is read" if pickles else ""
        )
        raise UserError(
            f"it has no model.safetensors{there and ', ' + there}; make one with transformers: "
            "model.save_pretrained(folder)."
        )
    try:
        names = sorted(set(read_fields(index)["weight_map"].values()))
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{index.name} is damaged ({error}); fetch it again.") from None
    for name in names:
        # In the hub's cache a file may be a link, so only its name is checked.
        if not re.fullmatch(r"[\w.-]{1,200}\.safetensors", str(name)):
            raise UserError(
                f"{index.name} names {name!r:.100}, which is not a safetensors file in the folder."
            )
        if not (folder / name).is_file():
            raise UserError(f"{name}, which {index.name} names, is missing; fetch it again.")
    return tuple(folder / name for name in names)


def fetch(repo: str) -> Path:
    """The folder of the model `ORG/NAME` of the hub, from its cache on this machine or fetched;
    config.json first, so an unsupported model is refused before its weights are fetched.

    Raises:
        UserError: there is no such model, the hub cannot be reached, or as `read_config`.
    """
    from huggingface_hub import snapshot_download

    from smollm2.data.hub import require_on_hub

    instead = "give the folder of a model (./NAME)"
    if repo.count("/") != 1 or not all(repo.split("/")):
        raise UserError(f"'hf:{repo}' names no model: expected hf:ORG/NAME; or {instead}.")
    try:
        folder = Path(snapshot_download(repo, local_files_only=True))
        open_folder(folder, repo)
        return folder
    except Exception:  # not fetched, or only in part: the hub reports what is wrong
        require_on_hub(repo, "model", instead, prefix="hf")
    try:
        read_config(Path(snapshot_download(repo, allow_patterns=["config.json"])))
        return Path(snapshot_download(repo, allow_patterns=["config.json", *FILES]))
    except UserError:
        raise
    except Exception as error:  # the class depends on the HTTP library of the hub's client
        raise UserError(f"Fetching the model {repo!r} failed ({error}); {instead}.") from error
