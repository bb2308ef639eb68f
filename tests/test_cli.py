"""The command line: bad input gets a sentence and exit code 2, and leaves nothing behind."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import run_main, smolctl

from smolctl.cli import main
from smolctl.train import doubts
from smollm2.runs import Run

NANO = ["train", "--variant", "pow2", "--scale", "nano", "--steps", "2"]


def write_bad_files(folder: Path) -> None:
    (folder / "empty.txt").write_text("")
    (folder / "binary.txt").write_bytes(b"text\0\1\2 more")
    (folder / "latin1.txt").write_bytes("caf\xe9 ".encode("latin-1") * 100)
    (folder / "nofield.jsonl").write_text('{"body": "hello"}\n' * 30)
    (folder / "broken.jsonl").write_text('{"text": "hello"}\n{"text": \n')
    (folder / "short.txt").write_text("Too short a text to hold anything out of it. " * 20)
    (folder / "bad.toml").write_text("d_model = [")
    (folder / "file").write_text("a file, no directory")


BAD_INPUT = {
    "unknown variant": (["train", "--variant", "pow3", "--steps", "2"], "Did you mean 'pow2'?"),
    "no variant": (["train", "--steps", "2"], "--variant pow2"),
    "unknown setting": ([*NANO, "--set", "n_layer=3"], "Did you mean 'n_layers'?"),
    "wrong type": ([*NANO, "--set", "n_layers=many"], "n_layers takes a whole number"),
    "setting without value": ([*NANO, "--set", "n_layers"], "field=value"),
    "indivisible heads": ([*NANO, "--set", "n_heads=7"], "does not divide"),
    "indivisible kv heads": ([*NANO, "--set", "n_kv_heads=3"], "does not divide"),
    "short form": (
        ["train", "--variant", "pow2:heads=3", "--steps", "2"],
        "Did you mean 'n_heads'?",
    ),
    "broken toml": (["train", "--variant", "bad.toml", "--steps", "2"], "is not a readable TOML"),
    "unknown scale": (
        ["train", "--variant", "pow2", "--scale", "mini", "--steps", "2"],
        "full or nano",
    ),
    "unknown recipe": ([*NANO, "--recipe", "smolm2"], "Did you mean 'smollm2'?"),
    "unknown optimizer": ([*NANO, "--optimizer", "sgd"], "adamw or muon"),
    "negative rate": ([*NANO, "--lr", "-1"], "lr must be positive"),
    "infinite decay": ([*NANO, "--set", "weight_decay=inf"], "weight_decay must be finite"),
    "rate set twice": ([*NANO, "--lr", "1e-3", "--set", "lr=2e-3"], "both set lr; give one"),
    "no steps": (["train", "--variant", "pow2"], "--steps 5000"),
    "zero steps": (["train", "--variant", "pow2", "--steps", "0"], "--steps must be more than 0"),
    "two horizons": ([*NANO, "--tokens", "1e6"], "--steps and --tokens"),
    "zero batch": ([*NANO, "--batch-size", "0"], "--batch-size must be at least 1"),
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
    "slash in name": ([*NANO, "--data", "CORPUS", "--name", "a/b"], "no name for a run"),
    "parent as study": ([*NANO, "--data", "CORPUS", "--study", ".."], "no name for a study"),
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
    "long name of a corpus": ([*NANO, "--data", "x" * 300], "Cannot read"),
    "name of a variant": ([*NANO, "--data", "CORPUS", "--name", "pow2"], "means something else"),
    "resume of a variant": (["train", "--resume", "pow2"], "is a variant, not a run"),
    "kept step too late": ([*NANO, "--keep-step", "3"], "after the last step"),
    "kept step too early": ([*NANO, "--keep-step", "-1"], "before the step that it starts from, 0"),
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
    "prepare without tokenizer": (["prepare", "--out", "made"], "Say which tokenizer"),
    "prepare of infinitely many": (
        ["prepare", "--out", "made", "--tokenizer", "train:300", "--max-tokens", "inf"],
        "--max-tokens must be at least 1 and finite",
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
    code, _, err = run_main(capsys, *tiny, *options)
    assert code == 2
    assert f"tokens, the model {size}; use --tokenizer train:{size}, or --set vocab_size=" in err
    assert "Preparing" not in err
    assert not any(fresh_cache.iterdir())


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_results_directory_without_permission_is_refused(capsys, workdir, tiny):
    (workdir / "locked").mkdir(mode=0o500)
    code, _, err = run_main(capsys, *tiny, "--steps", "2", "--results", "locked/results")
    assert code == 2
    assert "choose another --results" in err


# Compiling a decoder's layer imports what torch itself has deprecated.
@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")
def test_the_five_commands_run_in_a_row(capsys, workdir, tiny, variants, corpus):
    for name, *more in (("a0",), ("a1", "--seed", "1"), ("b0", "--set", "n_layers=3")):
        assert run_main(capsys, *tiny, "--steps", "6", "--name", name, *more)[0] == 0
    code, out, _ = run_main(capsys, "eval", "a0", "--json")
    assert code == 0
    assert {row["metric"] for row in json.loads(out)} >= {"loss", "bits_per_byte"}
    code, out, _ = run_main(capsys, "compare", "tiny", "tiny:n_layers=3", "--json")
    assert code == 0
    found = json.loads(out)
    assert [len(arm["metrics"]["loss"]) for arm in found["arms"]] == [2, 1]
    (verdict,) = (row["verdict"] for row in found["differences"] if row["primary"])
    assert verdict == "unresolved"  # one seed
    code, out, _ = run_main(capsys, "report")
    assert code == 0
    assert "Not measured" in out
    assert "| b0 | tiny:n_layers=3 | 0 |" in out
    arguments = ("quantize", "--bits", "4", "--tokens", "256")
    code, _, err = run_main(capsys, *arguments)
    assert code == 0, err
    assert "int4-g64" in run_main(capsys, "report")[1]


def test_a_broken_run_is_named_and_left_out(capsys, finished):
    broken = finished.with_name("broken")
    broken.mkdir()
    (broken / "run.json").write_text("{")
    code, _, err = run_main(capsys, "report")
    assert code == 0
    assert "broken/run.json cannot be read" in err


def test_another_protocol_is_never_mixed_in(capsys, finished, tiny):
    assert (
        run_main(capsys, *tiny, "--steps", "7", "--name", "longer", "--set", "n_layers=3")[0] == 0
    )
    code, _, err = run_main(capsys, "compare", "first", "longer")
    assert code == 2
    assert "longer differs from first (" in err


def test_preparing_says_so_without_a_terminal_and_only_when_it_is_done(capsys, workdir, tiny):
    at = tiny.index("--tokenizer")
    options = [*tiny[:at], *tiny[at + 2 :], "--tokenizer", "train:501", "--steps", "2"]
    _, _, first = run_main(capsys, *options, "--dry-run")
    assert first.startswith("Preparing tokens of corpus.jsonl ...\nPrepared ")
    assert "training tokens in" in first
    _, _, second = run_main(capsys, *options, "--dry-run")
    assert "Prepar" not in second


def test_prepared_tokens_train_without_datasets(workdir, tiny, corpus):
    made = smolctl(
        *("prepare", "--data", str(corpus), "--tokenizer", "train:512", "--out", "tokens"),
        cwd=workdir,
    )
    assert made.returncode == 0, made.stderr
    block = "import sys; sys.modules['datasets'] = sys.modules['pyarrow'] = None; "
    code = block + "from smolctl.cli import main; main(sys.argv[1:])"
    options = [*tiny, "--steps", "6", "--name", "r", "--data", "tokens"]
    at = options.index("--tokenizer")
    del options[at : at + 2]  # the folder brings its own
    options = [
        o for i, o in enumerate(options) if "--tokenizer" not in options[max(i - 1, 0) : i + 1]
    ]

    # A machine with an empty cache, to which only the folder was brought.
    environment = os.environ | {"SMOLCTL_CACHE": str(workdir / "other-cache")}
    for arguments in (options, ["eval", "r"]):
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            cwd=workdir,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr


def test_help_loads_nothing_heavy():
    code = (
        "import sys, smolctl.cli\n"
        "heavy = {'torch', 'pandas', 'scipy', 'datasets', 'matplotlib', 'tokenizers', 'numpy'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )

    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_typo_is_refused_before_torch_is_imported(workdir):
    typos = [
        ["--variant", "pow3"],
        ["--set", "n_layer=3"],
        ["--set", "n_layers=many"],
        ["--recipe", "smolm2"],
        ["--scale", "mini"],
        ["--schedule", "wds"],
        ["--optimizer", "sgd"],
        ["--steps", "0"],
        ["--seq-len", "4096"],
        ["--val-every", "0"],
        ["--test-tokens", "0"],
        ["--name", "a/b"],
    ]
    code = (
        "import json, sys\n"
        "from smolctl.cli import main\n"
        "nano, typos = json.loads(sys.argv[1])\n"
        "for typo in typos:\n"
        "    try:\n"
        "        main([*nano, *typo])\n"
        "    except SystemExit as error:\n"
        "        assert error.code == 2\n"
        "    assert 'torch' not in sys.modules, typo\n"
    )
    arguments = [sys.executable, "-c", code, json.dumps([NANO, typos])]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("Error: ") == len(typos)


HELPFUL = ["train", "prepare", "study", "eval", "compare", "generate", "quantize", "report", "runs"]
HELPFUL += ["variants", "doctor", "runs show", "runs remove"]


@pytest.mark.parametrize("command", HELPFUL)
def test_every_help_has_examples(capsys, command):
    code, out, _ = run_main(capsys, *command.split(), "--help")
    assert code == 0
    assert "Examples" in out
    assert f"smolctl {command}" in out


@pytest.mark.parametrize(
    "arguments",
    [["trian"], ["train", "--steps", "x"], ["eval"], ["runs", "shw"], ["doctor", "--nothing"]],
)
def test_a_command_line_that_makes_no_sense_exits_with_2(capsys, workdir, arguments):
    code, _, err = run_main(capsys, *arguments)
    assert code == 2
    assert "Traceback" not in err


@pytest.mark.parametrize(
    "arguments", [["variants"], ["variants", "--json"], ["runs", "--json"], ["--help"]]
)
def test_a_reader_who_goes_away_sees_no_traceback(workdir, arguments):
    ours, theirs = os.pipe()
    os.close(ours)
    command = [sys.executable, "-m", "smolctl", *arguments]
    done = subprocess.run(command, stdout=theirs, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(theirs)
    assert done.returncode == 1
    assert "Broken" not in done.stderr
    assert "Traceback" not in done.stderr


def completions(words: list[str], folder: Path) -> list[str]:
    """What bash would offer for the last of the words, torch and the like out of reach."""
    code = (
        "import sys\n"
        "for name in ('torch', 'pandas', 'numpy', 'tokenizers'): sys.modules[name] = None\n"
        "sys.argv = ['smolctl']\n"
        "from smolctl.cli import main\n"
        "main()\n"
    )
    asked = {
        "_SMOLCTL_COMPLETE": "complete_bash",
        "COMP_WORDS": " ".join(words),
        "COMP_CWORD": str(len(words) - 1),
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | asked,
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_the_shell_completes_commands_runs_and_variants(workdir):
    for run in ("results/runs/pow2-nano", "results/runs/other", "results/gqa/power"):
        (workdir / run).mkdir(parents=True)
        (workdir / run / "run.json").write_text("{}")
    assert completions(["smolctl", "var"], workdir) == ["variants"]
    assert completions(["smolctl", "runs", "rem"], workdir) == ["remove"]
    assert completions(["smolctl", "runs", "show", "p"], workdir) == ["pow2-nano"]
    found = completions(["smolctl", "eval", "po"], workdir)
    assert found == ["pow2-nano", "pow2", "pow2-135m"]
    assert completions(["smolctl", "eval", "--study", "gqa", "pow"], workdir)[0] == "power"


def test_unexpected_errors_are_sentences_without_debug(capsys, monkeypatch, workdir):
    def explode(*_: object) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr("smolctl.targets.finished_runs", explode)
    code, _, err = run_main(capsys, "report")
    assert code == 1
    assert "--debug" in err
    with pytest.raises(ZeroDivisionError):
        main(["--debug", "report"])


def planted_losses(run: Run, test: float, validation: list[float]) -> Run:
    """The run with other losses in its tables."""
    scores = [
        row | ({"value": test} if row["metric"] == "loss" else {}) for row in run.rows("eval")
    ]
    run.replace("eval", scores)
    rows = zip(run.rows("val"), validation, strict=True)
    run.replace("val", [row | {"loss": loss} for row, loss in rows])
    return run


def test_odd_losses_are_said_to_be(finished):
    def said(test: float, validation: list[float]) -> list[str]:
        return doubts(planted_losses(Run(finished), test, validation))

    assert said(4.0, [6.2, 4.0, 4.05]) == []
    (guessing,) = said(6.3, [6.2, 4.0, 5.0])
    assert "first did worse than guessing among all tokens (6.24 nats)" in guessing
    (rising,) = said(5.0, [6.2, 4.0, 5.0])
    assert "rose by 1.00 after step 5" in rising


def test_a_branch_goes_on_with_the_data_of_its_run(capsys, workdir, tiny):
    options = ["--steps", "6", "--name", "trunk", "--keep-step", "4"]
    assert run_main(capsys, *tiny, *options)[0] == 0
    at = tiny.index("--data")
    without_data = tiny[:at] + tiny[at + 4 :]  # nor the tokenizer
    branch = ["--steps", "8", "--from", "trunk@4", "--name", "branch"]
    code, _, err = run_main(capsys, *without_data, *branch)
    assert code == 0, err
    trunk, run = Run(Path("results/runs/trunk")), Run(Path("results/runs/branch"))
    assert run.protocol.data == trunk.protocol.data
    assert run.manifest["request"]["data"] == trunk.manifest["request"]["data"]
