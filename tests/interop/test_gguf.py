"""GGUF files: read back, by the package gguf, they hold the model and its tokenizer."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader, TokenType, dequantize
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

from smollm2 import ModelConfig, SmolLM2
from smollm2.data import end_of_text_id, load_tokenizer
from smollm2.errors import UserError
from smollm2.interop.gguf import DTYPES, interleaved, save_gguf, to_gguf
from smollm2.interop.hf import to_hf

DENSE = ModelConfig(
    d_model=64,
    n_heads=4,
    n_kv_heads=2,
    n_layers=2,
    d_ff=96,
    vocab_size=330,
    max_seq_len=128,
    rope_theta=20_000.0,
    norm_eps=1e-4,
)
MOE = dataclasses.replace(DENSE, n_experts=4, n_active_experts=2)
WHOLE = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
}
LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_gate_inp": "block_sparse_moe.gate",
}
EXPERTS = {"ffn_gate_exps": "w1", "ffn_up_exps": "w3", "ffn_down_exps": "w2"}


@pytest.fixture
def tokens(tokenizer) -> Tokenizer:
    """320 tokens, fewer than the models embed."""
    return load_tokenizer(tokenizer)


def written(tmp_path, config, tokens, dtype="f16") -> tuple[dict[str, torch.Tensor], GGUFReader]:
    """The published tensors of a model, and what was written of it."""
    state = SmolLM2(config, seed=1).state_dict()
    save_gguf(tmp_path / "m.gguf", state, config, tokens, dtype=dtype, name="mine")
    return to_hf(state, config), GGUFReader(tmp_path / "m.gguf")


def published(name: str, tensors: dict[str, torch.Tensor], config: ModelConfig) -> np.ndarray:
    """The values of the tensor of that name in the file, queries and keys in the order of rows
    of transformers."""
    if name in WHOLE:
        return tensors[WHOLE[name]].numpy()
    _, layer, kind, _ = name.split(".")
    if kind in EXPERTS:
        experts = f"model.layers.{layer}.block_sparse_moe.experts"
        stack = [tensors[f"{experts}.{x}.{EXPERTS[kind]}.weight"] for x in range(config.n_experts)]
        return torch.stack(stack).numpy()
    return tensors[f"model.layers.{layer}.{LAYER[kind]}.weight"].numpy()


def in_published_order(name: str, values: np.ndarray, config: ModelConfig) -> np.ndarray:
    """Rows 0, 2, 4, ... of a head of queries or keys, then 1, 3, 5, ..."""
    if ".attn_q." not in name and ".attn_k." not in name:
        return values
    heads = values.reshape(-1, config.head_dim, config.d_model)
    return np.concatenate([heads[:, ::2], heads[:, 1::2]], axis=1).reshape(values.shape)


@pytest.mark.parametrize("config", [DENSE, MOE], ids=["dense", "moe"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_tensor_is_read_back(tmp_path, tokens, config, dtype):
    tensors, reader = written(tmp_path, config, tokens, dtype)
    sizes = 0
    for tensor in reader.tensors:
        is_small = "norm" in tensor.name or "ffn_gate_inp" in tensor.name
        wanted = GGMLQuantizationType["F32" if is_small else dtype.upper()]
        if dtype == "q4_0" and tensor.name == "token_embd.weight":
            wanted = GGMLQuantizationType.Q8_0
        assert tensor.tensor_type == wanted
        expected = published(tensor.name, tensors, config)
        values = dequantize(tensor.data, tensor.tensor_type).reshape(expected.shape)
        values = in_published_order(tensor.name, values, config)
        if wanted == GGMLQuantizationType.F32:
            assert np.array_equal(values, expected)
        elif wanted == GGMLQuantizationType.F16:
            assert np.array_equal(values, expected.astype(np.float16).astype(np.float32))
        else:
            # A bf16 has 8 bits; a block of 32 has 255 or 16 steps over its range, some of it lost.
            steps = {"BF16": 256, "Q8_0": 254, "Q4_0": 14}[wanted.name]
            assert np.abs(values - expected).max() <= 2 * np.abs(expected).max() / steps
            assert np.corrcoef(values.ravel(), expected.ravel())[0, 1] > 0.99
        sizes += expected.size
    assert sizes == sum(tensor.numel() for tensor in tensors.values())


@pytest.mark.parametrize("config", [DENSE, MOE], ids=["dense", "moe"])
def test_the_dimensions_are_read_back(tmp_path, tokens, config):
    _, reader = written(tmp_path, config, tokens)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    expected = {
        "general.architecture": "llama",
        "general.name": "mine",
        "general.file_type": 1,  # mostly f16
        "llama.vocab_size": 330,
        "llama.context_length": 128,
        "llama.embedding_length": 64,
        "llama.block_count": 2,
        "llama.feed_forward_length": 96,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.rope.dimension_count": 16,
        "llama.rope.freq_base": 20_000.0,
        "llama.attention.layer_norm_rms_epsilon": np.float32(1e-4),
    }
    if config.is_moe:
        expected |= {"llama.expert_count": 4, "llama.expert_used_count": 2}
    ours = {name for name in fields if name.startswith("llama.")}
    assert ours == {name for name in expected if name.startswith("llama.")}
    assert {name: fields[name] for name in expected} == expected


def test_the_tokenizer_is_read_back(tmp_path, tokens):
    tokens.add_tokens([AddedToken("<tool>", special=False)])
    _, reader = written(tmp_path, DENSE, tokens)
    fields = {
        name.removeprefix("tokenizer.ggml."): field.contents()
        for name, field in reader.fields.items()
    }
    n_tokens = tokens.get_vocab_size()
    assert n_tokens < DENSE.vocab_size
    listed = fields["tokens"]
    assert listed[:n_tokens] == [tokens.id_to_token(number) for number in range(n_tokens)]
    assert len(set(listed)) == DENSE.vocab_size
    types = [TokenType(kind) for kind in fields["token_type"]]
    assert types[0] == TokenType.CONTROL
    assert set(types[1 : n_tokens - 1]) == {TokenType.NORMAL}
    assert types[n_tokens - 1] == TokenType.USER_DEFINED
    assert set(types[n_tokens:]) == {TokenType.UNUSED}
    merges = json.loads(tokens.to_str())["model"]["merges"]
    assert fields["merges"] == [f"{left} {right}" for left, right in merges]
    assert fields["model"] == "gpt2"
    assert fields["pre"] == "smollm"
    assert fields["bos_token_id"] == fields["eos_token_id"] == end_of_text_id(tokens)
    assert fields["add_bos_token"] is False


def test_an_untied_head_is_the_output():
    tensors = to_hf(SmolLM2(DENSE).state_dict(), DENSE)
    assert "output.weight" not in to_gguf(tensors, DENSE)
    head = torch.randn(330, 64)
    found = to_gguf(tensors | {"lm_head.weight": head}, DENSE)
    assert torch.equal(found["output.weight"], head)


def test_pairs_that_turn_together_lie_side_by_side():
    rows = torch.arange(12)[:, None]
    assert interleaved(rows, 2).flatten().tolist() == [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]


def changed(tokens: Tokenizer, change: str) -> Tokenizer:
    """The tokenizer, cutting or merging text in another way."""
    digits, byte_level = pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(False)
    steps = {
        "groups of digits": [pre_tokenizers.Digits(False), byte_level],
        "an added space": [digits, pre_tokenizers.ByteLevel(True)],
        "a regex of its own": [pre_tokenizers.Split(" ", "isolated"), byte_level],
        "words of Metaspace": [pre_tokenizers.Metaspace()],
    }
    if change in steps:
        tokens.pre_tokenizer = pre_tokenizers.Sequence(steps[change])
    elif change == "a normalizer":
        tokens.normalizer = normalizers.Lowercase()
    elif change == "no pre-tokenizer":
        layout = json.loads(tokens.to_str()) | {"pre_tokenizer": None}
        return Tokenizer.from_str(json.dumps(layout))
    elif change == "whole words first":
        layout = json.loads(tokens.to_str())
        layout["model"]["ignore_merges"] = True
        return Tokenizer.from_str(json.dumps(layout))
    elif change == "no BPE":
        return Tokenizer(models.WordLevel({"<|endoftext|>": 0}, "<|endoftext|>"))
    return tokens


@pytest.mark.parametrize(
    "change",
    [
        *("groups of digits", "an added space", "a regex of its own", "words of Metaspace"),
        *("a normalizer", "no pre-tokenizer", "whole words first", "no BPE"),
    ],
)
def test_a_tokenizer_that_llama_cpp_lacks_is_refused(tmp_path, tokens, change):
    with pytest.raises(UserError, match=r"byte-level BPE.*convert_hf_to_gguf\.py"):
        written(tmp_path, DENSE, changed(tokens, change))
    assert list(tmp_path.iterdir()) == []


def test_a_width_that_blocks_do_not_divide_is_named(tmp_path, tokens):
    for field in ("d_model", "d_ff"):
        config = dataclasses.replace(DENSE, **{field: 72})
        for dtype in ("q8_0", "q4_0"):
            with pytest.raises(UserError, match=f"{dtype} takes 32 .* {field} of 72 .*f16"):
                written(tmp_path, config, tokens, dtype)
        written(tmp_path, config, tokens, "f16")
        (tmp_path / "m.gguf").unlink()


def test_a_file_created_in_the_meantime_is_kept(tmp_path, tokens, monkeypatch):
    def meanwhile(*arguments):
        (tmp_path / "m.gguf").write_text("another's")
        return to_gguf(*arguments)

    monkeypatch.setattr("smollm2.interop.gguf.to_gguf", meanwhile)
    with pytest.raises(UserError, match=r"m\.gguf exists already; name a new file"):
        written(tmp_path, DENSE, tokens)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["another's"]


def test_without_the_package_the_error_names_the_install_command(tmp_path, tokens, monkeypatch):
    monkeypatch.setattr("smollm2.interop.gguf.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install gguf$"):
        written(tmp_path, DENSE, tokens)
    assert list(tmp_path.iterdir()) == []
