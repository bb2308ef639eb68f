"""Exported files in llama.cpp itself: the same tokens of a text, the same logits, the same greedy
continuation."""

import itertools
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from support.stories import stories, write_jsonl
from support.tiny import TINY_MOE, TINY_VARIANT
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from smolctl.cli.app import main
from smollm2 import ModelConfig, SmolLM2
from smollm2.data import end_of_text_id, load_tokenizer
from smollm2.inference.decoder import Decoder, generate
from smollm2.interop.gguf import save_gguf
from smollm2.runs.load_run import load_model, load_run_tokenizer
from smollm2.runs.run import Run

pytestmark = [
    pytest.mark.slow,
    # What llama-cpp-python and its dependencies warn about is not ours to keep quiet.
    pytest.mark.filterwarnings("default"),
]
CIRCLE = (
    "when the old clock in a hall struck 12 her 3 sisters went up to bed but she sat by that fire "
    "and read of ships, storms; gold: until it had burned down at last"
)
WORDS = CIRCLE.split()
PROMPTS = ("when the old clock", "12 her 3 sisters went", "and read of ships, storms")
N_NEW = 48


@pytest.fixture(scope="module")
def llama_cpp():
    return pytest.importorskip(
        "llama_cpp", reason="needs llama.cpp: pip install 'smolctl[llama-cpp]', which compiles it"
    )


@pytest.fixture(scope="module", params=[TINY_VARIANT, TINY_MOE], ids=["dense", "moe"])
def run(request, tmp_path_factory) -> Run:
    """A run that has learned one circle of words, so that the next token is seldom in doubt."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "m.toml").write_text(request.param)
    texts = [" ".join(3 * (WORDS[i:] + WORDS[:i])) for i in range(len(WORDS))]
    corpus = write_jsonl(folder / "circle.jsonl", texts)
    arguments = [
        *("train", "--variant", f"{folder}/m.toml", "--steps", "200", "--micro-batch-size", "8"),
        *("--data", corpus, "--tokenizer", "train:320", "--seq-len", "64", "--lr", "1e-2"),
        *("--results", str(folder), "--name", "r"),
    ]
    with pytest.raises(SystemExit, match="0"):
        main(arguments)
    return Run(folder / "runs/r")


def exported(llama_cpp, run: Run, folder: Path, dtype: str):
    """The run in llama.cpp, its keys and values in fp32."""
    path = folder / f"{dtype}.gguf"
    with pytest.raises(SystemExit, match="0"):
        main(["export", str(run.path), "--to", "gguf", str(path), "--dtype", dtype])
    return llama_cpp.Llama(
        str(path), n_ctx=64, n_threads=1, logits_all=True, type_k=0, type_v=0, verbose=False
    )


@pytest.mark.parametrize(("dtype", "tolerance"), [("f32", 1e-4), ("f16", 0.1)])
def test_llama_cpp_writes_what_the_run_does(llama_cpp, run, tmp_path, dtype, tolerance):
    llama = exported(llama_cpp, run, tmp_path, dtype)
    model, tokenizer = load_model(run, "cpu", "float32"), load_run_tokenizer(run)
    assert llama.token_eos() == end_of_text_id(tokenizer)
    for text in PROMPTS:
        prompt = tokenizer.encode(text, add_special_tokens=False).ids
        assert llama.tokenize(text.encode()) == prompt
        decoder = Decoder(model, len(prompt) + N_NEW)
        ours = list(generate(decoder, prompt, max_new_tokens=N_NEW, ends=()))
        assert len(set(ours)) > 20

        llama.reset()
        llama.eval([*prompt, *ours])
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *ours]]))[0].numpy()
        difference = np.abs(llama.scores[: len(logits)] - logits).max()
        assert difference < tolerance
        # No two tokens lie so close together that rounding would have to choose.
        first, second = np.sort(logits[len(prompt) - 1 : -1], axis=-1)[:, :-3:-1].T
        assert (first - second).min() > 2 * difference
        theirs = llama.generate(prompt, temp=0.0, repeat_penalty=1.0)
        assert list(itertools.islice(theirs, N_NEW)) == ours


@pytest.mark.parametrize("dtype", ["bf16", "q8_0", "q4_0"])
def test_coarser_weights_are_the_same_model(llama_cpp, run, tmp_path, dtype):
    llama = exported(llama_cpp, run, tmp_path, dtype)
    tokens = load_run_tokenizer(run).encode(CIRCLE, add_special_tokens=False).ids[:60]
    llama.eval(tokens)
    with torch.no_grad():
        logits = load_model(run, "cpu", "float32")(torch.tensor([tokens]))[0].numpy()
    correlation = np.corrcoef(llama.scores[: len(tokens)].ravel(), logits.ravel())[0, 1]
    assert correlation > {"bf16": 0.9999, "q8_0": 0.999, "q4_0": 0.97}[dtype]


TEXTS = [
    "",
    "def f(x):\n    return x**2  # ok\n\n\n",
    "  leading and trailing  ",
    "3.14159 1,000,000 2024-01-01 x1y22z333 1 2  3   4",
    "naïve café — “quoted” … ﬁn",
    "a\n\n  b\n\tc\r\nd   \n  \n",
    "don't DON'T we'll I'M 'sup it’s",
    "Ⅷ½²٣ १२ 猫日本語 ひらがな 한국어 🙂👨‍👩‍👧🇩🇪",
    "<|endoftext|> and <|im_start|> spelled out",
]
PIECES = [
    *("a", "Z", " ", "  ", "\n", "\n\n", "\t", "\r\n", "1", "23", "٣", "½", "Ⅷ", "é", "e\u0301"),
    *("ß", "猫", "ひ", "🙂", "\u200b", "\u00a0", "\u3000", "'s", "'LL", "’s", "__init__", "->"),
    *("{", "}", "//", "#", "\ufeff", "\u2028", "ａ", "Ω", "ж", "अ", "\x7f", "\x1b", "\U00020000"),
]


def of_words() -> Tokenizer:
    """GPT-2's kind, which does not take digits one by one."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*stories(50), *TEXTS, "1234 5678 " * 9], trainer)
    tokenizer.encode_special_tokens = True
    return tokenizer


@pytest.mark.parametrize("kind", ["trained", "of words", "with a token of its own", "smollm2"])
def test_llama_cpp_has_the_tokens_of_the_tokenizer(llama_cpp, request, tokenizer, tmp_path, kind):
    if kind == "smollm2":
        tokens = load_tokenizer(str(request.getfixturevalue("real_data") / "tokenizer"))
    else:
        tokens = of_words() if kind == "of words" else load_tokenizer(tokenizer)
    texts = [*TEXTS, *stories(3)]
    if kind == "with a token of its own":
        tokens.add_tokens([AddedToken("<tool>", special=False)])
        texts += ["<tool> a <tool>b<tool>"]
    config = ModelConfig(
        d_model=32, n_heads=2, n_kv_heads=1, n_layers=1, d_ff=32, vocab_size=tokens.get_vocab_size()
    )
    path = tmp_path / "m.gguf"
    save_gguf(path, SmolLM2(config).state_dict(), config, tokens, name="m")
    llama = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    rng = random.Random(0)
    texts += ["".join(rng.choices(PIECES, k=rng.randint(1, 12))) for _ in range(1000)]
    for text in texts:
        expected = tokens.encode(text, add_special_tokens=False).ids
        assert llama.tokenize(text.encode()) == expected, text
