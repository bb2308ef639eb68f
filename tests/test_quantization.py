"""Quantized arms: what their files say, the verdicts, the words, and what the card makes of it."""

import gzip
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import run_main
from planted import COUNTS, delta, found, plant_quantized

from smolctl.claims import quantization_claim
from smolctl.quantization import Quantized
from smolctl.quantization_tables import (
    configurations_table,
    dimensions_table,
    notes_table,
    pairs_table,
    quantized_tasks_table,
)
from smolctl.quantization_words import dimension_sentences, quantization_conclusion
from smolctl.report import make_card
from smollm2.config import VARIANTS
from smollm2.quantize.config import QuantConfig

SKIPPED = "30 × blocks.N.attn.qkv.weight: groups of 128 do not divide its 576 inputs"


def words(found: Quantized) -> str:
    return "\n".join(quantization_conclusion(found))


def claim(found: Quantized) -> tuple[str, ...]:
    return quantization_claim(found)


def card() -> str:
    """The card of study `s`, without its figures."""
    return make_card("s", Path("results"), None, None)[1]


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
    assert eight.difference.verdict == "unresolved"
    # Holm over both configurations: the first of two tests, and what did not pass.
    assert (four.difference.confidence, eight.difference.confidence) == (0.975, 0.95)
    text = words(result)
    assert f"At int4-g64 pow2 quantizes {verdict} than orig: its loss changes by" in text
    assert "3 runs against 3" in text
    assert "Whether pow2 quantizes better than orig is unresolved at int8 (-0.0002" in text
    assert "The 2 verdicts on quantization hold together" in text
    assert claim(result)[2] == (
        f"loss unresolved at 1 and {verdict} at 1 of 2 (pow2); bytes fall: as many (pow2)"
    )
    assert f"at int4-g64 ({verdict})" in claim(result)[1]


def test_weights_that_have_seen_little_are_said_to(plant):
    runs = [plant(arm, 0, int8=delta(0.01)) for arm in ("orig", "pow2")]
    tokens = runs[0].protocol.steps * runs[0].protocol.tokens_per_step
    said = f"trained on {tokens:,} tokens, {tokens / COUNTS['total']:.2g} a parameter"
    assert said in words(found())
    for run in runs:
        run.update(parameters={name: count // 1000 + 1 for name, count in COUNTS.items()})
    assert "a parameter: what" not in words(found())
    for run in runs:  # what the weights that it began with have seen is not known
        run.update(parameters=COUNTS, started_from="else", started_from_sha256="0")
    assert "a parameter: what" not in words(found())


def test_one_seed_decides_nothing(plant):
    plant("orig", 0, int4_g64=delta(0.05, loss_delta_stderr=0.003))
    plant("pow2", 0, int4_g64=delta(0.01, loss_delta_stderr=0.004))
    result = found()
    (pair,) = result.pairs
    assert pair.difference.verdict == "unresolved"
    assert pair.difference.interval is None
    assert pair.document_error == pytest.approx(0.007)
    text = words(result)
    assert (
        "With one run of an arm it is unresolved whether pow2 quantizes better than orig. At "
        "int4-g64 the change of the loss less that of orig's is, in nats a token, -0.0400 for pow2 "
        "(standard error at most 0.0070);" in text
    )
    assert "the noise of training is not in them" in text
    assert "hold together" not in text
    assert claim(result)[2].startswith("loss unresolved at 1 of 1 (pow2); ")


def test_several_runs_against_one_are_one_seed_too(plant):
    for seed in range(3):
        plant("orig", seed, int4_g64=delta(0.05 + seed / 1000))
    plant("pow2", 0, int4_g64=delta(0.01))
    assert "With one run of an arm" in words(found())


def test_runs_alike_to_the_last_digit_decide_nothing(plant):
    for seed in range(2):
        plant("orig", seed, int4_g64=delta(0.05))
        plant("pow2", seed, int4_g64=delta(0.01))
    assert "int4-g64 (-0.0400, every run alike)" in words(found())


WIDTHS = {
    "orig": {"d_model": 576, "n_heads": 9, "n_kv_heads": 3, "d_ff": 1536},
    "pow2": {"d_model": 512, "n_heads": 8, "n_kv_heads": 4, "d_ff": 2048},
}


def widen(run) -> None:
    """Give a run the widths of the variant that its arm is called after."""
    protocol = run.manifest["protocol"]
    run.update(protocol=protocol | {"model": protocol["model"] | WIDTHS[run.arm]})


SMALLER = {"quantized_share": 0.4, "skipped": SKIPPED, "disk_bytes_without_embedding": 1300}


def test_skipped_layers_are_no_better_loss(plant):
    """Of orig nothing but the embedding and a bit is quantized: its loss is hardly changed."""
    for seed in range(2):
        kept = {"int4_g64": delta(0.01 * seed), "int4_g128": delta(0.0001 * seed, **SMALLER)}
        widen(plant("orig", seed, **kept))
        kept = {"int4_g64": delta(0.011 * seed), "int4_g128": delta(0.05 + 0.001 * seed)}
        widen(plant("pow2", seed, **kept))
    result = found()
    pair = next(pair for pair in result.pairs if pair.name == "int4-g128")
    assert pair.difference is None
    # 400 of 1000 less the 200 of the embedding are 200 of 800.
    assert "25.0 % of the parameters of orig are quantized and 100.0 % of those of" in pair.problem
    text = words(result)
    assert (
        "At int4-g128 not every arm is quantized whole: of the parameters outside the embedding "
        "are quantized 25.0 % in orig, 100.0 % in pow2." in text
    )
    assert "Groups of 128 do not divide 576 inputs of matrices of orig." in text
    assert (
        "takes, in bytes on disk, at int4-g64 0.62 in every arm; at int4-g128 1.62 in orig, 0.62 "
        "in pow2." in text
    )
    assert (("orig", "int4-g128", SKIPPED)) in notes_table(result.arms).rows
    # Not a part of the family.
    assert "loss unresolved at 1 of 1 (pow2)" in claim(result)[2]
    assert "pow2 cannot be compared at int4-g128" in claim(result)[1]


def test_layers_skipped_for_another_reason_are_not_blamed_on_the_width(plant):
    for seed in range(2):
        other = SMALLER | {"skipped": "30 × blocks.N.attn.qkv.weight: it is bf16 after quantizing"}
        widen(plant("pow2", seed, int4_g128=delta(0.01, **other)))
        widen(plant("orig", seed, int4_g128=delta(0.01)))
    text = words(found())
    assert "not every arm is quantized whole" in text
    assert "Groups of" not in text


def test_an_unknown_share_is_not_called_unequal(plant):
    plant("orig", 0, int4_g64=delta(0.05, quantized_share=""))
    plant("pow2", 0, int4_g64=delta(0.01))
    text = words(found())
    assert "not compared at int4-g64: without the embedding an unknown share" in text
    assert "quantized whole" not in text


def test_arms_that_were_quantized_in_other_ways_are_not_mixed(plant):
    """What is said of several arms holds for each of them."""
    plant("orig", 0, int8=delta(0.01), int4_g64=delta(0.05))
    plant("pow2", 0, int8=delta(0.02, loss_delta_stderr=""))
    plant("pow2-135m", 0, int8=delta(0.03), int4_g64=delta(0.04, disk_bytes_without_embedding=600))
    text = words(found())
    assert (
        "unresolved whether pow2 quantizes better than orig. At int8 the change of the loss less "
        "that of orig's is, in nats a token, +0.0100 for pow2 (standard error unknown);" in text
    )
    assert "whether pow2-135m quantizes better than orig. At int8 and int4-g64 the" in text
    assert "-0.0100 to +0.0200 for pow2-135m (standard error at most 0.0010)" in text
    assert "at int8 0.62 in every arm; at int4-g64 0.62 in orig, 0.75 in pow2-135m." in text
    (_, here, verdict) = claim(found())
    assert "a parameter of pow2-135m takes at least 0.750 bytes at int4-g64, one of orig" in here
    assert "loss unresolved at 2 of 2 (pow2-135m); bytes fall: more (pow2-135m)" in verdict
    assert verdict.endswith("loss unresolved at 1 of 1 (pow2)")  # which has no 4 bits


def test_an_embedding_of_another_share_is_no_skipped_layer(plant):
    """In a larger model the embedding is less of it: left as it is, the shares differ."""
    for arm, embedding in (("orig", 200), ("pow2", 150)):
        run = plant(arm, 0)
        run.update(parameters=COUNTS | {"embedding": embedding})
        share = 1 - embedding / 1000
        plant_quantized(run, int4_g64=delta(0.01, embedding_bits="", quantized_share=share))
    assert found().pairs[0].problem == ""


def test_one_embedding_quantized_and_the_other_not_is_not_alike(plant):
    skipped = "1 × embed.weight: rows of 4 bits cannot be looked up as CUDA packs them"
    plant("orig", 0, int4_g64=delta(0.01, quantized_share=0.8, skipped=skipped))
    plant("pow2", 0, int4_g64=delta(0.01))
    assert "the embedding of one of them" in found().pairs[0].problem


@pytest.mark.parametrize("column", ["n", "fingerprint", "dtype", "device"])
def test_losses_of_other_text_are_not_compared(plant, column):
    plant("orig", 0, int4_g64=delta(0.01))
    plant("pow2", 0, int4_g64=delta(0.01, **{column: 4096 if column == "n" else "other"}))
    (pair,) = found().pairs
    assert pair.problem == "the losses are not of the same text, dtype and device"
    assert pair.difference is None


def test_what_one_arm_lacks_is_said(plant):
    plant("orig", 0, int4_g64=delta(0.01), int4_g128={"loss_delta": "", "reason": "no kernel"})
    plant("pow2", 0, int4_g64=delta(0.01), int4_g128=delta(0.02), nf4_g64=delta(0.03))
    plant("pow2-135m", 0)
    result = found()
    text = words(result)
    assert "not compared at int4-g128: the loss of orig was not measured (no kernel)." in text
    assert "not compared at nf4-g64: orig was not quantized so." in text
    assert "pow2-135m was not quantized: `smolctl quantize pow2-135m --study s`." in text
    assert {pair.arm for pair in result.pairs} == {"pow2"}
    assert ("orig", "int4-g128", "no kernel") in notes_table(result.arms).rows
    assert configurations_table("pow2-135m", result.arms["pow2-135m"]).rows == []


def test_nothing_measured_is_nothing_said(plant):
    plant("orig", 0)
    plant("pow2", 0)
    result = found()
    assert not result.is_measured
    assert (words(result), result.pairs, result.left_out) == ("", (), ())
    assert claim(result)[1:] == ("not measured: `smolctl quantize --bits 4 --study s`", "open")
    text = card()
    assert "Not measured: `smolctl quantize --bits 4 --study s`." in text
    assert "### What fits the dimensions" in text
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
    assert len(quantization_conclusion(result)) == 1
    assert pairs_table(result).rows == []
    assert configurations_table("orig", result.arms["orig"]).rows  # shown all the same
    assert claim(result)[2] == "open"
    assert "The widths of nano scale say nothing about those of the full size" in card()


def test_speed_is_told_beside_the_own_bf16_on_one_machine_only(plant):
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
        lambda text: text.replace(",bfloat16,cpu,a CPU,2,71c1416dbe7b3d39,\nint8", "\nint8"),
        "a line of another length",
    ),
    "a longer line": (lambda text: text[:-1] + ",1,2\n", "quantize.csv"),
    "not a number": (lambda text: text.replace("0.0125", "nan"), "loss_delta that is not a number"),
    "infinite": (lambda text: text.replace("0.0125", "inf"), "loss_delta that is not a number"),
    "a word": (lambda text: text.replace("0.0125", "much"), "not a number: 'much'"),
    "twice": (lambda text: text + text.splitlines()[-1] + "\n", "two rows of"),
    "no name": (lambda text: text.replace("int4-g64", ""), "without a name"),
    "empty": (lambda text: "", "ends in the middle"),
    "an unknown name": (lambda text: text.replace("int4-g64", "int3"), "'int3' is no quantization"),
    "a blank line": (lambda text: "\n", "cannot be read"),
    "bytes": (lambda text: "\x00\x01\n", "lacks the column"),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_file_is_a_sentence_and_the_card_is_made(plant, how):
    change, sentence = BROKEN[how]
    run = plant("orig", 0, int4_g64=delta(0.0125), int8=delta(0.001))
    plant("pow2", 0, int4_g64=delta(0.01))
    path = run.path / "quantize.csv"
    before = path.read_text()
    assert change(before) != before
    path.write_text(change(before))
    result = found()
    assert result.arms["orig"] == {}
    (reason,) = result.left_out
    assert reason.startswith("The quantization of orig-s0 is left out: ")
    assert sentence in reason
    text = card()
    assert f"- {reason}" in text
    assert "orig was not quantized" in text


def test_a_file_that_is_not_utf8_is_a_sentence(plant):
    run = plant("orig", 0, int4_g64=delta(0.0125))
    (run.path / "quantize.csv").write_bytes(b"\xff\xfe\n")
    assert "cannot be read" in found().left_out[0]


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
    code, text, err = run_main(capsys, "report", "--study", "s")
    assert code == 0, err
    assert "At int4-g64 pow2 quantizes better than orig" in text
    assert "Change of the loss less that of orig's" in text
    assert "](results/s/figures/quantization.png)" in text
    assert Path("results/s/figures/quantization.png").stat().st_size > 1000
    Path("card.md").write_text(text)
    assert run_main(capsys, "report", "--check", "card.md")[0] == 0
    rows = runs[0].rows("quantize")
    rows[1]["prefill_ratio"] = "1.25"  # of which the tables show nothing
    runs[0].replace("quantize", rows)
    code, out, _ = run_main(capsys, "report", "--check", "card.md")
    assert code == 1
    assert "orig-s0" in out


def test_a_whole_sweep_is_repeated_by_one_command(plant):
    sweep = {config.name.replace("-", "_"): delta(0.01) for config in QuantConfig().grid()}
    plant("orig", 0, **sweep)
    plant("pow2", 0, **sweep)
    assert re.findall("^smolctl quantize .*$", card(), re.MULTILINE) == [
        "smolctl quantize orig-s0 pow2-s0 --sweep --tokens 8192 --study s"
    ]
    plant("pow2", 1, int8=delta(0.01))
    commands = re.findall("^smolctl quantize .*$", card(), re.MULTILINE)
    assert len(commands) == len(sweep)
    assert "smolctl quantize orig-s0 pow2-s0 pow2-s1 --bits 8 --tokens 8192 --study s" in commands


# Tasks

QUESTIONS = "item,question,gold,log_likelihoods,greedy,characters,n_bytes,choice,choice_norm\n"


def plant_task(folder: Path, right: str, name: str = "arc-x.csv.gz") -> None:
    """Four questions of two choices, `right` as `1101`, in items/ and eval.csv of `folder`."""
    from smollm2.tables import Tables
    from smollm2.tasks import items_fingerprint

    questions = [f"q{i}" for i in range(len(right))]
    lines = [
        f"{i},{question},{0 if is_right == '1' else 1},-1.0 -2.0,1 0,4 4,5 5,0,0\n"
        for i, (question, is_right) in enumerate(zip(questions, right, strict=True))
    ]
    (folder / "items").mkdir(parents=True, exist_ok=True)
    (folder / "items" / name).write_bytes(gzip.compress((QUESTIONS + "".join(lines)).encode()))
    row = {
        "task": "arc_easy",
        "value": 0.5,  # the questions count
        "n": len(right),
        "total": len(right),
        "clusters": len(right),
        "protocol": "lm-eval, 0-shot, test split, context 64, float32, cpu",
        "fingerprint": items_fingerprint(questions),
        "items": name,
    }
    tables = Tables(folder)
    rows = [row | {"metric": metric} for metric in ("acc", "bits_per_byte")]
    tables.replace("eval", [*tables.rows("eval"), *rows])


def test_tasks_are_paired_with_the_run_s_own(plant):
    for seed, after in enumerate(("1000", "0100")):
        run = plant("orig", seed, int4_g64=delta(0.01))
        plant_task(run.path, "1100")
        plant_task(run.path / "quantized/int4-g64", after)
        (run.path / "quantized/int8").mkdir()  # was not scored
    accuracy, bits = found().tasks
    assert (accuracy.name, accuracy.runs) == ("int4-g64", 2)
    assert (accuracy.before, accuracy.after, accuracy.change.mean) == (0.5, 0.25, -0.25)
    # On a quarter of the questions the right choice costs a nat more for its five bytes.
    assert bits.change.mean == pytest.approx(0.25 / 5 / math.log(2))
    row, _ = quantized_tasks_table(found()).rows
    assert row[:4] == ("orig", "int4-g64", "arc_easy acc", "4")
    text = card()
    assert "Tasks before and after quantizing" in text
    # Its items are in the fingerprint of the run.
    path = run.path / "quantized/int4-g64/items/arc-x.csv.gz"
    scores = gzip.decompress(path.read_bytes()).decode()
    path.write_bytes(gzip.compress(scores.replace("-2.0", "-3.0").encode()))
    assert card() != text


def test_damaged_items_of_a_quantized_model_are_a_sentence(plant):
    run = plant("orig", 0, int4_g64=delta(0.01))
    plant_task(run.path, "1100")
    plant_task(run.path / "quantized/int4-g64", "1000")
    shutil.rmtree(run.path / "quantized/int4-g64/items")
    (sentence,) = found().task_notes
    assert sentence.startswith("The tasks of orig-s0+int4-g64 are left out: ")
    assert sentence in card()
    (run.path / "quantized/int4-g64/eval.csv").write_text("task\n")
    assert "lacks the column" in found().task_notes[0]


# Dimensions


def test_the_dimension_check_needs_no_run():
    configs = {name: VARIANTS[name] for name in ("orig", "pow2")}
    table = dimensions_table(configs)
    cells = {label: both for label, *both in table.rows}
    assert table.header == ("", "orig", "pow2")
    assert cells["inputs in whole groups of 64"] == ["100.0 %", "100.0 %"]
    assert cells["inputs in whole groups of 128"] == ["19.7 %", "100.0 %"]
    assert cells["bits a weight at 4 bits, rows padded to groups of 256"][1] == "4.125"
    orig, pow2 = dimension_sentences(configs)
    assert orig.startswith(
        "orig: groups of 128 and 256 do not divide the 576 inputs of query, output; key, value; "
        "gate, up; embedding, head. "
    )
    assert pow2.startswith("pow2: every group size divides the inputs of every matrix. Padding")


def test_widths_that_fit_nothing_are_all_named():
    (text,) = dimension_sentences({"odd": replace(VARIANTS["pow2"], d_ff=1000)})
    assert "groups of 32, 64, 128 and 256 do not divide the 1,000 inputs of down" in text
