"""A size ladder: one study file, repeated at several sizes."""

import json
import math
import shutil
import tomllib
from pathlib import Path

import pytest
from support.command import run_main
from support.planted import planted

from smolctl.studies.ladder import rungs_of, sessions_of, with_rates
from smolctl.studies.pilot import pilot_of
from smolctl.studies.runner import Session
from smolctl.studies.study_file import study_of, to_toml
from smollm2.errors import UserError
from smollm2.model.config import variant
from smollm2.model.cost import parameters
from smollm2.runs.run import list_runs

TABLE = {
    "arms": {"orig": "orig", "pow2": "pow2-135m"},
    "train": {"scale": "nano"},
    "ladder": {"sizes": ["0.5M", "1M", "2M"]},
}


def rungs(**changes):
    return rungs_of(study_of(TABLE | changes, "x"))


def ladder(**changes):
    return {"ladder": TABLE["ladder"] | changes}


def test_every_size_is_a_study_of_its_own_that_can_be_read_again():
    found = rungs(tune={}, margin=0.01)
    assert [one.name for one in found] == ["x-0.5m", "x-1m", "x-2m"]
    for one, size in zip(found, (0.5e6, 1e6, 2e6), strict=True):
        for arm in one.arms:
            model = variant(arm.config.variant, "nano", arm.config.settings)
            assert parameters(model).non_embedding == pytest.approx(size, rel=0.05)
            assert arm.config.steps == round(20 * size / 1024)
        assert one.tuning is not None
        assert study_of(tomllib.loads(to_toml(one)), one.name) == one
        assert rungs_of(one) == (one,)
        assert pilot_of(one).ladder is None


def test_a_study_without_a_ladder_is_its_only_rung():
    study = study_of({"arms": ["orig", "pow2"], "train": {"steps": 5}}, "x")
    assert rungs_of(study) == (study,)


def test_settings_of_an_arm_that_are_no_dimensions_are_kept():
    arms = {"a": "orig", "b": {"variant": "orig", "set": ["n_layers=8", "weight_decay=0.3"]}}
    settings = rungs(arms=arms)[0].arms[1].config.settings
    assert settings[0] == "weight_decay=0.3"
    assert len(settings) == len({text.partition("=")[0] for text in settings}) == 6


def test_transferred_rates_are_scaled_by_the_width_and_checked_by_a_grid_around_them():
    smallest, middle, largest = rungs(tune={}, **ladder(rate="transfer"))
    rates = {"orig": 0.004, "pow2": 0.003}
    assert middle.tuning is None
    all_three = (smallest, middle, largest)
    assert with_rates(middle, all_three, {}) == middle
    assert with_rates(smallest, all_three, rates) == smallest
    # Half-way to the rates below, in log size.
    rated = with_rates(middle, all_three, rates)
    halves = [(0.004 * 0.002828) ** 0.5, (0.003 * 0.002) ** 0.5]
    assert [arm.config.lr for arm in rated.arms] == pytest.approx(halves, rel=1e-3)
    assert study_of(tomllib.loads(to_toml(rated)), rated.name) == rated
    # From d_model 72 to 120 and 96: 0.0024 and 0.00225, so 0.002828 and 0.002, with two rates on
    # either side.
    checked = with_rates(largest, all_three, rates)
    assert checked.tuning.lr == (0.001, 0.001414, 0.002, 0.002828, 0.004, 0.005657)
    assert [arm.config.lr for arm in checked.arms] == [None, None]
    assert study_of(tomllib.loads(to_toml(checked)), checked.name) == checked


def test_the_size_that_checks_the_rule_can_be_named():
    smallest, middle, largest = rungs(tune={}, **ladder(rate="transfer", check="1M"))
    assert middle.tuning is not None
    assert largest.tuning is None
    rates, all_three = {"orig": 0.004, "pow2": 0.004}, (smallest, middle, largest)
    assert with_rates(middle, all_three, rates).tuning.lr[2] == 0.002828
    # Twice as far, in log size.
    beyond = [arm.config.lr for arm in with_rates(largest, all_three, rates).arms]
    assert beyond == pytest.approx([0.004 * 0.5] * 2, rel=1e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (ladder(sizes=["1M"]), "takes sizes = "),
        (ladder(sizes="1M"), "takes sizes = "),
        ({"ladder": {}}, "takes sizes = "),
        ({"ladder": 3}, "ladder must be a table"),
        (ladder(sizes=["2M", "1M"]), "the sizes of [ladder] ascend"),
        (ladder(sizes=["1M", "1M"]), "the sizes of [ladder] ascend"),
        (ladder(sizes=["1M", "2"]), "is a number of parameters such as \"0.5M\", not '2'"),
        (ladder(sizes=[500000, "1M"]), 'is a number of parameters such as "0.5M", not 500000'),
        (ladder(sizes=["0M", "1M"]), "is a number of parameters"),
        (ladder(sizes=["1M", "99999B"]), "is a number of parameters"),
        (ladder(sizes=["-1M", "1M"]), "is a number of parameters"),
        (ladder(tokens_per_parameter=0), "tokens_per_parameter of [ladder] is a positive number"),
        (
            ladder(tokens_per_parameter=float("nan")),
            "tokens_per_parameter of [ladder] is a positive number",
        ),
        (ladder(tokens_per_parameter="many"), "tokens_per_parameter of [ladder] takes a number"),
        (ladder(rate="guess"), 'takes "tune" or "transfer"'),
        (ladder(rate="transfer"), "give the study file a [tune]"),
        (ladder(rate="transfer") | {"sweep": {"lr": [1e-3, 4e-3]}}, "give the study file a [tune]"),
        (ladder(check="0.5M"), "one of its sizes above the smallest (1M, 2M)"),
        (ladder(check="3M"), "one of its sizes above the smallest"),
        (ladder(at="big"), "at of [ladder] is a number of parameters"),
        (ladder(rung="1M"), "only the file of one of its sizes has them"),
        (ladder(name="x", rung="3M"), "only the file of one of its sizes has them"),
        (ladder(size=["1M"]), "unknown key 'size' in [ladder]. Did you mean 'sizes'?"),
        (ladder(sizes=["1k", "1M"]), "The nearest sizes that fit all arms: "),
        ({"train": {"scale": "nano", "steps": 9}}, "[train] has steps, and the steps of a ladder"),
        ({"train": {"scale": "nano", "tokens": 9e6}}, "omit tokens"),
        (
            {"arms": {"a": "orig", "b": {"variant": "orig", "set": ["n_layers=14"]}}},
            "at 0.5M parameters arms 'a' and 'b' are rounded to the same shape",
        ),
    ],
)
def test_a_wrong_ladder_is_refused(changes, message):
    with pytest.raises(UserError) as raised:
        rungs(**changes)
    assert message in str(raised.value)


@pytest.fixture
def timed(monkeypatch) -> None:
    """Steps that take a tenth of a second, without timing any."""
    seconds = {"two": 0.1, "three": 0.1}
    monkeypatch.setattr("smolctl.studies.step_times.measure", lambda study, data: seconds)


@pytest.fixture
def ladder_file(workdir, variants, study_file) -> Path:
    """The tiny study at two sizes, 6 and 9 steps; its variant is in the current directory."""
    shutil.copy(variants / "tiny.toml", workdir)
    text = study_file.read_text().replace("steps = 6\n", "").replace(f"{variants}/", "")
    study_file.write_text(
        text + '\n[ladder]\nsizes = ["20k", "30k"]\ntokens_per_parameter = 0.02\nat = "1M"\n'
    )
    return study_file


def test_a_size_that_does_not_fit_is_exit_code_2(capsys, workdir, ladder_file):
    ladder_file.write_text(ladder_file.read_text().replace("20k", "1k"))
    code, out, err = run_main(capsys, "study", str(ladder_file))
    assert (code, out) == (2, "")
    assert "no model of 1k non-embedding parameters" in " ".join(err.split())
    assert not (workdir / "results").exists()


def test_a_ladder_runs_from_the_smallest_size_and_continues(capsys, workdir, ladder_file, timed):
    code, out, err = run_main(capsys, "study", str(ladder_file), "--dry-run", "--json")
    assert code == 0, err
    plan = json.loads(out)["rungs"]
    assert [(one["study"], one["runs"][0]["steps"]) for one in plan] == [
        ("tinies-20k", 6),
        ("tinies-30k", 9),
    ]
    assert not (workdir / "results" / "tinies-20k").exists()

    code, _, err = run_main(capsys, "study", str(ladder_file))
    assert code == 0, err
    where = "compare two three --section ladder --study tinies-30k"
    assert f"smolctl {where}" in err
    for name, steps in (("tinies-20k", 6), ("tinies-30k", 9)):
        runs, _ = list_runs(Path("results"), name)
        assert len(runs) == 4
        assert {run.protocol.steps for run in runs} == {steps}
        assert Path("results", name, "ledger.json").exists()
    before = sorted(workdir.rglob("*"))
    kept = Path("results/tinies-30k/study.toml")
    assert run_main(capsys, "study", str(ladder_file))[0] == 0
    assert run_main(capsys, "study", str(kept))[0] == 0
    assert sorted(workdir.rglob("*")) == before

    code, out, err = run_main(capsys, *where.split())
    assert code == 0, err
    assert "is unknown" in out
    assert "is unknown: 20k and 30k lack learning rates" in " ".join(out.split())
    code, out, err = run_main(capsys, *where.split(), "--json")
    assert code == 0, err
    found = json.loads(out)["ladder"]
    assert (found["at"], found["extrapolated"]) == ("1M", True)
    assert found["arms"]["three"]["trend"] == "unknown"
    assert "tuning" in found["arms"]["three"]["missing"]


def test_rates_of_the_smallest_size_reach_the_others(workdir, ladder_file, monkeypatch):
    text = ladder_file.read_text() + 'rate = "transfer"\n[tune]\n'
    ladder_file.write_text(text.replace('"30k"', '"30k", "50k"'))
    unknown = list(sessions_of(ladder_file, Path("results")))
    assert [bool(one.study.tuning) for one in unknown] == [True, False, True]
    rates = {"two": 0.004, "three": 0.004}
    monkeypatch.setattr(Session, "rates", lambda self: rates)
    first, second, third = sessions_of(ladder_file, Path("results"))
    assert [arm.config.lr for arm in first.study.arms] == [None, None]
    reach = math.log(30 / 20) / math.log(50 / 20)
    expected = 0.004 * (0.002828 / 0.004) ** reach
    assert [arm.config.lr for arm in second.study.arms] == pytest.approx([expected] * 2, rel=1e-3)
    assert third.study.tuning.lr[2] == 0.002828


def test_plan_says_what_every_size_takes(capsys, workdir, ladder_file, template, timed):
    for seed, extra in enumerate((-0.1, 0.0, 0.1)):
        planted(template, "a", seed, 5.0 + seed)
        planted(template, "b", seed, 5.0 + seed + extra)
    command = ("plan", str(ladder_file), "--detect", "0.1", "--pilot", "s")
    code, out, err = run_main(capsys, *command)
    assert code == 0, err
    assert out.index("tinies-20k") < out.index("tinies-30k")
    assert "All sizes as they are" in err
