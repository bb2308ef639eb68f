"""A packed study is complete as it is, and is not gone on with before it is unpacked."""

import json

from support.command import run_main


def test_a_packed_study_is_seen_to_be_complete(capsys, workdir, study_file):
    assert run_main(capsys, "study", str(study_file))[0] == 0
    code, before, _ = run_main(capsys, "compare", "two", "three", "--study", "tinies", "--json")
    assert code == 0
    card = run_main(capsys, "report", "--study", "tinies", "--out", "card.md")
    assert card[0] == 0, card
    assert run_main(capsys, "runs", "pack", "tinies", "--drop-weights")[0] == 0
    files = sorted((workdir / "results/tinies").rglob("*"))
    code, out, err = run_main(capsys, "study", str(study_file), "--json")
    assert code == 0, err
    assert {run["state"] for run in json.loads(out)["runs"]} == {"finished"}
    assert sorted((workdir / "results/tinies").rglob("*")) == files
    assert run_main(capsys, "compare", "two", "three", "--study", "tinies", "--json")[1] == before
    code, _, err = run_main(capsys, "report", "--check", "card.md")
    assert code == 0, err


def test_what_a_packed_study_lacks_is_not_trained(capsys, workdir, study_file):
    assert run_main(capsys, "study", str(study_file))[0] == 0
    assert run_main(capsys, "runs", "pack", "tinies", "--drop-weights")[0] == 0
    study_file.write_text(study_file.read_text().replace("seeds = [0, 1]", "seeds = [0, 1, 2]"))
    files = sorted((workdir / "results/tinies").rglob("*"))
    code, _, err = run_main(capsys, "study", str(study_file))
    assert code == 2
    assert "Unpack it first: smolctl runs unpack tinies" in err
    assert sorted((workdir / "results/tinies").rglob("*")) == files
