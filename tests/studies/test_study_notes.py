"""What a study file says about the study as a whole, in a file to run and in a received one."""

import json
import math
import tomllib

import pytest

from smolctl.analysis.study_notes import StudyNotes, read_notes
from smolctl.studies.study_file import study_of, to_toml
from smollm2.errors import UserError

TABLE = {"arms": ["orig", "pow2"], "train": {"steps": 10}}


def test_notes_are_kept_with_the_study():
    notes = {"superseded": "Wrong.", "margin": 0.01, "claims": "pow2", "license": "mit"}
    study = study_of(TABLE | notes, "x")
    assert study.notes == StudyNotes(**notes)
    assert study_of(tomllib.loads(to_toml(study)), "x") == study
    assert study_of(TABLE, "x").notes == StudyNotes()


WRONG = [
    ({"claims": "pow"}, "claims takes pow2, not 'pow'. Did you mean 'pow2'?"),
    ({"margin": 0}, "margin is a positive number of nats/token such as 0.01, not 0."),
    ({"margin": "wide"}, "margin takes a number, not 'wide'."),
    ({"margin": -1}, "margin is a positive number of nats/token such as 0.01, not -1."),
    ({"margin": math.nan}, "margin is a positive number of nats/token such as 0.01, not nan."),
    ({"margin": math.inf}, "margin is a positive number of nats/token such as 0.01, not inf."),
    ({"claims": [1]}, "claims takes text in quotes, not [1]."),
    ({"license": ["mit"]}, "license takes text in quotes, not ['mit']."),
    ({"license": ""}, "license takes one line of printable text, not ''."),
    ({"license": "mit\n"}, r"license takes one line of printable text, not 'mit\n'."),
    ({"license": "\x1b[31mmit"}, r"license takes one line of printable text, not '\x1b"),
    ({"superseded": [1]}, "superseded takes text in quotes, not [1]."),
    ({"superseded": " "}, "superseded takes one line of printable text, not ' '."),
    ({"superseded": "a\u2028b"}, r"superseded takes one line of printable text, not 'a\u2028"),
]
UNKNOWN = ({"licence": "mit"}, "unknown key 'licence' in a study. Did you mean 'license'?")


@pytest.mark.parametrize(("wrong", "sentence"), [*WRONG, UNKNOWN])
def test_wrong_notes_are_refused(wrong, sentence):
    with pytest.raises(UserError) as error:
        study_of(TABLE | wrong, "x")
    assert str(error.value).startswith(sentence)


@pytest.mark.parametrize(("wrong", "sentence"), WRONG)
def test_wrong_notes_of_a_received_study_are_refused_by_the_name_of_its_file(
    tmp_path, wrong, sentence
):
    file = tmp_path / "study.toml"
    ((name, value),) = wrong.items()
    text = json.dumps(value).replace("NaN", "nan").replace("Infinity", "inf")  # TOML's names
    file.write_text(f"{name} = {text}\n")
    with pytest.raises(UserError) as error:
        read_notes(tmp_path)
    assert str(error.value).startswith(f"{file}: {sentence}")
