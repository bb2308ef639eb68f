"""Bad input gets a sentence and exit code 2, and leaves nothing behind."""

import os
from pathlib import Path

import pytest
from support.command import run_main
from support.tiny import changed

NANO = ["train", "--variant", "pow2", "--scale", "nano", "--steps", "2"]


def write_bad_files(folder: Path) -> None:
    (folder / "empty.txt").write_text("")
    (folder / "binary.txt").write_bytes(b"text\0\1\2 more")
    (folder / "latin1.txt").write_bytes("caf\xe9 ".encode("latin-1") * 100)
    (folder / "nofield.jsonl").write_text('{"body": "hello"}\n' * 30)
    (folder / "broken.jsonl").write_text('{"text": "hello"}\n{"text": \n')
    (folder / "short.txt").write_text("Too short a text to hold anything out of it. " * 20)
    (folder / "bad.toml").write_text("d_model = [")
    (folder / "deep.toml").write_text("a=" + "[" * 5000 + "]" * 5000)
    (folder / "digits.toml").write_text('base = "pow2"\nd_model = ' + "9" * 5000)
    os.mkfifo(folder / "pipe.toml")
    (folder / "file").write_text("a file, no directory")


BAD_INPUT = {
    "unknown variant": (["train", "--variant", "pow3", "--steps", "2"], "Did you mean 'pow2'?"),
    "no variant": (["train", "--steps", "2"], "--variant pow2"),
    "unknown setting": ([*NANO, "--set", "n_layer=3"], "Did you mean 'n_layers'?"),
    "wrong type": ([*NANO, "--set", "n_layers=many"], "n_layers takes a whole number"),
    "setting without value": ([*NANO, "--set", "n_layers"], "field=value"),
    "indivisible heads": ([*NANO, "--set", "n_heads=7"], "is not a multiple"),
    "indivisible kv heads": ([*NANO, "--set", "n_kv_heads=3"], "is not a multiple"),
    "short form": (
        ["train", "--variant", "pow2:heads=3", "--steps", "2"],
        "Did you mean 'n_heads'?",
    ),
    "broken toml": (["train", "--variant", "bad.toml", "--steps", "2"], "is not a readable TOML"),
    "deep study": (["study", "deep.toml"], "nested deeper than 64 levels"),
    "study in a pipe": (["study", "pipe.toml"], "it is not a regular file"),
    "variant of many digits": (["variants", "digits.toml"], "a number of more than 40 digits"),
    "unknown scale": (
        ["train", "--variant", "pow2", "--scale", "mini", "--steps", "2"],
        "full or nano",
    ),
    "unknown recipe": ([*NANO, "--recipe", "smolm2"], "Did you mean 'smollm2'?"),
    "unknown optimizer": ([*NANO, "--optimizer", "sgd"], "Available: adamw, muon."),
    "negative rate": ([*NANO, "--lr", "-1"], "lr must be positive"),
    "infinite decay": ([*NANO, "--set", "weight_decay=inf"], "weight_decay must be finite"),
    "rate set twice": ([*NANO, "--lr", "1e-3", "--set", "lr=2e-3"], "both set lr; give one"),
    "no steps": (["train", "--variant", "pow2"], "--steps 5000"),
    "zero steps": (["train", "--variant", "pow2", "--steps", "0"], "--steps must be more than 0"),
    "two horizons": ([*NANO, "--tokens", "1e6"], "--steps and --tokens"),
    "zero batch": ([*NANO, "--micro-batch-size", "0"], "--micro-batch-size must be at least 1"),
    "long sequences": ([*NANO, "--seq-len", "4096"], "--set max_seq_len=4096"),
    "unknown device": ([*NANO, "--device", "tpu"], "Unknown device"),
    "unknown dtype": ([*NANO, "--dtype", "fp8"], "fp32 or bf16"),
    "missing corpus": ([*NANO, "--data", "missing.txt"], "There is no file or folder"),
    "empty corpus": ([*NANO, "--data", "empty.txt"], "There is no text in"),
    "binary corpus": ([*NANO, "--data", "binary.txt"], "is a binary file"),
    "invalid utf-8": ([*NANO, "--data", "latin1.txt"], "is not UTF-8 text"),
    "no text field": ([*NANO, "--data", "nofield.jsonl"], "string in the field `text`"),
    "broken json": ([*NANO, "--data", "broken.jsonl"], "line 2: broken JSON"),
    "small corpus": (
        [*NANO, "--data", "short.txt", "--tokenizer", "train:300"],
        "use more text or a shorter",
    ),
    "no network": ([*NANO, "--data", "hub:some/corpus"], "hub cannot be reached"),
    "no network for tokenizer": (
        [*NANO, "--data", "CORPUS", "--tokenizer", "smollm2"],
        "for the model 'HuggingFaceTB/SmolLM2-135M'",
    ),
    "bad train spec": (
        [*NANO, "--data", "CORPUS", "--tokenizer", "train:many"],
        "names no vocabulary size",
    ),
    "huge vocabulary": (
        ["prepare", "--out", "made", "--tokenizer", "train:99999999999999999999"],
        "at most 1,000,000",
    ),
    "long name": (
        [*NANO, "--data", "CORPUS", "--name", "x" * 300],
        "name of a run has at most 100 characters",
    ),
    "long study": (
        [*NANO, "--data", "CORPUS", "--study", "x" * 300],
        "name of a study has at most 100 characters",
    ),
    "large tokenizer": (
        [*NANO, "--data", "CORPUS", "--tokenizer", "train:600", "--set", "vocab_size=512"],
        "--tokenizer train:512",
    ),
    "slash in name": ([*NANO, "--data", "CORPUS", "--name", "a/b"], "not a valid name for a run"),
    "parent as study": (
        [*NANO, "--data", "CORPUS", "--study", ".."],
        "not a valid name for a study",
    ),
    "unwritable results": (
        [*NANO, "--data", "CORPUS", "--results", "file"],
        "choose another --results",
    ),
    "resume of nothing": (["train", "--resume", "nothing"], "no run 'nothing'"),
    "from nothing": ([*NANO, "--from", "nothing"], "no run 'nothing'"),
    "negative seed": ([*NANO, "--seed", "-1"], "--seed must be from 0"),
    "huge seed": ([*NANO, "--seed", str(10**20)], "--seed must be from 0"),
    "narrow experts": (
        ["train", "--variant", "moe-160m", "--scale", "nano", "--steps", "2", "--set", "d_ff=321"],
        "divisible by 8",
    ),
    "long name of a corpus": ([*NANO, "--data", "x" * 300], "File name too long"),
    "name of a variant": ([*NANO, "--data", "CORPUS", "--name", "pow2"], "is a reserved name"),
    "resume of a variant": (["train", "--resume", "pow2"], "is a variant, not a run"),
    "kept step too late": ([*NANO, "--keep-step", "3"], "after the last step"),
    "kept step too early": ([*NANO, "--keep-step", "-1"], "before step 0, where the run starts"),
    "infinite horizon": (
        ["train", "--variant", "pow2", "--tokens", "1e400"],
        "--tokens must be finite",
    ),
    "horizon that is no number": (
        ["train", "--variant", "pow2", "--flops", "nan"],
        "--flops must be finite",
    ),
    "eval of no tokens": (["eval", "pow2", "--tokens", "0"], "--tokens must be at least 1"),
    "checkpoint every 0": (
        [*NANO, "--checkpoint-every", "0"],
        "--checkpoint-every must be at least 1",
    ),
    "compare without runs": (["compare", "orig", "pow2"], "smolctl train --variant"),
    "compare one arm": (["compare", "orig"], "two different arms"),
    "eval without runs": (["eval", "pow2"], "smolctl train --variant"),
    "generate without runs": (
        ["generate", "pow2", "--prompt", "a"],
        "smolctl train --variant",
    ),
    "report without runs": (["report"], "smolctl train --variant"),
    "three bits": (["quantize", "--bits", "3"], "--bits takes 8 or 4"),
    "prepare without tokenizer": (["prepare", "--out", "made"], "Name a tokenizer"),
    "prepare of infinitely many": (
        ["prepare", "--out", "made", "--tokenizer", "train:300", "--max-tokens", "inf"],
        "--max-tokens must be at least 1 and finite",
    ),
    "prepare of too many": (
        ["prepare", "--out", "made", "--tokenizer", "train:300", "--max-tokens", "1e308"],
        "--max-tokens must be at most 1,000,000,000,000,000",
    ),
    "prepare of no number": (
        ["prepare", "--out", "made", "--tokenizer", "train:300", "--max-tokens", "nan"],
        "--max-tokens must be at least 1 and finite",
    ),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_gets_a_sentence_and_leaves_nothing(case, capsys, workdir, corpus):
    write_bad_files(workdir)
    before = sorted(workdir.rglob("*"))
    arguments, expected = BAD_INPUT[case]
    arguments = [str(corpus) if word == "CORPUS" else word for word in arguments]
    code, out, err = run_main(capsys, *arguments)
    assert code == 2
    assert out == ""
    assert expected in err
    assert expected not in " ".join(arguments)  # what was typed comes back in any sentence
    assert err.startswith(("Error: ", "Preparing tokens of "))
    assert err.splitlines()[-1].startswith("Error: ")
    assert err.strip().endswith((".", "?", "300", ")"))
    assert sorted(workdir.rglob("*")) == before


@pytest.mark.parametrize("spec", ["train:513", "folder"])
def test_a_tokenizer_too_large_is_refused_before_the_text_is_read(
    capsys, workdir, fresh_cache, tiny, tokenizer, spec
):
    asked = tokenizer if spec == "folder" else spec
    size = "256" if spec == "folder" else "512"  # the folder's: 256 bytes and some more
    options = ["--steps", "2", "--tokenizer", asked, "--set", f"vocab_size={size}"]
    code, _, err = run_main(capsys, *changed(tiny, *options))
    assert code == 2
    assert (
        f"tokens, but the model only {size}; use --tokenizer train:{size}, or --set vocab_size="
        in err
    )
    assert "Preparing" not in err
    assert not any(fresh_cache.iterdir())


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_results_directory_without_permission_is_refused(capsys, workdir, tiny):
    (workdir / "locked").mkdir(mode=0o500)
    code, _, err = run_main(capsys, *tiny, "--steps", "2", "--results", "locked/results")
    assert code == 2
    assert "choose another --results" in err
