"""A published instruct model from its GGUF file: llama.cpp's tokens, and known scores."""

import itertools
import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from support.command import run_main
from support.stories import stories

from smolctl.studies.models import load_one
from smollm2.inference.decoder import Decoder, generate
from smollm2.interop.gguf_import import open_gguf
from smollm2.runs.run import Run
from smollm2.runs.text_settings import chat_template, text_settings_of

pytestmark = [
    pytest.mark.slow,
    # What llama-cpp-python and its dependencies warn about is not ours to keep quiet.
    pytest.mark.filterwarnings("default"),
]
PROMPTS = (
    "The capital of France is",
    "<|im_start|>user\nName three colours.<|im_end|>\n<|im_start|>assistant\n",
    "def add(a, b):\n    ",
)
N_NEW = 48
SCORES = {
    ("hellaswag", 150): {"acc": 59 / 150, "acc_norm": 72 / 150},
    ("arc_easy", 200): {"acc": 102 / 200, "acc_norm": 93 / 200},
}


@pytest.fixture(scope="module")
def llama_cpp():
    return pytest.importorskip(
        "llama_cpp", reason="needs llama.cpp: pip install 'smolctl[llama-cpp]', which compiles it"
    )


def test_its_fields_are_understood(capsys, workdir, real_gguf):
    options = ("--prompt", PROMPTS[0], "--max-new-tokens", "4")
    code, out, err = run_main(capsys, "generate", str(real_gguf), *options)
    assert code == 0, err
    assert "Paris" in out
    (path,) = Path("results/runs").iterdir()
    run = Run(path)
    assert run.name == "smollm2-135m-instruct.q4_1"
    source, config = run.manifest["source"], run.protocol.model
    assert (source["dtype"], source["bos_token_id"], source["eos_token_id"]) == ("float32", 1, [2])
    assert (config.d_model, config.n_layers, config.n_kv_heads, config.d_ff) == (576, 30, 3, 1536)
    assert (config.rope_theta, config.norm_eps, config.max_seq_len) == (100_000.0, 1e-5, 8192)
    assert config.tie_embeddings
    template = chat_template(text_settings_of(run))
    assert isinstance(template, str)
    assert "You are a helpful AI assistant named SmolLM" in template


def test_llama_cpp_writes_the_same_at_the_same_weights(capsys, workdir, real_gguf, llama_cpp):
    loaded = load_one(str(real_gguf), Path("results"), "runs", "cpu", "fp32")
    # Of 4-bit weights llama.cpp multiplies activations of 8 bits, so it gets these in fp32.
    options = ("--to", "gguf", "again.gguf", "--dtype", "f32")
    code, _, err = run_main(capsys, "export", str(real_gguf), *options)
    assert code == 0, err
    llama = llama_cpp.Llama(
        "again.gguf", n_ctx=128, n_threads=1, logits_all=True, type_k=0, type_v=0, verbose=False
    )
    loaded.tokenizer.encode_special_tokens = False
    for text in PROMPTS:
        prompt = loaded.tokenizer.encode(text, add_special_tokens=False).ids
        assert llama.tokenize(text.encode(), add_bos=False, special=True) == prompt
        decoder = Decoder(loaded.model, len(prompt) + N_NEW)
        ours = list(generate(decoder, prompt, max_new_tokens=N_NEW, ends=()))
        llama.reset()
        theirs = llama.generate(prompt, temp=0.0, repeat_penalty=1.0)
        assert list(itertools.islice(theirs, N_NEW)) == ours
        llama.reset()
        llama.eval([*prompt, *ours])
        with torch.no_grad():
            logits = loaded.model(torch.tensor([[*prompt, *ours]]))[0].numpy()
        assert np.abs(llama.scores[: len(logits)] - logits).max() < 1e-2


def test_llama_cpp_cuts_a_text_in_the_same_way(real_gguf, llama_cpp):
    tokens = open_gguf(real_gguf, "./m.gguf").read_tokenizer()
    llama = llama_cpp.Llama(str(real_gguf), vocab_only=True, verbose=False)
    rng = random.Random(0)
    ranges = [(32, 127), (160, 600), (0x400, 0x480), (0x4E00, 0x4E80), (0x1F600, 0x1F640)]

    def character() -> str:
        return chr(rng.randrange(*rng.choice(ranges))) if rng.random() < 0.8 else " "

    texts = ["".join(character() for _ in range(rng.randint(1, 60))) for _ in range(500)]
    for text in [*texts, *stories(20), *PROMPTS]:
        expected = llama.tokenize(text.encode(), add_bos=False)
        assert tokens.encode(text, add_special_tokens=False).ids == expected, text


@pytest.mark.parametrize(("task", "limit"), SCORES)
def test_its_scores_are_the_known_ones(capsys, workdir, real_gguf, real_data, task, limit):
    """Those of lm-evaluation-harness on the same weights."""
    options = ("--tasks", task, "--limit", str(limit), "--dtype", "fp32", "--json")
    folder = ("--data-dir", str(real_data / "eval"))
    code, out, err = run_main(capsys, "eval", str(real_gguf), *options, *folder)
    assert code == 0, err
    found = {row["metric"]: row["value"] for row in json.loads(out)}
    expected = SCORES[task, limit]
    assert {name: found[name] for name in expected} == pytest.approx(expected)
