"""Sentences and cells on a study as a whole."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.planted import planted

from smolctl.analysis.comparison import Comparison
from smolctl.analysis.selection import study_comparison
from smolctl.report.sections.method import named_otherwise
from smolctl.report.sections.quality import family_sentence
from smolctl.report.sections.quality_tables import pairing_cell
from smollm2.runs.run import list_runs


def study_of(template: Path, arms: str) -> Comparison:
    for place, arm in enumerate(arms):
        for seed in range(3):
            planted(template, arm, seed, 5.0 - 0.1 * place + 0.001 * seed)
    return study_comparison("s", list_runs(Path("results"), "s")[0])


def test_arms_with_names_of_their_own_are_said_to_be_what_they_are(workdir, template):
    study = study_of(template, "ab")
    variant = study.base.protocol.variant
    assert named_otherwise(study) == [f"a and b are `{variant}`."]
    own = dataclasses.replace(study.base, name=variant)
    assert named_otherwise(dataclasses.replace(study, arms=(own, study.arms[1]))) == [
        f"b is `{variant}`."
    ]


def test_one_arm_alone_has_no_family(workdir, template):
    study = study_of(template, "abc")
    assert "The 2 verdicts of the study hold together" in family_sentence(study)[0]
    assert family_sentence(dataclasses.replace(study, arms=study.arms[:1])) == []


@pytest.mark.parametrize(("gain", "text"), [(1.84, "1.8"), (10.0, "10.0"), (151.7, "over 10")])
def test_a_large_gain_of_pairing_is_not_shown_to_the_digit(gain, text):
    found = SimpleNamespace(paired=True, gain_of_pairing=gain)
    assert pairing_cell(found) == f"{text} × the seeds"
