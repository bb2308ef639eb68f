"""Speeds measured in turns: what cancels, what the intervals hold, and what they are split into."""

import math
import random

import pytest
from scipy import stats
from support.command import run_main
from support.compared import compared
from support.planted import plant_speed, planted

from smolctl.analysis.selection import study_comparison
from smolctl.analysis.speed_ratios import alternated_speeds
from smolctl.report.figures.forest import speeds_of
from smolctl.report.sections.speed import speed_answer
from smollm2.runs.run import list_runs
from smollm2.runs.speed_table import SpeedBlock

COSTS = {"a": 1e9, "b": 0.8e9, "c": 1.2e9, "d": 1e9, "e": 1e9}


def blocks_of(rounds, arms, rate) -> list[SpeedBlock]:
    """Blocks of a second; `rate` gives the tokens of each from its round, position and arm."""
    found = []
    for number in range(rounds):
        for position, arm in enumerate([*arms, *reversed(arms)]):
            tokens = max(1, round(rate(number, position, arm)))
            block = SpeedBlock(
                *(number, position, arm, 1.0, tokens, tokens * COSTS[arm], 1e9, 0, "a CPU", 2)
            )
            found.append(block)
    return found


def speeds_of_arms(blocks):
    return alternated_speeds(blocks, {name: name for name in COSTS if name in blocks_arms(blocks)})


def blocks_arms(blocks) -> set[str]:
    return {block.arm for block in blocks}


def test_ratios_are_free_of_a_drift_within_rounds():
    true = {"a": 1e7, "b": 1.25e7, "c": 0.5e7}

    def rate(number, position, arm):
        return true[arm] * math.exp(-0.03 * position - 0.2 * number)

    found = speeds_of_arms(blocks_of(4, "abc", rate))
    for arm, expected in (("b", 1.25), ("c", 0.5)):
        one = found.ratios[arm]
        assert one.tokens.mean == pytest.approx(expected, rel=1e-6)
        assert one.flops_per_token == pytest.approx(COSTS[arm] / COSTS["a"])
        assert one.flops.mean == pytest.approx(expected * one.flops_per_token, rel=1e-6)
        low, high = one.tokens.interval
        assert high / low == pytest.approx(1, abs=1e-5)  # tokens are whole
    assert found.beside_first["a"] == [1.0] * 4


def test_intervals_are_those_of_a_paired_t_test_corrected_for_the_arms():
    rng = random.Random(1)
    blocks = blocks_of(5, "abc", lambda *_: 1e6 * math.exp(rng.gauss(0, 0.1)))
    found = speeds_of_arms(blocks)
    logs = {
        arm: [
            sum(math.log(one.tokens) for one in blocks if (one.round, one.arm) == (number, arm)) / 2
            for number in range(5)
        ]
        for arm in "abc"
    }
    for arm in "bc":
        expected = stats.ttest_rel(logs[arm], logs["a"]).confidence_interval(1 - 0.05 / 2)
        one = found.ratios[arm]
        assert one.confidence == 0.975
        assert one.tokens.interval == pytest.approx(tuple(map(math.exp, expected)))
        assert one.flops.interval == pytest.approx(
            tuple(COSTS[arm] / COSTS["a"] * bound for bound in one.tokens.interval)
        )


@pytest.mark.parametrize("n_arms", [2, 5])
@pytest.mark.parametrize("rounds", [2, 5])
@pytest.mark.parametrize("is_heavy", [False, True])
def test_all_intervals_of_a_study_hold_together_on_a_drifting_machine(n_arms, rounds, is_heavy):
    """In at least 95 %: the machine's speed is a random walk, and blocks are noisy; in one case now
    and then a block is disturbed."""
    rng, arms = random.Random(f"{n_arms} {rounds} {is_heavy}"), "abcde"[:n_arms]
    true = {arm: 1e6 * (1 + 0.1 * number) for number, arm in enumerate(arms)}
    studies, missed = 600, 0
    for _ in range(studies):
        level = 0.0

        def rate(number, position, arm):
            nonlocal level
            level += rng.gauss(0, 0.02)
            slow = rng.random() * 0.3 if is_heavy and rng.random() < 0.1 else 0.0
            return true[arm] * math.exp(level + rng.gauss(0, 0.01) - slow)

        ratios = speeds_of_arms(blocks_of(rounds, arms, rate)).ratios
        missed += any(
            not one.tokens.interval[0] <= true[arm] / true["a"] <= one.tokens.interval[1]
            for arm, one in ratios.items()
        )
    assert missed / studies <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / studies)


def test_blocks_on_a_slowed_machine_are_counted():
    blocks = blocks_of(2, "ab", lambda *_: 1e6)
    blocks[3] = SpeedBlock(*(0, 3, "a", 1.0, 10**6, 1e15, 0.8e9, 3, "a CPU", 2))
    found = speeds_of_arms(blocks)
    assert (found.blocks, found.repeats, found.slowed) == (8, 3, 1)
    assert found.ratios["b"].tokens.interval is None  # no spread


@pytest.mark.parametrize(
    ("rate", "arm", "answer"),
    [
        (1.25, "b", " It is faster by fewer FLOPs per token (0.80 ×)."),
        (
            2.0,
            "b",
            "(0.80 ×) and more FLOPs per second (1.60 ×).",
        ),
        (1.1, "b", "(0.80 ×), in spite of fewer FLOPs per second (0.88 ×)."),
        (1.5, "d", " It is faster by more FLOPs per second (1.50 ×)."),
        (
            0.5,
            "c",
            " It is slower by more FLOPs per token (1.20 ×) and fewer",
        ),
        (1.0, "d", " Whether it is faster or slower is inconclusive."),
    ],
)
def test_faster_says_by_what(rate, arm, answer):
    rng = random.Random(3)

    def of(number, position, name):
        return 1e6 * (rate if name == arm else 1) * math.exp(rng.gauss(0, 0.002))

    assert answer in speed_answer(speeds_of_arms(blocks_of(5, f"a{arm}", of)).ratios[arm])


@pytest.fixture
def pair(workdir, template) -> None:
    for arm in ("orig", "pow2"):
        for seed in range(2):
            planted(template, arm, seed, 5.0 + 0.01 * seed, scale="nano")


def test_compare_uses_what_was_measured_in_turns_at_any_scale(capsys, pair, workdir):
    assert compared(capsys, "orig", "pow2")["speed"] is None
    plant_speed(workdir / "results", "s", {"orig": 100.0, "pow2": 110.0})
    found = compared(capsys, "orig", "pow2")
    speed = found["speed"]
    assert speed["is_alternated"]
    assert (speed["device_name"], speed["threads"], speed["blocks"]) == ("a CPU", 2, 12)
    ratio = speed["ratios"]["pow2"]
    assert ratio["tokens"]["mean"] == pytest.approx(1.1, rel=1e-6)
    assert (ratio["flops_per_token"], ratio["confidence"]) == (1.0, 0.95)
    (text,) = (text for text in found["conclusion"] if "times the tokens per second" in text)
    assert (
        "pow2, of equal size and cost, trained at 1.10 times the tokens per second of orig" in text
    )
    assert "and so the FLOPs per second, for a token takes as many. It is faster by more" in text
    assert any(
        "in 3 rounds there and back, on a CPU with 2 threads" in t for t in found["conclusion"]
    )
    assert any("these small models, at nano scale" in text for text in found["conclusion"])


def test_compare_shows_the_split_as_a_table(capsys, pair, workdir):
    plant_speed(workdir / "results", "s", {"orig": 100.0, "pow2": 110.0})
    code, out, _ = run_main(capsys, "compare", "orig", "pow2", "--study", "s", "--section", "speed")
    assert code == 0
    assert "Training speed as multiples of orig's, measured in turns; 95 % intervals" in out
    assert "1.100 (1.100 to 1.100)" in out
    assert "tokens per second, in turns" in out
    assert (workdir / "results/s/figures/orig-vs-pow2/speed.png").exists()


def test_a_file_without_one_of_the_arms_is_not_used(capsys, pair, workdir):
    plant_speed(workdir / "results", "s", {"orig": 100.0})
    assert compared(capsys, "orig", "pow2")["speed"] is None


def test_a_file_of_other_models_or_a_damaged_one_is_a_sentence(capsys, pair, workdir):
    plant_speed(workdir / "results", "s", {"orig": 100.0, "pow2": 110.0})
    path = workdir / "results/s/speed.csv"
    text = path.read_text()
    path.write_text(text.replace("pow2,", "pow2,0", 1).replace(",1000,", ",999,", 1))
    code, _, err = run_main(capsys, "compare", "orig", "pow2", "--study", "s")
    assert code == 2
    assert "s/speed.csv was measured with another model than the runs of 'orig' have; remove" in err
    path.write_text(text.replace(",1000,", ",some,", 1))
    code, _, err = run_main(capsys, "compare", "orig", "pow2", "--study", "s")
    assert (code, err.count("\n")) == (2, 1)
    assert "s/speed.csv has the tokens 'some'; remove it" in err


def test_a_figure_of_rounds_says_so(pair, workdir):
    plant_speed(workdir / "results", "s", {"orig": 100.0, "pow2": 110.0}, rounds=4)
    study = study_comparison("s", list_runs(workdir / "results", "s")[0])
    figure = speeds_of(study)
    assert figure.legends[0].get_texts()[0].get_text() == "one round"
    (axes,) = figure.axes
    assert [len(line.get_xdata()) for line in axes.lines if len(line.get_xdata()) > 2] == [4, 4]
    assert "at nano scale, a CPU with 2 threads" in figure.get_suptitle()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"environment": {"device_name": "another"}}, "made on different machines"),
        ({"at_once": 2}, "trained several at once and shared the machine"),
    ],
    ids=["two machines", "several at once"],
)
def test_runs_whose_clocks_do_not_compare_say_nothing_of_speed(
    capsys, workdir, template, change, why
):
    for seed in range(2):
        for arm, loss in (("a", 5.0), ("b", 4.0)):
            run = planted(template, arm, seed, loss + 0.01 * seed)
            run.update(protocol=run.manifest["protocol"] | {"scale": "full"})
    assert "tokens_per_second" in {
        row["metric"] for row in compared(capsys, "a", "b")["differences"]
    }
    environment = run.manifest["environment"] | change.get("environment", {})
    run.update(**change | {"environment": environment})
    found = compared(capsys, "a", "b")
    assert any("Nothing is concluded about speed: " in x and why in x for x in found["conclusion"])
    assert {row["metric"] for row in found["differences"]} == {"loss", "accuracy", "bits_per_byte"}
