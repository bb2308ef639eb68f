"""config.json and generation_config.json of transformers as our configuration.

An unsupported model is refused by the name of its field, never computed differently than
transformers computes it.
"""

import json
from pathlib import Path
from typing import Any

from smollm2.data import Bounds
from smollm2.errors import UserError
from smollm2.model.config import ModelConfig, typed
from smollm2.parse import MissingFile, Unreadable, read_json

GENERATION = "generation_config.json"  # optional
# By architecture, transformers' defaults of fields that config.json may omit.
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
# Fields that change the computation, each with the only value that our model supports.
ONLY: dict[str, Any] = {
    "attention_bias": False,
    "mlp_bias": False,
    "hidden_act": "silu",
    "sliding_window": None,
    "quantization_config": None,
    "auto_map": None,  # code of its own
}
ONLY_ROPE: dict[str, Any] = {"rope_type": "default", "type": "default", "partial_rotary_factor": 1}


def read_config(folder: Path) -> ModelConfig:
    """The architecture in a config.json of transformers 4 or 5.

    Raises:
        UserError: it is missing, damaged, or describes an unsupported model.
    """
    content = read_fields(folder / "config.json")
    names = content.get("architectures")
    if names not in [[name] for name in LAYOUTS]:
        raise UserError(
            f"config.json has architectures {json.dumps(names)}, and only one of "
            f"{', '.join(LAYOUTS)} can be imported."
        )
    kind = names[0].removesuffix("ForCausalLM").lower()
    if content.get("model_type") != kind:  # transformers reads this, not `architectures`
        raise UserError(
            f"config.json has model_type {json.dumps(content.get('model_type'))}, and with "
            f"{names[0]} only {json.dumps(kind)} can be imported."
        )
    require_only(content, ONLY)
    for name in ("rope_parameters", "rope_scaling"):
        rope = content.get(name) or {}
        if not isinstance(rope, dict):
            raise UserError(f"config.json has {name} {json.dumps(rope)}, which is not a table.")
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
        UserError: it is missing, damaged or not a table.
    """
    try:
        return read_json(path)
    except MissingFile:
        raise UserError(f"it has no {path.name}.") from None
    except Unreadable as error:
        raise UserError(f"{path.name} cannot be read: {error.reason}.") from None


def read_bounds(folder: Path, vocab_size: int) -> Bounds:
    """The tokens that begin, end and pad a text, from generation_config.json if it exists, even for
    fields it omits, as in transformers; else from config.json. Invalid token numbers are ignored.

    Raises:
        UserError: the file is damaged, or has something other than numbers there.
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

    begins, ends, pads = map(tokens, ("bos_token_id", "eos_token_id", "pad_token_id"))
    return Bounds(next(iter(begins), None), ends, next(iter(pads), None))


def require_only(content: dict[str, Any], only: dict[str, Any], what: str = "") -> None:
    """Raise `UserError` if a field of `only` has another value."""
    for field, expected in only.items():
        value = content.get(field)
        if value not in (None, expected):
            raise UserError(
                f"config.json has {what}{field} {json.dumps(value)}, and only "
                f"{json.dumps(expected)} can be imported."
            )


def config_of(content: dict[str, Any], defaults: dict[str, Any]) -> ModelConfig:
    """Our config from the fields of config.json."""
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
        theirs = fields[error.field][0] if error.field in fields else ""
        sentence = str(error).replace(error.field or "", theirs) if theirs else str(error)
        raise UserError(f"config.json: {sentence}") from None
    if given.get("head_dim", config.head_dim) != config.head_dim:
        raise UserError(
            f"config.json has head_dim {json.dumps(given['head_dim'])}, and only hidden_size / "
            f"num_attention_heads ({config.head_dim}) can be imported."
        )
    return config
