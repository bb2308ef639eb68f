"""The figure of quantized arms: every configuration is seen, and its title says what it shows."""

import shutil
from itertools import combinations

import pytest
from matplotlib.figure import Figure
from support.planted import delta, found, kl

from smolctl.analysis.quantized_arms import Quantized
from smolctl.report.figures.quantized import harm_figure_of, quantized_headline
from smolctl.report.style import save_figure
from smollm2.quantize.dimensions import GROUP_SIZES


@pytest.fixture(params=["three arms", "one arm", "untimed", "older"])
def drawn(request, plant) -> tuple[Quantized, Figure]:
    """Quantized arms, and their figure."""
    names = ["int8", *(f"int4_g{size}" for size in GROUP_SIZES), "llm_int8"]
    names += [f"nf4_g{size}" for size in GROUP_SIZES]
    arms = {"orig": 0.012, "pow2": 0.01, "pow2-135m": 0.011}
    harm = delta if request.param == "older" else kl
    if request.param == "one arm":
        names, arms = ["int4_g64"], {"orig": 0.012}
    for arm, change in arms.items():
        for seed in range(1 if request.param == "one arm" else 2):
            timed = {"decode_ratio": 1 + change, "compiled_decode_ratio": 1.5 + change}
            cells = {} if request.param == "untimed" else timed
            configurations = {
                name: harm(change * (1 + i) + seed / 1e4, **sized(i), **cells)
                for i, name in enumerate(names)
            }
            plant(arm, seed, **configurations)
    result = found()
    return result, harm_figure_of(result)


def sized(place: int) -> dict[str, float]:
    """Fewer bytes for each configuration."""
    return {"disk_bytes_without_embedding": 700 - 10 * place}


def test_every_configuration_of_every_arm_is_drawn(drawn):
    result, figure = drawn
    harm, *speeds = figure.axes
    column = "kl_mean" if result.has_kl else "loss_delta"
    points = [
        (arm, name, result.configuration(arm, name)) for arm in result.arms for name in result.names
    ]
    marked = [container.lines[0] for container in harm.containers]
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in marked] == [
        (one.bytes_per_parameter, pytest.approx(one.mean(column))) for _, _, one in points
    ]
    assert len({line.get_color() for line in marked}) == len(result.arms)
    assert len({line.get_marker() for line in marked}) == len(result.names)
    looks = {(arm, name): line for (arm, name, _), line in zip(points, marked, strict=True)}
    for axes in speeds:
        assert [label.get_text() for label in axes.get_yticklabels()] == result.names
        ratios = sorted(line.get_xdata()[0] for line in axes.lines if len(line.get_xdata()) == 1)
        wanted = [
            one.mean(column)
            for _, _, one in points
            for column in ("decode_ratio", "compiled_decode_ratio")
        ]
        assert ratios == sorted(wanted)
        colours = {line.get_color() for line in axes.lines if len(line.get_xdata()) == 1}
        assert colours == {line.get_color() for line in looks.values()}
    is_timed = any(one.values("decode_ratio") for _, _, one in points)
    assert bool(speeds) == is_timed
    named = {text.get_text() for text in figure.legends[0].get_texts()}
    assert named >= set(result.arms)
    assert sorted(text.get_text() for text in harm.texts) == sorted(result.names)
    assert harm.get_yscale() == ("log" if result.has_kl else "linear")


def test_the_figure_fits_its_page(drawn):
    _, figure = drawn
    figure.draw_without_rendering()
    inside = figure.get_tightbbox().transformed(figure.dpi_scale_trans)
    assert 0 <= inside.x0 < inside.x1 <= figure.bbox.width
    assert 0 <= inside.y0 < inside.y1 <= figure.bbox.height
    legend = figure.legends[0].get_window_extent()
    (title,) = figure.texts
    assert not legend.overlaps(title.get_window_extent())
    for axes in figure.axes:
        assert not legend.overlaps(axes.bbox)
        assert axes.bbox.height > figure.bbox.height / 4


def test_the_figure_is_the_same_bytes_and_says_whose_error_it_shows(drawn, tmp_path):
    result, figure = drawn
    paths = [save_figure(harm_figure_of(result), tmp_path / name) for name in ("a.png", "b.png")]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    over = "documents" if len(result.arms) == 1 else "runs"
    assert figure.axes[0].get_title(loc="left").endswith(f"over {over}")


def test_names_stand_apart_where_points_are_above_one_another(plant):
    names = ("int4_g64", "nf4_g64", "int8", "llm_int8")
    harm = (0.2, 0.22, 0.004, 0.03)
    sizes = (450, 450, 800, 802)
    cells = zip(names, harm, sizes, strict=True)
    plant("orig", 0, **{n: kl(h, disk_bytes_without_embedding=size) for n, h, size in cells})
    figure = harm_figure_of(found())
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    assert len(boxes) == 4
    assert not any(a.overlaps(b) for a, b in combinations(boxes, 2))


def test_titles_of_the_figure_say_the_verdicts(plant):
    for seed in range(3):
        noise = seed / 1e4
        plant("orig", seed, int4_g64=delta(0.05 + noise), int8=delta(0.001 + noise))
        plant("pow2", seed, int4_g64=delta(0.03 - noise), int8=delta(0.001 - noise))
    expected = "Quantized, against orig: pow2 better at int4-g64, inconclusive at int8"
    assert quantized_headline(found()) == expected


def test_titles_of_the_figure_without_verdicts(plant):
    plant("orig", 0, int4_g64=delta(0.05), int8=delta(0.001))
    expected = "Quantizing changes the loss by +0.0010 (orig int8) to +0.0500 (orig int4-g64)"
    assert quantized_headline(found()) == expected
    plant("pow2", 0, int4_g64={"loss_delta": "", "reason": "no kernel"})
    assert quantized_headline(found()) == expected
    shutil.rmtree("results/s/orig-s0")
    assert quantized_headline(found()) == "No change of the loss was measured"
    harm_figure_of(found()).draw_without_rendering()


def test_a_title_without_verdicts_gives_the_divergences(plant):
    plant("orig", 0, int4_g64=kl(0.1), int8=kl(0.004))
    assert quantized_headline(found()) == (
        "Quantized, the KL divergence to bf16 is 0.0040 (orig int8) to 0.1000 (orig int4-g64)"
    )
