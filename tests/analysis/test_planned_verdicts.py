"""Verdicts and the plan of their study: what counts is what was written before the first result."""

import dataclasses
import shutil
from pathlib import Path

import pytest
from support.compared import compared, primary
from support.planted import plan, plant_tuning, planted, rescore

from smolctl.analysis.learning_rates import stepped
from smolctl.analysis.study_plan import PlanChange, PlannedResult, TuningPlan, read_ledger
from smolctl.studies.ledger import record_results, require_same_results, write_ledger
from smollm2.errors import UserError
from smollm2.runs.manifest import now
from smollm2.runs.run import Run, list_runs


def record_all() -> None:
    """Add the results of all runs to the ledger."""
    record_results(Path("results/s"), list_runs(Path("results"), "s")[0])


def planted_ab(template, difference: float = -0.1) -> None:
    """Two arms of one model, three seeds each."""
    for seed in range(3):
        planted(template, "a", seed, 5.0 + 0.001 * seed)
        planted(template, "b", seed, 5.0 + difference + 0.002 * seed)


def test_a_verdict_against_another_base_than_planned_is_exploratory(capsys, workdir, template):
    planted_ab(template)
    assert not primary(compared(capsys, "a", "b"))["b"]["exploratory"]
    found = compared(capsys, "b", "a")
    assert primary(found)["a"]["exploratory"]
    assert any(
        "another tuning than planned, or another first arm make" in text
        for text in found["conclusion"]
    )
    (Path("results/s") / "ledger.json").unlink()
    found = compared(capsys, "a", "b")
    assert "No plan was written before the first result" in " ".join(found["conclusion"])


def test_a_run_that_was_trained_again_makes_a_verdict_exploratory(capsys, workdir, template):
    planted_ab(template)
    study = Path("results/s")
    plan(study)  # records nothing
    ledger = read_ledger(study)
    first = PlannedResult("b", 0, "2000-01-01T00:00:00+00:00", 5.0)
    write_ledger(study, dataclasses.replace(ledger, results={"b-s0": first}))
    found = compared(capsys, "a", "b")
    assert primary(found)["b"]["exploratory"]
    assert any("trained again: b-s0" in text for text in found["excluded"])


def test_between_looks_there_is_no_verdict_however_the_runs_depart_from_the_plan(
    capsys, workdir, template
):
    planted_ab(template)
    study = Path("results/s")
    plan(study, seeds=dict.fromkeys("ab", (0, 1, 2, 3)), looks=(2, 4))
    assert primary(compared(capsys, "a", "b"))["b"]["missing"] == ["seeds"]
    assert primary(compared(capsys, "b", "a"))["a"]["missing"] == ["seeds"]  # another first arm


def test_the_margin_is_that_of_the_plan(capsys, workdir, template):
    planted_ab(template, 0.0)
    plan(Path("results/s"), margin=0.5)
    (Path("results/s") / "study.toml").write_text("margin = 0.001\n")
    ledger = read_ledger(Path("results/s"))
    later = PlanChange(now(), 6, dataclasses.replace(ledger.plan, margin=0.001))
    write_ledger(Path("results/s"), dataclasses.replace(ledger, changes=(later,)))
    found = compared(capsys, "a", "b")
    assert any("plan was changed after 6 results" in text for text in found["excluded"])
    assert primary(found)["b"]["verdict"] == "equivalent"
    assert found["verdicts"][0]["margin"] == 0.5
    assert "is equivalent to a within 0.5 nats/token" in found["conclusion"][0]


def test_a_run_that_failed_otherwise_is_not_an_outcome(capsys, workdir, template):
    planted_ab(template)
    for diverged in (False, True):
        failed = {"state": "failed", "error": "Full.", "diverged": diverged}
        Run(Path("results/s/a-s2")).update(**failed)
        found = primary(compared(capsys, "a", "b"))["b"]
        # Diverged, the base is worse and all are there; else a planned seed is still missing.
        assert (found["verdict"], found["missing"]) == (
            ("better", []) if diverged else ("inconclusive", ["seeds"])
        )


def test_a_result_that_is_not_that_of_the_ledger_allows_no_verdict(capsys, workdir, template):
    planted_ab(template)
    record_all()
    assert primary(compared(capsys, "a", "b"))["b"]["verdict"] == "better"
    rescore(Run(Path("results/s/b-s1")), 7.0)
    found = primary(compared(capsys, "a", "b"))["b"]
    assert (found["verdict"], found["missing"]) == ("inconclusive", ["seeds"])
    with pytest.raises(UserError, match="b-s1 of study 's' has another test loss"):
        require_same_results("s", Path("results/s"), list_runs(Path("results"), "s")[0])


def test_what_an_arm_waits_for_is_said_of_its_pair(capsys, workdir, template):
    planted_ab(template, 0.0)
    planted(template, "c", 0, 5.0)
    plan(Path("results/s"), seeds={"a": (0, 1, 2), "b": (0, 1, 2), "c": (0, 1, 2)})
    text = " ".join(compared(capsys, "a", "b", "c")["conclusion"])
    assert "the interval leaves the sign open" in text


def judged_as(row: dict) -> tuple:
    """All that a verdict says."""
    names = ("verdict", "missing", "exploratory", "confidence", "interval", "widened")
    return tuple(row[name] for name in names)


def test_a_subset_of_the_arms_is_judged_by_the_plan_of_all(capsys, workdir, template):
    planted_ab(template)
    planted(template, "c", 0, 5.0)
    for seed in range(5):
        planted(template, "d", seed, 4.9 + 0.001 * seed)
    study = Path("results/s")
    plan(study, looks=(3, 5))
    every = primary(compared(capsys, "a", "b", "c", "d"))
    of_few = compared(capsys, "a", "b")
    few = primary(of_few)
    assert "The 3 verdicts of the study at 2 looks hold together" in " ".join(of_few["conclusion"])
    assert every["b"]["confidence"] == 1 - 0.05 / 3 / 2
    assert judged_as(few["b"]) == judged_as(every["b"])
    assert few["b"]["verdict"] == "better"
    assert not few["b"]["exploratory"]
    # What became of one arm is no matter of another's.
    ledger = read_ledger(study)
    first = PlannedResult("c", 0, "2000-01-01T00:00:00+00:00", 5.0)
    write_ledger(study, dataclasses.replace(ledger, results={"c-s0": first}))
    every = primary(compared(capsys, "a", "b", "c", "d"))
    assert judged_as(every["b"]) == judged_as(few["b"])
    assert every["c"]["exploratory"]


def test_an_arm_that_the_plan_lacks_makes_intervals_wider_where_it_is_shown(
    capsys, workdir, template
):
    planted_ab(template)
    for seed in range(3):
        planted(template, "c", seed, 4.9 + 0.001 * seed)
    plan(Path("results/s"), seeds={"a": (0, 1, 2), "b": (0, 1, 2)})
    assert primary(compared(capsys, "a", "b"))["b"]["confidence"] == 0.95
    for arms in (("a", "b", "c"), ("a", "c")):
        found = primary(compared(capsys, *arms))
        assert {row["confidence"] for row in found.values()} == {0.975}
        assert [row["exploratory"] for row in found.values()] == [arm == "c" for arm in arms[1:]]


def test_without_a_plan_the_shown_arms_are_the_family(capsys, workdir, template):
    planted_ab(template)
    for seed in range(3):
        planted(template, "c", seed, 4.9 + 0.001 * seed)
    (Path("results/s") / "ledger.json").unlink()
    for arms in (("a", "b", "c"), ("a", "b")):
        found = primary(compared(capsys, *arms))
        assert {row["confidence"] for row in found.values()} == {1 - 0.05 / len(found)}
        assert all(row["exploratory"] for row in found.values())


def test_a_control_needs_no_tuning_of_its_own(capsys, workdir, template):
    """It has the tuning of the arm that it repeats, also beside another model."""
    for seed in range(3):
        planted(template, "a", seed, 5.0 + 0.001 * seed)
        planted(template, "a-again", seed + 10, 5.0 + 0.001 * seed)
        planted(template, "b", seed, 4.0 + 0.002 * seed, model={"d_ff": 72})
    plant_tuning(template, "b", model={"d_ff": 72})
    assert primary(compared(capsys, "a-again", "b"))["b"]["verdict"] == "inconclusive"
    plant_tuning(template, "a")
    found = primary(compared(capsys, "a", "a-again", "b"))
    assert (found["a-again"]["base_tuning_gap"], found["a-again"]["tuning_gap"]) == (0, 0)
    assert found["b"]["verdict"] == "better"
    assert min(found["b"]["base_tuning_gap"], found["b"]["tuning_gap"]) > 0
    assert primary(compared(capsys, "a-again", "b"))["b"]["verdict"] == "better"


def remove(run: Path) -> None:
    shutil.rmtree(run)


def cut_off(run: Path) -> None:
    table = run / "documents.csv"
    table.write_text(table.read_text()[:-20])


@pytest.mark.parametrize("spoil", [remove, cut_off])
def test_an_earlier_look_cannot_be_made_by_spoiling_runs(capsys, workdir, template, spoil):
    for seed in range(8):
        planted(template, "a", seed, 5.0 + 0.001 * (seed % 3))
        planted(template, "b", seed, (4.9 if seed < 3 else 5.1) + 0.002 * (seed % 3))
    plan(Path("results/s"), looks=(3, 8))
    record_all()
    assert primary(compared(capsys, "a", "b"))["b"]["missing"] == ["seeds"]  # its sign is open
    for arm in "ab":
        for seed in range(3, 8):
            spoil(Path(f"results/s/{arm}-s{seed}"))
    found = compared(capsys, "a", "b")
    verdict = primary(found)["b"]
    assert verdict["interval"][1] < 0
    assert (verdict["verdict"], verdict["missing"]) == ("inconclusive", ["seeds"])
    text = " ".join(found["conclusion"])
    assert "ledger.json has results of a-s3, a-s4, a-s5, a-s6, a-s7, b-s3" in text
    assert "not among the judged runs: restore these runs, or start the study over under" in text


def test_a_lost_result_of_another_arm_or_of_no_plan_is_no_matter(capsys, workdir, template):
    planted_ab(template)
    for name, seed in (("c", 0), ("c", 1), ("b", 99)):
        planted(template, name, seed, 5.0)
    plan(Path("results/s"), seeds=dict.fromkeys("abc", (0, 1, 2)))
    record_all()
    for run in ("c-s0", "b-s99"):
        remove(Path("results/s") / run)
    found = primary(compared(capsys, "a", "b", "c"))
    assert found["b"]["verdict"] == "better"
    assert found["c"]["missing"] == ["seeds"]


@pytest.mark.parametrize(
    ("added", "grows", "expected"),
    [
        ((), True, True),
        ((-1,), True, True),
        ((-1, -2, 1), True, True),
        ((-1, -2, -3, -4), True, True),
        ((-1, -2, -3, -4, -5), True, False),
        ((-2,), True, False),  # the one between is gone
        ((1, 3), True, False),
        ((-1,), False, False),
    ],
)
def test_a_tuning_has_the_rates_that_its_grid_can_have_grown_by(added, grows, expected):
    rates = (1e-3, stepped(1e-3, 1), stepped(1e-3, 2))
    planned = TuningPlan(rates, (100, 101), grows)
    grown = (stepped(rates[-1 if step > 0 else 0], step) for step in added)
    grid = {rate: {100: 5.0, 101: 5.1} for rate in (*rates, *grown)}
    assert planned.has_led_to(grid) is expected
    assert not planned.has_led_to(grid | {rates[1] * 1.1: {100: 5.0}})  # between two
    assert not planned.has_led_to(grid | {rates[0]: {100: 5.0}})  # a run is gone
    assert not planned.has_led_to(grid | {rates[0]: {100: 5.0, 101: 5.1, 102: 5.2}})


def test_another_tuning_than_planned_is_exploratory(capsys, workdir, template):
    for seed in range(3):
        planted(template, "a", seed, 5.0 + 0.001 * seed)
        planted(template, "b", seed, 4.0 + 0.002 * seed, model={"d_ff": 72})
    plant_tuning(template, "a")
    plant_tuning(template, "b", model={"d_ff": 72})
    study, rate = Path("results/s"), Run(template).protocol.recipe.lr
    planned_as = TuningPlan((rate / 2, rate, rate * 2), (100, 101, 102), grows=False)

    def is_exploratory() -> bool:
        found = primary(compared(capsys, "a", "b"))["b"]
        assert found["verdict"] == "better"
        return found["exploratory"]

    assert not is_exploratory()  # an older ledger plans nothing about the tuning
    for tuning, expected in (
        (planned_as, False),
        (dataclasses.replace(planned_as, seeds=(100, 101)), True),
        (dataclasses.replace(planned_as, seeds=(100, 101, 102, 103)), True),
        (dataclasses.replace(planned_as, rates=(rate, rate * 2)), True),
        (dataclasses.replace(planned_as, rates=(rate, rate * 2), grows=True), True),  # no step
        (TuningPlan(), True),
        (planned_as, False),
    ):
        plan(study, tuning=tuning)
        assert is_exploratory() is expected
    ledger = read_ledger(study)
    later = dataclasses.replace(ledger.plan, tuning=TuningPlan())
    write_ledger(study, dataclasses.replace(ledger, changes=(PlanChange(now(), 6, later),)))
    assert is_exploratory()
    write_ledger(study, ledger)
    remove(study / "b-tuning0.5-s100")
    assert is_exploratory()


@pytest.mark.parametrize(("longest", "missing"), [(2, []), (20, ["documents"])])
def test_a_document_that_is_most_of_the_text_is_no_sample(
    capsys, workdir, template, longest, missing
):
    planted_ab(template)
    for run in list_runs(Path("results"), "s")[0]:
        rows, loss = run.rows("documents"), float(run.test_scores()["loss"])
        total = sum(int(row["n_tokens"]) for row in rows)
        sizes = [total // (len(rows) - 1 + longest)] * (len(rows) - 1)
        sizes.append(total - sum(sizes))
        run.replace(
            "documents",
            [
                row | {"n_tokens": n, "nats": loss * n, "text_nats": loss * n, "n_bytes": n}
                for row, n in zip(rows, sizes, strict=True)
            ],
        )
    found = compared(capsys, "a", "b")
    assert primary(found)["b"]["missing"] == missing
    text = "6 of at least 5 test documents, which are worth 1."
    assert (text in " ".join(found["conclusion"])) is bool(missing)
