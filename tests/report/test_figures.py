"""Figures: every run is seen, the titles say the verdict, the same input gives the same bytes."""

import math
import random
from dataclasses import replace
from pathlib import Path
from statistics import geometric_mean
from types import SimpleNamespace
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from smolctl.analysis.arms import Arm
from smolctl.analysis.comparison import Comparison
from smolctl.analysis.run_metrics import FinishedRun
from smolctl.report.figures.curves import losses_of, spread_out, tradeoff_of
from smolctl.report.figures.forest import forest_of, overview_of, speeds_of
from smolctl.report.style import COLOURS, LINES, MARKERS, save_figure
from smollm2.protocol.resolve import resolve
from smollm2.protocol.run_config import RunConfig

LONG = "pow2-with-one-kv-head-and-a-name-that-goes-on"


def arrays(columns: dict[str, Any]) -> dict[str, np.ndarray]:
    return {name: np.array(cells) for name, cells in columns.items()}


def facts_of(
    seed: int,
    *,
    loss: float,
    kv_heads: int = 4,
    scale: str = "nano",
    points: int = 21,
    noise: float = 0.01,
) -> FinishedRun:
    """A run of 200 steps that falls from 8.8 to about `loss`."""
    settings = (f"n_kv_heads={kv_heads}",)
    protocol = resolve(
        RunConfig("pow2", scale, steps=200, seed=seed, device="cpu", settings=settings)
    )
    rng = random.Random(f"{seed} {loss}")
    pace = rng.uniform(0.18, 0.22)  # seconds a step
    steps = [round(200 * i / (points - 1)) for i in range(points)] if points > 1 else [200]
    curve = arrays(
        {
            "step": steps,
            "flops": [step * protocol.flops_per_step for step in steps],
            "seconds": [pace * step for step in steps],
            "loss": [loss + (8.8 - loss) * math.exp(-step / 25) for step in steps],
            "accuracy": [0.3 * (1 - math.exp(-step / 25)) for step in steps],
        }
    )
    train = arrays(
        {
            "step": range(1, 201),
            "seconds": [pace * step for step in range(200)],
            "loss": [loss + 4 * math.exp(-step / 25) + rng.gauss(0, 0.2) for step in range(200)],
            "lr": [3e-3 * min(1, (step + 1) / 10, (200 - step) / 40) for step in range(200)],
            "tokens_per_second": [math.nan] * 200,
        }
    )
    values = {"loss": loss + rng.gauss(0, noise), "tokens_per_second": math.nan, "seconds": 40}
    test = arrays({"suite": ["final-test"], "clusters": [6], "n": [1], "total": [1]})
    run = SimpleNamespace(
        name=f"run{loss}-s{seed}",
        arm="",
        study_path=Path("none"),
        manifest={"equal": "tokens", "floors": {"unigram": 30.0, "trigram": 20.0}},
        at_once=1,
        processes=[1],
        columns=lambda name: test,
    )
    return FinishedRun(run, protocol, values, curve, train, pd.DataFrame(), None)


def comparison_of(losses: dict[str, float], runs: int = 3, **options) -> Comparison:
    """An arm a name, around its loss, each with half the KV heads of the one before, all tuned."""
    arms = [
        Arm(
            name,
            tuple(facts_of(i, loss=loss, kv_heads=8 >> min(n, 3), **options) for i in range(runs)),
        )
        for n, (name, loss) in enumerate(losses.items())
    ]
    found = Comparison("demo", tuple(arms), ())
    worse = {arm.name: {arm.rates[0] * times: 5.1 for times in (0.5, 2)} for arm in arms}
    found.__dict__["grids"] = {  # without tables on disk
        arm.name: {
            rate: dict.fromkeys((100, 101, 102), loss)
            for rate, loss in (worse[arm.name] | {arm.rates[0]: 5.0}).items()
        }
        for arm in arms
    }
    return found


SIX = {"orig": 4.5, "pow2": 4.1, LONG: 4.52, "moe": 4.505, "wide": 4.9, "narrow": 4.55}
COMPARISONS = {
    "two arms": comparison_of({"orig": 4.5, "pow2": 4.4}),
    "one run": comparison_of({"orig": 4.5, "pow2": 4.4}, runs=1),
    "a single validation": comparison_of({"orig": 4.5, "pow2": 4.4}, points=1),
    "six arms": comparison_of(SIX),
    "the same loss": comparison_of({"orig": 4.5, "pow2": 4.5}, noise=0.0),
}


@pytest.fixture(params=COMPARISONS)
def comparison(request: pytest.FixtureRequest) -> Comparison:
    return COMPARISONS[request.param]


def title_of(figure: Figure) -> str:
    return " ".join(figure.get_suptitle().split())


def texts_of(figure: Figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def write_all(comparison: Comparison, folder: Path) -> dict[str, bytes]:
    figures = {"loss": losses_of, "differences": forest_of, "tradeoff": tradeoff_of}
    paths = [
        save_figure(draw(comparison), folder / f"{name}.png") for name, draw in figures.items()
    ]
    return {path.name: path.read_bytes() for path in paths}


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    comparison = COMPARISONS["two arms"]
    settings = dict(mpl.rcParams)
    first = write_all(comparison, tmp_path / "new" / "first")
    assert list(first) == ["loss.png", "differences.png", "tradeoff.png"]
    assert dict(mpl.rcParams) == settings
    with mpl.rc_context({"font.size": 20, "axes.facecolor": "red"}):  # as from a matplotlibrc
        assert write_all(comparison, tmp_path / "second") == first
    assert b"matplotlib" not in b"".join(first.values())


def test_every_figure_fits_its_page(comparison: Comparison) -> None:
    """Nothing warns or is cut off, no legend lies on the title or takes the panels' room."""
    for figure in [draw(comparison) for draw in (losses_of, forest_of, tradeoff_of)]:
        figure.draw_without_rendering()
        inside = figure.get_tightbbox().transformed(figure.dpi_scale_trans)
        assert 0 <= inside.x0 < inside.x1 <= figure.bbox.width
        assert 0 <= inside.y0 < inside.y1 <= figure.bbox.height
        legends = [*figure.legends, *(axes.get_legend() for axes in figure.axes)]
        (legend,) = (legend.get_window_extent() for legend in legends if legend)
        (title,) = figure.texts
        assert not legend.overlaps(title.get_window_extent())
        for axes in figure.axes:
            assert not legend.overlaps(axes.bbox)
            assert axes.bbox.height > figure.bbox.height / 4


def test_every_run_has_a_line_and_a_marker_in_each_panel(comparison: Comparison) -> None:
    losses = sorted(facts.values["loss"] for arm in comparison.arms for facts in arm.runs)
    panels = losses_of(comparison).axes
    assert len(panels) == 3
    for axes, axis in zip(panels, ("step", "flops", "seconds"), strict=True):
        drawn = [line for line in axes.lines if line.get_markerfacecolor() != "none"]
        ends = [line for line in axes.lines if line.get_markerfacecolor() == "none"]
        runs = [(facts, arm) for arm in comparison.arms for facts in arm.runs]
        for line, (facts, _) in zip(drawn, runs, strict=True):
            assert list(line.get_xdata()) == list(facts.curve[axis])
            assert list(line.get_ydata()) == list(facts.curve["loss"])
            if len(facts.curve["step"]) == 1:  # or nothing would be seen
                assert line.get_marker() == "."
        assert sorted(line.get_ydata()[0] for line in ends) == losses
        low, high = axes.get_ylim()
        assert low < losses[0]
        assert losses[-1] < high < 7  # not 8.8, where they start
    assert "not comparable at nano scale" in panels[2].get_xlabel()


def test_seconds_compare_at_full_scale() -> None:
    panels = losses_of(comparison_of({"orig": 4.5, "pow2": 4.4}, runs=1, scale="full")).axes
    assert "comparable" not in panels[2].get_xlabel()


def test_titles_say_the_verdict() -> None:
    two, one, six = (COMPARISONS[name] for name in ("two arms", "one run", "six arms"))
    found = two.primary["pow2"]
    assert found.verdict == "better"
    title = f"pow2 ends {-found.mean:.4f} below orig: better (exploratory) (3 and 3 runs)"
    assert title_of(losses_of(two)) == title_of(forest_of(two)) == title
    assert title_of(tradeoff_of(two)) == f"With 0.5 times the KV cache, {title}"
    assert title_of(losses_of(one)).endswith("orig: inconclusive: seeds (1 and 1 run)")
    assert title_of(losses_of(six)) == (
        f"Against orig: pow2 better (exploratory); {LONG}, moe and narrow inconclusive: seeds, "
        "tuning; wide worse (exploratory)"
    )


def test_differences_show_runs_intervals_and_verdicts(comparison: Comparison) -> None:
    figure = forest_of(comparison)
    (axes,) = figure.axes
    base = comparison.base
    centre = sum(facts.values["loss"] for facts in base.runs) / len(base.runs)
    drawn = [list(line.get_xdata()) for line in axes.lines]
    for arm in comparison.arms:
        values = [facts.values["loss"] - centre for facts in arm.runs]
        assert any(xs == pytest.approx(values) for xs in drawn if len(xs) == len(values))
    for arm, note in zip(comparison.others, texts_of(figure)[1:], strict=True):
        found = comparison.primary[arm.name]
        assert f"{found.mean:+.4f}: {found.verdict}" in note
        assert ("no interval" in note) == (found.interval is None)
        assert found.interval is None or list(found.interval) in drawn
    low, high = axes.get_xlim()
    assert low < 0 < high


def test_a_withdrawn_study_shows_no_interval(comparison: Comparison) -> None:
    """Its runs and their means are facts; an interval or a side that is better is a verdict."""
    study = replace(comparison, superseded="The rate was wrong.", margin=0.01)
    study.__dict__["grids"] = comparison.grids
    figure = forest_of(study)
    (axes,) = figure.axes
    assert (axes.get_title("left"), axes.get_title("right")) == ("← lower", "higher →")
    assert axes.get_xlabel() == "test loss minus the mean of orig, nats/token"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "one run",
        "their mean beside the base's",
    ]
    marks = axes.lines[1:]  # the first is the base's mean
    assert len(marks) == len(study.arms) + len(study.others)
    assert not axes.patches
    for arm, note in zip(study.others, texts_of(figure)[1:], strict=True):
        found = study.primary[arm.name]
        assert note == f"{found.mean:+.4f}: withdrawn"
        assert found.mean == comparison.primary[arm.name].mean
        assert found.interval is found.widened is found.p is None


@pytest.fixture
def timed(monkeypatch) -> Comparison:
    """Two arms whose runs have 200, 202 and 204, and 210, 212 and 214 tokens a second."""
    arms = []
    for arm, speed in zip(COMPARISONS["two arms"].arms, (200, 210), strict=True):
        runs = tuple(
            replace(facts, values=facts.values | {"tokens_per_second": speed + 2 * number})
            for number, facts in enumerate(arm.runs)
        )
        for facts in runs:
            facts.run.manifest["environment"] = {"device_name": "a CPU", "threads": 2}
            facts.run.manifest["training_flops_per_token"] = 1e9 * speed
        arms.append(Arm(arm.name, runs))
    assert not Comparison("timed", tuple(arms), ()).is_timed  # at nano scale
    scale = property(lambda one: "full" if one.study == "timed" else "nano")
    monkeypatch.setattr(Comparison, "scale", scale)
    comparison = Comparison("timed", tuple(arms), ())
    assert comparison.is_timed
    return comparison


def test_speeds_stand_beside_the_first_arm(timed: Comparison) -> None:
    figure = speeds_of(timed)
    figure.draw_without_rendering()
    assert title_of(figure) == "Training speed at full size, a CPU with 2 threads"
    assert texts_of(figure) == ["the base", "1.05 × tokens/s\n1.05 × FLOPs per token"]
    (axes,) = figure.axes
    assert (axes.get_title("left"), axes.get_title("right")) == ("← slower", "faster →")
    drawn = [list(line.get_xdata()) for line in axes.lines]
    centre = geometric_mean([200, 202, 204])
    runs = [speed / centre for speed in (200, 202, 204)]
    assert any(xs == pytest.approx(runs) for xs in drawn if len(xs) == 3)
    ratio = geometric_mean([210, 212, 214]) / centre
    assert any(xs == pytest.approx([ratio]) for xs in drawn if len(xs) == 1)
    low, high = axes.get_xlim()
    assert low < 1 < high
    (axes,) = speeds_of(replace(timed, superseded="One machine was hot.")).axes
    assert axes.get_xlabel() == "tokens per second, times those of orig"
    assert all(line.get_marker() != "|" for line in axes.lines)


def named_runs(axes) -> list:
    """The hollow marks of the runs, a line an arm."""
    return [line for line in axes.lines if line.get_markerfacecolor() == "none"]


def test_the_overview_has_losses_controls_and_speeds(timed: Comparison) -> None:
    main = COMPARISONS["six arms"]
    arms = (
        Arm(name, tuple(facts_of(seed, loss=4.5, noise=0.0) for seed in seeds))
        for name, seeds in (("orig", range(3)), ("again", range(3, 6)))
    )
    control = Comparison("aa", tuple(arms), ())
    figure = overview_of([main, control], timed)
    figure.draw_without_rendering()
    losses, same, speeds = figure.axes
    assert losses.get_xlim() == same.get_xlim() != speeds.get_xlim()
    for axes, alone in ((losses, forest_of(main)), (speeds, speeds_of(timed))):
        assert texts_of(SimpleNamespace(axes=[axes])) == texts_of(alone)
        drawn, expected = (
            [list(line.get_xdata()) for line in one.lines] for one in (axes, alone.axes[0])
        )
        assert drawn == expected
    colours = {
        label.get_text().split()[0]: line.get_color()
        for axes in figure.axes
        for label, line in zip(axes.get_yticklabels(), named_runs(axes), strict=True)
    }
    for axes in figure.axes:  # an arm looks the same in each panel
        for label, line in zip(axes.get_yticklabels(), named_runs(axes), strict=True):
            assert line.get_color() == colours[label.get_text().split()[0]]
    left, right = figure.subfigs
    first, second = map(title_of, left.subfigs[:2])
    assert first == f"Loss after 204,800 tokens at nano scale. {title_of(losses_of(main))}"
    assert second.startswith("Control, one model under several names. again ends 0.0000")
    assert title_of(right.subfigs[0]) == title_of(speeds_of(timed))
    assert len(overview_of([main], timed).axes) == 2
    *_, in_time = overview_of([main], timed, [control]).axes
    assert texts_of(SimpleNamespace(axes=[in_time])) == texts_of(forest_of(control))
    for facts in main.base.runs:
        facts.run.manifest["equal"] = "flops"
    try:
        left, _ = overview_of([main], timed).subfigs
    finally:
        for facts in main.base.runs:
            facts.run.manifest["equal"] = "tokens"
    assert title_of(left.subfigs[0]).startswith("Loss at equal FLOPs, nano scale. ")


def test_tradeoff_stands_over_the_cache() -> None:
    comparison = COMPARISONS["six arms"]
    (axes,) = tradeoff_of(comparison).axes
    runs = [line for line in axes.lines if line.get_markerfacecolor() == "none"]
    for line, arm in zip(runs, comparison.arms, strict=True):
        assert set(line.get_xdata()) == {arm.kv_bytes_per_token}
        assert list(line.get_ydata()) == [facts.values["loss"] for facts in arm.runs]
    assert list(axes.get_xticks()) == [1024, 2048, 4096, 8192]
    assert spread_out([1000, 1024, 4096]) == [1000, 4096]


def test_arms_differ_in_colour_line_and_marker() -> None:
    comparison = COMPARISONS["six arms"]
    legend = losses_of(comparison).legends[0]
    looks = legend.get_lines()[: len(comparison.arms)]
    assert len({line.get_color() for line in looks}) == len(comparison.arms)
    assert len({line.get_marker() for line in looks}) == len(comparison.arms)
    assert len(set(COLOURS)) == len(set(LINES)) == len(set(MARKERS)) == 8


def test_the_margin_of_a_study_is_a_band() -> None:
    comparison = replace(COMPARISONS["two arms"], margin=0.02)
    figure = forest_of(comparison)
    (band,) = figure.axes[0].patches
    assert (band.get_x(), band.get_width()) == pytest.approx((-0.02, 0.04))
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "within the study's margin" in labels
    assert not forest_of(COMPARISONS["two arms"]).axes[0].patches


def test_one_arm_by_itself_has_a_title() -> None:
    alone = replace(COMPARISONS["two arms"], arms=COMPARISONS["two arms"].arms[:1])
    assert title_of(losses_of(alone)) == "orig: the loss of every run"
