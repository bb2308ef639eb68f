"""`batch_size`, the older name of `micro_batch_size`, is still read wherever it was written."""

import json
from pathlib import Path

import pytest
from support.command import run_main

from smollm2.errors import UserError
from smollm2.files import write_json
from smollm2.protocol.run_config import OLDER_NAMES, with_current_names
from smollm2.runs.manifest import read_manifest
from smollm2.runs.run import Run, list_runs

NANO = ["train", "--variant", "pow2", "--scale", "nano", "--steps", "2", "--dry-run", "--json"]
NOTE = "--batch-size is now called --micro-batch-size.\n"
RESULTS = Path(__file__).parents[2] / "results"


def as_older(path: Path) -> None:
    """Rewrite run.json as an older version wrote it."""
    manifest = json.loads((path / "run.json").read_text())
    for part in ("request", "protocol"):
        for older, name in OLDER_NAMES.items():
            manifest[part][older] = manifest[part].pop(name)
    write_json(path / "run.json", manifest)


def planned(capsys, *options: str) -> tuple[int, str]:
    """The micro-batch of a dry run, and what stderr says."""
    code, out, err = run_main(capsys, *NANO, *options)
    assert code == 0, err
    return json.loads(out)["protocol"]["micro_batch_size"], err


def test_the_older_option_is_accepted_with_a_note_and_hidden(capsys, workdir):
    size, err = planned(capsys, "--batch-size", "3")
    assert size == 3
    assert NOTE in err
    size, err = planned(capsys, "--micro-batch-size", "3")
    assert size == 3
    assert NOTE not in err
    _, shown, _ = run_main(capsys, "train", "--help")
    assert "--micro-batch-size" in shown
    assert " --batch-size" not in shown


def test_both_names_at_once_are_refused(capsys, workdir):
    code, _, err = run_main(capsys, *NANO, "--batch-size", "3", "--micro-batch-size", "3")
    assert code == 2
    assert "--batch-size is the older name of --micro-batch-size: give only" in err
    Path("smolctl.toml").write_text("[train]\nbatch-size = 3\nmicro_batch_size = 3\n")
    code, _, err = run_main(capsys, *NANO)
    assert code == 2
    assert "batch_size is the older name of micro_batch_size: give only" in err


def test_what_is_typed_counts_before_the_file_under_either_name(capsys, workdir):
    Path("smolctl.toml").write_text("[train]\nbatch-size = 3\n")
    size, err = planned(capsys)
    assert size == 3
    assert "batch_size is now called micro_batch_size." in err
    assert planned(capsys, "--micro-batch-size", "2")[0] == 2
    Path("smolctl.toml").write_text("[train]\nmicro_batch_size = 3\n")
    assert planned(capsys, "--batch-size", "2")[0] == 2


def test_the_older_key_is_not_offered(capsys, workdir):
    Path("smolctl.toml").write_text("[train]\nbatchsize = 3\n")
    code, _, err = run_main(capsys, *NANO)
    assert code == 2
    assert " micro_batch_size, " in err
    assert " batch_size, " not in err


def test_a_study_goes_on_with_older_runs_and_an_older_file(capsys, study_file, workdir):
    code, _, err = run_main(capsys, "study", str(study_file))
    assert code == 0, err
    assert "is now called" not in err
    runs, _ = list_runs(workdir / "results", "tinies")
    before = {}
    for run in runs:
        as_older(run.path)
        before[run.name] = (run.path / "run.json").read_bytes()
    text = study_file.read_text()
    study_file.write_text(
        text.replace("micro_batch_size", "batch_size").replace("[0, 1]", "[0, 2]")
    )
    code, out, err = run_main(capsys, "study", str(study_file), "--json")
    assert code == 0, err
    assert err.count("[train] has batch_size, which is now called micro_batch_size.") == 1
    assert {run["state"] for run in json.loads(out)["runs"]} == {"finished"}
    kept = {name: (workdir / f"results/tinies/{name}/run.json").read_bytes() for name in before}
    assert kept == before
    study_file.write_text(text.replace("[train]", "[train]\nbatch_size = 2"))
    code, _, err = run_main(capsys, "study", str(study_file))
    assert code == 2
    assert "batch_size is the older name of micro_batch_size" in err
    # Runs of both kinds are one protocol: all three seeds of each arm are compared.
    code, out, _ = run_main(capsys, "compare", "two", "three", "--study", "tinies", "--json")
    assert code == 0
    assert [len(arm["seeds"]) for arm in json.loads(out)["arms"]] == [3, 3]


def test_an_older_run_is_resumed(capsys, finished):
    as_older(finished)
    Run(finished).update(state="stopped")
    code, _, err = run_main(capsys, "train", "--resume", "first", "--micro-batch-size", "2")
    assert code == 0, err
    Run(finished).update(state="stopped")
    code, _, err = run_main(capsys, "train", "--resume", "first", "--batch-size", "3")
    assert code == 2
    assert "micro_batch_size: 2 there, 3 requested" in err


def test_a_manifest_with_both_names_is_damaged(finished):
    manifest = json.loads((finished / "run.json").read_text())
    manifest["protocol"]["batch_size"] = 2
    write_json(finished / "run.json", manifest)
    with pytest.raises(UserError, match=r"first/run.json: batch_size is the older name"):
        read_manifest(finished)
    assert with_current_names({"batch_size": 2, "lr": 1}) == {"micro_batch_size": 2, "lr": 1}


@pytest.mark.parametrize(
    "study", sorted(path.parent.parent.name for path in RESULTS.glob("*/pack/runs.jsonl"))
)
def test_the_committed_runs_are_read(study):
    runs, broken = list_runs(RESULTS, study)
    assert runs
    assert not broken
    assert {run.protocol.micro_batch_size for run in runs} <= {1, 2, 4}
