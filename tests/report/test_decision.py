"""What would decide it: a next step for everything that a verdict lacks."""

import shutil

from support.compared import compared
from support.planted import plan, plant_tuning, planted

from smolctl.studies.ledger import record_results
from smollm2.files import write_json
from smollm2.runs.run import Run

OTHER = {"d_ff": 72}


def steps(capsys) -> list[str]:
    """The next steps that compare prints for `a` and `b`."""
    (found,) = [
        part for part in compared(capsys, "a", "b")["sections"] if part["name"] == "decision"
    ] or [{"blocks": []}]
    return [sentence for block in found["blocks"] for sentence in block["sentences"]]


def plant(template, losses: dict[str, float], seeds: int = 3) -> list[Run]:
    return [
        planted(template, arm, seed, loss + 0.001 * seed, model=OTHER if arm == "b" else {})
        for arm, loss in losses.items()
        for seed in range(seeds)
    ]


def test_a_verdict_needs_no_step(capsys, workdir, template):
    plant(template, {"a": 5.0, "b": 4.0})
    plant_tuning(template, "a")
    plant_tuning(template, "b", model=OTHER)
    assert steps(capsys) == []


def test_arms_without_rates_are_sent_to_tune(capsys, workdir, template):
    plant(template, {"a": 5.0, "b": 4.0})
    (step,) = steps(capsys)
    assert step.startswith("Tuning: no learning rates were tried for a and b. A new study with")


def test_an_arm_behind_the_trigram_is_named_first(capsys, workdir, template):
    for run in plant(template, {"a": 5.0, "b": 4.0}):
        floors = run.manifest["floors"] | {"trigram": 4.5}
        write_json(run.path / "run.json", run.manifest | {"floors": floors})
    regime, tuning = steps(capsys)
    assert regime.startswith("Regime: a (5.001) does not reach the 4.500 of a trigram model")
    assert tuning.startswith("Tuning: ")


def test_planned_seeds_that_have_not_run_come_from_the_study(capsys, workdir, template):
    plant(template, {"a": 5.0, "b": 4.9})
    plant_tuning(template, "a")
    plant_tuning(template, "b", model=OTHER)
    plan(workdir / "results/s", looks=(4,), seeds={"a": (0, 1, 2, 3), "b": (0, 1, 2, 3)})
    assert steps(capsys)[-1] == (
        "Seeds: not all planned ones have run. Next: smolctl study results/s/study.toml"
    )


def test_an_open_sign_asks_for_seeds_of_a_new_study(capsys, workdir, template):
    plant(template, {"a": 5.0, "b": 5.0})
    plant_tuning(template, "a")
    plant_tuning(template, "b", model=OTHER)
    step = steps(capsys)[-1]
    assert "smolctl compare a b --detect 0.02 --study s says how many" in step
    assert "belong in a new study" in step


def test_few_documents_are_said_with_the_key_for_more(capsys, monkeypatch, workdir, template):
    monkeypatch.setattr("support.planted.DOCUMENTS", 4)
    runs = plant(template, {"a": 5.0, "b": 4.0})
    assert steps(capsys)[-1] == (
        "Documents: the test has 4 of at least 5. It takes a study with more test_tokens below "
        "[train], or a larger held_out."
    )
    for run in runs:
        run.replace("eval", [row | {"total": row["n"]} for row in run.rows("eval")])
    assert "held out, such as held_out = 0.2 below [train]." in steps(capsys)[-1]


def test_one_run_an_arm_asks_for_a_study_with_seeds(capsys, workdir, template):
    plant(template, {"a": 5.0, "b": 4.0}, seeds=1)
    assert steps(capsys)[-1] == (
        "Seeds: one run shows no noise. It takes a study with at least three seeds."
    )


def test_lost_results_are_to_be_restored(capsys, workdir, template):
    runs = plant(template, {"a": 5.0, "b": 4.0}, seeds=4)
    record_results(workdir / "results/s", runs)
    shutil.rmtree(runs[-1].path)
    assert steps(capsys)[-1] == (
        "Seeds: results are missing from the folder of the study. Restore these runs."
    )
