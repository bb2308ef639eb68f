"""`smolctl generate`: what it prints, what it refuses, and how it stops."""

import io
import json
import shutil
from pathlib import Path

import pytest
from support.command import run_main
from support.planted import planted
from support.tiny import changed

from smolctl.cli.generate_command import COMPILING_PAYS
from smollm2.inference.decoder import Decoder, generate
from smollm2.runs.load_run import load_model, load_run_tokenizer
from smollm2.runs.run import Run

PROMPT = "abc de"
TEXT = ("--prompt", PROMPT, "--max-new-tokens", "12")


@pytest.fixture
def results(workdir, template) -> Path:
    """The default results with a finished run `run` of 10 steps, whose context is 64 tokens."""
    shutil.copytree(template, workdir / "results/runs/run")
    return workdir / "results"


def options(*more) -> list[str]:
    return ["generate", "run", *TEXT, *map(str, more)]


def with_options(*other) -> list[str]:
    """The arguments of `options` with another prompt or length."""
    return changed(options(), *map(str, other))


def type_in(monkeypatch, text: bytes, is_terminal: bool = False) -> None:
    stdin = io.TextIOWrapper(io.BytesIO(text), encoding="utf-8")
    monkeypatch.setattr(stdin, "isatty", lambda: is_terminal, raising=False)
    monkeypatch.setattr("sys.stdin", stdin)


def test_the_text_is_what_the_library_generates(capsys, results):
    run = Run(results / "runs/run")
    tokenizer, prompt = load_run_tokenizer(run), load_run_tokenizer(run).encode(PROMPT).ids
    decoder = Decoder(load_model(run, "cpu", run.protocol.dtype), 64)
    tokens = list(generate(decoder, prompt, max_new_tokens=12, ends=(0,)))
    assert len(tokens) > 3
    code, out, err = run_main(capsys, *options())
    assert (code, out, err) == (0, tokenizer.decode(tokens) + "\n", "")

    code, out, err = run_main(capsys, *options("--json"))
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["tokens"] == tokens
    assert found["text"] == tokenizer.decode(tokens)
    assert found["prompt"] == PROMPT
    assert found["prompt_tokens"] == len(prompt)
    assert found["prefill_tokens_per_second"] > 0
    assert found["decode_tokens_per_second"] > 0
    assert found["dtype"] == run.protocol.dtype
    assert run_main(capsys, *options("--json", "--dtype", "fp32"))[1].find('"float32"') > 0


@pytest.mark.parametrize("end", ["", "\n", "\r\n", "\n\n"])
def test_a_prompt_on_stdin_is_what_is_there(capsys, results, monkeypatch, end):
    code, expected, _ = run_main(capsys, *with_options("--prompt", PROMPT + end), "--json")
    assert code == 0
    type_in(monkeypatch, f"{PROMPT}{end}".encode())
    code, out, _ = run_main(capsys, "generate", "run", "--max-new-tokens", "12", "--json")
    assert code == 0
    same = ("prompt", "prompt_ids", "tokens")
    assert [json.loads(out)[name] for name in same] == [json.loads(expected)[name] for name in same]
    assert json.loads(out)["prompt"] == PROMPT + end


def test_a_seed_repeats_what_is_drawn(capsys, results):
    drawn = [
        run_main(capsys, *options("--temperature", 1, "--seed", seed))[1] for seed in (1, 2, 1)
    ]
    assert drawn[0] == drawn[2] != drawn[1]
    code, out, err = run_main(capsys, *options("--seed", 1))
    assert (code, out) == (0, run_main(capsys, *options())[1])
    assert err.startswith("Warning: --top-p, --top-k and --seed do nothing")


def test_stats_go_to_stderr(capsys, results):
    code, out, err = run_main(capsys, *options("--stats"))
    assert (code, out) == (0, run_main(capsys, *options())[1])
    assert err.startswith("Prompt: ")
    assert "New: 12 tokens, " in err
    _, _, err = run_main(capsys, *with_options("--max-new-tokens", 1), "--stats")
    assert "New: 1 tokens, not measured." in err


def test_the_end_of_the_text_ends_it(capsys, results, monkeypatch):
    tokens = json.loads(run_main(capsys, *options("--json"))[1])["tokens"]
    monkeypatch.setattr("smollm2.data.tokenizer.end_of_text_id", lambda tokenizer: tokens[3])
    found = json.loads(run_main(capsys, *options("--json"))[1])
    assert found["tokens"] == tokens[: tokens.index(tokens[3])]
    assert found["stopped_by"] == "end-of-text"


def test_a_long_prompt_is_refused_or_loses_its_beginning(capsys, results):
    words = "abc de " * 40
    code, out, err = run_main(capsys, *with_options("--prompt", words))
    n = len(load_run_tokenizer(Run(results / "runs/run")).encode(words).ids)
    numbers = (
        f"The prompt has {n} tokens, but only 52 fit into the model's context of 64 "
        "with --max-new-tokens 12"
    )
    assert (code, out) == (2, "")
    assert err.startswith(f"Error: {numbers}; ")
    code, out, err = run_main(capsys, *with_options("--prompt", words), "--truncate", "--json")
    assert code == 0
    assert f"Warning: {numbers}" in err
    assert f"the first {n - 52} are dropped" in err
    assert "was trained on sequences of 32 tokens" in err
    assert json.loads(out)["prompt_tokens"] == 52
    assert len(json.loads(out)["tokens"]) == 12


def test_a_target_names_one_run(capsys, results):
    _, expected, _ = run_main(capsys, *options())
    for target in ("tiny", "results/runs/run"):
        arguments = ["generate", target, "--prompt", PROMPT, "--max-new-tokens", "12"]
        assert run_main(capsys, *arguments)[:2] == (0, expected)
    shutil.copytree(results / "runs/run", results / "runs/second")
    code, out, err = run_main(capsys, "generate", "tiny", "--prompt", PROMPT)
    assert (code, out) == (2, "")
    assert err == "Error: 'tiny' names 2 runs; choose one of run, second.\n"


def test_of_several_seeds_it_is_the_first(capsys, results, template):
    _, expected, _ = run_main(capsys, *options())
    shutil.rmtree(results / "runs/run")
    for seed in (10, 2):
        planted(template, "arm", seed, 5.0, study="runs")
    code, out, err = run_main(capsys, "generate", "arm", *TEXT)
    assert (code, out) == (0, expected)  # their weights are those of `run`
    assert err == "arm has several seeds; this is the first, arm-s2.\n"
    assert json.loads(run_main(capsys, "generate", "arm", *TEXT, "--json")[1])["run"] == "arm-s2"
    planted(template, "arm", 1, 5.0, study="runs", seq_len=16)
    code, out, err = run_main(capsys, "generate", "arm", *TEXT)
    assert (code, out) == (2, "")
    assert "names 3 runs; choose one of" in err


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("./missing", "'missing' does not exist.\n"),
        ("results/runs/rum", "'results/runs/rum' does not exist. Did you mean 'run'?\n"),
        ("results/runs/run/run.json", "'run.json' is a file, not a model; name a run, or a folder"),
        ("model.gguf", "model.gguf: it is cut off: it ends before its content does; copy or"),
        ("./MODEL.GGUF", "./MODEL.GGUF: it is cut off"),
        ("run.safetensors", "is a file of weights, without a configuration and a tokenizer; name"),
        (
            "./notes.txt",
            "'notes.txt' is a file, not a model; name a run, or a folder in the layout",
        ),
    ],
)
@pytest.mark.parametrize("command", ["generate", "eval", "export", "train"])
def test_what_is_no_model_is_called_what_it_is(capsys, results, command, target, said):
    for name in ("model.gguf", "MODEL.GGUF", "run.safetensors", "notes.txt"):
        Path(name).write_text("GGUF")
    arguments = {
        "generate": ["generate", target, *TEXT],
        "eval": ["eval", target],
        "export": ["export", target, "out", "--to", "hf"],
        "train": ["train", "--from", target, "--steps", "2"],
    }
    code, out, err = run_main(capsys, *arguments[command])
    assert (code, out) == (2, "")
    assert err.startswith("Error: ")
    assert said in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--prompt", ""], "The prompt is empty"),
        (["--prompt", "a\udcff"], "is not UTF-8 text"),
        (["--max-new-tokens", "0"], "--max-new-tokens must be at least 1"),
        (["--max-new-tokens", "64"], "leaves no room for a prompt in the model's context of 64"),
        (["--temperature", "-1"], "--temperature must be 0"),
        (["--top-p", "0"], "--top-p must be above 0"),
        (["--top-p", "1.5"], "--top-p must be above 0"),
        (["--top-k", "-1"], "--top-k must be 0"),
        (["--seed", "-1"], "--seed must be from 0"),
        (["--seed", "9223372036854775807", "--n", "2", "--temperature", "1"], "--seed must be"),
        (["--n", "0"], "--n must be from 1 to 1000, not 0"),
        (["--n", "1001", "--temperature", "1"], "--n must be from 1 to 1000, not 1001"),
        (["--n", "3"], "--n 3 at --temperature 0 would give the same text 3 times; give a"),
        (["--stop", ""], "--stop must not be empty"),
        (["--device", "tpu"], "Unknown device"),
        (["--dtype", "fp8"], "choose fp32 or bf16"),
        (["--study", "other"], "has no runs"),
    ],
)
def test_impossible_requests_are_refused(capsys, results, more, said):
    code, out, err = run_main(capsys, *with_options(*more))
    assert (code, out) == (2, "")
    assert err.startswith("Error: ")
    assert err.count("\n") == 1
    assert said in err


@pytest.mark.parametrize(
    ("text", "is_terminal", "said"),
    [(b"", False, "is empty"), (b"\xff", False, "not UTF-8"),
     (b"", True, "There is nothing to continue; give --prompt")],
)  # fmt: skip
def test_stdin_without_a_prompt_is_refused(capsys, results, monkeypatch, text, is_terminal, said):
    type_in(monkeypatch, text, is_terminal)
    code, out, err = run_main(capsys, "generate", "run")
    assert (code, out) == (2, "")
    assert said in err


def test_a_run_that_is_not_whole_is_refused(capsys, results):
    run = Run(results / "runs/run")
    tokenizer = (run.path / "tokenizer.json").read_text()
    (run.path / "tokenizer.json").write_text(tokenizer[:-9])
    code, _, err = run_main(capsys, *options())
    assert code == 2
    assert "'tokenizer.json' is damaged" in err
    (run.path / "tokenizer.json").write_text(tokenizer)

    run.update(state="stopped")
    code, _, err = run_main(capsys, *options())
    assert code == 2
    assert "continue it with smolctl train --resume run" in err
    run.update(state="finished")

    (run.path / "checkpoints/final.safetensors").unlink()
    code, _, err = run_main(capsys, *options())
    assert code == 2
    assert err.startswith("Error: ")
    code, _, err = run_main(capsys, "generate", "rum", "--prompt", PROMPT)
    assert code == 2
    assert "Did you mean 'run'?" in err


def test_ctrl_c_ends_the_line(capsys, results, monkeypatch):
    step = Decoder.step

    def interrupted(decoder, token):
        if decoder.length == 8:
            raise KeyboardInterrupt
        return step(decoder, token)

    whole = run_main(capsys, *options())[1]
    monkeypatch.setattr(Decoder, "step", interrupted)
    code, out, err = run_main(capsys, *options())
    assert (code, err) == (130, "")
    assert out.endswith("\n")
    assert len(out) > 1
    assert whole.startswith(out[:-1])
    assert run_main(capsys, *options("--json"))[:2] == (130, "")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_generation_is_the_same(capsys, results, fresh_cache):
    plain = run_main(capsys, *options("--dtype", "fp32"))[1]
    code, out, err = run_main(capsys, *options("--dtype", "fp32", "--compile"))
    assert (code, out) == (0, plain)
    assert err.startswith("Compiling the decoding step ...\n")
    assert f"longer than it saves below about {COMPILING_PAYS} new tokens" in " ".join(err.split())
    code, out, err = run_main(capsys, *options("--dtype", "fp32"))
    assert (code, out) == (0, plain)
    assert err.startswith("Decoding with code compiled earlier; --no-compile does without.\n")
    code, out, err = run_main(capsys, *options("--dtype", "fp32", "--no-compile"))
    assert (code, out, err) == (0, plain, "")
