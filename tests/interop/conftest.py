"""Models of transformers on disk."""

import shutil
from pathlib import Path

import pytest
import torch
from support.foreign import EXPERTS, KINDS, SHAPE
from support.gguf_files import DENSE
from support.questions import ROWS, write
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)
from transformers.utils.logging import disable_progress_bar

from smollm2 import ModelConfig, SmolLM2
from smollm2.data import TokenData, load_tokenizer
from smollm2.interop.gguf import save_gguf

disable_progress_bar()


@pytest.fixture(scope="session")
def elsewhere(tmp_path_factory, data: TokenData) -> Path:
    """A folder with a model of each of `KINDS`, saved by transformers, with the tokenizer of
    `data`."""
    folder = tmp_path_factory.mktemp("elsewhere")
    torch.manual_seed(0)
    tied = LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=True, rope_theta=500.0))
    untied = LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=False))
    mixtral = MixtralForCausalLM(MixtralConfig(**SHAPE, **EXPERTS))
    tied.save_pretrained(folder / "tied")
    untied.save_pretrained(folder / "untied")
    untied.save_pretrained(folder / "sharded", max_shard_size="40KB")
    mixtral.save_pretrained(folder / "mixtral")
    tied.bfloat16().save_pretrained(folder / "bf16")
    untied.half().save_pretrained(folder / "fp16")
    for name in KINDS:
        data.tokenizer.save(str(folder / name / "tokenizer.json"))
    assert len(list((folder / "sharded").glob("*.safetensors"))) > 1
    return folder


@pytest.fixture
def model(elsewhere, workdir) -> Path:
    """A copy of the tied model as ./mine in the current directory."""
    shutil.copytree(elsewhere / "tied", "mine")
    return workdir / "mine"


@pytest.fixture(scope="session")
def good_gguf(tmp_path_factory, tokenizer) -> Path:
    """A GGUF file that can be imported."""
    path, config = tmp_path_factory.mktemp("gguf") / "m.gguf", ModelConfig(**DENSE)
    save_gguf(path, SmolLM2(config).state_dict(), config, load_tokenizer(tokenizer), name="m")
    return path


@pytest.fixture
def questions(tmp_path) -> Path:
    """A folder with 6 questions of piqa."""
    folder = tmp_path / "questions"
    folder.mkdir()
    rows = [ROWS["piqa"] | {"goal": f"dry {i}", "label": i % 2} for i in range(6)]
    write(folder, "piqa_validation.jsonl", rows)
    return folder
