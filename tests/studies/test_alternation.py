"""Arms measured in turns: the order, what a busy machine changes, and the file."""

from collections import Counter

import pytest
import torch
from support.command import run_main

from smolctl.studies.alternation import MOST_REPEATS, Alternation
from smolctl.studies.study_file import study_of, to_toml
from smollm2.errors import RunError, UserError
from smollm2.parse import parse_toml
from smollm2.runs.speed_table import SpeedBlock, read_speed, write_speed
from smollm2.training.trainer import TimedSteps

FOLDER = "results/tinies"


@pytest.fixture
def timed(monkeypatch) -> list[int]:
    """Steps that take no time; returns the layers of the models in the order of their blocks."""
    layers = []

    def steps_of(protocol, data, least_steps):
        layers.append(protocol.model.n_layers)
        return TimedSteps(protocol.model.n_layers / 10, least_steps)

    monkeypatch.setattr("smolctl.studies.alternation.timed_steps", steps_of)
    monkeypatch.setattr("smolctl.studies.alternation.matmul_rate_now", lambda device, dtype: 1e9)
    return layers


@pytest.fixture
def with_speed(study_file, timed):
    """The study, which measures the speed in three rounds."""
    study_file.write_text(f"{study_file.read_text()}\n[speed]\nrounds = 3\nsteps = 2\n")
    return study_file


def test_a_linear_drift_cancels_in_every_round():
    clock = iter(range(1000))  # every block finds the machine a little slower
    turns = Alternation(lambda arm: float(next(clock)), lambda: 1.0)
    for _ in range(3):
        found = list(turns.round("abc"))
        assert [turn.arm for turn in found] == list("abccba")
        sums = Counter()
        for turn in found:
            sums[turn.arm] += turn.found
        assert len(set(sums.values())) == 1


def test_a_block_on_a_busy_machine_is_measured_again():
    rates = iter([1.0, 1.0, 0.95, 0.85, 0.92, 1.0])  # before and after each attempt
    blocks = iter([10, 20, 30])
    turns = Alternation(lambda arm: next(blocks), lambda: next(rates))
    first, second = turns.turn(0, "a"), turns.turn(1, "b")
    assert (first.found, first.repeats, first.matmul_rate) == (10, 0, 1.0)
    assert (second.found, second.repeats, second.matmul_rate) == (30, 1, 0.92)


def test_a_machine_that_stays_busy_ends_the_attempts_and_the_best_one_counts():
    rates = iter([0.5, 0.6, 0.7, 0.8, 0.6, 0.6, 0.5, 0.5])
    blocks = iter(range(9))
    turn = Alternation(lambda arm: next(blocks), lambda: next(rates), best=1.0).turn(0, "a")
    assert (turn.found, turn.repeats, turn.matmul_rate) == (1, MOST_REPEATS, 0.7)


def test_a_study_measures_its_arms_in_turns_and_once(capsys, workdir, with_speed, timed):
    code, _, err = run_main(capsys, "study", str(with_speed))
    assert code == 0, err
    assert "Measuring the speed of 2 arms in turns, in 3 rounds" in err
    assert timed == [2, 3, 3, 2] * 3
    blocks = read_speed(workdir / FOLDER)
    assert [block.arm for block in blocks] == ["two", "three", "three", "two"] * 3
    assert [block.position for block in blocks] == [0, 1, 2, 3] * 3
    assert {block.tokens for block in blocks} == {2 * 2 * 32}  # steps, sequences, tokens of one
    assert {block.threads for block in blocks} == {torch.get_num_threads()}
    code, _, err = run_main(capsys, "study", str(with_speed))
    assert (code, len(timed)) == (0, 12)
    assert "[speed]\nrounds = 3\nsteps = 2\n" in (workdir / FOLDER / "study.toml").read_text()


def test_more_rounds_are_added_and_another_machine_begins_anew(
    capsys, workdir, with_speed, timed, monkeypatch
):
    assert run_main(capsys, "study", str(with_speed))[0] == 0
    path = workdir / FOLDER / "speed.csv"
    before = path.read_text().splitlines()
    with_speed.write_text(with_speed.read_text().replace("rounds = 3", "rounds = 4"))
    assert run_main(capsys, "study", str(with_speed))[0] == 0
    after = path.read_text().splitlines()
    assert (after[: len(before)], len(timed)) == (before, 16)
    monkeypatch.setattr("smolctl.studies.alternation.device_name", lambda device: "another")
    code, _, err = run_main(capsys, "study", str(with_speed))  # complete: kept
    assert (code, len(timed)) == (0, 16)
    with_speed.write_text(with_speed.read_text().replace("rounds = 4", "rounds = 5"))
    code, _, err = run_main(capsys, "study", str(with_speed))
    assert (code, len(timed)) == (0, 36)
    assert "of another machine: they are measured again here" in err
    assert {block.device_name for block in read_speed(workdir / FOLDER)} == {"another"}


def test_rounds_of_other_models_are_measured_anew(capsys, workdir, with_speed, timed):
    assert run_main(capsys, "study", str(with_speed))[0] == 0
    path = workdir / FOLDER / "speed.csv"
    path.write_text(path.read_text().replace("three,", "four,"))
    code, _, err = run_main(capsys, "study", str(with_speed))
    assert (code, len(timed)) == (0, 24)
    assert "of other arms or models" in err


def test_what_is_killed_loses_one_round(capsys, workdir, with_speed, timed, monkeypatch):
    def breaking(protocol, data, least_steps):
        if len(timed) == 6:
            raise RunError("It broke.")
        timed.append(protocol.model.n_layers)
        return TimedSteps(1.0, 1)

    with monkeypatch.context() as patched:
        patched.setattr("smolctl.studies.alternation.timed_steps", breaking)
        code, _, err = run_main(capsys, "study", str(with_speed))
    assert code == 1
    assert "The speed could not be measured: It broke." in err
    assert "Failed: the measurement of speed. The same command tries" in err
    assert len(read_speed(workdir / FOLDER)) == 4
    assert run_main(capsys, "study", str(with_speed))[0] == 0
    assert timed[6:] == [2, 3, 3, 2] * 2


def test_a_pack_keeps_the_speed_beside_it(capsys, workdir, with_speed):
    assert run_main(capsys, "study", str(with_speed))[0] == 0
    content = (workdir / FOLDER / "speed.csv").read_bytes()
    assert run_main(capsys, "runs", "pack", "tinies", "--drop-weights")[0] == 0
    assert run_main(capsys, "runs", "unpack", "tinies", "--to", "copy")[0] == 0
    for folder in (workdir / FOLDER, workdir / "copy"):
        assert (folder / "speed.csv").read_bytes() == content
    assert run_main(capsys, "study", str(with_speed))[0] == 0


DAMAGES = {
    "a broken number": (("0.2,128", "fast,128"), "has the seconds 'fast'"),
    "no time": (("0.2,128", "0,128"), "has the seconds '0'"),
    "an endless time": (("0.2,128", "inf,128"), "has the seconds 'inf'"),
    "a time beyond any": (("0.2,128", "1e308,128"), "has the seconds '1e308'"),
    "a huge count": ((",128,", f",1{'0' * 400},"), "has the tokens '1000"),
    "a half number": ((",128,", ",1.5,"), "has the tokens '1.5'"),
    "no arm": ((",two,", ",,"), "has a row without arm"),
    "another name": (("repeats", "again"), "has a row without repeats"),
    "a lost block": (("0,0,two", "1,0,two"), "does not have round 1 whole"),
    "two machines": ((",1\n1,0", ",2\n1,0"), "was measured on several machines"),
    "not text": (("two", "\0"), "has a line of another length"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_file_is_a_sentence(tmp_path, name):
    (old, new), expected = DAMAGES[name]
    study = tmp_path / "s"
    study.mkdir()
    blocks = [
        SpeedBlock(number, position, arm, 0.2, 128, 1e9, 1e9, 0, "a CPU", 1)
        for number in range(2)
        for position, arm in enumerate(["two", "three", "three", "two"])
    ]
    write_speed(study, blocks)
    assert read_speed(study) == blocks
    text = (study / "speed.csv").read_text()
    assert old in text
    (study / "speed.csv").write_text(text.replace(old, new, 1))
    with pytest.raises(UserError) as raised:
        read_speed(study)
    assert str(raised.value).startswith("s/speed.csv ")
    assert expected in str(raised.value)


def test_a_study_says_that_its_file_is_damaged(capsys, workdir, with_speed):
    assert run_main(capsys, "study", str(with_speed))[0] == 0
    path = workdir / FOLDER / "speed.csv"
    path.write_text(path.read_text().replace(",two,", ",,", 1))
    code, _, err = run_main(capsys, "study", str(with_speed))
    assert code == 1
    assert "The speed could not be measured: tinies/speed.csv has a row without arm; remove" in err


@pytest.mark.parametrize(
    ("text", "message"),
    {
        "rounds = 1": "rounds of [speed] is 2 to 1,000, not 1",
        "rounds = 2000": "rounds of [speed] is 2 to 1,000, not 2000",
        "rounds = 2.5": "rounds of [speed] takes a whole number, not 2.5",
        "steps = 0": "steps of [speed] is 1 to 1,000,000, not 0",
        "round = 3": "unknown key 'round' in [speed]. Did you mean 'rounds'?",
    }.items(),
)
def test_a_wrong_plan_is_a_sentence(text, message):
    table = parse_toml(f'arms = ["orig", "pow2"]\n[train]\nsteps = 1\n[speed]\n{text}\n')
    with pytest.raises(UserError) as raised:
        study_of(table, "s")
    assert message in str(raised.value)


def test_the_plan_is_kept_with_its_defaults():
    table = parse_toml('arms = ["orig", "pow2"]\n[train]\nsteps = 1\n[speed]\n')
    study = study_of(table, "s")
    assert "[speed]\nrounds = 5\nsteps = 1\n" in to_toml(study)
    assert study_of(parse_toml(to_toml(study)), "s").speed == study.speed
