"""`smolctl compare`: which runs stand together, and what is concluded from them."""

import math
from pathlib import Path

import pytest
from support.command import run_main
from support.compared import compared, primary
from support.planted import plan, plant_tuning, planted, task_conditions

from smollm2.runs.run import Run


def test_a_clear_difference_is_better_and_its_reverse_worse(capsys, workdir, template):
    for seed in range(3):
        planted(template, "a", seed, 5.0 + 0.001 * seed)
        planted(template, "b", seed, 4.9 + 0.001 * seed, model={"n_layers": 3})
    plant_tuning(template, "a")
    plant_tuning(template, "b", model={"n_layers": 3})
    assert primary(compared(capsys, "a", "b"))["b"]["verdict"] == "better"
    found = primary(compared(capsys, "b", "a"))["a"]
    assert found["verdict"] == "worse"
    assert found["mean"] == pytest.approx(0.1)
    # 3 and 3 runs of standard deviation 0.001: 3 degrees of freedom.
    half = 3.182 * 0.001 * math.sqrt(2 / 3)
    assert found["interval"] == pytest.approx([0.1 - half, 0.1 + half], abs=1e-6)


def test_noise_is_inconclusive_and_one_seed_decides_nothing(capsys, workdir, template):
    for seed in range(3):
        planted(template, "a", seed, 5.0 + 0.1 * seed)
        planted(template, "b", seed + 10, 4.95 + 0.1 * seed)
    planted(template, "c", 20, 1.0)
    found = compared(capsys, "a", "b", "c")
    assert {row["verdict"] for row in primary(found).values()} == {"inconclusive"}
    assert primary(found)["b"]["minimum_detectable_effect"] > 0.1
    assert primary(found)["c"]["interval"] is None
    assert any("add seeds" in sentence for sentence in found["conclusion"])


def test_runs_of_another_protocol_are_named_and_never_mixed(capsys, workdir, template):
    for seed in range(2):
        planted(template, "a", seed, 5.0 + 0.01 * seed)
        planted(template, "b", seed, 5.0 + 0.01 * seed, model={"n_layers": 3})
    planted(template, "a", 7, 1.0, steps=20)
    planted(template, "b", 8, 1.0, micro_batch_size=4)
    again = planted(template, "a", 9, 5.0)
    again.update(protocol=again.manifest["protocol"] | {"seed": 0, "data_seed": 0})
    found = compared(capsys, "a", "b")
    assert [arm["runs"] for arm in found["arms"]] == [["a-s0", "a-s1"], ["b-s0", "b-s1"]]
    excluded = "\n".join(found["excluded"])
    assert "a-s7 is excluded: it differs from a-s0 (steps: 10 there, 20 here)." in excluded
    assert "b-s8 is excluded: it differs from a-s0 (tokens_per_step: 64 there, 128 " in excluded
    assert "a-s9 is excluded: it has the seed of a-s0." in excluded


def test_arms_without_a_common_protocol_are_refused(capsys, workdir, template):
    planted(template, "a", 0, 5.0)
    planted(template, "b", 0, 5.0, steps=20)
    code, _, err = run_main(capsys, "compare", "a", "b", "--study", "s")
    assert code == 2
    assert "steps: 10 there, 20 here" in err
    assert "No run of 'b' shares the protocol of a-s0; train one" in err


def test_equal_flops_lets_steps_differ_but_not_flops(capsys, workdir, template):
    equal = {"manifest": {"equal": "flops"}}
    for seed in range(2):
        planted(template, "a", seed, 5.0 + 0.01 * seed, **equal)
        planted(template, "b", seed, 4.0 + 0.01 * seed, steps=10, **equal, model={"d_ff": 72})
        planted(template, "c", seed, 4.0 + 0.01 * seed, steps=30, **equal)
    plant_tuning(template, "a")
    plant_tuning(template, "b", model={"d_ff": 72})
    found = compared(capsys, "a", "b")
    assert primary(found)["b"]["verdict"] == "better"
    code, _, err = run_main(capsys, "compare", "a", "c", "--study", "s")
    assert code == 2
    assert "3.00 times the FLOPs of a-s0" in err


def test_views_compare_only_where_schedules_ended(capsys, workdir, template):
    for seed in range(2):
        planted(template, "a", seed, 5.0 + 0.01 * seed)
        planted(template, "b", seed, 5.0 + 0.01 * seed, model={"d_ff": 128})
    found = compared(capsys, "a", "b")
    views = {view["axis"]: view for view in found["views"]}
    assert views["tokens"]["is_fair"]
    # b costs more a token, so at a's FLOPs it had not ended: read off its curve, not compared.
    assert views["flops"]["ended"] == {"a": True, "b": False}
    assert not views["flops"]["is_fair"]
    curve = Run(Path("results/s/b-s0")).table("val")
    assert curve["loss"].min() <= views["flops"]["losses"]["b"][0] <= curve["loss"].max()
    assert any("no verdict on b against a: one schedule" in text for text in found["conclusion"])


def test_a_repeated_seed_is_not_a_second_sample(capsys, workdir, template):
    for arm, loss in (("a", 5.0), ("b", 4.0)):
        planted(template, arm, 0, loss)
        for number in (1, 2):
            again = planted(template, f"{arm}{number}", 0, loss + 0.01 * number, arm=arm)
            again.update(protocol=again.manifest["protocol"] | {"validation_every": number})
    found = compared(capsys, "a", "b")
    assert [len(arm["runs"]) for arm in found["arms"]] == [1, 1]
    assert len(found["excluded"]) == 4
    assert primary(found)["b"]["verdict"] == "inconclusive"


def test_runs_at_another_rate_are_not_pooled(capsys, workdir, template):
    for seed in range(2):
        planted(template, "a", seed, 5.0 + 0.01 * seed)
        planted(template, "b", seed, 4.0 + 0.01 * seed)
    other = planted(template, "b", 7, 1.0)
    recipe = other.manifest["protocol"]["recipe"]
    other.update(
        protocol=other.manifest["protocol"] | {"recipe": recipe | {"lr": 0.5}},
        finished_at="2020-01-01",
    )
    found = compared(capsys, "a", "b")
    assert found["arms"][1]["runs"] == ["b-s0", "b-s1"]
    assert "b-s7 is excluded: it has lr 0.5, b-s" in found["excluded"][0]


def test_a_failed_seed_is_reported(capsys, workdir, template):
    for seed in range(2):
        planted(template, "a", seed, 5.0 + 0.01 * seed)
        planted(template, "b", seed, 4.0 + 0.01 * seed)
    failed = {"state": "failed", "error": "At step 3 the loss is nan."}
    planted(template, "b", 7, 1.0, manifest=failed)
    planted(template, "a", 8, 1.0, manifest={"state": "stopped"})
    found = compared(capsys, "a", "b")
    assert "b-s7 is excluded: it failed. At step 3 the loss is nan." in found["excluded"]
    assert (
        "a-s8 is excluded: it is not finished. Continue it: smolctl train --resume a-s8 --study s"
    ) in found["excluded"]
    assert any("b-s7 failed" in sentence for sentence in found["conclusion"])


def test_a_third_arm_does_not_hide_what_a_pair_shows(capsys, workdir, template):
    for seed in range(2):
        planted(template, "a", seed, 5.0 + 0.01 * seed, model={"d_ff": 128})
        planted(template, "b", seed, 4.0 + 0.01 * seed, model={"d_ff": 128, "rope_theta": 2e4})
        planted(template, "c", seed, 4.0 + 0.01 * seed)
    found = compared(capsys, "a", "b", "c")
    views = {(view["arm"], view["axis"]): view for view in found["views"]}
    assert views["b", "flops"]["is_fair"]
    assert not views["c", "flops"]["is_fair"]
    assert "b also had equal FLOPs with a" in "\n".join(found["conclusion"])


def test_what_holds_for_several_arms_is_reported_once(capsys, workdir, template):
    for seed in range(3):
        planted(template, "a", seed, 5.0 + 0.1 * seed)
        planted(template, "b", seed, 5.0 + 0.09 * seed, model={"rope_theta": 2e4})
        planted(template, "c", seed, 5.0 + 0.11 * seed, model={"d_ff": 128})
        planted(template, "d", seed, 1.0 + 0.1 * seed, model={"d_ff": 128, "rope_theta": 2e4})
    found = compared(capsys, "a", "b", "c", "d")
    by_arm = {arm: row["minimum_detectable_effect"] for arm, row in primary(found).items()}
    text = "\n".join(found["conclusion"])
    amounts = f"{by_arm['b']:.4f} (b) and {by_arm['c']:.4f} (c) nats/token"
    assert f"minimum detectable effect is {amounts};" in text
    assert (
        "At equal FLOPs there is no verdict on c and d against a: one schedule of each pair" in text
    )
    assert "Of equal size and cost with a: b has as many parameters and as many FLOPs" in text


def test_every_verdict_that_is_printed_is_one_of_the_family(capsys, workdir, template):
    """With four arms the correction is stronger than a pair would have it; nothing escapes it."""
    losses = {"a": 5.0, "b": 4.87, "c": 5.0, "d": 5.01, "e": 4.99}
    for number, (arm, loss) in enumerate(losses.items()):
        for seed in range(3):
            planted(template, arm, seed, loss + 0.04 * seed + 0.001 * number)
    alone, together = compared(capsys, "a", "b"), compared(capsys, *losses)
    # The plan of the study counts, however few arms are shown.
    assert primary(alone)["b"] == primary(together)["b"]
    plan(Path("results/s"), seeds={"a": (0, 1, 2), "b": (0, 1, 2)})
    assert primary(compared(capsys, "a", "b"))["b"]["verdict"] == "better"
    assert primary(together)["b"]["verdict"] == "inconclusive"
    words = " ".join(together["conclusion"])
    assert "is better" not in words
    assert {row["verdict"] for row in together["differences"] if not row["primary"]} == {None}


def test_seconds_that_came_out_unequal_are_not_called_equal(capsys, workdir, template):
    equal = {"manifest": {"equal": "seconds"}}
    for seed in range(2):
        planted(template, "a", seed, 5.0 + 0.01 * seed, **equal)
        b = planted(template, "b", seed, 4.0 + 0.01 * seed, **equal)
        rows = b.rows("train")
        for row in rows:
            row["seconds"] = 100.0
        b.replace("train", rows)
    text = " ".join(compared(capsys, "a", "b")["conclusion"])
    assert "planned for equal training time, which came out as 100 s" in text
    assert "At equal training time b is" not in text


def test_identical_losses_are_inconclusive_in_words_that_are_true(capsys, workdir, template):
    for seed in range(3):
        planted(template, "a", seed, 5.0)
        planted(template, "b", seed, 5.0)
    text = compared(capsys, "a", "b")["conclusion"][0]
    assert "b against a is inconclusive: seeds: its test loss" in text
    assert "within 0.0001" in text


def test_the_conclusion_says_what_is_not_equal(capsys, workdir, template):
    for seed in range(2):
        planted(template, "a", seed, 5.0 + 0.01 * seed)
        b = planted(template, "b", seed, 5.0 + 0.01 * seed, model={"d_ff": 128})
        b.update(
            protocol=b.manifest["protocol"] | {"scale": "full"},
            parameters={"total": 10**6, "active": 10**5, "embedding": 10},
        )
    text = "\n".join(compared(capsys, "a", "b")["conclusion"])
    assert "more parameters" in text
    assert "Not of equal size and cost with a: b has " in text


def test_different_rates_that_no_sweep_chose_are_reported(capsys, workdir, template):
    for seed in range(2):
        planted(template, "a", seed, 5.0 + 0.01 * seed)
        b = planted(template, "b", seed, 5.0 + 0.01 * seed)
        recipe = b.manifest["protocol"]["recipe"] | {"lr": 0.5}
        b.update(protocol=b.manifest["protocol"] | {"recipe": recipe})
    text = "\n".join(compared(capsys, "a", "b")["conclusion"])
    assert "were not chosen by a tuning" in text


@pytest.mark.parametrize(
    ("loss", "sentence"), [(5.0, "as expected"), (9.0, "that is found is false")]
)
def test_an_arm_that_is_the_first_one_again_is_a_control(capsys, workdir, template, loss, sentence):
    for seed in range(3):
        planted(template, "a", seed, 5.0 + 0.01 * seed)
        planted(template, "a-again", 10 + seed, loss + 0.011 * seed)
    text = "\n".join(compared(capsys, "a", "a-again")["conclusion"])
    assert "a-again is a control: a under another name" in text
    assert sentence in text
    assert "FLOPs per token" not in text


def test_a_control_that_could_hide_a_difference_that_matters_says_so(capsys, workdir, template):
    for seed in range(3):
        planted(template, "a", seed, 5.0 + 0.01 * seed)
        planted(template, "a-again", 10 + seed, 5.0 + 0.011 * seed)
    for margin, expected in ((0.5, False), (0.001, True)):
        plan(Path("results/s"), margin=margin)
        text = "\n".join(compared(capsys, "a", "a-again")["conclusion"])
        assert "No difference is found, as expected" in text
        assert (f"could miss one as large as the margin of {margin:g}" in text) is expected


def test_one_run_of_a_control_or_a_seed_of_the_base_is_not_praised(capsys, workdir, template):
    planted(template, "a", 0, 5.0)
    planted(template, "b", 1, 5.1)
    planted(template, "c", 0, 5.1)
    assert "as expected" not in "\n".join(compared(capsys, "a", "b")["conclusion"])
    assert "control" not in "\n".join(compared(capsys, "a", "c")["conclusion"])


def spoil_column(run: Run) -> str:
    path = run.path / "train.csv"
    path.write_text(path.read_text().replace("loss", "lost", 1))
    return "lacks the column 'loss'"


def spoil_end(run: Run) -> str:
    path = run.path / "val.csv"
    path.write_text(path.read_text()[:-5])
    return "val.csv ends in the middle of a line"


def spoil_number(run: Run) -> str:
    rows = run.rows("val")
    rows[1]["loss"] = "nan"
    run.replace("val", rows)
    return "val.csv has a loss that is not a number"


def spoil_scores(run: Run) -> str:
    (run.path / "eval.csv").unlink()
    return "has no eval.csv"


def spoil_speed(run: Run) -> str:
    run.replace("train", [row | {"tokens_per_second": -1} for row in run.rows("train")])
    return "train.csv has a tokens_per_second that is not positive"


@pytest.mark.parametrize(
    "spoil", [spoil_column, spoil_end, spoil_number, spoil_scores, spoil_speed]
)
def test_a_broken_run_is_reported_and_does_not_stop_others(capsys, workdir, template, spoil):
    for seed in range(2):
        planted(template, "a", seed, 5.0 + 0.01 * seed)
        planted(template, "b", seed, 5.0 + 0.01 * seed, model={"n_layers": 3})
    sentence = spoil(planted(template, "b", 5, 1.0, model={"n_layers": 3}))
    found = compared(capsys, "a", "b")
    assert found["arms"][1]["runs"] == ["b-s0", "b-s1"]
    assert len(found["excluded"]) == 1
    assert found["excluded"][0].endswith(" b-s5 is excluded.")
    assert sentence in found["excluded"][0]
    spoil(Run(Path("results/s/a-s0")))
    spoil(Run(Path("results/s/a-s1")))
    code, _, err = run_main(capsys, "compare", "a", "b", "--study", "s")
    assert code == 2
    assert "No run of 'a' is left." in err


def test_the_tables_and_figures_are_made(capsys, workdir, template):
    for seed in range(2):
        planted(template, "a", seed, 5.0 + 0.01 * seed)
        planted(template, "b", seed, 4.0 + 0.01 * seed, model={"n_layers": 3})
    plant_tuning(template, "a")
    plant_tuning(template, "b", model={"n_layers": 3})
    code, out, err = run_main(capsys, "compare", "a", "b", "--study", "s", "--verbose")
    assert code == 0
    assert "5.0050 ± 0.0071" in out
    assert "better" in out
    assert "a-s1" in out
    assert "b is better than a" in out
    for name in ("loss.png", "differences.png"):
        assert (workdir / "results/s/figures/a-vs-b" / name).stat().st_size > 1000
        assert name in err


@pytest.mark.parametrize(
    ("arms", "sentence"),
    [(["a"], "at least two different arms"), (["a", "a"], "at least two different arms")],
)
def test_one_arm_is_not_a_comparison(capsys, workdir, arms, sentence):
    code, _, err = run_main(capsys, "compare", *arms)
    assert code == 2
    assert sentence in err


def test_without_runs_the_train_command_is_given(capsys, workdir):
    code, _, err = run_main(capsys, "compare", "orig", "pow2")
    assert code == 2
    assert "smolctl train --variant" in err


def test_without_finished_runs_the_resume_command_is_given(capsys, workdir, template):
    planted(template, "a", 0, 5.0, manifest={"state": "stopped"})
    code, _, err = run_main(capsys, "report", "--study", "s")
    assert code == 2
    assert "no finished runs, only a-s0. a-s0 stopped (saved: " in err
    assert "): continue it with smolctl train --resume a-s0" in err


def test_a_long_list_of_what_differs_is_cut(capsys, workdir, template):
    planted(template, "a", 0, 5.0)
    planted(template, "b", 0, 5.0)
    changes = {"micro_batch_size": 4, "compile": True, "test_tokens": 64, "validation_tokens": 64}
    planted(template, "b", 1, 5.0, steps=20, **changes)
    (reason,) = compared(capsys, "a", "b")["excluded"]
    assert reason.count(" there, ") == 3
    assert reason.endswith("; 2 more).")


def test_another_study_is_named_where_this_one_has_nothing(capsys, workdir, template):
    planted(template, "a", 0, 5.0, study="gqa")
    for arguments in (["compare", "a", "b", "--study", "gq"], ["report", "--study", "gq"]):
        code, _, err = run_main(capsys, *arguments)
        assert code == 2
        assert "Did you mean 'gqa'?" in err
    planted(template, "a", 1, 5.0, study="x", manifest={"role": "sweep"})
    code, _, err = run_main(capsys, "compare", "a", "b", "--study", "x")
    assert code == 2
    assert "only runs of a sweep so far" in err


def test_accuracies_at_chance_level_are_reported(workdir, template):
    from smolctl.analysis.selection import study_comparison
    from smolctl.report.sections.tasks import on_chance

    score = {"metric": "acc", "stderr": 0.01, "clusters": 400, "n": 400, "total": 400}
    score |= {"fingerprint": "f"} | task_conditions()
    runs = [planted(template, "a", 0, 5.0), planted(template, "b", 0, 5.0, model={"d_ff": 128})]
    assert on_chance(study_comparison("s", runs)) == []
    for run, value in zip(runs, (0.28, 0.30), strict=True):  # two errors are 0.0433
        rows = [score | {"task": "arc_easy", "value": value, "chance": 0.25}]
        rows += [rows[0] | {"metric": "acc_norm", "value": 0.9}]
        run.replace("eval", [*run.rows("eval"), *rows])
    (text,) = on_chance(study_comparison("s", runs))
    assert text.startswith("1 of 2 accuracies lie more than two standard errors of a run above")
    assert "The others cannot be told from guessing" in text
    run.replace(
        "eval", [row | {"value": 0.2} if row["value"] == "0.3" else row for row in run.rows("eval")]
    )
    (text,) = on_chance(study_comparison("s", runs))
    assert text.startswith("0 of 2")
    assert "; 1 lie as far below it" in text
