"""Quantized arms: verdicts, broken files, and the card."""

import re
from pathlib import Path

import pytest
from support.command import run_main
from support.planted import COUNTS, delta, found, plant_quantized
from support.quantized import card, claim, words

from smolctl.report.sections.quantization import conclusion
from smolctl.report.sections.quantization_tables import (
    configurations_table,
    notes_table,
    pairs_table,
)
from smollm2.quantize.quant_config import QuantConfig


@pytest.mark.parametrize(("sign", "verdict"), [(-1, "better"), (1, "worse")])
def test_a_clear_difference_over_seeds_is_a_verdict(plant, sign, verdict):
    for seed in range(3):
        noise = 0.0001 * seed
        plant("orig", seed, int4_g64=delta(0.05 + noise), int8=delta(0.001 + noise))
        plant("pow2", seed, int4_g64=delta(0.05 + 0.02 * sign - noise), int8=delta(0.001 - noise))
    result = found()
    eight, four = result.pairs
    assert (eight.name, four.name) == ("int8", "int4-g64")  # more bits first
    assert four.difference.verdict == verdict
    assert four.difference.mean == pytest.approx(0.02 * sign - 0.0002)
    low, high = four.difference.interval
    assert not low <= 0 <= high
    assert eight.difference.verdict == "inconclusive"
    # One family of two configurations, at one confidence.
    assert (four.difference.confidence, eight.difference.confidence) == (0.975, 0.975)
    text = words(result)
    assert f"At int4-g64 pow2 quantizes {verdict} than orig: its loss changes by" in text
    assert "3 runs against 3" in text
    assert "Whether pow2 quantizes better than orig is inconclusive at int8 (-0.0002" in text
    assert "All verdicts on quantization hold together" in text
    assert claim(result)[2] == (
        f"loss inconclusive at 1 and {verdict} at 1 of 2 (pow2); bytes fall: as many (pow2)"
    )
    assert f"at int4-g64 ({verdict})" in claim(result)[1]


def test_weights_trained_on_little_text_are_reported(plant):
    runs = [plant(arm, 0, int8=delta(0.01)) for arm in ("orig", "pow2")]
    tokens = runs[0].protocol.steps * runs[0].protocol.tokens_per_step
    said = f"trained on {tokens:,} tokens, {tokens / COUNTS['total']:.2g} per parameter"
    assert said in words(found())
    for run in runs:
        run.update(parameters={name: count // 1000 + 1 for name, count in COUNTS.items()})
    assert "per parameter. What" not in words(found())
    for run in runs:  # what the weights that it began with have seen is not known
        run.update(parameters=COUNTS, started_from="else", started_from_sha256="0")
    assert "per parameter. What" not in words(found())


def test_one_seed_decides_nothing(plant):
    plant("orig", 0, int4_g64=delta(0.05, loss_delta_stderr=0.003))
    plant("pow2", 0, int4_g64=delta(0.01, loss_delta_stderr=0.004))
    result = found()
    (pair,) = result.pairs
    assert pair.difference.verdict == "inconclusive"
    assert pair.difference.interval is None
    assert pair.document_error == pytest.approx(0.007)
    text = words(result)
    assert (
        "With one run per arm it is inconclusive whether pow2 quantizes better than orig. At "
        "int4-g64 the change of the loss minus that of orig's is, in nats/token, -0.0400 for pow2 "
        "(standard error at most 0.0070);" in text
    )
    assert "do not contain the noise of training" in text
    assert "hold together" not in text
    assert claim(result)[2].startswith("loss untested (one run per arm) at 1 of 1 (pow2); ")


def test_several_runs_against_one_are_one_seed_too(plant):
    for seed in range(3):
        plant("orig", seed, int4_g64=delta(0.05 + seed / 1000))
    plant("pow2", 0, int4_g64=delta(0.01))
    assert "With one run per arm" in words(found())


def test_runs_alike_to_the_last_digit_decide_nothing(plant):
    for seed in range(2):
        plant("orig", seed, int4_g64=delta(0.05))
        plant("pow2", seed, int4_g64=delta(0.01))
    assert "int4-g64 (-0.0400, every run alike)" in words(found())


def test_without_measurements_nothing_is_reported(plant):
    plant("orig", 0)
    plant("pow2", 0)
    result = found()
    assert not result.is_measured
    assert (words(result), result.pairs, result.excluded) == ("", (), ())
    assert claim(result)[1:] == ("not measured: `smolctl quantize --bits 4 --study s`", "open")
    text = card()
    assert "Quantization was not measured: `smolctl quantize --bits 4 --study s`." in text
    assert "## What fits the widths" in text
    assert "quantization.png" not in text


def test_bf16_alone_is_nothing_measured(plant):
    plant_quantized(plant("orig", 0))
    assert not found().is_measured


def test_nano_scale_concludes_nothing(plant):
    for seed in range(2):
        plant("orig", seed, int4_g64=delta(0.05 + 0.001 * seed), scale="nano")
        plant("pow2", seed, int4_g64=delta(0.01 + 0.001 * seed), scale="nano")
    result = found()
    assert result.pairs[0].difference is None
    assert words(result).startswith("Nothing is concluded about quantization")
    assert len(conclusion(result)) == 1
    assert pairs_table(result).rows == []
    assert configurations_table("orig", result.arms["orig"]).rows  # shown all the same
    assert claim(result)[2] == "open"
    assert "The widths of nano scale say nothing about those of full size" in card()


def test_speed_is_relative_to_the_arms_bf16_and_on_one_machine_only(plant):
    timed = {"decode_ratio": 1.5, "compiled_decode_ratio": 2.0}
    plant("orig", 0, int4_g64=delta(0.01, **timed), int8=delta(0.0, decode_ratio=0.5))
    plant(
        "pow2",
        0,
        int4_g64=delta(0.01, **timed | {"decode_ratio": 1.75}),
        int8=delta(0.0, decode_ratio=0.5, threads=64),
    )
    text = words(found())
    assert (
        "pow2 decodes 1.75 (int4-g64) times as fast, orig 1.50 (int4-g64); 1 of 1 ratio is above "
        "that of orig." in text
    )
    assert "orig 2.00 (int4-g64); 0 of 1 ratio is above that of orig." in text
    assert "How fast pow2 and orig decode at int8 is not compared" in text


def test_the_table_has_the_numbers(plant):
    for seed in range(2):
        cells = {"decode_ratio": 1.4 + 0.2 * seed, "reason": "compiled: raises"}
        plant("orig", seed, int4_g64=delta(0.01 + 0.002 * seed, **cells))
    result = found()
    bf16, row = configurations_table("orig", result.arms["orig"]).rows
    assert bf16[:5] == ("bf16", "2", "0.0 %", "0.0 (0.0)", "0.0 (0.0)")
    assert row == (
        *("int4-g64", "2", "100.0 %", "0.0 (0.0)", "0.0 (0.0)", "5.0000"),
        *("+0.0110 ± 0.0014", "0.0005", "8,192 (5)", "1.50 ± 0.14 ×"),
    )
    assert notes_table(result.arms).rows == [("orig", "int4-g64", "compiled: raises")]


BROKEN = {
    "a missing column": (lambda text: text.replace("loss_delta,", "", 1), "lacks the column"),
    "a cut-off line": (lambda text: text[:-20], "ends in the middle of a line"),
    "a line cut off in the middle": (
        lambda text: text.replace(",bfloat16,cpu,a CPU,2,71c1416dbe7b3d39,ok,\nint8", "\nint8"),
        "a line of another length",
    ),
    "a longer line": (lambda text: text[:-1] + ",1,2\n", "quantize.csv"),
    "not a number": (lambda text: text.replace("0.0125", "nan"), "loss_delta that is not a number"),
    "infinite": (lambda text: text.replace("0.0125", "inf"), "loss_delta that is not a number"),
    "a word": (lambda text: text.replace("0.0125", "much"), "loss_delta that is not a number"),
    "twice": (lambda text: text + text.splitlines()[-1] + "\n", "two rows of"),
    "no name": (lambda text: text.replace("int4-g64", ""), "without a name"),
    "empty": (lambda text: "", "ends in the middle"),
    "an unknown name": (
        lambda text: text.replace("int4-g64", "int3"),
        "'int3' is not a quantization",
    ),
    "a blank line": (lambda text: "\n", "lacks the column"),
    "bytes": (lambda text: "\x00\x01\n", "another length"),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_file_is_reported_and_the_card_is_still_made(plant, how):
    change, sentence = BROKEN[how]
    run = plant("orig", 0, int4_g64=delta(0.0125), int8=delta(0.001))
    plant("pow2", 0, int4_g64=delta(0.01))
    path = run.path / "quantize.csv"
    before = path.read_text()
    assert change(before) != before
    path.write_text(change(before))
    result = found()
    assert result.arms["orig"] == {}
    (reason,) = result.excluded
    assert reason.startswith("The quantization of orig-s0 is excluded: ")
    assert sentence in reason
    text = card()
    assert f"- {reason}" in text
    assert "orig was not quantized" in text


def test_a_file_that_is_not_utf8_reports_an_error(plant):
    run = plant("orig", 0, int4_g64=delta(0.0125))
    (run.path / "quantize.csv").write_bytes(b"\xff\xfe\n")
    assert "cannot be read" in found().excluded[0]


def test_of_two_runs_the_sound_one_stays(plant):
    broken = plant("orig", 0, int4_g64=delta(0.0125))
    plant("orig", 1, int4_g64=delta(0.02))
    (broken.path / "quantize.csv").write_text("name\n")
    result = found()
    assert result.arms["orig"]["int4-g64"].values("loss_delta") == [0.02]


def test_the_card_shows_what_is_measured_and_follows_from_it(plant, capsys):
    runs = [plant("orig", seed, int4_g64=delta(0.05 + seed / 1000)) for seed in range(2)]
    for seed in range(2):
        plant("pow2", seed, int4_g64=delta(0.01 + seed / 1000))
    code, text, err = run_main(capsys, "report", "--study", "s", "--appendix", "appendix.md")
    assert code == 0, err
    Path("card.md").write_text(text)
    text += Path("appendix.md").read_text()
    assert "At int4-g64 pow2 quantizes better than orig" in text
    assert "Change of the loss minus that of orig's" in text
    assert "](results/s/figures/quantization.png)" in text
    assert Path("results/s/figures/quantization.png").stat().st_size > 1000
    assert run_main(capsys, "report", "--check", "card.md")[0] == 0
    rows = runs[0].rows("quantize")
    rows[1]["prefill_ratio"] = "1.25"  # not shown in the tables
    runs[0].replace("quantize", rows)
    code, out, _ = run_main(capsys, "report", "--check", "card.md")
    assert code == 1
    assert "orig-s0" in out


@pytest.mark.parametrize(("method", "options"), [("rtn", " --method rtn"), ("clip", "")])
def test_a_whole_sweep_is_repeated_by_one_command(plant, method, options):
    grid = QuantConfig(method=method).grid()
    sweep = {config.name.replace("-", "_"): delta(0.01) for config in grid}
    plant("orig", 0, **sweep)
    plant("pow2", 0, **sweep)
    assert re.findall("^smolctl quantize .*$", card(), re.MULTILINE) == [
        f"smolctl quantize orig-s0 pow2-s0 --sweep{options} --tokens 8192 --study s"
    ]
    plant("pow2", 1, int8=delta(0.01))
    commands = re.findall("^smolctl quantize .*$", card(), re.MULTILINE)
    assert len(commands) == len(sweep)
    assert "smolctl quantize orig-s0 pow2-s0 pow2-s1 --bits 8 --tokens 8192 --study s" in commands
