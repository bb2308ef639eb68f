"""The card and its appendix: what they show, what they leave out, and what they follow from."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.carded import card, card_alone, say, section_of
from support.command import run_main
from support.planted import planted

from smollm2.runs.run import Run

IN_CARD = ("Answer", "How it was measured", "Limits", "Usage")
IN_APPENDIX = (
    "Quality", "What would decide it", "Speed and memory", "Dense against mixture of experts",
    "What fits the widths", "Architecture", "Training", "Every run", "Reproduction",
)  # fmt: skip
COMMAND = [sys.executable, "-m", "smolctl", "report", "--study", "s"]


def test_the_card_has_every_section_and_number(capsys, study):
    text = card(capsys)
    shown, details = text.split("# Appendix to")
    assert re.findall(r"^## (.*)$", shown, re.MULTILINE) == list(IN_CARD)
    assert re.findall(r"^## (.*)$", details, re.MULTILINE) == list(IN_APPENDIX)
    assert "5.0050 ± 0.0071" in shown
    assert "# orig, pow2 and moe-160m" in shown
    assert "`smolctl eval orig pow2 moe-160m --tasks all --study s`" in section_of(text, "Limits")
    # Every picture that it shows is there, and each once.
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text)
    assert len(pictures) == len(set(pictures)) >= 4
    assert all(Path(picture).stat().st_size > 1000 for picture in pictures)
    assert {str(path) for path in Path("results/s/figures").rglob("*.png")} == set(pictures)


def test_the_card_is_short(capsys, study, further):
    text = card_alone(capsys, "--also", "full", "--also", "aa", "--appendix", "appendix.md")
    assert len(text.splitlines()) <= 250
    assert len([word for word in text.split() if re.search(r"\w", word)]) <= 900
    assert text.count("![") == 1
    assert len(re.findall(r"^\| :--", text, re.MULTILINE)) == 1
    assert "[appendix](appendix.md)" in text
    assert len(list(Path("results/s/figures").rglob("*.png"))) <= 12


def test_a_card_without_an_appendix_says_how_to_make_one(capsys, study):
    assert "`smolctl report --study s --appendix FILE`" in card_alone(capsys)


def has_empty_table(text: str) -> bool:
    """Whether a table has a header and no row."""
    lines = text.splitlines()
    return any(
        line.startswith("| :--") and not following.startswith("|")
        for line, following in zip(lines, [*lines[1:], ""], strict=True)
    )


def has_empty_section(text: str) -> bool:
    """Whether a heading is followed by one of its own level or above, or by nothing."""
    lines = [line for line in text.splitlines() if line]
    for line, following in zip(lines, [*lines[1:], "# end"], strict=True):
        level = len(line) - len(line.lstrip("#"))
        if level >= 2 and 0 < len(following) - len(following.lstrip("#")) <= level:
            return True
    return False


def test_what_is_empty_is_found():
    assert has_empty_table("| a |\n| :-- |\n\ntext")
    assert not has_empty_table("| a |\n| :-- |\n| b |")
    assert has_empty_section("## a\n\n## b\ntext")
    assert not has_empty_section("## a\n\n### b\ntext")


@pytest.mark.parametrize("gone", ["", "orig", "moe-160m", "orig pow2", "pow2 moe-160m"])
def test_nothing_is_shown_that_says_nothing(capsys, study, gone):
    """Whatever arms are missing; and no sentence stands twice."""
    for arm in gone.split():
        for path in study.glob(f"{arm}-s*"):
            shutil.rmtree(path)
    text = card(capsys)
    assert not has_empty_table(text)
    assert not has_empty_section(text)
    assert "the original card claimed" not in text  # no study asks for it
    assert "icense" not in text  # nobody chose one
    sentences = re.findall(r"^- (.*)$", text, re.MULTILINE)
    assert len(sentences) == len(set(sentences))


def test_the_same_files_give_the_same_bytes(study, tmp_path_factory):
    made = []
    for hash_seed, zone, locale in (("1", "UTC", "C"), ("2", "Asia/Tokyo", "C.UTF-8")):
        folder = tmp_path_factory.mktemp("elsewhere")
        shutil.copytree(study, folder / "results/s")
        environment = {"PYTHONHASHSEED": hash_seed, "TZ": zone, "LC_ALL": locale}
        process = subprocess.run(
            [*COMMAND, "--appendix", "appendix.md"],
            capture_output=True,
            timeout=120,
            cwd=folder,
            env=os.environ | environment,
        )
        assert process.returncode == 0, process.stderr
        pictures = sorted(folder.glob("results/s/figures/**/*.png"))
        assert len(pictures) >= 4
        files = {path.relative_to(folder): path.read_bytes() for path in pictures}
        made.append((process.stdout, (folder / "appendix.md").read_bytes(), files))
    assert made[0] == made[1]


@pytest.mark.parametrize("table", ["train", "val", "eval"])
def test_any_changed_cell_changes_the_card(capsys, study, table):
    before = card(capsys)
    run = Run(study / "pow2-s1")
    rows = run.rows(table)
    column = {"train": "grad_norm", "val": "accuracy", "eval": "stderr"}[table]
    rows[1][column] = "0.123"
    run.replace(table, rows)
    assert card(capsys) != before


def test_a_changed_cell_of_the_sweep_changes_the_card(capsys, study, template):
    run = planted(template, "pow2-lr", 100, 1.0, arm="pow2", manifest={"role": "sweep"})
    before = card(capsys)
    assert f"| {run.name} |" in before
    rows = run.rows("train")
    rows[1]["grad_norm"] = "0.123"
    run.replace("train", rows)
    assert card(capsys) != before


def test_one_arm_is_asked_nothing_that_takes_two(capsys, study):
    for path in study.glob("[om]*"):
        shutil.rmtree(path)
    text = card(capsys)
    answer = section_of(text, "Answer")
    assert re.findall(r"^- (.*)", answer, re.MULTILINE) == [answer.strip().removeprefix("- ")]
    assert "Regime: " in answer


def test_runs_of_another_protocol_and_broken_ones_are_named_in_the_card(capsys, study, template):
    old = planted(template, "orig", 9, 1.0, steps=20)
    old.update(finished_at="2020-01-01")
    broken = planted(template, "pow2", 8, 1.0)
    (broken.path / "val.csv").write_text("step\n")
    (study / "nothing").mkdir()
    text = card(capsys)
    assert "orig-s9 is excluded: it differs from" in text
    assert "pow2-s8/val.csv lacks the column" in text
    assert " pow2-s8 is excluded." in text
    assert "1.0000" not in text


def test_a_study_of_one_run_makes_a_card(capsys, study):
    (study / "ledger.json").unlink()
    for path in study.iterdir():
        if path.name not in ("pow2-s0",):
            shutil.rmtree(path)
    text = card(capsys)
    assert "# pow2: model card of study `s`" in text
    assert "differences.png" not in text


def test_without_runs_the_train_command_is_said(capsys, workdir):
    code, out, err = run_main(capsys, "report")
    assert (code, out) == (2, "")
    assert "smolctl train --variant" in err


def test_a_card_is_utf8_whatever_the_terminal(study):
    process = subprocess.run(
        COMMAND,
        capture_output=True,
        timeout=120,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
    )
    assert process.returncode == 0, process.stderr
    assert "±" in process.stdout.decode()


def test_the_front_matter_describes_one_model_or_none(capsys, study):
    """The hub takes what stands there for scores of the weights."""
    from huggingface_hub import ModelCard

    data = ModelCard(card_alone(capsys)).data
    assert (data.license, data.eval_results) == (None, None)
    say(study, license="mit")
    text = card_alone(capsys)
    assert ModelCard(text).data.license == "mit"
    assert "License: mit." in text
    for path in study.glob("[om]*-s?"):
        shutil.rmtree(path)
    results = ModelCard(card_alone(capsys)).data.eval_results
    losses = [result for result in results if result.metric_type == "loss"]
    assert [round(result.metric_value, 3) for result in losses] == [5.105]


def test_compare_leaves_the_figures_of_the_card(capsys, study):
    card(capsys)
    before = {path: path.read_bytes() for path in study.glob("figures/*.png")}
    assert run_main(capsys, "compare", "orig", "pow2", "--study", "s")[0] == 0
    assert {path: path.read_bytes() for path in study.glob("figures/*.png")} == before
    assert (study / "figures/orig-vs-pow2/loss.png").exists()
    code, _, err = run_main(
        capsys, "compare", "orig", "pow2", "--study", "s", "--figures", "/dev/null/x"
    )
    assert code == 2
    assert "Cannot write figures" in err
