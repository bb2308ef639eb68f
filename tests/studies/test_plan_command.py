"""`smolctl plan` and `compare --detect`: seeds, runs and hours before the first run."""

import json
from pathlib import Path

import pytest
from support.command import run_main
from support.planted import FLOORS, plan, planted
from support.tinies import runs_of

from smolctl.studies.pilot import pilot_of
from smolctl.studies.study_file import study_of
from smollm2.runs.run import list_runs


@pytest.fixture
def earlier(workdir, template) -> None:
    """Study `s`: two arms, three blocks, differences within seeds of -0.1, 0 and 0.1."""
    for seed, extra in enumerate((-0.1, 0.0, 0.1)):
        planted(template, "a", seed, 5.0 + seed)
        planted(template, "b", seed, 5.0 + seed + extra)
    plan(workdir / "results/s", blocked=True)


def planned(capsys, study_file, *options) -> dict:
    code, out, err = run_main(capsys, "plan", str(study_file), *options, "--json")
    assert code == 0, err
    return json.loads(out)


def test_the_spread_of_an_earlier_study_says_how_many_seeds(capsys, workdir, study_file, earlier):
    found = planned(capsys, study_file, "--detect", "0.1", "--pilot", "s")
    assert found["spread"] == pytest.approx(0.1)
    assert (found["spread_degrees_of_freedom"], found["blocked"], found["pilot"]) == (2, True, "s")
    assert found["needed"]["seeds"] == 10
    assert found["needed"]["final_runs"] == 20
    assert found["present"]["seeds"] == 2
    assert found["needed"]["minimum_detectable"] <= 0.1 < found["present"]["minimum_detectable"]
    assert found["needed"]["hours"] == pytest.approx(5 * found["present"]["hours"], rel=1e-6)
    assert found["seeds_if_spread_is_upper"] > 10
    assert runs_of(workdir) == {}


def test_the_next_step_is_the_study_file_with_more_seeds(capsys, workdir, study_file, earlier):
    with study_file.open("a") as file:
        file.write("[tune]\n")
    command = ("plan", str(study_file), "--pilot", "s", "--detect")
    code, out, err = run_main(capsys, *command, "0.1")
    assert code == 0, err
    assert "the same with the tuning gaps" in out
    assert "30" in out  # 2 arms, 5 rates, 3 seeds
    needed = json.loads(run_main(capsys, *command, "0.1", "--json")[1])["needed"]
    assert needed["seeds"] > 10  # which seeds alone would take
    assert needed["tuning_runs"] == 2 * 5 * needed["tuning_seeds"] > 30
    assert needed["minimum_detectable"] < needed["detectable_with_tuning"] <= 0.1
    assert f"Write seeds = {[100 + n for n in range(needed['tuning_seeds'])]} below [tune]" in err
    study_file.write_text(study_file.read_text() + "seeds = [7, 8, 9]\n")  # the user's own stay
    err = run_main(capsys, *command, "0.1")[2]
    own = [7 + n for n in range(needed["tuning_seeds"])]
    assert f"Write seeds = {own} below [tune]" in err
    seeds = [seed for seed in range(1000) if seed not in own][: needed["seeds"]]
    assert f"write seeds = {seeds} into {study_file}, then smolctl study" in err
    assert "rough" not in err
    assert "The runs of the pilot are of another kind, and may vary otherwise: steps: 10" in err
    code, _, err = run_main(capsys, *command, "9")
    assert code == 0
    assert "The file has enough final seeds. Next: smolctl study" in err
    assert "below [tune]" not in err


def test_a_pilot_that_a_trigram_beats_is_warned_about(capsys, workdir, study_file, template):
    floors = {"floors": FLOORS | {"trigram": 4.5}}
    for seed in (0, 1, 2):
        planted(template, "a", seed, 4.0 + 0.1 * seed, manifest=floors)
        planted(template, "b", seed, 5.0, manifest=floors)
    plan(workdir / "results/s", blocked=True)
    code, _, err = run_main(capsys, "plan", str(study_file), "--detect", "0.5", "--pilot", "s")
    assert code == 0, err
    assert "b has a test loss of 5.000, and a trigram model counted on as many tokens 4.500" in err
    assert "a has a test loss" not in err


def test_a_pilot_of_its_own_is_short_and_no_result_of_the_study(capsys, workdir, study_file):
    study_file.write_text(study_file.read_text().replace("steps = 6", "steps = 12"))
    code, _, err = run_main(capsys, "plan", str(study_file), "--detect", "0.5")
    assert code == 0, err
    assert "take these numbers as rough" in err
    runs, _ = list_runs(Path("results"), "tinies-pilot")
    assert len(runs) == 6
    assert {run.protocol.steps for run in runs} == {3}
    assert {run.protocol.data_seed for run in runs} == {2, 3, 4}
    assert len({run.protocol.seed for run in runs}) == 6
    assert not Path("results/tinies").exists()
    before = sorted(workdir.rglob("*"))
    assert run_main(capsys, "plan", str(study_file), "--detect", "0.5")[0] == 0
    assert sorted(workdir.rglob("*")) == before


def test_the_pilot_of_a_control_has_runs_that_differ():
    again = {"variant": "pow2", "seeds": [10, 11], "data_seeds": [0, 1]}
    table = {"arms": {"a": "pow2", "again": again}, "seeds": [0, 1]}
    table |= {"train": {"steps": 100, "scale": "nano"}, "tune": {}}
    pilot = pilot_of(study_of(table, "x" * 100))
    one, two = pilot.arms
    assert not set(one.seeds) & set(two.seeds)
    assert one.orders == two.orders == (103, 104, 105)
    assert (pilot.tuning, pilot.is_blocked, one.config.steps) == (None, True, 25)
    assert len(pilot.name) == 100


def test_a_pilot_compares_models_rather_than_a_model_with_its_control():
    again = {"variant": "pow2", "seeds": [10, 11], "data_seeds": [0, 1]}
    table = {"arms": {"a": "pow2", "again": again, "orig": "orig"}, "seeds": [0, 1]}
    table |= {"train": {"steps": 100, "scale": "nano"}}
    assert [arm.name for arm in pilot_of(study_of(table, "x")).arms] == ["a", "orig"]


def test_a_larger_spread_takes_more_seeds_also_with_tuning(capsys, workdir, study_file, earlier):
    with study_file.open("a") as file:
        file.write("[tune]\n")
    found = planned(capsys, study_file, "--detect", "0.5", "--pilot", "s")
    upper = found["seeds_if_spread_is_upper"], found["tuning_seeds_if_spread_is_upper"]
    needed = found["needed"]["seeds"], found["needed"]["tuning_seeds"]
    assert all(more >= fewer for more, fewer in zip(upper, needed, strict=True))
    assert sum(upper) > sum(needed)


def test_seeds_that_come_after_results_are_warned_about(capsys, workdir, study_file, earlier):
    assert run_main(capsys, "study", str(study_file))[0] == 0
    code, _, err = run_main(capsys, "plan", str(study_file), "--detect", "0.1", "--pilot", "s")
    assert code == 0
    assert "has 4 results: seeds that are added now make its verdicts exploratory" in err
    err = run_main(capsys, "plan", str(study_file), "--detect", "9", "--pilot", "s")[2]
    assert "The file has enough final seeds." in err  # no reason to start over
    assert "Copy the file" not in err
    err = run_main(capsys, "plan", str(study_file), "--detect", "0.1", "--pilot", "s")[2]
    other = study_file.with_name(f"{study_file.stem}-2.toml")
    assert f"Copy the file to {other} first" in err
    assert f"into {other}, then smolctl study {other}" in err


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--detect", "0", "--pilot", "s"], "--detect: a difference to find is a positive number"),
        (["--detect", "nan", "--pilot", "s"], "positive number of nats/token such as 0.01"),
        (["--detect", "1e-9", "--pilot", "s"], "takes more than 10,000 seeds an arm"),
        (["--detect", "inf", "--pilot", "s"], "--detect: a difference to find is a positive"),
        (["--detect", "-1", "--pilot", "s"], "--detect: a difference to find is a positive"),
        (["--detect", "0.1", "--pilot", "t"], "results has no study 't'. It has s, single."),
        (["--detect", "0.1", "--pilot", ""], "results has no study ''. It has s, single."),
        (["--detect", "0.1", "--pilot", "../results"], "has no study '../results'"),
        (["--detect", "0.1", "--pilot", "single"], "it takes two arms that share two seeds"),
    ],
)
def test_what_cannot_be_planned_is_said(
    capsys, workdir, study_file, earlier, template, options, sentence
):
    planted(template, "a", 0, 5.0, study="single")
    planted(template, "b", 0, 5.0, study="single")
    before = sorted(workdir.rglob("*"))
    code, out, err = run_main(capsys, "plan", str(study_file), *options)
    assert (code, out) == (2, ""), err
    assert sentence in err
    assert sorted(workdir.rglob("*")) == before


def test_compare_says_how_many_seeds_it_would_take(capsys, workdir, earlier):
    command = ("compare", "a", "b", "--study", "s", "--detect")
    code, out, err = run_main(capsys, *command, "0.1")
    assert code == 0, err
    said = "To find a true difference of 0.1 nats/token four times in five: 10 seeds an arm, if "
    assert f"{said}their rates are equally good." in " ".join(out.split())
    found = json.loads(run_main(capsys, *command, "0.1", "--json")[1])
    assert found["detect"] == {"difference": 0.1, "seeds": 10, "tuning_seeds": None}
    code, _, err = run_main(capsys, *command, "-1")
    assert code == 2
    assert "--detect: a difference to find is a positive number" in err


@pytest.mark.parametrize("options", [[], ["--json"]])
@pytest.mark.parametrize(
    ("detect", "study", "sentence"),
    [
        ("1e-9", "s", "--detect: A difference of 1e-09 takes more than 10,000 seeds an arm"),
        ("0.1", "single", "it takes two seeds of an arm"),
    ],
)
def test_compare_prints_nothing_where_it_cannot_say_how_many_seeds(
    capsys, workdir, earlier, template, options, detect, study, sentence
):
    planted(template, "a", 0, 5.0, study="single")
    planted(template, "b", 0, 5.0, study="single")
    before = sorted(workdir.rglob("*"))
    command = ("compare", "a", "b", "--study", study, "--detect", detect)
    code, out, err = run_main(capsys, *command, *options)
    assert (code, out) == (2, "")
    assert err.startswith("Error: ")
    assert sentence in err
    assert sorted(workdir.rglob("*")) == before


def test_a_plan_stands_where_the_upper_end_of_the_spread_takes_too_many_seeds(
    capsys, workdir, study_file, earlier
):
    command = ("plan", str(study_file), "--pilot", "s", "--detect", "0.005")
    code, _, err = run_main(capsys, *command)
    assert code == 0, err
    assert "which such runs do not rule out, more than 10,000 seeds are needed." in err
    found = json.loads(run_main(capsys, *command, "--json")[1])
    assert 1000 < found["needed"]["seeds"] < 10_000
    assert found["seeds_if_spread_is_upper"] is None


def test_a_study_file_is_read_before_the_pilot_runs(capsys, workdir, study_file):
    study_file.write_text(study_file.read_text().replace("steps", "stepps"))
    code, _, err = run_main(capsys, "plan", str(study_file), "--detect", "0.1")
    assert code == 2
    assert "Did you mean 'steps'?" in err
