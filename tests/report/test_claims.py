"""What became of the claims of a published card, where a study asks for them."""

from pathlib import Path

import pytest
from support.carded import ARMS, become, card, say
from support.command import run_main
from support.planted import plan, plant_speed, plant_tuning, planted, rescore

from smolctl.analysis.study_notes import CLAIMS
from smolctl.report.sections.claims import comparable
from smolctl.report.sections.speed_claim import speed_verdict
from smollm2.runs.run import Run


def test_claims_are_shown_only_where_a_study_asks_for_them(capsys, study):
    assert "claimed" not in card(capsys)
    say(study, claims="pow2")
    text = card(capsys)
    shown, details = text.split("# Appendix to")
    assert "\n## What the original card claimed\n" in shown
    claim = "pow2 trains 6.5 % faster (10.06 against 10.76 min, which is 7.0 % more speed)"
    assert f"- {claim}, significantly: **open**" in shown
    assert "| the original card claimed | here | verdict |" in details
    assert "`orig` (d_ff 1536) 134,515,008" in details


@pytest.mark.parametrize("claims", CLAIMS)
def test_all_known_claims_are_judged(capsys, study, claims):
    say(study, claims=claims)
    assert "What the original card claimed" in card(capsys)


def test_unknown_claims_are_a_sentence(capsys, study):
    for claims, sentence in (
        ("pow", "claims takes pow2, not 'pow'. Did you mean 'pow2'?"),
        ([1], "claims takes text in quotes, not [1]."),
    ):
        say(study, claims=claims)
        code, out, err = run_main(capsys, "report", "--study", "s")
        assert (code, out) == (2, "")
        assert f"results/s/study.toml: {sentence}" in err


def test_verdicts_of_a_superseded_study_are_withdrawn(capsys, study):
    become(study)
    say(study, claims="pow2", superseded="The rate was wrong.")
    text = card(capsys)
    assert "> **Superseded.** The rate was wrong." in text
    assert "| measured in a study that is superseded | withdrawn |" in text
    assert "- The verdicts of `s` are withdrawn." in text
    assert "better than orig" not in text
    assert "worse than orig" not in text
    assert "primary metric; its verdicts are withdrawn" in text
    for shown in ("minimum detectable", "Secondary metrics", "documents like these"):
        assert shown not in text


def test_claims_are_judged_against_both_originals(capsys, study, template):
    for seed in range(2):
        run = planted(template, "orig-174m", seed, 5.3 + 0.01 * seed, model={"d_ff": 80})
        run.update(created_at=f"2026-01-0{seed + 1}T00:00:09")
        for arm, accuracy in (("orig", 0.1), ("orig-174m", 0.3), ("pow2", 0.2)):
            run = Run(study / f"{arm}-s{seed}")
            scores = run.rows("eval")
            for row in scores:
                if row["metric"] == "accuracy":
                    row["value"] = accuracy + 0.001 * seed
            run.replace("eval", scores)
    for arm in ("orig", "pow2"):
        plant_tuning(template, arm, model=ARMS[arm])
    become(study)
    plan(study, margin=0.5)
    say(study, claims="pow2", margin=0.5)
    rows = card(capsys).splitlines()
    (loss,) = (row for row in rows if row.startswith("| validation loss 3.626"))
    assert "; test loss: 5.3050 ± 0.0071 (orig-174m) and 5.1050 ± 0.0071 (pow2)" in loss
    assert loss.endswith(
        "| survives: equivalent within 0.5 nats/token (against orig); no verdict (against "
        "orig-174m) |"
    )
    (accuracy,) = (row for row in rows if row.startswith("| pow2 has the slightly higher"))
    # orig-174m was not tuned, which decides no metric.
    lacking = "inconclusive: tuning (against orig-174m)"
    assert accuracy.endswith(f"| survives (against orig); {lacking} |")


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [
        ((-5, -1), "falls: slower"),
        ((-5, 1), "falls: not by so much"),
        ((1, 6.9), "falls: faster, but by less"),  # 6.5 % less time is 7.0 % more speed
        ((1, 7.0), "survives"),
        ((-1, 9), "inconclusive"),
    ],
)
def test_what_becomes_of_the_claim_of_speed(interval, verdict):
    assert speed_verdict(*interval) == verdict


def test_a_speed_survives_or_falls_by_what_it_is_made_of(capsys, study):
    """Measured in turns at full size."""
    become(study, scale="full")
    plant_speed(Path("results"), "s", {"orig": 100.0, "pow2": 110.0, "moe-160m": 100.0})
    say(study, claims="pow2")
    (row,) = (line for line in card(capsys).splitlines() if line.startswith("| pow2 trains 6.5"))
    *_, here, verdict, _ = row.split("|")
    assert "+10.0 % tokens per second against orig, at 1.00 times the FLOPs per token" in here
    assert verdict.strip() == "survives, by more FLOPs per second (1.10 ×) (against orig)"


@pytest.mark.parametrize(
    ("interval", "margin", "verdict"),
    [
        ((-0.009, 0.009), 0.01, "survives: equivalent within 0.01 nats/token"),
        ((0.002, 0.009), 0.01, "survives: equivalent within 0.01 nats/token"),
        ((-0.009, 0.011), 0.01, "inconclusive"),
        ((0.002, 0.02), 0.01, "inconclusive"),  # worse, but perhaps by no more than the margin
        ((0.01, 0.02), 0.01, "falls: worse"),
        ((-0.02, -0.011), 0.01, "falls: better"),
        (None, 0.01, "inconclusive"),
        ((-0.001, 0.001), None, "open: the study names no margin"),
    ],
)
def test_comparable_is_equivalent_within_a_margin(interval, margin, verdict):
    assert comparable(interval, margin) == verdict


def test_a_start_is_judged_by_the_start(capsys, study, template):
    """The mixture of experts begins behind and ends ahead. Without tuning neither is shown."""
    for path in study.glob("[om]*"):
        run, is_dense = Run(path), path.name.startswith("orig")
        rows = run.rows("val")
        for number, row in enumerate(rows):
            row["loss"] = (6.0 if is_dense else 6.5) + 0.01 * run.protocol.seed - 0.1 * number
        run.replace("val", rows)
        if not is_dense:
            rescore(run, 4.0 + 0.01 * run.protocol.seed)
    say(study, claims="pow2")
    assert start_claim(capsys).endswith("| inconclusive: tuning (at the start) |")
    for arm in ("orig", "moe-160m"):
        plant_tuning(template, arm, model=ARMS[arm])
    line = start_claim(capsys)
    assert line.endswith("| falls (at the start) |")
    assert "4.0050 ± 0.0071 (moe-160m)" in line


def start_claim(capsys) -> str:
    (line,) = (one for one in card(capsys).splitlines() if one.startswith("| the dense model"))
    return line
