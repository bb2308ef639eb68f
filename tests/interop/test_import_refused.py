"""What is read from config.json, and what cannot be imported."""

import json
import re
from pathlib import Path

import pytest
import torch
from support.command import run_main
from support.foreign import EMBEDDING, SHAPE, change, generation, runs_here, tensors
from transformers import (
    LlamaConfig,
    MixtralConfig,
)

from smollm2.interop.hf_import import read_config
from smollm2.runs.run import Run

# Reading config.json


def config_in(tmp_path: Path, **fields):
    content = {key: value for key, value in SHAPE.items() if value is not None}
    content |= {"architectures": ["LlamaForCausalLM"], "model_type": "llama"} | fields
    (tmp_path / "config.json").write_text(json.dumps(content))
    return read_config(tmp_path)


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_theta": 100_000, "rope_scaling": None, "torch_dtype": "bfloat16"},
        {"rope_parameters": {"rope_theta": 100_000.0, "rope_type": "default"}, "dtype": "float32"},
        {"rope_scaling": {"type": "default"}, "rope_theta": 100_000.0},
    ],
)
def test_the_rotary_base_is_read_in_the_words_of_each_version(tmp_path, rope):
    config = config_in(tmp_path, max_position_embeddings=8192, **rope)
    assert (config.rope_theta, config.max_seq_len) == (100_000.0, 8192)


@pytest.mark.parametrize("kind", [LlamaConfig, MixtralConfig])
def test_omitted_fields_have_the_defaults_of_transformers(tmp_path, kind):
    needed = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
    content = {key: SHAPE[key] for key in needed} | {"num_attention_heads": 8}
    name = kind.__name__.replace("Config", "ForCausalLM")
    names = {"architectures": [name], "model_type": kind.model_type}
    (tmp_path / "config.json").write_text(json.dumps(content | names))
    ours, theirs = read_config(tmp_path), kind(**content)
    assert ours.n_kv_heads == theirs.num_key_value_heads == 8
    assert ours.max_seq_len == theirs.max_position_embeddings
    assert ours.norm_eps == theirs.rms_norm_eps
    assert ours.rope_theta == theirs.rope_parameters["rope_theta"]
    assert ours.tie_embeddings == theirs.tie_word_embeddings
    assert ours.n_experts == getattr(theirs, "num_local_experts", 1)
    assert ours.n_active_experts == getattr(theirs, "num_experts_per_tok", 1)


# What cannot be imported


def field(**fields):
    return lambda folder: change(folder, **fields)


def index(names: dict[str, str]):
    """An index in the place of the weights, which are in shard.safetensors."""

    def harm(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "shard.safetensors")
        text = json.dumps({"weight_map": names})
        (folder / "model.safetensors.index.json").write_text(text)

    return harm


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")


def cut_off(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def longer_tokenizer(folder: Path) -> None:
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    content["added_tokens"].append(content["added_tokens"][0] | {"id": 512, "content": "<|more|>"})
    path.write_text(json.dumps(content))


NORM = "model.layers.1.input_layernorm.weight"
BAD = {
    "no config": (
        lambda folder: (folder / "config.json").unlink(),
        "'mine' is neither a run nor a model",
    ),
    "a broken config": (
        lambda folder: (folder / "config.json").write_text("{"),
        "config.json cannot be read",
    ),
    "a list as config": (
        lambda folder: (folder / "config.json").write_text("[1]"),
        "config.json cannot be read: it is not a table of fields",
    ),
    "an end in words": (
        lambda folder: generation(folder, eos_token_id="</s>"),
        'generation_config.json has eos_token_id "</s>", and only the numbers of tokens',
    ),
    "a broken generation config": (
        lambda folder: (folder / "generation_config.json").write_text("{"),
        "generation_config.json cannot be read",
    ),
    "another architecture": (
        field(architectures=["GPT2LMHeadModel"]),
        'config.json has architectures ["GPT2LMHeadModel"], and only one of LlamaForCausalLM',
    ),
    "no architecture": (field(architectures=...), "config.json has architectures null"),
    "attention biases": (field(attention_bias=True), "config.json has attention_bias true"),
    "MLP biases": (field(mlp_bias=True), "config.json has mlp_bias true, and only false"),
    "another activation": (field(hidden_act="gelu"), 'has hidden_act "gelu", and only "silu"'),
    "a window": (field(sliding_window=32), "config.json has sliding_window 32, and only null"),
    "quantized weights": (
        field(quantization_config={"quant_method": "gptq"}),
        "config.json has quantization_config",
    ),
    "scaled positions": (
        field(rope_scaling={"type": "linear", "factor": 2.0}),
        'config.json has rope type "linear", and only "default"',
    ),
    "scaled positions, version 5": (
        field(rope_parameters={"rope_type": "llama3", "rope_theta": 1e4}),
        'config.json has rope rope_type "llama3"',
    ),
    "partial positions": (
        field(partial_rotary_factor=0.5),
        "config.json has partial_rotary_factor 0.5",
    ),
    "rope settings that are none": (field(rope_scaling=[2]), "config.json has rope_scaling [2]"),
    "positions for each kind of layer": (
        field(rope_parameters={"full_attention": {"rope_type": "default", "rope_theta": 1e6}}),
        "config.json has rope_parameters for each kind of layer (full_attention)",
    ),
    "a type that is not its architecture's": (
        field(model_type="granite", logits_scaling=8.0),
        'config.json has model_type "granite", and with LlamaForCausalLM only "llama"',
    ),
    "no type": (field(model_type=...), "config.json has model_type null"),
    "code of its own": (
        field(auto_map={"AutoModelForCausalLM": "modeling_mine.Mine"}),
        "config.json has auto_map",
    ),
    "wider heads": (field(head_dim=16), "config.json has head_dim 16, and only hidden_size"),
    "no width": (field(hidden_size=...), "config.json lacks hidden_size"),
    "a width in words": (field(hidden_size="wide"), "hidden_size takes a whole number, not 'wide'"),
    "no heads for the keys": (field(num_key_value_heads=3), "is not a multiple of n_kv_heads 3"),
    "a vocabulary of no size": (field(vocab_size=-1), "vocab_size must be positive"),
    "a width that is not the weights'": (
        field(intermediate_size=10**6),
        "gate_proj.weight has shape (64, 32), but the model has (1000000, 32)",
    ),
    "a missing tensor": (tensors(lambda found: found.pop(NORM)), f"lacks the tensor {NORM}"),
    "a tensor of another shape": (
        tensors(lambda found: found.update({NORM: torch.ones(31)})),
        f"{NORM} has shape (31,), but the model has (32,)",
    ),
    "a tensor too many": (
        tensors(lambda found: found.update(more=torch.ones(2))),
        "a tensor more, for which the model has no place",
    ),
    "a tensor of integers": (
        tensors(lambda found: found.update({NORM: torch.ones(32, dtype=torch.int8)})),
        f"{NORM} is in int8",
    ),
    "no head of its own": (field(tie_word_embeddings=False), "lacks the tensor lm_head.weight"),
    "a head that is not tied": (
        tensors(lambda found: found.update({"lm_head.weight": found[EMBEDDING] + 1})),
        "tie_word_embeddings true, but the weights have an lm_head.weight that differs",
    ),
    "weights cut off": (cut_off, "model.safetensors is damaged"),
    "no weights": (
        lambda folder: (folder / "model.safetensors").unlink(),
        "it has no model.safetensors; make one",
    ),
    "a pickle": (pickled, "only pytorch_model.bin, a pickle"),
    "a shard outside": (
        index({EMBEDDING: "../mine/shard.safetensors"}),
        "names '../mine/shard.safetensors', which is not a safetensors file in the folder",
    ),
    "a shard at a path": (index({EMBEDDING: "/etc/passwd"}), "names '/etc/passwd'"),
    "a shard that is none": (index({EMBEDDING: "config.json"}), "names 'config.json'"),
    "a missing shard": (index({EMBEDDING: "a.safetensors"}), "a.safetensors, which model.safeten"),
    "a broken index": (index([]), "model.safetensors.index.json is damaged"),
    "no tokenizer": (
        lambda folder: (folder / "tokenizer.json").unlink(),
        "it has no tokenizer.json",
    ),
    "a broken tokenizer": (
        lambda folder: (folder / "tokenizer.json").write_text("{}"),
        "The tokenizer 'tokenizer.json' is damaged",
    ),
    "a larger tokenizer": (longer_tokenizer, "tokenizer.json has 513 tokens, and vocab_size"),
}


@pytest.mark.parametrize("case", BAD, ids=str)
def test_what_cannot_be_imported_is_refused_with_a_sentence(capsys, model, corpus, case):
    harm, sentence = BAD[case]
    harm(model)
    for command in (
        ("generate", "./mine", "--prompt", "abc"),
        ("train", "--from", "./mine", "--steps", "2", "--data", str(corpus)),
    ):
        code, out, err = run_main(capsys, *command)
        assert (code, out) == (2, "")
        assert err.startswith("Error: ")
        assert err.count("\n") == 1
        assert sentence in err
        assert not Path("results").exists()


@pytest.mark.parametrize(
    "command",
    [
        "export ./mine out --to hf --dtype f16",
        "export ./mine out --to gguf --dtype fp32",
        "generate ./mine --prompt a --dtype f16",
        "eval ./mine --tasks piqa --device tpu",
        "quantize ./mine --device tpu",
    ],
)
def test_nothing_is_imported_for_what_cannot_be(capsys, model, command):
    code, out, err = run_main(capsys, *command.split())
    assert (code, out) == (2, "")
    assert "Unknown d" in err
    assert runs_here() == []


@pytest.mark.parametrize(
    ("name", "expected"),
    [("pow2", "pow2-hf"), ("Figures", "figures-hf"), ("日本", "model-[0-9a-f]{16}"), ("语-1", "1")],
)
def test_a_model_whose_name_is_not_valid_for_a_run_gets_another(capsys, model, name, expected):
    model.rename(name)
    prompt = ("--prompt", "abc", "--max-new-tokens", "2")
    code, out, err = run_main(capsys, "generate", f"./{name}", *prompt)
    assert code == 0, err
    (run,) = runs_here()
    assert re.fullmatch(expected, run)
    for target in (f"./{name}", run):
        assert run_main(capsys, "generate", target, *prompt) == (0, out, "")


def test_a_full_disk_leaves_no_run(capsys, model, monkeypatch):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    code, _, err = run_main(capsys, "generate", "./mine", "--prompt", "abc")
    assert code == 1
    assert "Cannot import run 'mine': [Errno 28] No space left on device" in err
    assert runs_here() == []


def test_a_tied_head_and_old_buffers_in_the_file_are_accepted(capsys, model):
    def more(found: dict[str, torch.Tensor]) -> None:
        found["lm_head.weight"] = found[EMBEDDING].clone()
        found["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)

    tensors(more)(model)
    assert (
        run_main(capsys, "generate", "./mine", "--prompt", "abc", "--max-new-tokens", "1")[0] == 0
    )
    assert Run(Path("results/runs/mine")).protocol.model.tie_embeddings


def test_a_tokenizer_that_adds_tokens_is_warned_about(capsys, model):
    path = model / "tokenizer.json"
    content = json.loads(path.read_text())
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
        ],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {
            "<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}
        },
    }
    path.write_text(json.dumps(content))
    options = ("--prompt", "abc", "--max-new-tokens", "1", "--json")
    code, _, err = run_main(capsys, "generate", "./mine", *options)
    assert code == 0
    assert "Its tokenizer adds <|endoftext|> to every text" in err
