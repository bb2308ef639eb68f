"""What `smolctl report` writes about study `s`."""

import json
from pathlib import Path

from support.command import run_main

from smollm2.files import write_json

ARMS = {
    "orig": {"d_ff": 72},
    "pow2": {},
    "moe-160m": {"n_experts": 4, "n_active_experts": 2},
}


def card_alone(capsys, *options: str, study: str = "s") -> str:
    """The card on stdout."""
    code, out, err = run_main(capsys, "report", "--study", study, *options)
    assert code == 0, err
    return out


def card(capsys, *options: str, study: str = "s") -> str:
    """The card, then its appendix."""
    text = card_alone(capsys, "--appendix", "appendix.md", *options, study=study)
    return text + Path("appendix.md").read_text(encoding="utf-8")


def section_of(text: str, title: str) -> str:
    """A section of a card, with its parts; the first of two of one title."""
    _, found, rest = text.partition(f"\n## {title}\n")
    assert found, title
    return rest.split("\n## ")[0]


def become(study: Path, **fields) -> None:
    """Make the runs of a study such of the variants that their arms are called after."""
    for path in study.glob("*/run.json"):
        manifest = json.loads(path.read_text())
        manifest["protocol"] |= {"variant": manifest["arm"]} | fields
        write_json(path, manifest)


def say(study: Path, **notes: object) -> None:
    """Give a study a file with these keys about it as a whole; its runs are not the file's."""
    lines = [f"{name} = {json.dumps(value)}" for name, value in notes.items()]
    (study / "study.toml").write_text("\n".join([*lines, ""]))
