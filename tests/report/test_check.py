"""`smolctl report --check`: whether a card and its appendix still follow from the files."""

import json
from pathlib import Path

import pytest
from support.carded import card_alone
from support.command import run_main
from support.planted import rescore

from smollm2.runs.run import Run


def write_card(capsys) -> None:
    Path("MODEL_CARD.md").write_text(card_alone(capsys, "--appendix", "appendix.md"))


@pytest.fixture(scope="module")
def texts() -> dict[str, str]:
    """Of the card and its appendix, by file: the same for every test, and drawing takes long."""
    return {}


@pytest.fixture
def written(capsys, study, texts) -> None:
    """The card of the study and its appendix, without figures: no check reads them."""
    if not texts:
        write_card(capsys)
        texts.update({name: Path(name).read_text() for name in ("MODEL_CARD.md", "appendix.md")})
    for name, text in texts.items():
        Path(name).write_text(text)


def test_check_tells_whether_a_card_is_still_true(capsys, study):
    write_card(capsys)
    assert run_main(capsys, "report", "--check", "MODEL_CARD.md")[0] == 0
    run = Run(study / "pow2-s0")
    rescore(run, 4.0)
    code, out, err = run_main(capsys, "report", "--check", "MODEL_CARD.md")
    assert code == 1
    assert "-| pow2-s0 | pow2 | 0 | 5.1000" in out
    assert "+| pow2-s0 | pow2 | 0 | 4.0000" in out
    assert "smolctl report --study s" in err
    code, told, _ = run_main(capsys, "report", "--check", "MODEL_CARD.md", "--json")
    assert code == 1
    assert json.loads(told) == {
        "card": "MODEL_CARD.md",
        "study": "s",
        "follows": False,
        "difference": out,
    }
    write_card(capsys)
    code, told, _ = run_main(capsys, "report", "--check", "MODEL_CARD.md", "--json")
    assert code == 0
    assert json.loads(told)["follows"]


def test_a_changed_appendix_is_found(capsys, written):
    appendix = Path("appendix.md")
    appendix.write_text(appendix.read_text().replace("5.1000", "5.2000"))
    code, out, _ = run_main(capsys, "report", "--check", "MODEL_CARD.md")
    assert code == 1
    assert out.startswith("--- appendix.md\n")
    assert "-| pow2-s0 | pow2 | 0 | 5.2000" in out
    appendix.unlink()
    code, out, err = run_main(capsys, "report", "--check", "MODEL_CARD.md")
    assert (code, out) == (2, "")
    assert err == (
        "Error: The appendix appendix.md of MODEL_CARD.md is missing; write it with: "
        "smolctl report --study s --appendix appendix.md\n"
    )
    appendix.mkdir()
    code, out, err = run_main(capsys, "report", "--check", "MODEL_CARD.md")
    assert (code, out) == (2, "")
    assert "appendix.md of MODEL_CARD.md cannot be read (" in err
    assert "write it with: smolctl report --study s --appendix appendix.md" in err
    assert "Errno" not in err


def test_check_of_no_card_is_a_sentence(capsys, study):
    Path("README.md").write_text("# Something else\n")
    Path("latin1.md").write_bytes(b"caf\xe9")
    for name, sentence in (
        ("README.md", "no card of smolctl"),
        ("none.md", "The card none.md cannot be read: No such file or directory."),
        ("latin1.md", "The card latin1.md cannot be read: it is not UTF-8 text."),
    ):
        code, _, err = run_main(capsys, "report", "--check", name)
        assert code == 2
        assert sentence in err


@pytest.mark.parametrize(
    "options",
    [
        "",
        "--study s --study t",
        "--results results",
        "--study 's",
        "--study s --folder x",
        "--study s --out",
    ],
)
def test_a_card_that_names_no_study_is_a_sentence(capsys, study, options):
    Path("card.md").write_text(f"<!-- Made by `smolctl report {options}` from runs -->\n")
    code, _, err = run_main(capsys, "report", "--check", "card.md")
    assert code == 2
    assert "does not say which study it is of" in err


@pytest.mark.parametrize(
    "option",
    ["--study", "--also", "--results", "--figures", "--out", "--appendix", "--html", "--section"],
)
def test_check_refuses_what_the_card_says(capsys, written, option):
    code, _, err = run_main(capsys, "report", "--check", "MODEL_CARD.md", option, "other")
    assert code == 2
    assert f"omit {option}." in err


def test_the_version_is_that_of_the_runs(capsys, written, monkeypatch):
    monkeypatch.setattr("smollm2._version.__version__", "99.9")
    assert run_main(capsys, "report", "--check", "MODEL_CARD.md")[0] == 0
