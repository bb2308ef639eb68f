"""`compare` of fifty seeds an arm, in 120 columns."""

import random

import pytest
from support.command import run_main
from support.compared import compared
from support.planted import planted

ARMS = ("orig", "pow2", "moe-160m")
SEEDS = 50


@pytest.fixture(scope="module")
def study(tmp_path_factory, template):
    """Fifty runs of each of three arms. Of the last one, seeds 0 to 4 failed, 10 to 14 are not
    finished, and 20 to 24 had another number of steps."""
    rng, folder = random.Random(0), tmp_path_factory.mktemp("many")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        plant_many(template, rng)
    return folder


@pytest.fixture
def many(study, monkeypatch):
    monkeypatch.chdir(study)


def plant_many(template, rng):
    for number, arm in enumerate(ARMS):
        for seed in range(SEEDS):
            is_last = arm == ARMS[-1]
            changes: dict = {"steps": 12} if is_last and 20 <= seed < 25 else {}
            if is_last and seed < 5:
                changes["manifest"] = {"state": "failed", "error": "The loss is not finite."}
            if is_last and 10 <= seed < 15:
                changes["manifest"] = {"state": "stopped"}
            loss = 5.0 + 0.02 * number + rng.gauss(0, 0.01)
            planted(template, arm, seed, loss, scale="nano", **changes)


def test_fifty_seeds_are_readable(capsys, many):
    code, out, err = run_main(capsys, "compare", *ARMS, "--study", "s")
    assert code == 0, err
    lines = out.splitlines()
    assert max(len(line) for line in lines if line[:1] in "│┃┏└") <= 120
    assert len(lines) < 80
    assert "50 (0-49)" in out
    assert "35 (5-9, 15-19, 25-49)" in out
    assert "-s17" not in out + err  # no run is listed for itself
    assert "5 runs of moe-160m (seeds 0-4) failed: the numbers of moe-160m" in out
    warnings = [line for line in err.splitlines() if line.startswith("Warning")]
    assert len(warnings) == 3
    (failed,) = (line for line in warnings if "it failed" in line)
    assert failed.endswith(
        "moe-160m-s0 is excluded: it failed. The loss is not finite. So with 4 runs of moe-160m "
        "(seeds 1-4)."
    )
    assert any("Continue it: smolctl train --resume moe-160m-s10 --study s" in w for w in warnings)


def test_every_run_is_there_for_a_script_and_on_request(capsys, many):
    found = compared(capsys, *ARMS)
    assert len(found["excluded"]) == 15
    assert [len(arm["runs"]) for arm in found["arms"]] == [50, 50, 35]
    code, out, _ = run_main(capsys, "compare", *ARMS, "--study", "s", "--section", "runs")
    assert (code, out.count("-s17 ")) == (0, 3)


def test_no_row_has_both_test_and_validation_losses(capsys, workdir, template):
    for seed in range(2):
        planted(template, "orig", seed, 5.0 + 0.01 * seed)
        planted(template, "wide", seed, 4.0 + 0.01 * seed, model={"d_ff": 128})
    views = {view["axis"]: view for view in compared(capsys, "orig", "wide")["views"]}
    assert (views["tokens"]["split"], views["flops"]["split"]) == ("test", "validation")
    assert views["tokens"]["losses"]["orig"] == [5.0, 5.01]
    assert min(map(min, views["flops"]["losses"].values())) > 6  # the planted test losses are lower
    _, out, _ = run_main(capsys, "compare", "orig", "wide", "--study", "s")
    rows = [line for line in out.splitlines() if line.startswith("│ wide") and "flops (" in line]
    assert "│ validation" in rows[0]
    assert "(before its end)" in rows[0]
