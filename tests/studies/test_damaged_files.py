"""A folder, a broken link or an unreadable file in the place of a file of a study or run."""

import os
from pathlib import Path

import pytest
from support.command import run_main
from support.planted import plan, planted


@pytest.fixture
def study(workdir, template) -> Path:
    """Study `s` of two arms and two seeds, with a speed.csv."""
    for seed in (0, 1):
        planted(template, "a", seed, 5.0 + seed)
        planted(template, "b", seed, 5.1 + seed * 1.1)
    plan(workdir / "results/s", blocked=True)
    return workdir / "results/s"


def folder(path: Path) -> None:
    path.mkdir()
    (path / "file").touch()


def broken_link(path: Path) -> None:
    path.symlink_to("nowhere")


def pipe(path: Path) -> None:
    os.mkfifo(path)


def bytes_of_no_text(path: Path) -> None:
    path.write_bytes(b"\xff\xfe\x00")


DAMAGES = {
    folder: "it is a folder",
    broken_link: "it is a link to a file that does not exist",
    pipe: "it is not a regular file",
    bytes_of_no_text: "it is not UTF-8 text",
}
COMMANDS = {
    "compare": ("compare", "a", "b", "--study", "s", "--json"),
    "report": ("report", "--study", "s", "--out", "CARD.md"),
}


def damage(path: Path, how) -> str:
    path.unlink(missing_ok=True)
    how(path)
    return DAMAGES[how]


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
@pytest.mark.parametrize(
    ("file", "remedy"),
    [("ledger.json", "Restore it from a copy"), ("speed.csv", "remove it, and `smolctl study`")],
)
def test_a_file_of_the_study_that_cannot_be_read_is_one_sentence(
    capsys, workdir, study, how, command, file, remedy
):
    reason = damage(study / file, how)
    code, out, err = run_main(capsys, *command)
    assert (code, out) == (2, ""), err
    assert len(err.splitlines()) == 1
    assert f"s/{file} cannot be read: {reason}" in err
    assert remedy in err
    assert str(workdir) not in err


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("file", ["documents.csv", "eval.csv"])
def test_a_run_whose_table_cannot_be_read_is_left_out_with_a_sentence(
    capsys, workdir, study, how, file
):
    reason = damage(study / "a-s1" / file, how)
    for name in COMMANDS if how is broken_link else ["compare"]:
        code, _, err = run_main(capsys, *COMMANDS[name])
        assert code == 0, err
        sentence = f"a-s1/{file} cannot be read: {reason}. a-s1 is excluded."
        assert [line for line in err.splitlines() if file in line] == [f"Warning: {sentence}"]


def test_a_pilot_says_which_of_its_runs_it_cannot_use(capsys, workdir, study, study_file):
    damage(study / "a-s1" / "eval.csv", folder)
    code, out, err = run_main(capsys, "plan", str(study_file), "--detect", "1", "--pilot", "s")
    assert (code, out) == (2, "")
    first, last = err.splitlines()
    assert first == "Warning: a-s1/eval.csv cannot be read: it is a folder. a-s1 is excluded."
    assert last.startswith("Error: These runs do not show how much the loss varies")


def test_a_study_goes_on_only_with_a_ledger_that_can_be_read(capsys, workdir, study_file):
    assert run_main(capsys, "study", str(study_file))[0] == 0
    for how in DAMAGES:
        reason = damage(Path("results/tinies/ledger.json"), how)
        code, out, err = run_main(capsys, "study", str(study_file))
        assert (code, out) == (2, "")
        assert err.startswith(f"Error: results/tinies/ledger.json cannot be read: {reason}. ")
        path = Path("results/tinies/ledger.json")
        if path.is_dir():
            (path / "file").unlink()
            path.rmdir()
