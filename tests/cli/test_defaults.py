"""Defaults of a user's own: the command line, then the environment, then a file, then ours."""

import json
import re
from pathlib import Path

import pytest
from support.command import run_main, smolctl
from support.processes import started, wait_for_rows

from smolctl.cli.commands import LazyCommands
from smolctl.cli.defaults import LISTS
from smolctl.cli.defaults import options as options_of
from smollm2.runs.run import Run


def write(text: str, name: str = "smolctl.toml") -> None:
    Path(name).write_text(text)


@pytest.fixture
def tiny_defaults(workdir, variants, corpus) -> str:
    """The options of a short run, as a table of a file."""
    return f"""
        [train]
        variant = "{variants}/tiny.toml"
        data = "{corpus}"
        tokenizer = "train:512"
        seq-len = 32
        micro_batch_size = 2
        val_tokens = 128
        test_tokens = 256
    """


def test_the_command_line_counts_before_the_environment_before_a_file(capsys, workdir, monkeypatch):
    def results(*arguments: str) -> str:
        code, _, err = run_main(capsys, "runs", *arguments)
        assert code == 0, err
        return err.removeprefix("There are no runs in ").removesuffix(" yet.\n")

    assert results() == "results"
    write('results = "file"')
    assert results() == "file"
    monkeypatch.setenv("SMOLCTL_RESULTS", "environment")
    assert results() == "environment"
    assert results("--results", "typed") == "typed"


def test_a_table_is_for_its_command_and_what_is_shared_for_all(capsys, tiny_defaults):
    write('results = "mine"\nstudy = "s"\n' + tiny_defaults + "steps = 4\nname = 'first'\n")
    code, _, err = run_main(capsys, "train")
    assert code == 0, err
    run = Run(Path("mine/s/first"))
    assert (run.protocol.steps, run.protocol.seq_len, run.protocol.micro_batch_size) == (4, 32, 2)
    assert run_main(capsys, "eval", "first", "--json")[0] == 0
    code, out, err = run_main(capsys, "train", "--steps", "3", "--name", "second", "--json")
    assert code == 0, err
    assert json.loads(out)["steps"] == 3


def test_a_table_of_pyproject_does_as_well_and_only_without_a_file(capsys, workdir):
    write('[project]\nname = "x"\n[tool.smolctl]\nresults = "project"', "pyproject.toml")
    assert "no runs in project" in run_main(capsys, "runs")[2]
    write('results = "own"')
    assert "no runs in own" in run_main(capsys, "runs")[2]


def test_a_pyproject_of_other_tools_says_nothing(capsys, workdir):
    write('[project]\nname = "x"\n[tool.ruff]\nline-length = 100', "pyproject.toml")
    assert "no runs in results" in run_main(capsys, "runs")[2]


def test_settings_may_be_a_table(capsys, tiny_defaults):
    write(tiny_defaults + "steps = 4\nset = { weight-decay = 0.25, n_layers = 3 }\n")
    code, out, err = run_main(capsys, "train", "--dry-run", "--json")
    assert code == 0, err
    protocol = json.loads(out)["protocol"]
    assert (protocol["recipe"]["weight_decay"], protocol["model"]["n_layers"]) == (0.25, 3)


BAD_FILES = {
    "broken": ("results = [", "is not a readable TOML file"),
    "unknown key": ('studdy = "x"', "Did you mean 'study'?"),
    "unknown table": ("[trian]\nsteps = 3", "Did you mean 'train'?"),
    "unknown option": ("[train]\nstep = 3", "Did you mean 'steps'?"),
    "option of a command": ("steps = 3", "write it below [train]"),
    "word for a number": ('[train]\nsteps = "many"', "steps takes a whole number, not 'many'"),
    "truth for a number": ("[train]\nsteps = true", "steps takes a whole number, not True"),
    "number for a path": ("results = 3.5", "results takes text in quotes, not 3.5"),
    "word for a truth": ('[train]\ncompile = "yes"', "compile takes true or false"),
    "word for a list": (
        '[train]\nset = "lr=1"',
        'set takes a list such as ["weight_decay=0.1"], or a table such as { weight_decay = 0.1 }',
    ),
    "word in a list of numbers": (
        '[train]\nkeep_step = ["x"]',
        "keep_step takes a list such as [100, 200], not ['x']",
    ),
    "number in a list of words": (
        "[report]\nalso = [3]",
        'also takes a list such as ["gqa-full"], not',
    ),
    "list for a text": (
        '[eval]\ntasks = ["piqa"]',
        "tasks takes a list such as \"arc_easy,hellaswag\", not ['piqa']",
    ),
}


def test_every_list_has_an_example():
    for command in LazyCommands().values():
        for key, hint in options_of(command).items():
            if "list[" in str(hint):
                assert key in LISTS


@pytest.mark.parametrize("case", BAD_FILES)
@pytest.mark.parametrize("file", ["smolctl.toml", "pyproject.toml"])
def test_a_bad_file_is_refused_by_name(capsys, workdir, file, case):
    text, said = BAD_FILES[case]
    if file == "pyproject.toml":
        text = re.sub(r"^\[", "[tool.smolctl.", text, flags=re.MULTILINE)
        text = text if "[tool" in text else f"[tool.smolctl]\n{text}"
    write(text, file)
    code, out, err = run_main(capsys, "runs")
    assert (code, out) == (2, "")
    assert err.startswith(f"Error: {file}")
    assert said in err


def test_an_error_names_the_defaults_in_use(capsys, workdir):
    write('study = "gqa"\n[train]\nsteps = 3\n')
    code, _, err = run_main(capsys, "eval", "pow2")
    assert code == 2
    assert err.splitlines()[-1] == "(smolctl.toml has defaults here: study.)"


def test_a_resumed_run_keeps_its_configuration_whatever_the_defaults(capsys, tiny_defaults):
    write(tiny_defaults + "steps = 40\nname = 'r'\ncheckpoint_every = 5\n")
    with started(["train"], Path()) as process:
        wait_for_rows(process, Path("results/runs/r/train.csv"), 8)
        process.kill()
    changed = tiny_defaults.replace("seq-len = 32", "seq-len = 16") + "steps = 7\ndevice = 'mps'\n"
    write(changed + "dry_run = true\nname = 'other'\nkeep_step = [1, 999]\n")
    code, _, err = run_main(capsys, "train", "--resume", "r")
    assert code == 0, err
    run = Run(Path("results/runs/r"))
    assert run.is_finished
    assert (run.protocol.steps, run.protocol.seq_len) == (40, 32)


def test_typed_options_replace_the_same_settings_in_the_file(capsys, tiny_defaults):
    write(tiny_defaults + "steps = 40\nlr = 1e-3\nset = ['weight_decay=0.5', 'beta1=0.5']\n")

    def recipe(*arguments: str) -> dict:
        code, out, err = run_main(capsys, "train", "--dry-run", "--json", *arguments)
        assert code == 0, err
        protocol = json.loads(out)["protocol"]
        return protocol["recipe"] | {"steps": protocol["steps"]}

    assert recipe()["lr"] == 1e-3
    assert recipe("--tokens", "640")["steps"] == 10
    assert recipe("--set", "lr=2e-3")["lr"] == 2e-3
    write(tiny_defaults + "steps = 40\nset = ['lr=5e-3', 'beta1=0.5']\n")
    found = recipe("--lr", "2e-3")
    assert (found["lr"], found["beta1"]) == (2e-3, 0.5)


def test_two_horizons_in_a_file_are_still_refused(capsys, tiny_defaults):
    write(tiny_defaults + "steps = 40\ntokens = 640\n")
    code, _, err = run_main(capsys, "train")
    assert code == 2
    assert "--steps and --tokens" in err


def test_checks_on_what_was_typed_do_not_trip_over_a_file(capsys, finished):
    write(
        'study = "runs"\nresults = "results"\ndata = "other.txt"\n'
        '[report]\nhtml = "card.html"\n'
        "[eval]\nlimit = 5\n"
        "[generate]\nseed = 3\ntop_p = 0.9\n"
        "[quantize]\nbackend = 'bitsandbytes'\ngroup_size = 32\nlimit = 5\nscale = 'nano'\n"
        "speed = false\nembedding = 8\n"
    )
    code, card, err = run_main(capsys, "report")
    assert code == 0, err
    Path("CARD.md").write_text(card)
    assert run_main(capsys, "report", "--check", "CARD.md")[0] == 0
    assert run_main(capsys, "eval", "first")[0] == 0  # no --limit without tasks
    _, out, err = run_main(
        capsys, "generate", "first", "--prompt", "abc", "--max-new-tokens", "2", "--json"
    )
    assert json.loads(out)["text"] is not None
    assert "do nothing" not in err
    for options in (
        ["--sweep", "--tokens", "64"],
        ["--bits", "8", "--tokens", "64"],
        ["--dimensions"],
    ):
        code, _, err = run_main(capsys, "quantize", *options)
        assert code == 0, err


def test_an_option_that_is_typed_is_still_checked(capsys, finished):
    write('study = "runs"\n')
    assert run_main(capsys, "report", "--check", "x.md", "--study", "runs")[0] == 2
    assert run_main(capsys, "report", "--check", "x.md", "--html", "card.html")[0] == 2
    assert run_main(capsys, "eval", "first", "--limit", "5")[0] == 2


def test_the_help_of_all_commands_reads_no_file(workdir):
    write("broken = [")
    done = smolctl("--help", cwd=workdir)
    assert done.returncode == 0


def test_a_key_in_both_spellings_is_refused(capsys, workdir):
    Path("smolctl.toml").write_text("[train]\nseq-len = 1\nseq_len = 2\n")
    code, _, err = run_main(capsys, "variants")
    assert code == 2
    assert "seq_len appears twice" in err


def test_a_pyproject_whose_tool_is_not_a_table_is_ignored(capsys, workdir):
    Path("pyproject.toml").write_text("tool = 5\n")
    assert run_main(capsys, "variants")[0] == 0


def test_a_variant_of_the_file_is_not_that_of_what_is_continued(capsys, tiny_defaults):
    write(tiny_defaults)
    assert run_main(capsys, "train", "--steps", "2", "--name", "a")[0] == 0
    write(tiny_defaults.replace("tiny.toml", "tinymoe.toml"))
    code, _, err = run_main(capsys, "train", "--steps", "2", "--from", "a", "--name", "b")
    assert code == 0, err
    assert Run(Path("results/runs/b")).protocol.variant == "tiny"


@pytest.mark.parametrize("key", ["study", "data", "tokenizer"])
def test_a_number_is_no_name(capsys, workdir, key):
    write(f"{key} = 5\n")
    code, _, err = run_main(capsys, "runs")
    assert code == 2
    assert f"{key} takes text in quotes, not 5" in err
