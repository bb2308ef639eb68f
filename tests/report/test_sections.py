"""Sections: each says something or is not shown, and every command shows the same ones."""

import json
from pathlib import Path

import pytest
from support.carded import become, say
from support.command import run_main
from support.planted import delta, plant_quantized

from smolctl.analysis.selection import study_comparison
from smolctl.report.document import Section, Table, blocks_of, bullets, section, without
from smolctl.report.evidence import Evidence
from smolctl.report.sections import (
    APPENDIX,
    CARD,
    COMPARE,
    EXPORTED,
    SECTIONS,
    names_in,
    sections,
)
from smollm2.runs.run import Run, list_runs


@pytest.fixture
def evidence(study) -> Evidence:
    return evidence_of(*ARMS)


ARMS = ("orig", "pow2", "moe-160m")


def evidence_of(*arms: str) -> Evidence:
    """Some arms of study `s`."""
    runs = [run for run in list_runs(Path("results"), "s")[0] if run.arm in arms]
    return Evidence(study_comparison("s", runs))


def named(evidence: Evidence, name: str) -> Section | None:
    return next(iter(sections(evidence, [name])), None)


# What each section needs before it has something to say.
SILENT = (
    "claims",
    "claims-in-detail",
    "fine-tune",
    "ladder",
    "ladder-in-detail",
    "quantization",
    "tasks",
    "tuning",
    "widths",
)


def test_every_section_is_in_some_report():
    in_some = {name for report in (CARD, EXPORTED, APPENDIX) for name in names_in(report)}
    assert in_some == set(SECTIONS)
    reports = {report for entry in SECTIONS.values() for report in entry.reports}
    assert reports == {CARD, EXPORTED, APPENDIX, COMPARE}


@pytest.mark.parametrize("name", SECTIONS)
def test_a_section_with_nothing_to_say_is_none(study, name):
    become(study, scale="nano")
    found = named(evidence_of("pow2", "orig"), name)
    assert (found is None) == (name in (*SILENT, "experts"))
    if found is not None:
        assert found.name == name
        assert found.blocks or found.parts


def test_a_mixture_of_experts_is_compared_at_the_start(evidence):
    found = named(evidence, "experts")
    (table,) = (block for block in found.blocks if isinstance(block, Table))
    assert table.rows[0][0] == "moe-160m"
    (figure,) = (block for block in found.blocks if block not in (table,))
    assert figure.name == "dense-moe.png"
    alone = named(evidence_of("orig", "moe-160m"), "experts")
    assert len(alone.blocks) == 1  # the curves of all arms show the same


def test_quantized_runs_have_a_section(study):
    for arm in ("orig", "pow2"):
        plant_quantized(Run(study / f"{arm}-s0"), int8=delta(0.01))
    found = named(evidence_of(*ARMS), "quantization")
    assert [block.name for block in found.blocks if hasattr(block, "draw")] == ["quantization.png"]


@pytest.mark.parametrize("name", [name for name in SECTIONS if name not in SILENT])
def test_no_block_of_a_section_is_empty(evidence, name):
    for block in blocks_of(sections(evidence, [name])):
        assert getattr(block, "rows", True)
        assert getattr(block, "sentences", True)


def test_what_says_nothing_is_dropped():
    empty = Table("t", ("a",), [])
    assert section("x", [None, empty, bullets([])], [None]) is None
    full = section("x", [empty, bullets(["b"])])
    assert full == Section("x", (bullets(["b"]),))
    assert section("y", [], [full]).parts == (full,)


def test_what_is_shown_already_is_not_repeated():
    table = Table("t", ("a",), [("1",)])
    shown = section("x", [bullets(["b"]), table])
    again = section("y", [bullets(["b", "c"]), Table("another title", ("a",), [("1",)])])
    assert without([again], [shown]) == [Section("y", (bullets(["c"]),))]
    assert without([shown], [shown]) == []


def test_a_section_is_printed_by_its_name(capsys, study):
    code, out, err = run_main(capsys, "report", "--study", "s", "--section", "quality")
    assert code == 0, err
    assert "minimum detectable effect" in out
    assert "peak memory" not in out
    code, out, _ = run_main(capsys, "compare", "orig", "pow2", "--study", "s", "--section", "speed")
    assert code == 0
    assert "peak memory" in out
    assert "minimum detectable effect" not in out


@pytest.mark.parametrize("command", [("report",), ("compare", "orig", "pow2")])
def test_an_unknown_section_is_a_sentence(capsys, study, command):
    code, out, err = run_main(capsys, *command, "--study", "s", "--section", "qualty")
    assert (code, out) == (2, "")
    assert "Unknown section 'qualty'. Did you mean 'quality'?" in err


def test_a_section_with_nothing_to_say_is_said_to_have_none(capsys, study):
    code, out, err = run_main(capsys, "report", "--study", "s", "--section", "quantization")
    assert (code, out) == (0, "")
    assert "Section quantization is empty for these runs." in err


def test_a_section_alone_is_no_card(capsys, study):
    options = ("--section", "quality", "--out", "card.md")
    code, _, err = run_main(capsys, "report", "--study", "s", *options)
    assert code == 2
    assert "--section prints sections alone; omit --out" in err


@pytest.mark.parametrize("option", ["--out", "--appendix", "--html", "--figures"])
def test_json_writes_no_file_and_refuses_its_option(capsys, study, option):
    code, out, err = run_main(capsys, "report", "--study", "s", "--json", option, "card.md")
    assert (code, out) == (2, "")
    assert f"--json prints on stdout alone; omit {option} and append > FILE, or omit --json" in err
    assert not Path("card.md").exists()


def test_json_has_the_sections_of_the_card(capsys, study):
    say(study, claims="pow2")
    code, out, err = run_main(capsys, "report", "--study", "s", "--json")
    assert code == 0, err
    found = {one["name"]: one for one in json.loads(out)}
    assert list(found) == [name for name in (*names_in(CARD), *names_in(APPENDIX)) if name in found]
    assert {"answer", "claims", "quality", "reproduction"} <= set(found)
    (table,) = (block for block in found["answer"]["blocks"] if block["kind"] == "table")
    assert table["header"] == ["", *ARMS]
    assert not Path("results/s/figures").exists()


def test_compare_has_its_sections_in_json(capsys, study):
    code, out, _ = run_main(capsys, "compare", "orig", "pow2", "--study", "s", "--json")
    assert code == 0
    found = json.loads(out)
    assert [one["name"] for one in found["sections"]] == ["quality", "decision", "speed"]
    quality = found["sections"][0]["blocks"][0]
    assert quality["sentences"][0] == found["conclusion"][0]
