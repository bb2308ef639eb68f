"""The same model as a GGUF file, for llama.cpp and programs built on it."""

import contextlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from smollm2.data import Bounds, document_bounds, end_of_text_id
from smollm2.errors import UserError, did_you_mean
from smollm2.files import replacing
from smollm2.interop.hf import to_hf
from smollm2.model.config import ModelConfig

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType, GGUFWriter

# Of the matrices. f16 is first: it is the most exact of those that llama.cpp computes fast.
DTYPES = ("f16", "f32", "bf16", "q8_0", "q4_0")
# The largest weight by dtype; the scale of a block is in f16.
LARGEST = {"F16": 65_504.0, "Q8_0": 65_504.0 * 127, "Q4_0": 65_504.0 * 8, "BF16": 3.3895e38}
BLOCK = 32  # weights of a row that share a scale at q8_0 and q4_0
# How a text is split before pairs are merged, and llama.cpp's name for it. Digits may be split one
# by one; ByteLevel may split words itself.
PRE_TOKENIZERS = {
    (("Digits", True), ("ByteLevel", True)): "smollm",  # SmolLM2's own and that of `train:N`
    (("ByteLevel", True),): "gpt-2",
}


def save_gguf(
    path: Path,
    state: Mapping[str, Tensor],
    config: ModelConfig,
    tokenizer: Tokenizer,
    *,
    dtype: str = "f16",
    name: str,
    bounds: Bounds | None = None,
    template: str | list[dict[str, str]] | None = None,
) -> None:
    """Write a model and its tokenizer as one file in llama.cpp's Llama layout.

    Vectors and routers, which are small, stay in f32. At `q4_0` the embedding and an untied
    head have 8 bits.

    Args:
        path: a new file, written whole or not at all.
        state: of a `SmolLM2` (`model.state_dict()`), in fp32.
        dtype: of the matrices; one of `DTYPES`.
        name: what the file calls the model.
        bounds: what begins and ends a text; default the tokenizer's `document_bounds`.
        template: of chats, or several with their names.

    Raises:
        UserError: the package gguf is not installed, the dtype is unknown or its blocks do not
            divide a width, a weight is too large for it, llama.cpp lacks the tokenizer, or `path`
            exists.
    """
    require_gguf(config, dtype)
    from gguf import GGUFWriter, quantize

    with replacing(path) as temporary:
        writer = GGUFWriter(temporary, "llama")
        writer.add_name(name)
        describe_model(writer, config, dtype)
        describe_tokenizer(writer, tokenizer, config.vocab_size)
        describe_bounds(writer, tokenizer, bounds or document_bounds(tokenizer))
        if template:
            writer.add_chat_template(template)
        for label, tensor in to_gguf(to_hf(state, config), config).items():
            kind = tensor_type(label, tensor, dtype)
            require_range(label, tensor, kind.name)
            writer.add_tensor(label, quantize(tensor.numpy(), kind), raw_dtype=kind)
        with contextlib.closing(writer):
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        if path.exists():  # made while this was written
            raise UserError(f"{path} exists already; name a new file.")


def require_gguf(config: ModelConfig, dtype: str) -> None:
    """Raise `UserError` if a model of this `config` cannot be written in `dtype`."""
    require_writer(dtype)
    if dtype not in ("q8_0", "q4_0"):
        return
    for field in ("d_model", "d_ff"):
        if (width := getattr(config, field)) % BLOCK:
            raise UserError(
                f"{dtype} takes {BLOCK} weights of a row at a time, and the model's {field} of "
                f"{width} is not a multiple of that; give `dtype=f16`.",
                field="dtype",
            )


def require_writer(dtype: str) -> None:
    """Raise `UserError` if no model can be written in `dtype`."""
    if find_spec("gguf") is None:
        raise UserError("GGUF files are written by the package gguf: pip install gguf")
    if dtype not in DTYPES:
        raise UserError(
            f"Unknown dtype {dtype!r} for GGUF.{did_you_mean(dtype, DTYPES)} Available: "
            f"{', '.join(DTYPES)}."
        )


def describe_model(writer: "GGUFWriter", config: ModelConfig, dtype: str) -> None:
    """Add the dimensions, under the names of llama.cpp."""
    from gguf import GGML_QUANT_VERSION, LlamaFileType

    writer.add_file_type(LlamaFileType[f"{'ALL' if dtype == 'f32' else 'MOSTLY'}_{dtype.upper()}"])
    writer.add_quantization_version(GGML_QUANT_VERSION)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_seq_len)
    writer.add_embedding_length(config.d_model)
    writer.add_block_count(config.n_layers)
    writer.add_feed_forward_length(config.d_ff)
    writer.add_head_count(config.n_heads)
    writer.add_head_count_kv(config.n_kv_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    if config.is_moe:
        writer.add_expert_count(config.n_experts)
        writer.add_expert_used_count(config.n_active_experts)


def describe_tokenizer(writer: "GGUFWriter", tokenizer: Tokenizer, vocab_size: int) -> None:
    """Add the tokens and merges.

    Raises:
        UserError: as `pre_tokenizer`.
    """
    from gguf import TokenType

    layout = json.loads(tokenizer.to_str())
    vocab = layout["model"]["vocab"]
    tokens = {number: (token, TokenType.NORMAL) for token, number in vocab.items()}
    for added in layout["added_tokens"]:
        kind = TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
        tokens[added["id"]] = added["content"], kind
    # The embedding needs one per row.
    unused = ((f"[UNUSED{number}]", TokenType.UNUSED) for number in range(vocab_size))
    listed = [tokens.get(number, token) for number, token in enumerate(unused)]
    writer.add_tokenizer_model("gpt2")  # any byte-level BPE
    writer.add_tokenizer_pre(pre_tokenizer(layout))
    writer.add_token_list([token for token, _ in listed])
    writer.add_token_types([kind for _, kind in listed])
    writer.add_token_merges([" ".join(pair) for pair in layout["model"]["merges"]])


def describe_bounds(writer: "GGUFWriter", tokenizer: Tokenizer, bounds: Bounds) -> None:
    """Add the tokens that begin and end a text. Without any, llama.cpp would take token 11, so it
    gets the one that ends a document.

    Raises:
        UserError: more tokens end a text than the file has names for.
    """
    ends = bounds.ends or (end_of_text_id(tokenizer),)
    names = (writer.add_eos_token_id, writer.add_eot_token_id, writer.add_eom_token_id)
    if len(ends) > len(names):
        raise UserError(
            f"{len(ends)} tokens of the model end a text, and a GGUF file names {len(names)} at "
            "most; export with `format=hf`."
        )
    for add, end in zip(names, ends, strict=False):
        add(end)
    writer.add_bos_token_id(ends[0] if bounds.begin is None else bounds.begin)
    if bounds.pad is not None:
        writer.add_pad_token_id(bounds.pad)
    # What the tokenizer adds to a text, if anything.
    added = tokenizer.encode("").ids
    writer.add_add_bos_token(added[:1] == [bounds.begin])
    if added and added[-1] == ends[0] and len(added) == 1 + (added[0] == bounds.begin):
        writer.add_add_eos_token(True)


def pre_tokenizer(layout: Mapping[str, Any]) -> str:
    """llama.cpp's name for how a tokenizer cuts a text.

    Args:
        layout: the content of its tokenizer.json.

    Raises:
        UserError: llama.cpp has no name for it, or it changes the text or merges in another way.
    """
    first, model = layout["pre_tokenizer"] or {}, layout["model"]
    steps = first.get("pretokenizers", [first])
    kinds = tuple(
        (step.get("type"), step.get("individual_digits", step.get("use_regex"))) for step in steps
    )
    others = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "ignore_merges")
    is_plain = (
        model["type"] == "BPE"
        and layout["normalizer"] is None
        and not any(model.get(name) for name in others)
        and not any(step.get("add_prefix_space") for step in steps)
    )
    if not is_plain or kinds not in PRE_TOKENIZERS:
        raise UserError(
            "The tokenizer cannot be described to llama.cpp: expected "
            "byte-level BPE as `smollm2` or `train:N`. Export with `format=hf`, and give that "
            "folder to llama.cpp's own convert_hf_to_gguf.py."
        )
    return PRE_TOKENIZERS[kinds]


def to_gguf(tensors: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Tensors by their names in llama.cpp, a layer's experts stacked (experts, out, in).

    Args:
        tensors: by published name, as `to_hf` gives them.
    """
    stacks: dict[str, list[Tensor]] = {}
    for name, label in gguf_names(tensors, config).items():
        n_heads = heads_of(name, config)
        tensor = tensors[name] if n_heads is None else interleaved(tensors[name], n_heads)
        stacks.setdefault(label, []).append(tensor)
    return {
        label: torch.stack(stack) if "_exps." in label else stack[0]
        for label, stack in stacks.items()
    }


def from_gguf(
    tensors: Mapping[str, Tensor], names: Iterable[str], config: ModelConfig
) -> dict[str, Tensor]:
    """The inverse of `to_gguf`.

    Args:
        names: the published ones of the model.
    """
    found = {}
    for name, label in gguf_names(names, config).items():
        tensor, n_heads = tensors[label], heads_of(name, config)
        if expert := re.search(r"\.experts\.(\d+)\.", name):
            tensor = tensor[int(expert[1])]
        found[name] = tensor if n_heads is None else deinterleaved(tensor, n_heads)
    return found


def gguf_names(names: Iterable[str], config: ModelConfig) -> dict[str, str]:
    """llama.cpp's name for each published name; a layer's experts share one."""
    from gguf import MODEL_ARCH, get_tensor_name_map

    theirs, found = get_tensor_name_map(MODEL_ARCH.LLAMA, config.n_layers), {}
    for name in names:
        label = theirs.get_name(re.sub(r"\.experts\.\d+", ".experts", name), (".weight",))
        assert label is not None
        found[name] = label
    return found


def heads_of(name: str, config: ModelConfig) -> int | None:
    """How many heads' rows the tensor of that published name has, if it makes queries or keys."""
    heads = {"q_proj.weight": config.n_heads, "k_proj.weight": config.n_kv_heads}
    return next((heads[end] for end in heads if name.endswith(end)), None)


def interleaved(weight: Tensor, n_heads: int) -> Tensor:
    """The rows of queries or keys (heads · E, D) for rotary positions that turn the pairs
    (2i, 2i + 1) of a head, not (i, i + E/2)."""
    halves = weight.unflatten(0, (n_heads, 2, -1))
    return halves.transpose(1, 2).flatten(0, 2).contiguous()


def deinterleaved(weight: Tensor, n_heads: int) -> Tensor:
    """The inverse of `interleaved`."""
    pairs = weight.unflatten(0, (n_heads, -1, 2))
    return pairs.transpose(1, 2).flatten(0, 2).contiguous()


def require_range(label: str, tensor: Tensor, kind: str) -> None:
    """Raise `UserError` if a weight would be infinite in the file."""
    largest = max(map(abs, map(float, tensor.aminmax())))
    if largest > LARGEST.get(kind, math.inf):
        raise UserError(
            f"{label} has a weight of {largest:.3g}, and {kind.lower()} reaches "
            f"{LARGEST[kind]:.3g}; give `dtype=f32`.",
            field="dtype",
        )


def tensor_type(label: str, tensor: Tensor, dtype: str) -> "GGMLQuantizationType":
    """The type that a tensor is written in."""
    from gguf import GGMLQuantizationType as Type

    if tensor.ndim == 1 or ".ffn_gate_inp." in label:
        return Type.F32
    if dtype == "q4_0" and label in ("token_embd.weight", "output.weight"):
        return Type.Q8_0
    return Type[dtype.upper()]
