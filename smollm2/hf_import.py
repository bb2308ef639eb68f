"""A model in the layout of transformers on disk -> a run whose training happened elsewhere.

Only config.json, generation_config.json, tokenizer.json and safetensors are read: no pickle and no
code. What our model cannot be is refused by the name of its field, never computed otherwise than
transformers does.
"""

import hashlib
import json
import re
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smollm2.checkpoints import Checkpoints
from smollm2.config import ModelConfig, typed
from smollm2.cost import scale_of
from smollm2.data import Bounds
from smollm2.errors import RunError, UserError
from smollm2.files import checksum, write_json
from smollm2.protocol import RECIPES, Protocol
from smollm2.runs import IMPORTED, Run, new_directory, new_manifest, now, run_path

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer
    from torch import Tensor

GENERATION = "generation_config.json"  # need not be there
# For each architecture what transformers takes for a field that config.json leaves out.
LAYOUTS: dict[str, dict[str, Any]] = {
    "LlamaForCausalLM": {
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10_000.0,
        "tie_word_embeddings": False,
    },
    "MixtralForCausalLM": {
        "num_key_value_heads": 8,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "max_position_embeddings": 131_072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1_000_000.0,
        "tie_word_embeddings": False,
    },
}
# Our fields, their names in config.json, and their types.
FIELDS: dict[str, tuple[str, type]] = {
    "d_model": ("hidden_size", int),
    "n_heads": ("num_attention_heads", int),
    "n_kv_heads": ("num_key_value_heads", int),
    "n_layers": ("num_hidden_layers", int),
    "d_ff": ("intermediate_size", int),
    "vocab_size": ("vocab_size", int),
    "max_seq_len": ("max_position_embeddings", int),
    "rope_theta": ("rope_theta", float),
    "norm_eps": ("rms_norm_eps", float),
    "tie_embeddings": ("tie_word_embeddings", bool),
}
EXPERT_FIELDS: dict[str, tuple[str, type]] = {
    "n_experts": ("num_local_experts", int),
    "n_active_experts": ("num_experts_per_tok", int),
}
# Fields that change what is computed, and the one value that our model has of each.
ONLY: dict[str, Any] = {
    "attention_bias": False,
    "mlp_bias": False,
    "hidden_act": "silu",
    "sliding_window": None,
    "quantization_config": None,
    "auto_map": None,  # code of its own
}
ONLY_ROPE: dict[str, Any] = {"rope_type": "default", "type": "default", "partial_rotary_factor": 1}
# Of what a repository on the hub may hold.
FILES = [GENERATION, "tokenizer.json", "model*.safetensors", "model.safetensors.index.json"]


@dataclass(frozen=True)
class Source:
    """A folder with a model, of which config.json and generation_config.json have been read.

    Args:
        name: what a manifest calls it: `hf:ORG/NAME`, or `./NAME` without the machine's path.
        files: the weights.
    """

    folder: Path
    name: str
    config: ModelConfig
    bounds: Bounds
    files: tuple[Path, ...]

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits of SHA-256 over all files that are read."""
        digest = hashlib.sha256()
        names = ["config.json", "tokenizer.json"]
        names += [GENERATION] if (self.folder / GENERATION).is_file() else []
        for path in (*(self.folder / name for name in names), *self.files):
            digest.update(f"{path.name} {checksum(path)}\n".encode())
        return digest.hexdigest()[:16]


def open_source(folder: Path, name: str) -> Source:
    """The model in `folder`.

    Raises:
        UserError: a file is missing or damaged, or config.json is of a model that ours cannot be.
    """
    config, files = read_config(folder), weight_files(folder)
    bounds = read_bounds(folder, config.vocab_size)
    if not (folder / "tokenizer.json").is_file():
        raise UserError(
            "it has no tokenizer.json: save its tokenizer there with transformers "
            "(AutoTokenizer.from_pretrained(...).save_pretrained(folder))."
        )
    return Source(folder, name, config, bounds, files)


def read_config(folder: Path) -> ModelConfig:
    """The architecture that config.json describes, in the words of transformers 4 or 5.

    Raises:
        UserError: it is missing, damaged, or of a model that ours cannot be.
    """
    content = read_fields(folder / "config.json")
    names = content.get("architectures")
    if names not in [[name] for name in LAYOUTS]:
        raise UserError(
            f"config.json has architectures {json.dumps(names)}, and only one of "
            f"{', '.join(LAYOUTS)} can be imported."
        )
    kind = names[0].removesuffix("ForCausalLM").lower()
    if content.get("model_type") != kind:  # transformers goes by this, and not by `architectures`
        raise UserError(
            f"config.json has model_type {json.dumps(content.get('model_type'))}, and with "
            f"{names[0]} only {json.dumps(kind)} can be imported."
        )
    require_only(content, ONLY)
    for name in ("rope_parameters", "rope_scaling"):
        rope = content.get(name) or {}
        if not isinstance(rope, dict):
            raise UserError(f"config.json has {name} {json.dumps(rope)}, which is no table.")
        if tables := [key for key, value in rope.items() if isinstance(value, dict)]:
            raise UserError(
                f"config.json has {name} for each kind of layer ({', '.join(tables)}), and only "
                "the same for all can be imported."
            )
        require_only(rope, ONLY_ROPE, "rope ")
        content |= {key: value for key, value in rope.items() if key == "rope_theta"}
    require_only(content, {"partial_rotary_factor": 1})
    return config_of(content, LAYOUTS[names[0]])


def read_fields(path: Path) -> dict[str, Any]:
    """The content of a JSON file.

    Raises:
        UserError: it is missing, damaged or no table.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"it has no {path.name}.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path.name} cannot be read: {error}.") from None
    if not isinstance(content, dict):
        raise UserError(f"{path.name} is no table of fields.")
    return content


def read_bounds(folder: Path, vocab_size: int) -> Bounds:
    """What begins and ends a text: generation_config.json says it where there is one, for all that
    it leaves out too, as in transformers; else config.json. What is no token's number is left out.

    Raises:
        UserError: the file is damaged, or has something else than numbers there.
    """
    path = folder / GENERATION
    path = path if path.is_file() else folder / "config.json"
    content = read_fields(path)

    def tokens(field: str) -> tuple[int, ...]:
        value = content.get(field)
        numbers = value if isinstance(value, list) else [] if value is None else [value]
        if not all(type(number) is int for number in numbers):
            raise UserError(
                f"{path.name} has {field} {json.dumps(value)}, and only the numbers of tokens can "
                "be imported."
            )
        return tuple(number for number in numbers if 0 <= number < vocab_size)

    return Bounds(next(iter(tokens("bos_token_id")), None), tokens("eos_token_id"))


def require_only(content: dict[str, Any], only: dict[str, Any], what: str = "") -> None:
    """Raise `UserError` if a field of `only` is there and has another value."""
    for field, expected in only.items():
        value = content.get(field)
        if value not in (None, expected):
            raise UserError(
                f"config.json has {what}{field} {json.dumps(value)}, and only "
                f"{json.dumps(expected)} can be imported."
            )


def config_of(content: dict[str, Any], defaults: dict[str, Any]) -> ModelConfig:
    """Our config of the fields of config.json."""
    given = {field: value for field, value in content.items() if value is not None}
    n_heads = given.get("num_attention_heads")
    given = {"num_key_value_heads": n_heads} | defaults | given
    fields = FIELDS | (EXPERT_FIELDS if "num_local_experts" in defaults else {})
    if missing := [theirs for theirs, _ in fields.values() if given.get(theirs) is None]:
        raise UserError(f"config.json lacks {missing[0]}.")
    try:
        config = ModelConfig(
            **{ours: typed(theirs, given[theirs], kind) for ours, (theirs, kind) in fields.items()}
        )
    except UserError as error:
        raise UserError(f"config.json: {error}") from None
    if given.get("head_dim", config.head_dim) != config.head_dim:
        raise UserError(
            f"config.json has head_dim {json.dumps(given['head_dim'])}, and only hidden_size / "
            f"num_attention_heads ({config.head_dim}) can be imported."
        )
    return config


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The safetensors files of the model: one, or those that an index names.

    Raises:
        UserError: there is none, or the index is damaged or names what is no file of the folder.
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
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{index.name} is damaged ({error}); fetch it again.") from None
    for name in names:
        # In the cache of the hub a file may be a link, so it is the name that must not lead away.
        if not re.fullmatch(r"[\w.-]+\.safetensors", str(name)):
            raise UserError(
                f"{index.name} names {name!r}, which is no safetensors file in the folder itself."
            )
        if not (folder / name).is_file():
            raise UserError(f"{name}, which {index.name} names, is missing; fetch it again.")
    return tuple(folder / name for name in names)


def read_state(source: Source) -> "dict[str, Tensor]":
    """The weights as `SmolLM2.load_state_dict` takes them, in the dtype of the files: float32,
    bfloat16 or float16; float32 where they are mixed.

    Raises:
        UserError: a file is damaged, a tensor is missing, too many, of another shape or dtype.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from smollm2.hf import from_hf

    tensors: dict[str, Tensor] = {}
    for path in source.files:
        try:
            tensors |= load_file(path)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path.name} is damaged ({error}); fetch it again.") from None
    # Older versions of transformers saved what follows from rope_theta.
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
                "config.json has tie_word_embeddings true, and the weights an lm_head.weight that "
                "differs from the embedding; set the field to false if the head is its own."
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
    """Make a finished run of the model, with role `imported`; nothing is left of one that fails.

    Its protocol has the architecture and no data: of the training nothing is known.

    Raises:
        UserError: as `read_state` and `read_tokenizer`, or the run cannot be made.
        RunError: the disk is full.
    """
    from smollm2.data import tokenizer_fingerprint
    from smollm2.device import resolve_device

    path = run_path(results, study, name)
    tokenizer, state = read_tokenizer(source), read_state(source)
    dtype = dtype_name(state["embed.weight"].dtype)
    protocol = Protocol(
        variant=name,
        scale=scale_of(source.config),
        model=source.config,
        recipe=RECIPES["smollm2"],
        steps=0,
        batch_size=4,
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
    labels = {"arm": name, "role": IMPORTED, "equal": "tokens", "started_from": None}
    manifest = new_manifest(name, None, protocol, **labels) | {
        "state": "finished",
        "finished_at": now(),
        "source": {
            "name": source.name,
            "fingerprint": source.fingerprint,
            "tokenizer_fingerprint": tokenizer_fingerprint(tokenizer),
            "dtype": dtype,
            "bos_token_id": source.bounds.begin,
            "eos_token_id": list(source.bounds.ends),
        },
    }
    with new_directory(path) as folder:
        write_json(folder / "run.json", manifest)
        shutil.copyfile(source.folder / "tokenizer.json", folder / "tokenizer.json")
        try:
            weights = {f"model.{key}": tensor for key, tensor in state.items()}
            Checkpoints(folder / "checkpoints", ()).save(weights, 0, 0.0, is_final=True)
        except RunError as error:  # it names the folder, which is not called so yet
            raise RunError(f"Cannot import run {name!r}: {error.__cause__}.") from error
    return Run(path)


def dtype_name(dtype: "torch.dtype") -> str:
    return str(dtype).removeprefix("torch.")


def fetch(repo: str) -> Path:
    """The folder of the model `ORG/NAME` of the hub, from its cache on this machine or fetched;
    config.json first, so that what cannot be imported is refused before its weights come.

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
    except Exception:  # not fetched before, or not all of it: what is wrong, the hub will tell
        require_on_hub(repo, "model", instead, prefix="hf")
    try:
        read_config(Path(snapshot_download(repo, allow_patterns=["config.json"])))
        return Path(snapshot_download(repo, allow_patterns=["config.json", *FILES]))
    except UserError:
        raise
    except Exception as error:  # a new class for each HTTP library the hub's client has moved to
        raise UserError(f"Fetching the model {repo!r} failed ({error}); {instead}.") from error
