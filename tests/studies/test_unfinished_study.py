"""What `compare` and `report` say of a study that tunes, was stopped, or is named in part."""

from pathlib import Path

import pytest
from support.command import run_main
from support.compared import compared
from support.planted import planted

FILE = "smolctl study results/s/study.toml"


@pytest.fixture
def study(workdir) -> Path:
    """The folder of a study of three arms, of which nothing has run."""
    folder = workdir / "results/s"
    folder.mkdir(parents=True)
    arms = "".join(
        f'[arms.{name}]\nvariant = "{name}"\nseeds = [0, 1]\n'
        for name in ("pow2", "orig", "moe-160m")
    )
    train = '[train]\nscale = "nano"\nsteps = 10\n'
    (folder / "study.toml").write_text(f"{arms}{train}[tune]\nlr = 0.004\n")
    return folder


def said(capsys, *arguments: str) -> tuple[int, str]:
    """Exit code and stderr, without its line breaks."""
    code, _, err = run_main(capsys, *arguments)
    return code, " ".join(err.split())


@pytest.mark.parametrize("command", ["report", "compare pow2 orig", "compare"])
def test_a_study_that_tunes_says_how_far(capsys, study, template, monkeypatch, command):
    monkeypatch.setattr("smollm2.runs.run.LOCK_SECONDS", 0.01)
    sweep = {"role": "sweep"}
    for seed in (100, 101):
        planted(template, "pow2-lr0.004", seed, 5.0, arm="pow2", manifest=sweep)
    stopped = sweep | {"state": "stopped"}
    run = planted(template, "orig-lr0.004", 101, 5.0, arm="orig", manifest=stopped)
    so_far = "Study 's' is still tuning (2 of 45 runs so far); the runs that are compared come"
    arguments = [*command.split(), "--study", "s"]
    assert said(capsys, *arguments) == (2, f"Error: {so_far} after it. Continue: {FILE}")
    with run.writing():
        code, err = said(capsys, *arguments)
    assert code == 2
    assert f"after it. Another process is running it: wait, or share its work: {FILE}" in err


def test_finished_arms_of_a_stopped_study_are_compared(capsys, study, template):
    for seed in (0, 1):
        planted(template, "orig", seed, 5.0)
        planted(template, "moe-160m", seed, 5.1)
    planted(template, "pow2", 0, 5.0, manifest={"state": "stopped"})
    arms = ("pow2", "orig", "moe-160m")
    code, err = said(capsys, "compare", *arms, "--study", "s", "--section", "quality")
    assert code == 0
    state = "Study 's' has no finished run yet of pow2: without them the baseline is orig."
    assert f"{state} Continue: {FILE}" in err
    code, err = said(capsys, "compare", "pow2", "orig", "--study", "s")
    assert (code, err) == (
        2,
        f"Error: Study 's' has no finished run yet of pow2. Continue: {FILE}",
    )
    code, err = said(capsys, "eval", "pow2-s0", "--study", "s")
    assert err.endswith(f"continue it with {FILE}")


def test_a_run_that_the_study_does_not_plan_is_resumed_by_itself(capsys, study, template):
    planted(template, "orig", 0, 5.0)
    planted(template, "pow2", 7, 5.0, manifest={"state": "stopped"})
    _, err = said(capsys, "eval", "pow2-s7", "--study", "s")
    assert err.endswith("continue it with smolctl train --resume pow2-s7 --study s")


def test_without_arms_all_of_the_study_are_compared(capsys, study, template):
    for seed in (0, 1):
        for arm in ("orig", "moe-160m", "pow2"):
            planted(template, arm, seed, 5.0)
    found = compared(capsys)
    assert [arm["arm"] for arm in found["arms"]] == ["pow2", "orig", "moe-160m"]


@pytest.mark.parametrize(("typed", "shown"), [("pow2", "pow2 orig"), ("moe-160m", "pow2 moe-160m")])
def test_one_arm_gets_the_command_with_a_second(capsys, study, template, typed, shown):
    planted(template, "pow2", 0, 5.0)
    code, err = said(capsys, "compare", typed, "--study", "s")
    assert code == 2
    assert "Study 's' has pow2, orig, moe-160m: " in err
    assert f"smolctl compare {shown} --study s; without arms all of them are compared." in err


def test_the_name_of_the_study_is_checked_first(capsys, study, template):
    planted(template, "pow2", 0, 5.0)
    for arms in ([], ["pow2"], ["pow2", "orig"]):
        code, err = said(capsys, "compare", *arms, "--study", "ss")
        assert code == 2
        assert "results has no study 'ss'. Did you mean 's'?" in err
