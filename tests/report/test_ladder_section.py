"""The section of a size ladder, of planted runs."""

import dataclasses
import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.command import run_main
from support.planted import plan, planted

from smolctl.analysis.comparison import Comparison
from smolctl.analysis.rate_transfer import transferred_gap
from smolctl.analysis.rungs import ladder_beside
from smolctl.analysis.selection import study_comparison
from smolctl.analysis.size_ladder import Lack, Trend
from smolctl.analysis.stats import critical_t
from smolctl.analysis.study_plan import LadderPlan
from smolctl.analysis.verdicts import Difference, Missing, Verdict
from smolctl.studies.ledger import record_results
from smollm2.runs.run import Run, list_runs

SIZES = {"0.5M": "x-0.5m", "1M": "x-1m", "2M": "x-2m"}


def difference(mean: float, *, gap: float | None = 0.002, error: float = 0.001, **fields):
    """Of ten seeds, with tuning gaps of that size in both arms."""
    half = error * float(critical_t(0.025, 9))
    interval = mean - half, mean + half
    gaps = (math.inf, math.inf) if gap is None else (gap, gap)
    found = Difference(mean, interval, 0.95, 0.01, 0.01, Verdict.WORSE, gaps)
    return dataclasses.replace(found, standard_error=error, degrees_of_freedom=9, **fields)


def notes_of_rung(size: str, **changes) -> str:
    values = {"sizes": list(SIZES), "tokens_per_parameter": 20, "rate": "tune", "check": "2M"}
    values |= {"at": "2M", "name": "x", "rung": size} | changes
    lines = [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    return "\n".join(["margin = 0.01", "[ladder]", *lines, ""])


@pytest.fixture
def plant(workdir, template, monkeypatch):
    """Makes the ladder: two seeds of two arms at each size, with these differences."""

    def make(found: dict[str, Difference], **notes):
        for number, size in enumerate(found):
            name, width = SIZES[size], 16 * (number + 2)
            for seed in range(2):
                for arm, model in (("orig", {}), ("pow2", {"n_layers": 3})):
                    model = model | {"d_model": width}
                    planted(template, arm, seed, 5.0 + seed, study=name, model=model)
            Path("results", name, "study.toml").write_text(notes_of_rung(size, **notes))
        by_study = {SIZES[size]: {"pow2": one} for size, one in found.items()}
        monkeypatch.setattr(Comparison, "primary", property(lambda self: by_study[self.study]))
        return ladder()

    return make


def ladder(study="x-2m"):
    runs, _ = list_runs(Path("results"), study)
    return ladder_beside(study_comparison(study, [run for run in runs if run.role == "final"]))


def shown(capsys, *options) -> str:
    command = ("compare", "orig", "pow2", "--study", "x-2m", "--section", "ladder")
    command += ("--section", "ladder-in-detail", *options)
    code, out, err = run_main(capsys, *command)
    assert code == 0, err
    return out


@pytest.mark.parametrize(
    ("means", "at", "trend"),
    [
        ((0.05, 0.05, 0.05), "2M", Trend.PERSISTS),
        ((0.09, 0.07, 0.05), "2M", Trend.SHRINKS),
        ((0.05, 0.07, 0.09), "135M", Trend.GROWS),
        ((0.0, 0.0, 0.0), "2M", Trend.UNKNOWN),
    ],
)
def test_the_trend_is_told_with_its_size(capsys, plant, means, at, trend):
    found = {size: difference(mean) for size, mean in zip(SIZES, means, strict=True)}
    assert plant(found, at=at).trends["pow2"].trend is trend
    out = " ".join(shown(capsys).split())
    assert f"At {at}{', extrapolated,' if at == '135M' else ''} the difference of pow2" in out
    assert (trend in out) or trend is Trend.UNKNOWN
    assert ("No model of 135M was trained" in out) == (at == "135M")
    (figure,) = Path("results/x-2m/figures").rglob("ladder.png")
    assert figure.stat().st_size > 10_000


def test_json_has_the_line(capsys, plant):
    plant({size: difference(0.05) for size in SIZES})
    found = json.loads(shown(capsys, "--json"))["ladder"]
    arm = found["arms"]["pow2"]
    assert (arm["trend"], arm["missing"], found["confidence"]) == ("persists", [], 0.975)
    assert arm["difference"]["mean"] == pytest.approx(0.05)
    assert [one["parameters"] for one in arm["rungs"]] == [5e5, 1e6, 2e6]
    assert arm["rungs"][0]["gaps"] == pytest.approx([0.002, 0.002])
    assert found["sizes"] == {"0.5M": 5e5, "1M": 1e6, "2M": 2e6}


def test_the_ladder_is_in_the_card_of_a_rung_and_of_no_other_study(capsys, plant):
    plant({size: difference(0.05) for size in SIZES})
    code, out, _ = run_main(capsys, "report", "--study", "x-1m")
    assert code == 0
    assert "## Size ladder" in out
    assert "*persists*" in out
    assert "Sizes of the ladder" not in out
    code, out, _ = run_main(capsys, "report", "--study", "x-1m", "--appendix", "a.md")
    assert "| 0.5M | pow2 |" in Path("a.md").read_text()
    Path("results/x-1m/study.toml").unlink()
    code, out, _ = run_main(capsys, "report", "--study", "x-1m")
    assert "## Size ladder" not in out


@pytest.mark.parametrize(
    ("changes", "lack"),
    [
        ({"missing": (Missing.REGIME,)}, Lack.REGIME),
        ({"missing": (Missing.DOCUMENTS,)}, Lack.DOCUMENTS),
        ({"gaps": (math.inf, 0.0)}, Lack.TUNING),
        ({"interval": None, "standard_error": None}, Lack.SEEDS),
    ],
)
def test_what_one_size_lacks_makes_the_trend_unknown(capsys, plant, changes, lack):
    found = {size: difference(0.05) for size in SIZES}
    found["1M"] = dataclasses.replace(found["1M"], **changes)
    one = plant(found).trends["pow2"]
    assert (one.trend, one.missing) == (Trend.UNKNOWN, tuple(sorted({lack, *one.missing})))
    assert lack in one.lacking["1M"]
    assert "0.5M" not in one.lacking
    assert "1M lacks" in shown(capsys)


def test_a_size_without_finished_runs_is_named(capsys, plant):
    one = plant({size: difference(0.05) for size in ("0.5M", "2M")}).trends["pow2"]
    assert one.lacking == {"1M": (Lack.SIZES,)}
    assert "1M lacks finished runs of every arm" in " ".join(shown(capsys).split())


def test_seeds_that_a_plan_still_waits_for_make_the_trend_unknown(plant, monkeypatch):
    binding = SimpleNamespace(seeds={"orig": (0, 1), "pow2": (0, 1, 2)})
    ledger = SimpleNamespace(binding=binding, first_results=lambda arm: {})
    monkeypatch.setattr("smolctl.analysis.rungs.read_ledger", lambda folder: ledger)
    one = plant({size: difference(0.05) for size in SIZES}).trends["pow2"]
    assert one.missing == (Lack.SEEDS,)


def test_a_superseded_size_makes_the_trend_unknown(plant):
    plant({size: difference(0.05) for size in SIZES})
    path = Path("results/x-1m/study.toml")
    path.write_text('superseded = "wrong data"\n' + path.read_text())
    assert ladder().trends["pow2"].missing == (Lack.WITHDRAWN,)


def test_a_size_with_one_model_at_two_rates_lacks_tuning(capsys, plant):
    """As in a plain study, however small the gaps: the difference is one of tuning."""
    plant({size: difference(0.05) for size in SIZES})
    for times in (1, 2):
        assert "1M" not in ladder().trends["pow2"].lacking  # a control has nothing to tune
        for path in Path("results/x-1m").glob("pow2-s*"):
            run = Run(path)
            protocol = run.manifest["protocol"]
            protocol["model"] = Run(path.with_name("orig-s0")).manifest["protocol"]["model"]
            protocol["recipe"]["lr"] *= times
            run.update(protocol=protocol)
    one = ladder().trends["pow2"]
    assert (one.trend, one.lacking) == (Trend.UNKNOWN, {"1M": (Lack.TUNING,)})
    text = "1M lacks learning rates that are known to be near their best"
    assert text in " ".join(shown(capsys).split())


def plant_tuning(template, study: str, best: float) -> None:
    """Tuning runs of both arms at five rates from a valley, three seeds each."""
    for arm in ("orig", "pow2"):
        (one, *_) = Path("results", study).glob(f"{arm}-s*")
        model = Run(one).manifest["protocol"]["model"]
        for power in range(-2, 3):
            rate = float(f"{best * 2 ** (power / 2):.4g}")
            for seed in (100, 101, 102):
                name = f"{arm}-lr{rate:g}"
                manifest = {"role": "sweep"}
                run = planted(
                    *(template, name, seed, 5.0),
                    study=study,
                    arm=arm,
                    manifest=manifest,
                    model=model,
                )
                fields = run.manifest["protocol"]
                fields["recipe"]["lr"] = rate
                run.update(protocol=fields)
                rows = run.rows("val")
                rows[-1]["loss"] = 5 + 0.1 * seed + 0.02 * power**2 + 0.0001 * seed * power
                run.replace("val", rows)
                (run.path / "eval.csv").unlink()


def set_rates(study: str, rate: float) -> None:
    """Of the final runs of a study."""
    for path in Path("results", study).glob("*-s[01]"):
        run = Run(path)
        protocol = run.manifest["protocol"]
        run.update(protocol=protocol | {"recipe": protocol["recipe"] | {"lr": rate}})


@pytest.mark.parametrize("size", SIZES)
def test_a_size_that_is_a_copy_of_another_does_not_count(plant, size):
    plant({one: difference(0.05) for one in SIZES})
    others = [one for one in SIZES if one != size]
    Path("results", SIZES[size], "study.toml").write_text(notes_of_rung(others[0]))
    for one in others:
        assert ladder(SIZES[one]).absent == (size,)


def test_results_that_were_trained_again_make_the_trend_unknown(plant):
    found = plant({size: difference(0.05) for size in SIZES})
    assert found.trends["pow2"].trend is Trend.PERSISTS
    record_results(Path("results/x-1m"), list_runs(Path("results"), "x-1m")[0])
    for path in Path("results/x-1m").glob("pow2-s*"):
        Run(path).update(finished_at="2000-01-01T00:00:00Z")
    assert ladder().trends["pow2"].lacking == {"1M": (Lack.SEEDS,)}


def test_the_gap_of_a_transferred_size_follows_from_the_tuned_ones(capsys, plant, template):
    """The template's rate is 1e-3 at widths 32, 48 and 64: by the rule 5e-4 at the last."""
    found = {size: difference(0.05) for size in SIZES}
    found["1M"] = difference(0.05, gap=None)
    assert plant(found, rate="transfer").trends["pow2"].missing == (Lack.TUNING,)
    plant_tuning(template, "x-2m", 0.0005)
    one = ladder()
    assert one.gaps_at("1M", "pow2") == (math.inf, math.inf)  # its rate is not that of the rule
    set_rates("x-1m", 0.0007071)
    one = ladder()
    assert set(one.checks) == {"orig", "pow2"}
    check = one.checks["pow2"]
    assert check.holds
    assert 0 < check.gap < 0.05
    expected = [transferred_gap(0.002, one.checks[arm].gap, 0.5) for arm in ("orig", "pow2")]
    assert one.gaps_at("1M", "pow2") == pytest.approx(tuple(expected))
    assert "1M" not in one.trends["pow2"].lacking
    out = " ".join(shown(capsys).split())
    assert "The rule gives pow2 at 2M a rate of 0.0005, among its best rates there" in out


def test_beyond_the_size_that_checks_the_rule_the_gap_grows(plant, template):
    found = {size: difference(0.05) for size in SIZES}
    found["2M"] = difference(0.05, gap=None)
    plant(found, rate="transfer", check="1M")
    plant_tuning(template, "x-1m", 0.0007071)
    set_rates("x-2m", 0.0005)
    one = ladder()
    assert one.gaps_at("2M", "pow2") == pytest.approx(
        tuple(transferred_gap(0.002, one.checks[arm].gap, 2) for arm in ("orig", "pow2"))
    )


def test_another_ladder_than_planned_is_exploratory(plant):
    found = plant({size: difference(0.1) for size in SIZES})
    assert not found.trends["pow2"].exploratory  # older ledgers plan nothing about it
    sizes = tuple(SIZES)
    for planned_as, expected in (
        (LadderPlan(sizes, "2M"), False),
        (LadderPlan(sizes, "135M"), True),
        (LadderPlan(sizes[1:], "2M"), True),
    ):
        plan(Path("results/x-0.5m"), ladder=planned_as)
        assert ladder().trends["pow2"].exploratory is expected
