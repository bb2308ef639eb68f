"""Defaults of a user's own: the command line, then the environment, then a file, then ours."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import run_main, smolctl

from smollm2.runs import Run


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
        batch_size = 2
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
    assert (run.protocol.steps, run.protocol.seq_len, run.protocol.batch_size) == (4, 32, 2)
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


BAD_FILES = {
    "broken": ("results = [", "is not a readable TOML file"),
    "unknown key": ('studdy = "x"', "Did you mean 'study'?"),
    "unknown table": ("[trian]\nsteps = 3", "Did you mean 'train'?"),
    "unknown option": ("[train]\nstep = 3", "Did you mean 'steps'?"),
    "option of a command": ("steps = 3", "write it below [train]"),
    "word for a number": ('[train]\nsteps = "many"', "steps takes a whole number, not 'many'"),
    "truth for a number": ("[train]\nsteps = true", "steps takes a whole number, not True"),
    "number for a path": ("results = 3.5", "results takes a word, not 3.5"),
    "word for a truth": ('[train]\ncompile = "yes"', "compile takes true or false"),
    "word for a list": ('[train]\nset = "lr=1"', "set takes a list, not 'lr=1'"),
    "word in a list of numbers": ('[train]\nkeep_step = ["x"]', "keep_step takes a whole number"),
}


@pytest.mark.parametrize("case", BAD_FILES)
@pytest.mark.parametrize("file", ["smolctl.toml", "pyproject.toml"])
def test_a_bad_file_is_refused_by_name(capsys, workdir, file, case):
    text, said = BAD_FILES[case]
    if file == "pyproject.toml":
        text = text.replace("[train", "[tool.smolctl.train").replace(
            "[trian", "[tool.smolctl.trian"
        )
        text = text if "[tool" in text else f"[tool.smolctl]\n{text}"
    write(text, file)
    code, out, err = run_main(capsys, "runs")
    assert (code, out) == (2, "")
    assert err.startswith(f"Error: {file}")
    assert said in err


def test_an_error_says_which_defaults_were_at_work(capsys, workdir):
    write('study = "gqa"\n[train]\nsteps = 3\n')
    code, _, err = run_main(capsys, "eval", "pow2")
    assert code == 2
    assert err.splitlines()[-1] == "(smolctl.toml has defaults here: study.)"


def test_a_resumed_run_keeps_its_configuration_whatever_the_defaults(capsys, tiny_defaults):
    write(tiny_defaults + "steps = 40\nname = 'r'\ncheckpoint_every = 5\n")
    process = subprocess.Popen(
        [sys.executable, "-m", "smolctl", "train"], stderr=subprocess.PIPE, text=True
    )
    table = Path("results/runs/r/train.csv")
    while not (table.exists() and table.read_text().count("\n") > 8):
        assert process.poll() is None
    process.kill()
    process.communicate()
    changed = tiny_defaults.replace("seq-len = 32", "seq-len = 16") + "steps = 7\ndevice = 'mps'\n"
    write(changed + "dry_run = true\nname = 'other'\nkeep_step = [1, 999]\n")
    code, _, err = run_main(capsys, "train", "--resume", "r")
    assert code == 0, err
    run = Run(Path("results/runs/r"))
    assert run.is_finished
    assert (run.protocol.steps, run.protocol.seq_len) == (40, 32)


def test_what_is_typed_displaces_what_the_file_says_of_the_same(capsys, tiny_defaults):
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
        '[report]\nhtml = "card.html"\njson = true\n'
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
    assert run_main(capsys, "report", "--json")[0] == 2
    assert run_main(capsys, "eval", "first", "--limit", "5")[0] == 2


def test_the_help_of_all_commands_reads_no_file(workdir):
    write("broken = [")
    done = smolctl("--help", cwd=workdir)
    assert done.returncode == 0


def test_a_key_that_is_there_in_both_spellings_is_refused(capsys, workdir):
    Path("smolctl.toml").write_text("[train]\nbatch-size = 1\nbatch_size = 2\n")
    code, _, err = run_main(capsys, "variants")
    assert code == 2
    assert "batch_size is there twice" in err


def test_a_pyproject_whose_tool_is_no_table_is_somebody_elses(capsys, workdir):
    Path("pyproject.toml").write_text("tool = 5\n")
    assert run_main(capsys, "variants")[0] == 0


def test_a_variant_of_the_file_is_not_that_of_what_is_continued(capsys, tiny_defaults):
    write(tiny_defaults)
    assert run_main(capsys, "train", "--steps", "2", "--name", "a")[0] == 0
    write(tiny_defaults.replace("tiny.toml", "tinymoe.toml"))
    code, _, err = run_main(capsys, "train", "--steps", "2", "--from", "a", "--name", "b")
    assert code == 0, err
    assert Run(Path("results/runs/b")).protocol.variant == "tiny"
