"""`smolctl generate`: texts that end before others, and several of one prompt."""

import json
import shutil

import pytest
from support.command import run_main

from smollm2.inference.decoder import Decoder

DRAW = ("--prompt", "abc de", "--temperature", "1")


@pytest.fixture(autouse=True)
def run(workdir, template) -> None:
    """A finished run `run` of 10 steps, whose context is 64 tokens."""
    shutil.copytree(template, workdir / "results/runs/run")


def drawn(capsys, *options, seed: int = 5) -> dict:
    words = ["generate", "run", *DRAW, "--seed", str(seed), *map(str, options), "--json"]
    code, out, err = run_main(capsys, *words)
    assert code == 0, err
    return json.loads(out)


# Where a text ends


def test_a_text_ends_before_the_first_stop_text(capsys):
    whole = drawn(capsys, "--max-new-tokens", 30)
    text = whole["text"]
    assert whole["stopped_by"] == "max-new-tokens"
    assert len(set(text)) < len(text) > 20
    for size in (1, 2, 5, 9):  # of one token and of several
        for start in range(5, 20):
            stop = text[start : start + size]
            found = drawn(capsys, "--max-new-tokens", 30, "--stop", "zzz", "--stop", stop)
            assert found["text"] == text[: text.index(stop)]
            assert found["stopped_by"] == "stop-text"
            n = len(found["tokens"])
            assert found["tokens"] == whole["tokens"][:n]
            assert n < 30 or text.index(stop) + size == len(text)


def test_what_is_held_back_is_printed_if_no_stop_text_comes(capsys):
    options = ["generate", "run", *DRAW, "--seed", "5", "--max-new-tokens", "20"]
    text = run_main(capsys, *options)[1]
    code, out, _ = run_main(capsys, *options, "--stop", text.strip()[-4:] + "!")
    assert (code, out) == (0, text)
    stop = text[6:9]
    code, out, _ = run_main(capsys, *options, "--stop", stop)
    assert (code, out) == (0, text[: text.index(stop)] + "\n")


# Several texts


def test_several_texts_are_those_of_consecutive_seeds(capsys, monkeypatch):
    prefill, prompts = Decoder.prefill, []

    def counted(decoder, tokens):
        prompts.append(tokens)
        return prefill(decoder, tokens)

    alone = [drawn(capsys, "--max-new-tokens", 9, seed=seed) for seed in (5, 6, 7)]
    monkeypatch.setattr(Decoder, "prefill", counted)
    found = drawn(capsys, "--max-new-tokens", 9, "--n", 3)
    assert len(prompts) == 1
    fields = ("seed", "text", "tokens", "stopped_by")
    expected = [{name: one[name] for name in fields} for one in alone]
    assert found["continuations"] == expected
    assert len({one["text"] for one in expected}) == 3
    assert {name: found[name] for name in fields} == expected[0]
    assert found["prefill_tokens_per_second"] > 0
    assert alone[0]["continuations"] == expected[:1]


def test_each_text_is_printed_below_its_seed(capsys):
    options = ("--max-new-tokens", "5")
    texts = [one["text"] for one in drawn(capsys, *options, "--n", 2)["continuations"]]
    words = ["generate", "run", *DRAW, "--seed", "5", *options, "--n", "2", "--stats"]
    code, out, err = run_main(capsys, *words)
    assert (code, out) == (0, "".join(f"{text}\n" for text in texts))
    assert err.startswith("1 of 2, seed 5:\n2 of 2, seed 6:\nPrompt: ")
    assert "New: 10 tokens, " in err


def test_ctrl_c_ends_all_of_them(capsys, monkeypatch):
    step = Decoder.step

    def interrupted(decoder, token):
        if decoder.length == 8:
            raise KeyboardInterrupt
        return step(decoder, token)

    monkeypatch.setattr(Decoder, "step", interrupted)
    options = ("--n", "3", "--max-new-tokens", "20")
    code, out, err = run_main(capsys, "generate", "run", *DRAW, *options)
    assert (code, err) == (130, "1 of 3, seed 0:\n")
    assert out.count("\n") == 1
