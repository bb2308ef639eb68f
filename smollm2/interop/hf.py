"""The same model in the layout of transformers: Llama, or Mixtral for a mixture of experts."""

import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from smollm2.data import Bounds, document_bounds, load_tokenizer
from smollm2.errors import UserError
from smollm2.files import replace_file, write_json, write_tensors
from smollm2.model.config import ModelConfig
from smollm2.model.transformer import SmolLM2, matrices

# Our names, with N for each number, and the names on disk with {} for each number.
PUBLISHED = {
    "embed.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "lm_head.weight": "lm_head.weight",
    "blocks.N.attn_norm.weight": "model.layers.{}.input_layernorm.weight",
    "blocks.N.attn.qkv.weight.q": "model.layers.{}.self_attn.q_proj.weight",
    "blocks.N.attn.qkv.weight.k": "model.layers.{}.self_attn.k_proj.weight",
    "blocks.N.attn.qkv.weight.v": "model.layers.{}.self_attn.v_proj.weight",
    "blocks.N.attn.out.weight": "model.layers.{}.self_attn.o_proj.weight",
    "blocks.N.mlp_norm.weight": "model.layers.{}.post_attention_layernorm.weight",
    "blocks.N.mlp.gate_up.weight.gate": "model.layers.{}.mlp.gate_proj.weight",
    "blocks.N.mlp.gate_up.weight.up": "model.layers.{}.mlp.up_proj.weight",
    "blocks.N.mlp.down.weight": "model.layers.{}.mlp.down_proj.weight",
    "blocks.N.mlp.router.weight": "model.layers.{}.block_sparse_moe.gate.weight",
    "blocks.N.mlp.gate_up.N.gate": "model.layers.{}.block_sparse_moe.experts.{}.w1.weight",
    "blocks.N.mlp.gate_up.N.up": "model.layers.{}.block_sparse_moe.experts.{}.w3.weight",
    "blocks.N.mlp.down.N": "model.layers.{}.block_sparse_moe.experts.{}.w2.weight",
}


def save_hf(
    folder: Path,
    state: Mapping[str, Tensor],
    config: ModelConfig,
    tokenizer_json: Path | None,
    bounds: Bounds | None = None,
    settings: Mapping[str, bytes] = MappingProxyType({}),
) -> None:
    """Write what `AutoModelForCausalLM.from_pretrained(folder)` reads.

    Args:
        folder: created if missing; files of the same names are replaced.
        state: of a `SmolLM2` (`model.state_dict()`), written in its dtype.
        tokenizer_json: a `tokenizers` file; None saves no tokenizer.
        bounds: what begins and ends a text; default the tokenizer's `document_bounds`.
        settings: files for text that came with the model, written as they are.

    Raises:
        UserError: a tokenizer that cannot be read or, without `bounds`, has no token that ends a
            document.
    """
    folder.mkdir(parents=True, exist_ok=True)
    dtype = str(state["embed.weight"].dtype).removeprefix("torch.")
    content = hf_config(config, dtype)
    if tokenizer_json is not None:
        content |= save_tokenizer(folder, tokenizer_json, config.max_seq_len, bounds)
        for name, file in settings.items():
            (folder / name).write_bytes(file)
    write_json(folder / "config.json", content)
    write_tensors(folder / "model.safetensors", to_hf(state, config), {"format": "pt"})


def save_tokenizer(
    folder: Path, tokenizer_json: Path, max_seq_len: int, bounds: Bounds | None
) -> dict[str, Any]:
    """Write the tokenizer's two files and how text is generated with it; returns what config.json
    says about its tokens."""
    tokenizer = load_tokenizer(str(tokenizer_json))
    bounds = bounds or document_bounds(tokenizer)
    end = bounds.ends[0] if bounds.ends else None
    replace_file(folder / "tokenizer.json", tokenizer_json.read_bytes())
    eos_token = None if end is None else tokenizer.id_to_token(end)
    settings = tokenizer_settings(max_seq_len, eos_token=eos_token)
    write_json(folder / "tokenizer_config.json", settings)
    ends = list(bounds.ends) if len(bounds.ends) > 1 else end
    tokens = {"bos_token_id": bounds.begin, "eos_token_id": ends}
    pad = end if bounds.pad is None else bounds.pad
    write_json(folder / "generation_config.json", tokens | {"pad_token_id": pad})
    return tokens if bounds.pad is None else tokens | {"pad_token_id": pad}


def tokenizer_settings(max_seq_len: int, **tokens: str | None) -> dict[str, Any]:
    """The content of tokenizer_config.json for a tokenizer.json.

    Args:
        tokens: the special ones, as `eos_token`.
    """
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **tokens,
        "model_max_length": max_seq_len,
        "clean_up_tokenization_spaces": False,
        # Of version 4's own three, the model does not take `token_type_ids`.
        "model_input_names": ["input_ids", "attention_mask"],
    }


def hf_config(config: ModelConfig, dtype: str = "float32") -> dict[str, Any]:
    """The content of config.json, as transformers 4 and 5 read it, for weights of `dtype`."""
    kind = "Mixtral" if config.is_moe else "Llama"
    content: dict[str, Any] = {
        "architectures": [f"{kind}ForCausalLM"],
        "model_type": kind.lower(),
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "intermediate_size": config.d_ff,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_seq_len,
        "rms_norm_eps": config.norm_eps,
        # Version 5 wants rope_parameters, but still reads version 4's name.
        "rope_theta": config.rope_theta,
        "initializer_range": config.init_std,
        "tie_word_embeddings": config.tie_embeddings,
        # Omitted, these would be the 1 and 2 of Llama's own tokenizer.
        "bos_token_id": None,
        "eos_token_id": None,
        "torch_dtype": dtype,
    }
    if config.is_moe:
        content |= {
            "num_local_experts": config.n_experts,
            "num_experts_per_tok": config.n_active_experts,
        }
    return content


def to_hf(state: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """The tensors of model.safetensors: views of `state` by published name, without a tied head.

    Args:
        state: of a `SmolLM2` of this `config`; also gradients by the same names.
    """
    return {
        published_name(label): matrix
        for name, tensor in state.items()
        for label, matrix in matrices(config, name, tensor).items()
    }


def from_hf(
    tensors: Mapping[str, Tensor], config: ModelConfig, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """The inverse of `to_hf`: a state in `dtype` for `SmolLM2.load_state_dict`.

    Raises:
        UserError: a tensor is missing, has another shape than `config` gives it, or is unexpected.
    """
    numbers = {name.split(".")[2] for name in tensors if name.startswith("model.layers.")}
    if len(numbers) < config.n_layers:  # building the model takes time for each
        raise UserError(
            f"The checkpoint has tensors of {len(numbers)} layers, but the model has "
            f"{config.n_layers} (num_hidden_layers); does it belong to another model?"
        )
    model = SmolLM2(config, seed=None).to(dtype)
    places = to_hf(model.state_dict(), config)  # on meta, since the config may be wrong
    for name, place in places.items():
        if name not in tensors:
            raise UserError(
                f"The checkpoint lacks the tensor {name}; does it belong to another model?"
            )
        shape = tuple(tensors[name].shape)
        if shape != tuple(place.shape):
            raise UserError(
                f"The checkpoint's {name} has shape {shape}, but the model has "
                f"{tuple(place.shape)}; does it belong to another model?"
            )
    if unexpected := sorted(tensors.keys() - places.keys()):
        raise UserError(
            f"The checkpoint has a tensor {unexpected[0]}, for which the model has no place; "
            "does it belong to another model?"
        )
    state = model.to_empty(device="cpu").state_dict()
    for name, view in to_hf(state, config).items():
        view.copy_(tensors[name])
    return state


def published_name(label: str) -> str:
    """The name on disk of a matrix that `matrices` names `label`."""
    return PUBLISHED[re.sub(r"\d+", "N", label)].format(*re.findall(r"\d+", label))
