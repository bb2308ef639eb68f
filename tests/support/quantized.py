"""Sentences about quantized arms, and the card of study `s`."""

from dataclasses import astuple
from pathlib import Path

from smolctl.analysis.quantized_arms import Quantized
from smolctl.cli.report_command import make_card
from smolctl.report.sections.claims import quantization_claim
from smolctl.report.sections.quantization import conclusion


def words(found: Quantized) -> str:
    return "\n".join(conclusion(found))


def claim(found: Quantized) -> tuple[str, ...]:
    return astuple(quantization_claim(found))


def card() -> str:
    """The card of study `s` and its appendix, without their figures."""
    made = make_card("s", Path("results"), appendix=Path("appendix.md"))
    return made.markdown + made.appendix_markdown
