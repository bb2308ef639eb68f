"""The fields of a GGUF file -> a `ModelConfig`, for models that llama.cpp computes as ours."""

import json
import re
from typing import Any

from smollm2.errors import UserError
from smollm2.interop.gguf_file import GgufFile
from smollm2.model.config import ModelConfig, typed

# Our fields, and their names in the file.
FIELDS = {
    "d_model": "llama.embedding_length",
    "n_heads": "llama.attention.head_count",
    "n_layers": "llama.block_count",
    "d_ff": "llama.feed_forward_length",
    "max_seq_len": "llama.context_length",
    "norm_eps": "llama.attention.layer_norm_rms_epsilon",
    "n_kv_heads": "llama.attention.head_count_kv",
    "rope_theta": "llama.rope.freq_base",
    "n_experts": "llama.expert_count",
    "n_active_experts": "llama.expert_used_count",
}
REQUIRED = ("d_model", "n_heads", "n_layers", "d_ff", "max_seq_len", "norm_eps")
ROPE_THETA = 10_000.0  # llama.cpp's default
FLOATS = ("rope_theta", "norm_eps")
# Fields of these names must be the width of a head, and the number of tokens.
HEAD_WIDTHS = (
    "llama.rope.dimension_count",
    "llama.attention.key_length",
    "llama.attention.value_length",
)
VOCABULARY = "llama.vocab_size"
# Other fields of a model, each with the values that leave the computation as ours is. One that is
# in no table here could change it.
ONLY: dict[str, tuple[Any, ...]] = {
    "llama.rope.scaling.type": ("none", "linear"),  # linear by the factor
    "llama.rope.scaling.factor": (0, 1),
    "llama.rope.scale_linear": (0, 1),
    "llama.rope.scaling.attn_factor": (1,),
    "llama.attention.sliding_window": (0,),
    "llama.attention.scale": (0,),  # 1 / sqrt of the width of a head
    "llama.attention.causal": (True,),
    "llama.attention.clamp_kqv": (0,),
    "llama.attention.max_alibi_bias": (0,),
    "llama.attn_logit_softcapping": (0,),
    "llama.final_logit_softcapping": (0,),
    "llama.use_parallel_residual": (False,),
    "llama.logit_scale": (0, 1),
    "llama.residual_scale": (0, 1),
    "llama.embedding_scale": (0, 1),
    "llama.expert_gating_func": (0, 1),  # softmax
    "llama.expert_weights_norm": (True,),
    "llama.expert_weights_scale": (0, 1),
    "llama.expert_shared_count": (0,),
    "llama.leading_dense_block_count": (0,),
    "llama.pooling_type": (0,),
    "llama.tensor_data_layout": ("Meta AI original pth",),  # of old files, the same layout
}
# They say something about a scaling, if there is one.
UNUSED = ("llama.rope.scaling.original_context_length", "llama.rope.scaling.finetuned")


def require_llama(fields: dict[str, Any]) -> None:
    """Raise `UserError` unless a file holds a model of the architecture that is ours."""
    require_one_of(fields, "general.architecture", ("llama",))  # Mixtral is one with experts
    require_one_of({"general.type": "model"} | fields, "general.type", ("model",))


def read_dimensions(file: GgufFile, n_tokens: int) -> ModelConfig:
    """The dimensions that the fields of a file give its model; see `require_llama` first.

    Args:
        n_tokens: of its tokenizer.

    Raises:
        UserError: a field is missing, of the wrong type, or describes an unsupported model.
    """
    fields = file.fields
    if any(place.kind.name not in ("F32", "F16", "BF16") for place in file.tensors.values()):
        version = "general.quantization_version"
        require_one_of({version: 2} | fields, version, (2,))
    own = {key for key in fields if key.startswith("llama.")}
    for key in sorted(own - {*FIELDS.values(), *HEAD_WIDTHS, *UNUSED, VOCABULARY}):
        require_one_of(fields, key, ONLY.get(key, ()))
    if VOCABULARY in fields:
        require_one_of(fields, VOCABULARY, (n_tokens,))

    found = {
        ours: number_of(key, fields[key], ours in FLOATS)
        for ours, key in FIELDS.items()
        if key in fields
    }
    has_experts = found.get("n_experts", 0) > 1
    for ours in (*REQUIRED, *(["n_active_experts"] if has_experts else [])):
        if ours not in found:
            raise UserError(f"it lacks the field {FIELDS[ours]}.")
    if not has_experts:
        found |= {"n_experts": 1, "n_active_experts": 1}
    is_tied = "output.weight" not in file.tensors
    found = {"n_kv_heads": found["n_heads"], "rope_theta": ROPE_THETA} | found
    try:
        config = ModelConfig(**found, vocab_size=n_tokens, tie_embeddings=is_tied)
    except UserError as error:
        theirs = re.sub(rf"\b({'|'.join(FIELDS)})\b", lambda match: FIELDS[match[0]], str(error))
        raise UserError(f"its fields form no model: {theirs}") from None
    for key in HEAD_WIDTHS:
        if key in fields:
            require_one_of(fields, key, (config.head_dim,))
    return config


def number_of(key: str, value: Any, is_float: bool) -> Any:
    """The number that a field holds.

    Raises:
        UserError: it holds something else, such as a list with a number for each layer.
    """
    if not isinstance(value, int | float):
        raise UserError(f"it has {key} {shown(value)}, and only a number can be imported.")
    if not is_float:
        return typed(key, value, int)
    import numpy as np

    with np.errstate(over="ignore"):  # an infinite value is reported by the model
        return float(str(np.float32(value)))  # 1e-05, not the 9.999999747378752e-06 that it holds


def require_one_of(fields: dict[str, Any], key: str, values: tuple[Any, ...]) -> None:
    """Raise `UserError` if a field has none of the `values`."""
    value = fields.get(key)
    if isinstance(value, int | float | str) and value in values:
        return
    if not values:
        raise UserError(
            f"it has {key} {shown(value)}, which may change what a model computes, so it cannot be "
            "imported."
        )
    only = " or ".join(map(json.dumps, values))
    raise UserError(f"it has {key} {shown(value)}, and only {only} can be imported.")


def shown(value: Any) -> str:
    """A value of a field in a message: as JSON, lists by their length, and not too much of it."""
    if not isinstance(value, int | float | str | None):
        return f"with {len(value):,} values"
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
