"""A model in the layout of transformers on disk -> a run whose training happened elsewhere.

Only config.json, generation_config.json, tokenizer.json and safetensors are read: no pickle and no
code.
"""

import hashlib
import re
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from smollm2.data import Bounds
from smollm2.errors import RunError, UserError
from smollm2.files import checksum, write_json
from smollm2.interop.hf_config import GENERATION, read_bounds, read_config, read_fields
from smollm2.model.config import ModelConfig
from smollm2.model.cost import scale_of
from smollm2.protocol.recipe import RECIPES
from smollm2.protocol.run_config import ResolvedConfig
from smollm2.runs.checkpoints import Checkpoints
from smollm2.runs.create import new_directory
from smollm2.runs.manifest import Role, RunState, new_manifest, now
from smollm2.runs.names import run_path
from smollm2.runs.run import Run
from smollm2.runs.text_settings import FILES as TEXT_SETTINGS
from smollm2.runs.text_settings import read_text_settings, write_text_settings
from smollm2.weights import read_weights

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer
    from torch import Tensor

# Files that are fetched from a repository on the hub.
FILES = [
    *("tokenizer.json", "model*.safetensors", "model.safetensors.index.json"),
    *TEXT_SETTINGS,
]


@dataclass(frozen=True)
class Source:
    """A folder with a model; all but its weights and its tokenizer have been read.

    Args:
        name: what a manifest calls it: `hf:ORG/NAME`, or `./NAME` without the machine's path.
        files: the weights.
        settings: of text, as `read_text_settings` gives them.
    """

    folder: Path
    name: str
    config: ModelConfig
    bounds: Bounds
    files: tuple[Path, ...]
    settings: dict[str, bytes]

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits of SHA-256 over all files that are read."""
        digest = self._digest.copy()
        for name in sorted(self.settings.keys() - {GENERATION}):
            digest.update(f"{name} {hashlib.sha256(self.settings[name]).hexdigest()}\n".encode())
        return digest.hexdigest()[:16]

    @property
    def older_fingerprint(self) -> str:
        """The fingerprint by versions that did not keep the settings of text."""
        return self._digest.hexdigest()[:16]

    @cached_property
    def _digest(self) -> "hashlib._Hash":
        digest = hashlib.sha256()
        names = ["config.json", "tokenizer.json"]
        names += [GENERATION] if (self.folder / GENERATION).is_file() else []
        for path in (*(self.folder / name for name in names), *self.files):
            digest.update(f"{path.name} {checksum(path)}\n".encode())
        return digest


def open_source(folder: Path, name: str) -> Source:
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
    return Source(folder, name, config, bounds, files, read_text_settings(folder))


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


def read_state(source: Source) -> "dict[str, Tensor]":
    """The weights as `SmolLM2.load_state_dict` takes them, in the dtype of the files: float32,
    bfloat16 or float16; float32 where they are mixed.

    Raises:
        UserError: a file is damaged, a weight is not finite, or a tensor is missing, unexpected, or
            of another shape or dtype.
    """
    import torch

    from smollm2.interop.hf import from_hf

    tensors: dict[str, Tensor] = {}
    for path in source.files:
        tensors |= read_weights(path, path.name)
    # Older versions of transformers saved these, which follow from rope_theta.
    tensors = {k: v for k, v in tensors.items() if not k.endswith(".rotary_emb.inv_freq")}
    for name, tensor in tensors.items():
        if tensor.dtype not in (torch.float32, torch.bfloat16, torch.float16):
            raise UserError(
                f"{name} is in {dtype_name(tensor.dtype)}, and only float32, bfloat16 and float16 "
                "can be imported."
            )
    if source.config.tie_embeddings and "lm_head.weight" in tensors:
        head, embedding = tensors.pop("lm_head.weight"), tensors.get("model.embed_tokens.weight")
        if embedding is None or not torch.equal(head, embedding):
            raise UserError(
                "config.json has tie_word_embeddings true, but the weights have an lm_head.weight "
                "that differs from the embedding; set the field to false if the head is untied."
            )
    dtypes = {tensor.dtype for tensor in tensors.values()}
    return from_hf(tensors, source.config, dtypes.pop() if len(dtypes) == 1 else torch.float32)


def read_tokenizer(source: Source) -> "Tokenizer":
    """The tokenizer of the model.

    Raises:
        UserError: it is damaged, or has tokens that the model does not embed.
    """
    from smollm2.data import load_tokenizer

    tokenizer = load_tokenizer(str(source.folder / "tokenizer.json"))
    n_tokens = max(tokenizer.get_vocab().values(), default=-1) + 1
    if n_tokens > source.config.vocab_size:
        raise UserError(
            f"tokenizer.json has {n_tokens:,} tokens, and vocab_size in config.json is only "
            f"{source.config.vocab_size:,}: it is not the tokenizer of this model."
        )
    return tokenizer


def import_run(results: Path, study: str, name: str, source: Source) -> Run:
    """Make a finished run of the model, with role `imported`; a failure leaves nothing behind.

    Its protocol has the architecture but no data: nothing is known about the training.

    Raises:
        UserError: as `read_state` and `read_tokenizer`, or the run cannot be created.
        RunError: the disk is full.
    """
    from smollm2.data import tokenizer_fingerprint
    from smollm2.device import resolve_device

    path = run_path(results, study, name)
    tokenizer, state = read_tokenizer(source), read_state(source)
    dtype = dtype_name(state["embed.weight"].dtype)
    protocol = ResolvedConfig(
        variant=name,
        scale=scale_of(source.config),
        model=source.config,
        recipe=RECIPES["smollm2"],
        steps=0,
        micro_batch_size=4,
        seq_len=min(2048, source.config.max_seq_len),
        validation_every=1,
        validation_tokens=0,
        test_tokens=0,
        seed=0,
        data_seed=0,
        device=resolve_device(None),
        dtype="bfloat16" if dtype == "bfloat16" else "float32",
        compile=False,
    )
    labels = {"arm": name, "role": Role.IMPORTED, "equal": "tokens", "started_from": None}
    manifest = new_manifest(name, None, protocol, **labels) | {
        "state": RunState.FINISHED,
        "finished_at": now(),
        "source": {
            "name": source.name,
            "fingerprint": source.fingerprint,
            "tokenizer_fingerprint": tokenizer_fingerprint(tokenizer),
            "dtype": dtype,
            "bos_token_id": source.bounds.begin,
            "eos_token_id": list(source.bounds.ends),
            "pad_token_id": source.bounds.pad,
        },
    }
    with new_directory(path) as folder:
        write_json(folder / "run.json", manifest)
        shutil.copyfile(source.folder / "tokenizer.json", folder / "tokenizer.json")
        write_text_settings(folder, source.settings)
        try:
            weights = {f"model.{key}": tensor for key, tensor in state.items()}
            Checkpoints(folder / "checkpoints", ()).save(weights, 0, 0.0, is_final=True)
        except RunError as error:  # its message has the temporary folder's name
            raise RunError(f"Cannot import run {name!r}: {error.__cause__}.") from error
    return Run(path)


def adopt(run: Run, source: Source) -> None:
    """Give a run that an older version imported from the same files what it did not keep.

    Raises:
        UserError: another process is writing the run.
    """
    with run.writing():
        write_text_settings(run.path, source.settings)
        facts = {"fingerprint": source.fingerprint, "pad_token_id": source.bounds.pad}
        run.update(source=run.manifest["source"] | facts)


def dtype_name(dtype: "torch.dtype") -> str:
    """`bfloat16` for `torch.bfloat16`."""
    return str(dtype).removeprefix("torch.")


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
        open_source(folder, repo)
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
