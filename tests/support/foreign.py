"""Models as transformers saves them, to be imported."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
)

SHAPE = {
    "vocab_size": 512,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": None,
    "eos_token_id": 0,
    "initializer_range": 0.2,  # so that logits differ
}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
KINDS = ["tied", "untied", "mixtral", "sharded", "bf16", "fp16"]
EMBEDDING = "model.embed_tokens.weight"


def theirs_in(folder: Path):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def change(folder: Path, **fields) -> None:
    """Set fields of config.json; those that are `...` are taken out."""
    path = folder / "config.json"
    content = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({key: v for key, v in content.items() if v is not ...}))


def generation(folder: Path, **fields) -> None:
    (folder / "generation_config.json").write_text(json.dumps(fields))


def tensors(edit):
    """A change of the tensors in model.safetensors."""

    def harm(folder: Path) -> None:
        found = load_file(folder / "model.safetensors")
        edit(found)
        save_file(found, folder / "model.safetensors", metadata={"format": "pt"})

    return harm


def runs_here() -> list[str]:
    return sorted(path.name for path in Path("results").glob("*/*"))
