"""Arms compared by their KL divergence at equal bytes, and how configurations rank."""

import dataclasses
import math
from pathlib import Path

import pytest
from support.planted import FLOORS, delta, found, kl, plan, plant_quantized
from support.quantized import claim, words

from smolctl.analysis.quantization_rows import read_rows
from smolctl.analysis.quantized_ranks import (
    Ranking,
    arms_ranked_otherwise,
    dominated,
    ranked_otherwise,
    recommended,
)
from smolctl.analysis.study_plan import PlanChange, read_ledger
from smolctl.report.figures.quantized import quantized_headline
from smolctl.report.sections.measured_rows import recommendation
from smolctl.report.sections.quantization import WIDTH_ALONE
from smolctl.report.sections.quantization_tables import configurations_table, pairs_table
from smolctl.report.verdict_words import verdict_text
from smolctl.studies.ledger import write_ledger
from smollm2.errors import UserError
from smollm2.runs.run import Run

NOISE = (1 / 1.01, 1.0, 1.01)  # of the KL divergence, by seed


def plant_ratio(plant, ratio: float, scale: str = "full", **cells) -> None:
    """Three runs of two arms whose KL divergences at int4-g64 have this ratio."""
    for seed, noise in enumerate(NOISE):
        plant("orig", seed, int4_g64=kl(0.1 * noise), scale=scale)
        plant("pow2", seed, int4_g64=kl(0.1 * ratio / noise, **cells), scale=scale)


@pytest.mark.parametrize(
    ("ratio", "verdict"),
    [(0.8, "better"), (1.25, "worse"), (1.02, "equivalent"), (0.94, "equivalent")],
)
def test_a_ratio_of_divergences_over_seeds_is_a_verdict(plant, ratio, verdict):
    plant_ratio(plant, ratio)
    (pair,) = found().pairs
    assert pair.is_by_kl
    assert pair.difference.verdict == verdict
    assert pair.difference.mean == pytest.approx(math.log(ratio))
    assert pair.kl_ratio.mean == pytest.approx(ratio)
    low, high = pair.kl_ratio.interval
    assert low < ratio < high
    # 3 runs each with the same spread count as 3 degrees of freedom; see `degrees_of_freedom`.
    error = math.sqrt(2 / 3 * sum(math.log(x) ** 2 for x in NOISE) / 2)
    assert math.log(high / low) / 2 == pytest.approx(3.1824 * error, rel=1e-4)
    text = words(found())
    if verdict == "equivalent":
        assert "At int4-g64 pow2 and orig are equivalent (within 10 %): the KL" in text
    else:
        assert f"At int4-g64 pow2 quantizes {verdict} than orig: the KL divergence of" in text
    assert (
        f"a ratio of {ratio:.2f} (95 % interval {low:.2f} to {high:.2f}, 3 runs against 3)" in text
    )
    assert claim(found())[2].startswith(f"KL {verdict} at 1 of 1 (pow2); ")
    assert quantized_headline(found()).endswith(f"against orig: pow2 {verdict} at int4-g64")


def test_a_smaller_scale_has_verdicts_about_that_scale(plant):
    plant_ratio(plant, 0.8, scale="nano", decode_ratio=1.5)
    result = found()
    text = words(result)
    assert "At int4-g64 pow2 quantizes better than orig: the KL divergence of" in text
    assert "This is about models at nano scale: bytes and speeds do not carry over" in text
    assert "times as fast" not in text
    assert quantized_headline(result) == (
        "Quantized at nano scale, against orig: pow2 better at int4-g64"
    )
    assert claim(result)[1].startswith("at nano scale the KL divergence of pow2 over that of orig")


def test_a_change_of_the_loss_is_not_compared_at_a_smaller_scale(plant):
    for seed in range(2):
        noise = 1 + seed / 100
        for arm in ("orig", "pow2"):
            cells = {"int8": delta(0.01 * noise), "int4_g64": kl(0.1 * noise)}
            plant(arm, seed, scale="nano", **cells)
    eight, four = found().pairs
    assert eight.problem == "a change of the loss at nano scale does not carry over"
    assert four.difference is not None


def test_there_is_no_verdict_before_all_planned_runs_are_quantized(plant):
    plant_ratio(plant, 0.8)
    plant("pow2", 3)
    (pair,) = found().pairs
    assert verdict_text(pair.difference) == "inconclusive: seeds"
    assert (
        "There is no verdict on pow2 at int4-g64: planned runs are missing here, diverged or are "
        "lost." in words(found())
    )
    plant_quantized(Run(Path("results/s/pow2-s3")), int4_g64=kl(0.08))
    plant("orig", 3, int4_g64=kl(0.1))
    plan(Path("results/s"), looks=(3, 4))
    (pair,) = found().pairs
    assert pair.difference.verdict == "better"
    assert pair.difference.confidence == pytest.approx(0.975)  # for two looks


def test_runs_cannot_be_chosen_by_what_quantizing_them_gives(plant):
    """At a look, every finished run counts."""
    plant_ratio(plant, 0.8)
    for arm in ("orig", "pow2"):
        plant(arm, 3)
    plan(Path("results/s"), looks=(3, 4))
    assert verdict_text(found().pairs[0].difference) == "inconclusive: seeds"


def test_a_verdict_on_results_from_before_the_plan_is_exploratory(plant):
    plant_ratio(plant, 0.8)
    study = Path("results/s")
    write_ledger(study, dataclasses.replace(read_ledger(study), planned_at="2030-01-01"))
    assert verdict_text(found().pairs[0].difference) == "better (exploratory)"
    assert "At int4-g64 pow2 quantizes better (exploratory) than orig" in words(found())


@pytest.mark.parametrize(
    ("cells", "problem"),
    [
        ({"kl_mean": -0.1}, "with a kl_mean of -0.1"),
        ({"kl_mean": 1e308}, "with a kl_mean of 1e\\+308"),
        ({"loss_delta": ""}, "with a kl_mean and no loss_delta"),
        ({"clusters": ""}, "with a loss_delta and no clusters"),
    ],
)
def test_rows_that_cannot_have_been_measured_are_refused(plant, cells, problem):
    run = plant("orig", 0, int4_g64=kl(0.1) | cells)
    with pytest.raises(UserError, match=f"has a row of int4-g64 {problem}"):
        read_rows(run)


def test_arms_that_other_texts_calibrated_are_not_compared(plant):
    for seed, noise in enumerate(NOISE):
        plant("orig", seed, int4_g64=kl(0.1 * noise, calibration="a"), int8=kl(0.01))
        plant("pow2", seed, int4_g64=kl(0.05 / noise, calibration="b"), int8=kl(0.01))
    eight, four = found().pairs
    assert eight.difference is not None
    assert four.problem == "they were calibrated on different text (a; b)"


def test_the_last_plan_before_the_first_result_counts(plant):
    plant_ratio(plant, 0.8)
    study = Path("results/s")
    ledger = read_ledger(study)
    seeds = dict.fromkeys(("orig", "pow2"), (0, 1, 2, 3))
    more = dataclasses.replace(ledger.plan, seeds=seeds, looks=(4,))
    write_ledger(study, dataclasses.replace(ledger, changes=(PlanChange("2000-01-02", 0, more),)))
    assert verdict_text(found().pairs[0].difference) == "inconclusive: seeds"
    less = dataclasses.replace(
        ledger, plan=more, changes=(PlanChange("2000-01-02", 0, ledger.plan),)
    )
    write_ledger(study, less)
    assert found().pairs[0].difference.verdict == "better"


def test_runs_beyond_the_plan_count_for_nothing(plant):
    plant_ratio(plant, 0.8)
    planned = read_ledger(Path("results/s")).plan.seeds
    before = found().pairs[0].difference
    plant("pow2", 7, int4_g64=kl(5.0))
    plan(Path("results/s"), seeds=planned)
    assert found().pairs[0].difference == before


def test_the_family_is_that_of_the_plan_whatever_is_compared(plant):
    """And does not shrink where a pair cannot be compared."""
    for seed, noise in enumerate(NOISE):
        more_bytes = {"disk_bytes_without_embedding": 600}
        plant("orig", seed, int8=kl(0.01 * noise), int4_g64=kl(0.1 * noise))
        plant("pow2", seed, int8=kl(0.01 / noise), int4_g64=kl(0.1 / noise, **more_bytes))
    seeds = read_ledger(Path("results/s")).plan.seeds | {"third": (0, 1, 2)}
    plan(Path("results/s"), seeds=seeds)
    eight, four = found().pairs
    assert four.difference is None
    assert eight.difference.confidence == pytest.approx(1 - 0.05 / 4)


@pytest.mark.parametrize(
    ("floors", "clusters", "missing"),
    [
        ({"tokens": 1000, "unigram": 30.0, "trigram": 4.0, "text": "scored"}, 6, "regime"),
        (None, 6, "regime"),
        (FLOORS, 4, "documents"),
    ],
)
def test_conditions_of_a_verdict_are_those_of_one_on_the_loss(plant, floors, clusters, missing):
    for seed, noise in enumerate(NOISE):
        for arm, ratio in (("orig", 1.0), ("pow2", 0.5)):
            run = plant(arm, seed, int4_g64=kl(0.1 * ratio * noise, clusters=clusters))
            run.update(floors=floors)
    (pair,) = found().pairs
    assert verdict_text(pair.difference) == f"inconclusive: {missing}"
    assert pair.difference.interval[1] < 0
    assert "There is no verdict on pow2 at int4-g64: " in words(found())


def test_an_interval_that_leaves_it_open_is_inconclusive(plant):
    for seed, noise in enumerate((0.7, 1.0, 1 / 0.7)):
        plant("orig", seed, int4_g64=kl(0.1 * noise))
        plant("pow2", seed, int4_g64=kl(0.095 / noise))
    (pair,) = found().pairs
    assert pair.difference.verdict == "inconclusive"
    low, high = pair.kl_ratio.interval
    assert (
        f"Whether pow2 quantizes better than orig is inconclusive at int4-g64 (0.95, 95 % interval "
        f"{low:.2f} to {high:.2f}, 3 runs against 3); each number is its KL divergence over that "
        "of orig."
    ) in words(found())


def test_one_seed_has_a_ratio_and_no_verdict(plant):
    plant("orig", 0, int8=kl(0.004), int4_g64=kl(0.1))
    plant("pow2", 0, int8=kl(0.005), int4_g64=kl(0.08))
    text = words(found())
    assert (
        "With one run per arm it is inconclusive whether pow2 quantizes better than orig. At int8 "
        "and int4-g64 the KL divergence over that of orig is 0.80 to 1.25 for pow2 (standard error "
        "at most 4.0 %); the errors are over documents" in text
    )
    assert claim(found())[1].startswith(
        "the KL divergence of pow2 over that of orig is 0.80 to 1.25 at int8 and int4-g64 (untested"
    )
    assert claim(found())[2].startswith("KL untested (one run per arm) at 2 of 2 (pow2); ")


def test_older_measurements_are_compared_by_the_loss_and_mixed_with_no_others(plant):
    for seed in range(2):
        noise = 1 + seed / 100
        plant("orig", seed, int8=delta(0.001 * noise), int4_g64=delta(0.05 * noise))
        plant("pow2", seed, int8=delta(0.002 * noise), int4_g64=kl(0.1 * noise))
    eight, four = found().pairs
    assert not eight.is_by_kl
    assert eight.difference.mean == pytest.approx(0.001005)
    assert four.difference is None
    assert four.problem == "they were measured on different text, windows, dtypes or devices"


def test_a_divergence_of_zero_has_no_logarithm(plant):
    plant("orig", 0, int8=kl(0.004))
    plant("pow2", 0, int8=kl(0.0, change=0.02))
    (pair,) = found().pairs
    assert not pair.is_by_kl
    assert pair.difference.mean == pytest.approx(0.01)


@pytest.mark.parametrize(("n_bytes", "word"), [(600, "more"), (450, "fewer")])
def test_arms_are_compared_at_equal_bytes_only(plant, n_bytes, word):
    """500 bytes for 800 parameters, and 1 % more or less, are as usual."""
    plant("orig", 0, int8=kl(0.01), int4_g64=kl(0.1))
    within = {"disk_bytes_without_embedding": 504}
    other = {"disk_bytes_without_embedding": n_bytes}
    plant("pow2", 0, int8=kl(0.01, **within), int4_g64=kl(0.1, **other))
    eight, four = found().pairs
    assert eight.difference is not None
    assert four.difference is None
    assert (
        f"pow2 and orig are not compared at int4-g64: without the embedding a parameter of pow2 "
        f"takes {n_bytes / 800:.3f} bytes, {word} than the 0.625 of orig." in words(found())
    )
    assert "Arms are compared where these agree within 1 %." in words(found())


def test_what_width_alone_can_do_comes_first_where_widths_differ(plant):
    plant("orig", 0, int8=kl(0.01))
    plant("pow2", 0, int8=kl(0.01))
    assert WIDTH_ALONE not in words(found())
    run = plant("pow2-135m", 0, int8=kl(0.01))
    protocol = run.manifest["protocol"]
    run.update(protocol=protocol | {"model": protocol["model"] | {"d_ff": 96}})
    assert words(found()).startswith(f"{WIDTH_ALONE}\n")
    assert words(found()).count("Width alone") == 1


def test_the_tables_have_the_divergence(plant):
    plant_ratio(plant, 0.8, change=0.02)
    table = configurations_table("orig", found().arms["orig"])
    cells = dict(zip(table.header, table.rows[1], strict=True))
    assert cells["KL"] == "0.1000 ± 0.0010"
    assert (cells["its error over documents"], cells["KL p99"]) == ("0.0020", "0.8000")
    assert (cells["top-1"], cells["loss change"]) == ("90.0 %", "+0.0100 ± 0.0000")
    assert "note" not in cells
    table = pairs_table(found())
    assert table.title.startswith("KL divergence over that of orig. Bytes are")
    cells = dict(zip(table.header, table.rows[0], strict=True))
    assert (cells["verdict"], cells["ratio"], cells["loss"]) == ("better", "0.80", "+0.0100")
    assert cells["interval"].endswith(" (95 %)")
    assert cells["document error ≤"] == "4.0 %"


# Ranks


def test_a_configuration_is_dominated_by_one_with_no_more_bytes_and_less_divergence(plant):
    plant(
        "orig",
        0,
        int8=kl(0.004, disk_bytes=1000),
        llm_int8=kl(0.03, disk_bytes=1000),
        int4_g32=kl(0.1, disk_bytes=700),
        int4_g64=kl(0.2, disk_bytes=650),
        nf4_g64=kl(0.3, disk_bytes=650),
        nf4_g32=kl(0.1, disk_bytes=700),
    )
    by_name = found().arms["orig"]
    assert dominated(by_name.values()) == {"llm-int8": "int8", "nf4-g64": "int4-g64"}
    table = configurations_table("orig", by_name)
    assert {row[0]: row[-1] for row in table.rows if row[-1] != "–"} == {
        "llm-int8": "dominated by int8",
        "nf4-g64": "dominated by int4-g64",
    }


def test_the_best_of_those_that_dominate_is_named(plant):
    sizes = {"int8": 650, "int4_g64": 600, "nf4_g64": 650}
    harm = {"int8": 0.1, "int4_g64": 0.2, "nf4_g64": 0.3}
    plant("orig", 0, **{name: kl(harm[name], disk_bytes=sizes[name]) for name in sizes})
    assert dominated(found().arms["orig"].values()) == {"nf4-g64": "int8"}


def test_the_smallest_within_a_divergence_is_recommended(plant):
    run = plant(
        "orig",
        0,
        int8=kl(0.004, disk_bytes=1000),
        int4_g32=kl(0.05, disk_bytes=700),
        int4_g64=kl(0.0501, disk_bytes=650),
        int4_g128={"loss_delta": "", "loss": "", "reason": "no kernel"},
    )
    by_name = found().arms["orig"]
    assert recommended(by_name.values(), 0.05) is by_name["int4-g32"]
    assert recommended(by_name.values(), 0.06) is by_name["int4-g64"]
    assert recommended(by_name.values(), 0.001) is None
    assert recommendation(Ranking(run, 0.05)) == (
        "Recommended for orig-s0: int4-g32, 0.001 MB, the smallest with a KL divergence of at most "
        "0.05 nats/token."
    )
    assert recommendation(Ranking(run, 0.001)) == (
        "None of these configurations of orig-s0 has a KL divergence of at most 0.001 nats/token; "
        "the least is 0.0040, of int8. Smaller groups, --method gptq and more bits have less."
    )


def test_without_divergences_nothing_is_recommended_or_dominated(plant):
    run = plant("orig", 0, int8=delta(0.001), llm_int8=delta(0.03))
    assert recommendation(Ranking(run, 0.05)) == ""
    assert Ranking(run, 0.05).dominated == {}
    plant_quantized(run)
    assert recommendation(Ranking(run, 0.05)) == ""


def test_where_the_loss_ranks_otherwise_is_said_once(plant):
    plant("orig", 0, int8=kl(0.004, 0.02), int4_g32=kl(0.1, 0.08), int4_g64=kl(0.2, 0.01))
    plant("pow2", 0, int8=kl(0.005, 0.01), int4_g32=kl(0.11, 0.09), int4_g64=kl(0.3, 0.2))
    result = found()
    # Furthest apart first.
    by_name = result.arms["orig"]
    assert ranked_otherwise(by_name.values()) == [("int8", "int4-g64"), ("int4-g32", "int4-g64")]
    assert ranked_otherwise(result.arms["pow2"].values()) == []
    assert [pair.name for pair in arms_ranked_otherwise(result.pairs)] == ["int8"]
    text = words(result)
    assert (
        "The change of the loss would rank otherwise: int8 and int4-g64 of orig, one of 2 such "
        "pairs; pow2 and orig at int8. It is noisier than the KL divergence" in text
    )
    assert text.count("rank otherwise") == 1
