"""Which study answers which question, where a card uses several."""

import json
import re
from itertools import product
from pathlib import Path

from support.carded import ARMS, become, card, card_alone, say, section_of
from support.command import run_main
from support.planted import delta, plant_quantized, plant_tuning, planted

from smollm2.files import write_json
from smollm2.runs.run import Run


def test_further_studies_answer_what_the_first_cannot(capsys, study, further):
    become(study, scale="nano")
    say(study, claims="pow2")
    alone = card(capsys)
    assert "what holds at nano scale does not carry over" in alone
    assert "not measured: a full-size study on one machine" in alone
    options = ("--also", "full", "--also", "aa")
    text = card(capsys, *options, "--html", "card.html")
    answer, quality = section_of(text, "Answer"), section_of(text, "Quality")
    speed = section_of(text, "Speed and memory")
    assert "nats/token" in answer
    assert "trained at 1.10 times" not in quality
    assert (
        "| training, tokens per second, full scale (`full`) | 101 ± 1 | 1.10 × (1.07 to" in answer
    )
    assert "beside orig on " in answer
    assert "### Study `full`: full scale, 12 steps of 64 tokens\n" in speed
    assert "pow2, of equal size and cost, trained at 1.10 times the tokens per second" in speed
    assert "again is a control, a under another name" in answer
    assert "again is a control: a under another name" in quality
    assert "+9.9 % tokens per second against orig, at " in text
    assert "| survives, by more FLOPs per second (1.10 ×) (against orig) |" in text
    assert "### Study `aa`" in quality
    assert text.count("What the arms reach in equal time was not measured") == 1
    # A control answers for no other study, in whatever order they are given.
    turned = card(capsys, "--also", "aa", "--also", "full")
    assert "+9.9 % tokens per second against orig" in turned
    assert "pow2, of equal size and cost, trained at 1.10 times" in section_of(
        turned, "Speed and memory"
    )
    assert "](results/s/figures/overview.png)" in text
    assert "overview.png" not in alone
    for name in ("full", "aa"):
        assert f"also-{name}/loss.png" not in text  # curves are of the first study
        assert f"| {name} | " in text
    assert "smolctl report --study s --also full --also aa --appendix appendix.md\n" in text
    assert Path("card.html").read_text().count("data:image/png") == len(
        re.findall(r"\.png\)", text)
    )


def test_a_card_of_several_studies_is_checked_against_all(capsys, study, further):
    options = ("--also", "full", "--also", "aa", "--appendix", "appendix.md")
    Path("MODEL_CARD.md").write_text(card_alone(capsys, *options))
    assert run_main(capsys, "report", "--check", "MODEL_CARD.md")[0] == 0
    run = Run(Path("results/full/pow2-s0"))
    run.replace("train", [row | {"tokens_per_second": "50"} for row in run.rows("train")])
    code, out, err = run_main(capsys, "report", "--check", "MODEL_CARD.md")
    assert code == 1
    assert "-| tokens per second | 101 ± 1 | 111 ± 1 | 131 ± 1 |" in out
    assert "+| tokens per second | 101 ± 1 | 91 ± 36 | 131 ± 1 |" in out
    assert "smolctl report --study s --also full --also aa" in err


def test_a_study_at_equal_flops_answers_what_the_first_cannot(capsys, study, template):
    """The first study need not say any more that it cannot tell, of the arms that are in both."""
    for seed in range(2):
        planted(template, "pow2-135m", seed, 5.0 + 0.01 * seed)
    become(study, scale="nano")
    open_question = "At equal FLOPs there is no verdict on {} against orig: one schedule"
    assert open_question.format("pow2, moe-160m and pow2-135m") in card(capsys)
    for arm, seed in product(("orig", "pow2", "pow2-135m"), range(2)):
        loss = 5.0 + 0.001 * seed - (arm == "pow2")
        # Another pow2-135m goes by the same name here.
        model = {"d_ff": 96} if arm == "pow2-135m" else ARMS[arm]
        run = planted(
            template, arm, seed, loss, study="flops", manifest={"equal": "flops"}, model=model
        )
        run.update(created_at=f"2026-01-0{seed + 1}T00:00:0{len(arm)}")
    for arm in ("orig", "pow2"):
        equal = {"equal": "flops"}
        plant_tuning(template, arm, study="flops", manifest=equal, model=ARMS[arm])
    become(Path("results/flops"), scale="nano")
    text = card(capsys, "--also", "flops")
    assert open_question.format("moe-160m and pow2-135m") in text
    assert "At equal FLOPs pow2 is better than orig" in section_of(text, "Answer")
    assert text.count("Error is controlled within each study, not across studies") == 1
    table = section_of(text, "Answer").splitlines()
    assert "|  | orig | pow2 | moe-160m | pow2-135m |" in table
    (row,) = (row for row in table if "test loss, equal FLOPs, nano scale" in row)
    assert "| 5.0005 ± 0.0007 | better: -1.0000 (" in row
    assert row.endswith(") | – | – |")


def test_the_opening_table_tells_of_quantizing_at_full_size(capsys, study, further):
    become(study, scale="nano")
    for path in Path("results/full").glob("*-s*"):
        run, is_orig = Run(path), path.name.startswith("orig")
        cells = {"disk_bytes_without_embedding": 600 if is_orig else 400}
        run.update(parameters={"total": 1000, "active": 1000, "embedding": 200})
        plant_quantized(run, int4_g32=delta(0.01, **cells), int8=delta(0.0))
    text = card(capsys, "--also", "full", "--also", "aa")
    rows = section_of(text, "Answer").splitlines()
    ends = (
        "full scale (`full`) | none | 32 | 32 |",
        "| 0.750 (int4-g32) | 0.500 (int4-g32) | 0.500",
    )
    for end in ends:
        assert sum(end in row for row in rows) == 1
    widths = section_of(text, "What fits the widths")
    assert widths.startswith("\nStudy `full`: full scale, 12 steps of 64 tokens.\n")
    # A study with another first model has no row.
    text = card(capsys, "--also", "full", study="aa")
    assert "(`full`)" not in section_of(text, "Answer")


def test_a_control_leaves_the_claims_to_a_further_study(capsys, study, further):
    become(study)
    say(Path("results/aa"), claims="pow2")
    text = card(capsys, "--also", "s", study="aa")
    assert "again is a control" in section_of(text, "Answer")
    assert "overview.png" not in text
    assert "test loss: 5.0050 ± 0.0071 (orig) and 5.1050 ± 0.0071 (pow2)" in text
    assert "not measured: a study with the arms orig and pow2" not in text


def test_equal_time_is_told_of_by_a_study_of_equal_seconds(capsys, study, further):
    for path in Path("results/full").glob("*/run.json"):
        manifest = json.loads(path.read_text())
        write_json(path, manifest | {"equal": "seconds"})
    become(study, scale="nano")
    text = card(capsys, "--also", "full")
    assert "equal time was not measured" not in text
    assert (
        "| test loss, planned for equal training time, full scale (`full`) | 7.0000 ± 0.0000 | "
        in text
    )
    assert "At equal training time pow2" in section_of(text, "Quality")


def test_runs_too_short_to_be_timed_make_a_card(capsys, study, further):
    for path in Path("results/full").glob("*-s*"):
        run = Run(path)
        run.replace("train", [row | {"tokens_per_second": ""} for row in run.rows("train")])
    say(study, claims="pow2")
    text = card(capsys, "--also", "full")
    assert "| tokens per second | – | – | – |" in text
    assert "not measured: the runs are too short to be timed" in text


def test_a_study_named_twice_or_not_there_is_a_sentence(capsys, study):
    for name, sentence in (("s", "'s' is named twice"), ("other", "results/other has no runs")):
        code, out, err = run_main(capsys, "report", "--study", "s", "--also", name)
        assert (code, out) == (2, "")
        assert sentence in err
