"""GGUF files read back: the same weights, numbers and runs."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize, quantize
from support.command import run_main
from support.foreign import runs_here
from support.gguf_files import DENSE, Part, parts_of
from tokenizers import Tokenizer

from smollm2 import ModelConfig, SmolLM2
from smollm2.data import load_tokenizer
from smollm2.interop.gguf import DTYPES, deinterleaved, interleaved, save_gguf
from smollm2.interop.gguf_import import open_gguf
from smollm2.interop.hf import from_hf, to_hf
from smollm2.runs.run import Run

CONFIGS = {
    "tied": ModelConfig(**DENSE),
    "untied": ModelConfig(**DENSE, tie_embeddings=False),
    "mixtral": ModelConfig(**DENSE, n_experts=4, n_active_experts=2),
}
WIDE = ModelConfig(
    d_model=256, n_heads=4, n_kv_heads=2, n_layers=1, d_ff=256, vocab_size=330, max_seq_len=64
)
HALVES = {"f16": torch.float16, "bf16": torch.bfloat16}
TEXT = ("--prompt", "abc de", "--max-new-tokens", "12", "--dtype", "fp32")


def dequantized_kinds() -> list[GGMLQuantizationType]:
    """The types that the package can read."""
    found = []
    for kind, (_, n_bytes) in GGML_QUANT_SIZES.items():
        try:
            dequantize(np.zeros((1, n_bytes), np.uint8), kind)
        except NotImplementedError:
            continue
        found.append(kind)
    return found


@pytest.fixture
def tokens(tokenizer) -> Tokenizer:
    """320 tokens, fewer than the models embed."""
    return load_tokenizer(tokenizer)


def saved(folder: Path, config: ModelConfig, tokens: Tokenizer, dtype: str = "f16") -> Path:
    """A model with norms of its own, which 16 bits hold, as m.gguf."""
    state = SmolLM2(config, seed=1).state_dict()
    for name, tensor in state.items():
        if "norm" in name:
            tensor.copy_(torch.linspace(0.5, 2, len(tensor)).bfloat16())
    save_gguf(folder / "m.gguf", state, config, tokens, dtype=dtype, name="m")
    torch.save(state, folder / "state.pt")
    return folder / "m.gguf"


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_an_export_is_read_back_to_the_bit(tmp_path, tokens, kind, dtype):
    config = CONFIGS[kind]
    source = open_gguf(saved(tmp_path, config, tokens, dtype), "./m.gguf")
    assert source.config == config
    found = source.read_state()
    state = torch.load(tmp_path / "state.pt")
    assert {tensor.dtype for tensor in found.values()} == {
        # Routers, in f32, have more bits than f16 holds.
        torch.float32 if kind == "mixtral" else HALVES.get(dtype, torch.float32)
    }
    expected = {}
    for name, tensor in to_hf(state, config).items():
        # Rows are quantized one by one, in whatever order they are written.
        stored = GGMLQuantizationType[dtype.upper()]
        if dtype == "q4_0" and name in ("model.embed_tokens.weight", "lm_head.weight"):
            stored = GGMLQuantizationType.Q8_0
        if tensor.ndim == 1 or name.endswith("block_sparse_moe.gate.weight"):
            stored = GGMLQuantizationType.F32
        rows = dequantize(quantize(tensor.numpy(), stored), stored)
        expected[name] = torch.from_numpy(rows.reshape(tensor.shape).copy())
    for name, tensor in from_hf(expected, config).items():
        assert torch.equal(found[name].float(), tensor), name


@pytest.mark.parametrize("kind", dequantized_kinds(), ids=lambda kind: kind.name)
def test_every_type_that_the_package_reads_is_imported(tmp_path, tokens, kind):
    parts = parts_of(saved(tmp_path, WIDE, tokens, "f32"))
    rng = np.random.default_rng(0)
    block, n_bytes = GGML_QUANT_SIZES[kind]
    expected = {}
    for name, part in parts.tensors:
        if len(part.shape) == 1:
            continue
        columns, rows = part.shape
        # Without the bit 0x40 of a byte, no scale of any type is infinite or no number.
        data = rng.integers(0, 256, (rows, columns // block * n_bytes), np.uint8) & 0xBF
        part.kind, part.content = int(kind), data.tobytes()
        expected[name] = torch.from_numpy(dequantize(data, kind).astype(np.float32))
    source = open_gguf(parts.write(tmp_path / "n.gguf"), "./n.gguf")
    assert source.grid == (None if kind.name in ("F64", "F32", "F16", "BF16") else kind.name)
    state = source.read_state()
    assert state["embed.weight"].dtype == HALVES.get(kind.name.lower(), torch.float32)
    heads = {"q": WIDE.n_heads, "k": WIDE.n_kv_heads, "v": None}
    qkv = [
        expected[f"blk.0.attn_{x}.weight"]
        if n is None
        else deinterleaved(expected[f"blk.0.attn_{x}.weight"], n)
        for x, n in heads.items()
    ]
    gate_up = [expected[f"blk.0.ffn_{x}.weight"] for x in ("gate", "up")]
    for name, tensor in {
        "embed.weight": expected["token_embd.weight"],
        "blocks.0.attn.qkv.weight": torch.cat(qkv),
        "blocks.0.attn.out.weight": expected["blk.0.attn_output.weight"],
        "blocks.0.mlp.gate_up.weight": torch.cat(gate_up),
        "blocks.0.mlp.down.weight": expected["blk.0.ffn_down.weight"],
    }.items():
        assert torch.equal(state[name].float(), tensor), name


def test_the_types_are_those_that_people_publish():
    names = {kind.name for kind in dequantized_kinds()}
    assert names >= {"F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "IQ4_NL"}
    assert names >= {"Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS", "IQ3_S", "IQ2_XXS"}


def test_rows_come_back_in_their_order():
    rows = torch.randn(24, 3)
    assert torch.equal(deinterleaved(interleaved(rows, 3), 3), rows)
    assert not torch.equal(deinterleaved(rows, 3), interleaved(rows, 3))


def test_a_vector_of_more_than_16_bits_makes_the_run_float32(tmp_path, tokens):
    parts = parts_of(saved(tmp_path, CONFIGS["tied"], tokens))
    third = np.full(64, 1 / 3, np.float32)
    parts.tensor("output_norm.weight").content = third.tobytes()
    state = open_gguf(parts.write(tmp_path / "n.gguf"), "./n.gguf").read_state()
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}
    assert torch.equal(state["norm.weight"], torch.from_numpy(third))


def test_what_says_nothing_is_ignored(tmp_path, tokens):
    """Fields of other programs, defaults that are written out, and factors of 1."""
    parts = parts_of(saved(tmp_path, CONFIGS["tied"], tokens))
    parts.set(
        general__license="apache-2.0",
        quantize__imatrix__file="x.dat",
        llama__rope__scaling__type="none",
        llama__attention__key_length=16,
        llama__expert_count=0,
        llama__rope__freq_base=...,
        llama__attention__head_count_kv=...,
        llama__vocab_size=...,
        split__count=1,
        general__alignment=32,
    )
    ones = np.ones(8, np.float32).tobytes()
    parts.tensors.append(("rope_freqs.weight", Part(0, [8], ones)))
    for name in ("k", "v"):
        for layer in range(2):
            part = parts.tensor(f"blk.{layer}.attn_{name}.weight")
            part.shape, part.content = [64, 64], part.content * 2
    parts.version = 2
    source = open_gguf(parts.write(tmp_path / "n.gguf"), "./n.gguf")
    expected = dataclasses.replace(CONFIGS["tied"], n_kv_heads=4, rope_theta=10_000.0)
    assert source.config == expected
    source.read_state()


# As a target


def exported(capsys, name: str, *options: str) -> Path:
    """The run `first` as a file."""
    code, _, err = run_main(capsys, "export", "first", name, "--to", "gguf", *options)
    assert code == 0, err
    return Path(name)


def test_a_file_is_a_target_like_a_folder(capsys, finished, corpus):
    before = run_main(capsys, "generate", "first", *TEXT)
    exported(capsys, "Mine.gguf", "--dtype", "f32")
    code, out, err = run_main(capsys, "generate", "./Mine.gguf", *TEXT)
    assert (code, out) == before[:2]
    assert err.startswith("Imported ./Mine.gguf (")
    assert err.endswith("float32) as run mine: results/runs/mine\n")
    run = Run(Path("results/runs/mine"))
    assert run.manifest["source"]["name"] == "./Mine.gguf"
    assert run.tokenizer_fingerprint == Run(finished).tokenizer_fingerprint
    assert run.protocol.model == Run(finished).protocol.model
    for target in ("Mine.gguf", str(Path("Mine.gguf").absolute()), "mine"):
        assert run_main(capsys, "generate", target, *TEXT) == (0, out, "")
    Path("Mine.gguf").rename("a+b@3.GGUF")
    assert run_main(capsys, "generate", "./a+b@3.GGUF", *TEXT) == (0, out, "")
    assert runs_here() == ["first", "mine"]

    options = ("--data", str(corpus), "--tokens", "128", "--dtype", "fp32", "--json")
    export = ("export", "first", "folder", "--to", "hf", "--dtype", "fp32")
    assert run_main(capsys, *export)[0] == 0
    scores = [run_main(capsys, "eval", name, *options)[1] for name in ("./folder", "./a+b@3.GGUF")]
    first, mine = ({row["metric"]: row["value"] for row in json.loads(out)} for out in scores)
    assert mine == first
    options = ("--group-size", "32", "--tokens", "128", "--no-speed", "--data", str(corpus))
    code, _, err = run_main(capsys, "quantize", "./a+b@3.GGUF", *options)
    assert code == 0, err
    assert run_main(capsys, "generate", "mine+int4-g32-clip", *TEXT)[0] == 0
    options = ("--steps", "2", "--seq-len", "16", "--data", str(corpus), "--name", "tuned")
    code, _, err = run_main(capsys, "train", "--from", "./a+b@3.GGUF", *options)
    assert code == 0, err
    assert Run(Path("results/runs/tuned")).manifest["started_from"] == "./Mine.gguf"


def test_an_export_of_an_import_is_the_same_file(capsys, finished):
    for dtype in ("f32", "f16"):
        first = exported(capsys, f"{dtype}.gguf", "--dtype", dtype)
        again = ("--to", "gguf", f"{dtype}-again.gguf", "--dtype", dtype)
        assert run_main(capsys, "export", f"./{dtype}.gguf", *again)[0] == 0
        one, other = parts_of(first), parts_of(Path(f"{dtype}-again.gguf"))
        one.set(general__name=dtype)
        assert dict(one.fields) == dict(other.fields)
        assert one.tensors == other.tensors


def test_a_folder_of_transformers_can_be_made_of_a_file(capsys, finished):
    exported(capsys, "m.gguf", "--dtype", "f32")
    for target, name in (("first", "one"), ("./m.gguf", "other")):
        options = ("--to", "hf", "--dtype", "fp32")
        assert run_main(capsys, "export", target, name, *options)[0] == 0
    weights = [Path(name, "model.safetensors").read_bytes() for name in ("one", "other")]
    assert weights[0] == weights[1]
    configs = [json.loads(Path(name, "config.json").read_text()) for name in ("one", "other")]
    assert configs[0] == configs[1]


def test_the_run_of_a_file_with_a_taken_name_is_called_otherwise(capsys, finished):
    exported(capsys, "pow2.gguf")
    assert run_main(capsys, "generate", "pow2.gguf", *TEXT)[0] == 0
    assert runs_here() == ["first", "pow2-gguf"]
    exported(capsys, "first.gguf", "--dtype", "f32")
    code, _, err = run_main(capsys, "generate", "first.gguf", *TEXT)
    assert code == 2
    assert "its run would be called first, and that name is taken; give another --study" in err
    assert "rename the file" in err
    Path("pow2.gguf").write_bytes(Path("first.gguf").read_bytes())
    code, _, err = run_main(capsys, "generate", "pow2.gguf", *TEXT)
    assert code == 2
    assert "imported from ./pow2.gguf, and this is another model or has changed since" in err


def test_a_run_starts_again_without_its_file(capsys, finished, corpus):
    path = exported(capsys, "m.gguf")
    options = ("--steps", "2", "--seq-len", "16", "--data", str(corpus))
    assert run_main(capsys, "train", "--from", "./m.gguf", *options, "--name", "one")[0] == 0
    path.unlink()
    code, _, err = run_main(capsys, "train", "--from", "./m.gguf", *options, "--name", "two")
    assert code == 0, err
    assert "Using run m, which was imported from ./m.gguf: that is not here." in err
    code, _, err = run_main(capsys, "generate", "./m.gguf", *TEXT)
    assert (code, "'m.gguf' does not exist." in err) == (2, True)


def test_a_folder_with_a_file_names_it(capsys, finished):
    Path("models").mkdir()
    exported(capsys, "models/m.gguf")
    code, _, err = run_main(capsys, "generate", "./models", *TEXT)
    assert code == 2
    assert "neither run.json nor config.json. Name the GGUF file in it: models/m.gguf" in err
