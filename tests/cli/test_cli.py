"""The command line as a whole: commands in a row, help, completion, errors."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.command import run_main
from support.tiny import changed, without

from smolctl.cli.app import main
from smolctl.cli.commands import COMMANDS, load
from smolctl.cli.train_result import doubts
from smollm2.runs.run import Run

NANO = ["train", "--variant", "pow2", "--scale", "nano", "--steps", "2"]


def test_the_five_commands_run_in_a_row(capsys, workdir, tiny, variants, corpus):
    for name, *more in (("a0",), ("a1", "--seed", "1"), ("b0", "--set", "n_layers=3")):
        code, _, err = run_main(capsys, *tiny, "--steps", "6", "--name", name, *more)
        assert code == 0
        assert ("or train another variant" in err) == (name != "b0")
    assert "\n      smolctl compare tiny tiny:n_layers=3\n" in err
    code, out, _ = run_main(capsys, "eval", "a0", "--json")
    assert code == 0
    assert {row["metric"] for row in json.loads(out)} >= {"loss", "bits_per_byte"}
    code, out, _ = run_main(capsys, "compare", "tiny", "tiny:n_layers=3", "--json")
    assert code == 0
    found = json.loads(out)
    assert [len(arm["metrics"]["loss"]) for arm in found["arms"]] == [2, 1]
    (verdict,) = (row["verdict"] for row in found["differences"] if row["primary"])
    assert verdict == "inconclusive"  # one seed
    code, out, _ = run_main(capsys, "report")
    assert code == 0
    assert "were not measured" in out
    code, out, _ = run_main(capsys, "report", "--section", "runs")
    assert code == 0
    assert "b0" in out
    assert "tiny:n_layers=3" in out
    arguments = ("quantize", "b0", "--bits", "4", "--tokens", "256", "--no-compile")
    code, _, err = run_main(capsys, *arguments)
    assert code == 0, err
    assert "int4-g64" in run_main(capsys, "report", "--section", "quantization")[1]


def test_a_broken_run_is_reported_and_skipped(capsys, finished):
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
    assert "longer is excluded: it differs from first (" in err


def test_preparing_says_so_without_a_terminal_and_only_when_it_is_done(capsys, workdir, tiny):
    options = changed(tiny, "--tokenizer", "train:501", "--steps", "2")
    _, _, first = run_main(capsys, *options, "--dry-run")
    assert first.startswith("Preparing tokens of corpus.jsonl ...\nPrepared ")
    assert "training tokens in" in first
    _, _, second = run_main(capsys, *options, "--dry-run")
    assert "Prepar" not in second


def test_prepared_tokens_train_without_datasets(capsys, workdir, tiny, corpus):
    prepare = ("prepare", "--data", str(corpus), "--tokenizer", "train:512", "--out", "tokens")
    code, _, err = run_main(capsys, *prepare)
    assert code == 0, err
    options = changed(tiny, "--steps", "6", "--name", "r", "--data", "tokens")
    options = without(options, "--tokenizer")  # the folder brings its own

    # A machine with an empty cache, to which only the folder was brought.
    environment = os.environ | {"SMOLCTL_CACHE": str(workdir / "other-cache")}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_DATASETS, json.dumps([options, ["eval", "r"]])],
        cwd=workdir,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert (workdir / "results/runs/r/eval.csv").exists()


# Commands one after another in a process in which the package cannot be imported.
WITHOUT_DATASETS = """
import json, sys
sys.modules["datasets"] = None
from smolctl.cli.app import main
for arguments in json.loads(sys.argv[1]):
    try:
        main(arguments)
    except SystemExit as end:
        if end.code:
            raise
"""
HEAVY = {"torch", "pandas", "scipy", "datasets", "matplotlib", "tokenizers", "numpy"}


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_loads_nothing_heavy(command):
    code = (
        "import atexit, sys\n"
        "from smolctl.cli.app import main\n"
        "sys.argv[1:] = [*sys.argv[1:], '--help']\n"
        "atexit.register(lambda: print('loaded:', *sys.modules, file=sys.stderr))\n"
        "main()\n"
    )
    words = [sys.executable, "-c", code, *filter(None, [command])]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    loaded = set(done.stderr.partition("loaded:")[2].split())
    assert not HEAVY & loaded
    commands = {module for module in loaded if module.endswith("_command")}
    assert len(commands) == (0 if command == "" else 1)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_summary_of_a_command_is_the_first_paragraph_of_its_help(name):
    first, _, _ = load(name).help.partition("\n\n")
    assert " ".join(first.split()) == COMMANDS[name].summary


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
        "from smolctl.cli.app import main\n"
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


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("compare a b --study x --study y", "--study is given twice; give it once."),
        ("train --variant pow2 --seed 1 --steps 2 --seed=1", "--seed is given twice"),
        ("train --variant pow2 --compile --no-compile", "--compile/--no-compile is given twice"),
        ("study a.toml --results x --results y", "--results is given twice"),
        ("runs --study a --study b", "--study is given twice"),
        ("runs list --results a --results b", "--results is given twice"),
        ("runs remove a --study x --study y", "--study is given twice"),
        ("eval run --tasks piqa --json --json --tasks all", "--tasks is given twice"),
    ],
)
def test_an_option_of_one_value_is_given_once(capsys, workdir, arguments, said):
    code, out, err = run_main(capsys, *arguments.split())
    assert (code, out) == (2, "")
    assert err.startswith(f"Error: {said}")


def test_options_of_several_values_and_switches_may_be_repeated(capsys, workdir, tiny):
    several = ["--steps", "2", "--set", "n_layers=4", "--set", "lr=0.01"]
    code, out, err = run_main(capsys, *tiny, *several, "--dry-run", "--json", "--json")
    assert code == 0, err
    protocol = json.loads(out)["protocol"]
    assert (protocol["model"]["n_layers"], protocol["recipe"]["lr"]) == (4, 0.01)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--model hf", "No such option: --model. Runs are named as arguments"),
        ("--num_fewshot 5", "smolctl export RUN --to hf and run lm-evaluation-harness on it"),
        ("--tasks boolq", "Export the model to score other tasks with lm-evaluation-harness."),
    ],
)
def test_habits_of_lm_eval_get_a_pointer(capsys, finished, arguments, said):
    code, _, err = run_main(capsys, "eval", "first", *arguments.split())
    assert code == 2
    assert said in " ".join(err.replace("│", " ").split())


HELPFUL = ["train", "prepare", "study", "eval", "compare", "generate", "quantize", "report", "runs"]
HELPFUL += ["variants", "doctor", "runs show", "runs remove"]


@pytest.mark.parametrize("command", HELPFUL)
def test_every_help_has_examples(capsys, command):
    code, out, _ = run_main(capsys, *command.split(), "--help")
    assert code == 0
    assert f"smolctl {command}" in out
    assert out.index("Examples") < out.index("--help")  # before the options


# Groups of options in the order of the help: the first are used most.
PANELS = {
    "train": ["Options", "Continue", "Recipe", "Data", "Evaluation", "Machine", "Where"],
    "eval": ["Options", "Data", "Machine", "Where"],
    "quantize": [
        *("Options", "Method", "Measurement", "Data", "Machine", "Without runs", "Where"),
    ],
}


@pytest.mark.parametrize("command", PANELS)
def test_options_are_grouped(capsys, command):
    _, out, _ = run_main(capsys, command, "--help")
    panels = re.findall(r"^╭─ ([\w ]+) ─", out, flags=re.MULTILINE)
    assert [name for name in panels if name != "Arguments"] == PANELS[command]
    first = out[out.index("─ Options ") : out.index(f"─ {PANELS[command][1]} ")]
    assert len(re.findall(r"^│ +--", first, flags=re.MULTILINE)) <= 11
    assert "--json" in first


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
        "from smolctl.cli.app import main\n"
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

    monkeypatch.setattr("smolctl.studies.targets.finished_runs", explode)
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
    assert "first did worse than guessing among all tokens (6.24 nats/token)" in guessing
    (rising,) = said(5.0, [6.2, 4.0, 5.0])
    assert "rose by 1.00 after step 5" in rising


def test_a_branch_continues_with_the_data_of_its_run(capsys, workdir, tiny):
    options = ["--steps", "6", "--name", "trunk", "--keep-step", "4"]
    assert run_main(capsys, *tiny, *options)[0] == 0
    without_data = without(tiny, "--data", "--tokenizer")
    branch = ["--steps", "8", "--from", "trunk@4", "--name", "branch"]
    code, _, err = run_main(capsys, *without_data, *branch)
    assert code == 0, err
    trunk, run = Run(Path("results/runs/trunk")), Run(Path("results/runs/branch"))
    assert run.protocol.data == trunk.protocol.data
    assert run.manifest["request"]["data"] == trunk.manifest["request"]["data"]
