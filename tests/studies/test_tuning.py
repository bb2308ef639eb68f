"""[tune]: a fine grid, the same for every arm, that grows while a best rate may lie beyond it."""

import json
import math
from types import SimpleNamespace

import pytest
from support.command import run_main
from support.tinies import runs_of

from smolctl.analysis.learning_rates import MOST_ADDED
from smolctl.analysis.run_metrics import tuning_loss
from smolctl.studies.plan import horizons, tuned_by, tuning_runs
from smolctl.studies.rate_search import chosen_rates, search
from smolctl.studies.runner import Session
from smolctl.studies.study_file import read_study, study_of
from smollm2.errors import RunError
from smollm2.runs.conditions import FINAL_VALIDATION

SEEDS = (100, 101, 102)


def tuning(**values):
    table = {"arms": ["orig", "pow2"], "train": {"steps": 10, "scale": "nano"}, "tune": values}
    return study_of(table, "x").tuning


def searched(plan, curves, known=lambda run: True):
    """The search where the loss of an arm at a rate is `curves[arm](log2 of the rate)`."""

    def runs_at(grid):
        return [
            SimpleNamespace(
                arm=arm, resolved=SimpleNamespace(recipe=SimpleNamespace(lr=rate), seed=seed)
            )
            for rate in grid
            for arm in curves
            for seed in plan.seeds
        ]

    def loss_of(run):
        return curves[run.arm](math.log2(run.resolved.recipe.lr)) if known(run) else None

    return search(plan, runs_at, loss_of)


def valley(best):
    """A loss with its minimum at the rate `best`."""
    return lambda log: (log - math.log2(best)) ** 2


def rates(found):
    return sorted({run.resolved.recipe.lr for run in found.runs})


# The file


def test_one_rate_is_a_grid_of_five_around_it():
    plan = tuning(lr=2e-3)
    assert plan.lr == (1e-3, 1.414e-3, 2e-3, 2.828e-3, 4e-3)
    assert plan.seeds == SEEDS
    assert tuning(lr=0.002).lr == plan.lr
    assert tuning().lr[2] == 3e-3  # that of the recipe


def test_rates_by_hand_may_be_rounded():
    assert tuning(lr=[2.8e-3, 2e-3, 1.4e-3]).lr == (1.4e-3, 2e-3, 2.8e-3)


def test_a_sweep_is_read_as_before_with_a_note(capsys):
    table = {"arms": ["orig", "pow2"], "train": {"steps": 10, "scale": "nano"}}
    plan = study_of(table | {"sweep": {"lr": [4e-3, 1e-3]}}, "x").tuning
    assert (plan.lr, plan.seeds, plan.grows) == ((4e-3, 1e-3), (100,), False)
    assert "[sweep] is read as before" in capsys.readouterr().err


# The grid


def test_a_best_rate_inside_the_grid_ends_the_search():
    found = searched(tuning(lr=2e-3), {"a": valley(2e-3), "b": valley(1.5e-3)})
    assert rates(found) == [1e-3, 1.414e-3, 2e-3, 2.828e-3, 4e-3]
    assert chosen_rates(found.losses) == {"a": 2e-3, "b": 1.414e-3}


def test_the_grid_grows_for_all_arms_until_no_best_rate_is_at_its_edge():
    found = searched(tuning(lr=2e-3), {"a": valley(2e-3), "b": valley(8e-3)})
    assert rates(found)[-4:] == [4e-3, 5.657e-3, 8e-3, 11.31e-3]
    assert rates(found)[0] == 1e-3
    assert found.losses["a"].keys() == found.losses["b"].keys()
    assert all(len(losses) == 3 for by_rate in found.losses.values() for losses in by_rate.values())
    assert chosen_rates(found.losses) == {"a": 2e-3, "b": 8e-3}


def test_both_edges_grow_at_once_up_to_a_bound():
    found = searched(tuning(lr=2e-3), {"a": valley(1e-9), "b": valley(1e9)})
    assert len(rates(found)) == 5 + 2 * MOST_ADDED
    assert rates(found)[0] == pytest.approx(1e-3 / 4, rel=1e-3)


def test_nothing_is_tried_beyond_a_rate_that_diverged():
    cliff = lambda log: math.inf if log > math.log2(3.9e-3) else -log  # noqa: E731
    found = searched(tuning(lr=2e-3), {"a": cliff})
    assert rates(found)[-1] == 4e-3
    assert chosen_rates(found.losses) == {"a": 2.828e-3}


def test_an_arm_that_diverges_everywhere_is_tried_at_smaller_rates():
    cliff = lambda log: math.inf if log > math.log2(0.6e-3) else log**2  # noqa: E731
    found = searched(tuning(lr=2e-3), {"a": cliff})
    assert rates(found)[0] < 0.6e-3
    assert chosen_rates(found.losses)["a"] < 0.6e-3
    with pytest.raises(RunError, match=r"at every learning rate from 0\.00025 to 0\.004"):
        chosen_rates(searched(tuning(lr=2e-3), {"a": lambda log: math.inf}).losses)


def test_a_search_that_is_continued_comes_to_the_same_grid():
    plan, curves, known = tuning(lr=2e-3), {"a": valley(2e-3), "b": valley(8e-3)}, set()
    tried = []
    while True:
        # One run after another ends, in the order in which they are planned.
        found = searched(plan, curves, lambda run: (run.arm, run.resolved.recipe.lr) in known)
        if found.losses is not None:
            break
        run = next(run for run in found.runs if (run.arm, run.resolved.recipe.lr) not in known)
        known.add((run.arm, run.resolved.recipe.lr))
        tried.append(len(rates(found)))
    assert rates(found) == rates(searched(plan, curves))
    assert tried == sorted(tried)


def test_a_sweep_never_grows():
    table = {"arms": ["orig", "pow2"], "train": {"steps": 10, "scale": "nano"}}
    plan = study_of(table | {"sweep": {"lr": [1e-3, 2e-3]}}, "x").tuning
    assert rates(searched(plan, {"a": valley(1e9)})) == [1e-3, 2e-3]


def test_a_control_has_the_rate_of_the_arm_that_it_repeats():
    table = {
        "arms": {
            "orig": "orig",
            "again": {"variant": "orig", "seeds": [10, 11], "data_seeds": [0, 1]},
            "other": {"variant": "orig", "set": ["n_layers=8"]},
            "pow2": "pow2",
        },
        "seeds": [0, 1],
        "train": {"steps": 10, "scale": "nano"},
        "tune": {},
    }
    study = study_of(table, "x")
    configs = horizons(study, {})
    assert tuned_by(configs) == {"orig": "orig", "again": "orig", "other": "other", "pow2": "pow2"}
    runs = tuning_runs(study.tuning, study.tuning.lr, study, configs)
    assert {run.arm for run in runs} == {"orig", "other", "pow2"}


# The study


@pytest.mark.parametrize("diverged", [True, False])
def test_a_failed_run_of_the_tuning_is_a_result_only_if_it_diverged(
    monkeypatch, study_file, diverged
):
    with study_file.open("a") as file:
        file.write("[tune]\nlr = [1e-3, 1.4e-3]\n")
    session = Session(read_study(study_file), study_file.parent / "results")
    planned = session.tuned().runs[0]
    session.claim(planned).update(state="failed", error="The disk was full.", diverged=diverged)
    session.failed[planned.name] = "The disk was full."
    assert session.loss_of(planned) == (math.inf if diverged else None)
    if not diverged:
        monkeypatch.setattr(Session, "train_all", lambda self, runs: None)
        with pytest.raises(RunError, match=r"failed without having diverged: The disk was full\."):
            session.tune()


def test_a_study_grows_its_grid_and_trains_at_the_best_rates(
    capsys, monkeypatch, workdir, study_file
):
    added = 2  # two arms and three seeds each
    monkeypatch.setattr("smolctl.studies.rate_search.MOST_ADDED", added)
    with study_file.open("a") as file:
        file.write("[tune]\nlr = 1e-4\n")  # too small: 6 steps learn most at the highest
    code, _, err = run_main(capsys, "study", str(study_file))
    assert code == 0, err
    assert "The best rate of an arm may lie beyond the grid, which grows" in err
    runs = runs_of(workdir).values()
    tried = {
        arm: {run.protocol.recipe.lr for run in runs if run.arm == arm and run.role == "sweep"}
        for arm in ("two", "three")
    }
    assert tried["two"] == tried["three"]
    assert len(tried["two"]) == 5 + added
    final = {run.protocol.recipe.lr for run in runs if run.role == "final"}
    assert final == {max(tried["two"])}
    before = sorted(run.name for run in runs)
    code, out, _ = run_main(capsys, "study", str(study_file), "--dry-run", "--json")
    assert code == 0
    assert json.loads(out)["seconds_left"] == 0
    # Once rates are chosen, they stay, even where today's rule would add rates.
    monkeypatch.setattr("smolctl.studies.rate_search.MOST_ADDED", added + 1)
    other = Session(read_study(study_file), workdir / "results")
    assert sorted(run.name for run in other.planned()) == before


def test_a_run_is_judged_by_all_validation_documents_if_it_scored_them(plant):
    run = plant("orig", 0)
    rows = run.rows("val")
    assert tuning_loss(run) == float(rows[-1]["loss"])
    table = run.rows("eval")
    table.append(table[0] | {"suite": FINAL_VALIDATION, "metric": "loss", "value": 3.5})
    run.replace("eval", table)
    assert tuning_loss(run) == 3.5
