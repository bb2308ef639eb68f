"""Commands that are printed: a shell reads them as they are meant, and smolctl takes them."""

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.command import run_main
from support.planted import planted

from smolctl.cli.commands import load
from smolctl.command_line import command, quoted
from smollm2.runs.run import Run

PRINTED = re.compile(
    r"smolctl (?:train|eval|compare|report(?! --check)|quantize|generate|runs|study) [^\n`;]+"
)


def test_defaults_are_omitted_and_words_are_quoted(workdir):
    assert command("eval", "r") == "smolctl eval r"
    assert command("eval", "r", study="runs", results=workdir / "results") == "smolctl eval r"
    typed = command("eval", "it's", study="s", results=workdir / "my results")
    assert shlex.split(typed) == [
        "smolctl",
        "eval",
        "it's",
        "--study",
        "s",
        "--results",
        "my results",
    ]


def test_results_beside_the_current_folder_do_not_name_those_above(workdir, monkeypatch):
    (workdir / "here").mkdir()
    monkeypatch.chdir(workdir / "here")
    assert command("runs", results=workdir / "there") == "smolctl runs --results ../there"
    assert command("runs", results=Path("/there")) == "smolctl runs --results /there"


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1))
def test_a_shell_reads_back_what_was_quoted(word):
    word += "\udce9\x1b'\\$HOME"  # with a byte that is not UTF-8
    for text in (word, word[:-7]):
        line = f"printf %s {quoted(text)}"
        read = subprocess.run(["bash", "-c", line], capture_output=True, check=True).stdout
        assert read == os.fsencode(text)


def commands_in(*texts: str) -> list[list[str]]:
    """The words of every command in texts; each is one that smolctl takes."""
    found = [shlex.split(line) for text in texts for line in PRINTED.findall(text)]
    for _, name, *arguments in found:
        load(name).make_context(name, list(arguments))
    return found


@pytest.fixture
def spaced(workdir, template) -> list[str]:
    """Two arms of two seeds, one run of them stopped, in a results directory with a space."""
    for seed in (0, 1):
        for loss, arm in enumerate(("a", "b")):
            planted(template, arm, seed, 5.0 + loss, arm=f"{arm}:n_layers=2")
    planted(template, "b", 2, 5.0, arm="b:n_layers=2")
    Run(Path("results/s/b-s2")).update(state="stopped")
    Path("results").rename("my results")
    return ["--study", "s", "--results", "my results"]


@pytest.mark.parametrize(
    ("arguments", "least"),
    [
        (["compare", "a:n_layers=2", "b:n_layers=2"], 2),
        (["report", "--appendix", "appendix.md"], 4),
        (["report", "--section", "limits"], 2),
        (["eval", "b-s2"], 1),
        (["eval", "b-s0+int4"], 1),
        (["runs", "show", "b-s2"], 1),
    ],
)
def test_a_printed_command_names_study_and_results(capsys, spaced, arguments, least):
    _, out, err = run_main(capsys, *arguments, *spaced)
    found = commands_in(out, err)
    assert len(found) >= least, out + err
    for words in found:
        assert words[-2:] == spaced[-2:] or words[1] == "report", words
        assert "s" in words or words[1:3] == ["study", "my results/s/study.toml"]


def test_what_follows_a_training_can_be_typed(capsys, workdir, tiny):
    where = ["--study", "s", "--results", "my results"]
    code, _, err = run_main(capsys, *tiny, "--steps", "2", "--name", "r", *where)
    assert code == 0
    assert commands_in(err) == [["smolctl", "eval", "r", *where]]
    (words,) = commands_in(err)
    assert run_main(capsys, *words[1:])[0] == 0
