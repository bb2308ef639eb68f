"""Arms of unequal steps end on the same text; studies that began before that keep their order."""

import json

import pytest
from support.command import run_main
from support.tinies import runs_of

from smollm2.files import write_json


@pytest.fixture
def unequal(study_file):
    """The study with equal FLOPs: its second arm takes fewer steps."""
    study_file.write_text('equal = "flops"\n' + study_file.read_text())
    return study_file


def offsets(workdir) -> dict[str, tuple[int, int]]:
    """Steps and offset of every run."""
    runs = runs_of(workdir).values()
    return {run.name: (run.protocol.steps, run.protocol.batch_offset) for run in runs}


def test_all_arms_end_on_the_same_batch(capsys, workdir, unequal):
    code, _, err = run_main(capsys, "study", str(unequal))
    assert code == 0, err
    found = offsets(workdir)
    assert found["two-s0"] == (6, 0)
    assert found["three-s0"][1] > 0
    assert {steps + offset for steps, offset in found.values()} == {6}


def test_a_study_that_began_in_the_older_order_keeps_it(capsys, workdir, unequal):
    assert run_main(capsys, "study", str(unequal))[0] == 0
    for run in runs_of(workdir).values():  # as older versions left them
        manifest = json.loads((run.path / "run.json").read_text())
        del manifest["protocol"]["batch_offset"], manifest["request"]["batch_offset"]
        write_json(run.path / "run.json", manifest)
    unequal.write_text(unequal.read_text().replace("seeds = [0, 1]", "seeds = [0, 1, 2]"))
    code, _, err = run_main(capsys, "study", str(unequal))
    assert code == 0, err
    assert {offset for _, offset in offsets(workdir).values()} == {0}
    assert len(offsets(workdir)) == 6


def test_a_study_file_names_no_offset(capsys, workdir, study_file):
    study_file.write_text(study_file.read_text().replace("steps = 6", "batch_offset = 1"))
    code, _, err = run_main(capsys, "study", str(study_file))
    assert code == 2
    assert "unknown key 'batch_offset' in [train]" in err
