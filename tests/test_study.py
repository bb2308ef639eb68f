"""`smolctl study`: what a file describes is run, once, in order, and goes on after a stop."""

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import run_main
from filelock import Timeout

from smolctl.session import Session
from smollm2.device import Compiler
from smollm2.errors import UserError
from smollm2.protocol import resolve
from smollm2.runs import Run, list_runs
from smollm2.study import final_runs, horizons, read_study, study_of, sweep_runs, to_toml


@pytest.fixture
def study_file(workdir, corpus, variants) -> Path:
    """A study of two arms and two seeds in the current directory."""
    path = workdir / "tinies.toml"
    path.write_text(
        f"""
        seeds = [0, 1]
        [arms]
        two = "{variants}/tiny.toml"
        three = {{ variant = "{variants}/tiny.toml", set = ["n_layers=3"] }}
        [train]
        steps = 6
        seq_len = 32
        batch_size = 2
        data = "{corpus}"
        tokenizer = "train:512"
        val_tokens = 128
        test_tokens = 256
        """
    )
    return path


def minimal(**changes) -> dict:
    return {"arms": ["orig", "pow2"], "train": {"steps": 10, "scale": "nano"}} | changes


# The file


def test_arms_are_interleaved_by_seed():
    study = study_of(minimal(seeds=[3, 5]), "x")
    runs = final_runs(study, horizons(study, {}), {})
    assert [run.name for run in runs] == ["orig-s3", "pow2-s3", "orig-s5", "pow2-s5"]
    assert {run.role for run in runs} == {"final"}


def test_equal_flops_gives_the_cheaper_arm_more_steps():
    study = study_of(minimal(equal="flops", train={"steps": 1000, "scale": "nano"}), "x")
    requests = horizons(study, {})
    assert requests["orig"].steps == 1000
    assert requests["pow2"].steps < 1000  # nano pow2 costs more a token
    orig, pow2 = (resolve(requests[name]) for name in ("orig", "pow2"))
    assert pow2.steps * pow2.flops_per_step == pytest.approx(
        orig.steps * orig.flops_per_step, rel=1e-3
    )
    assert orig.test_tokens == pow2.test_tokens


def test_equal_seconds_gives_the_faster_arm_more_steps():
    study = study_of(minimal(equal="seconds"), "x")
    requests = horizons(study, {"orig": 1.0, "pow2": 0.5})
    assert (requests["orig"].steps, requests["pow2"].steps) == (10, 20)


def test_all_arms_are_compiled_or_none(monkeypatch):
    monkeypatch.setattr("smollm2.protocol.COMPILE_TOKENS", {"nano": 1_000_000})
    monkeypatch.setattr("smollm2.device.compiler", lambda: Compiler("cc", None))
    # The second arm costs more a token, and gets fewer of them.
    for steps, equal, expected in (
        (976, "flops", False),
        (977, "flops", True),
        (977, "seconds", False),  # the seconds are those of uncompiled steps
    ):
        settings = {"steps": steps, "scale": "nano", "device": "cpu"}
        study = study_of(minimal(train=settings, equal=equal), "x")
        requests = horizons(study, {"orig": 1.0, "pow2": 1.1})
        assert requests["pow2"].steps < steps
        assert {resolve(request).compile for request in requests.values()} == {expected}


def test_the_sweep_tries_every_arm_at_every_rate():
    study = study_of(minimal(sweep={"lr": [1e-3, 2e-3], "seeds": [7, 8]}), "x")
    runs = sweep_runs(study, horizons(study, {}))
    assert [run.name for run in runs[:4]] == [
        "orig-lr0.001-s7", "pow2-lr0.001-s7", "orig-lr0.002-s7", "pow2-lr0.002-s7"
    ]  # fmt: skip
    assert len(runs) == 8
    chosen = final_runs(study, horizons(study, {}), {"orig": 2e-3, "pow2": 1e-3})
    assert {run.arm: run.request.lr for run in chosen} == {"orig": 2e-3, "pow2": 1e-3}


BAD_FILES = {
    "unknown key": (minimal(seed=[1]), "Did you mean 'seeds'?"),
    "unknown option": (minimal(train={"step": 3}), "Did you mean 'steps'?"),
    "unknown arm key": (minimal(arms={"a": {"varient": "orig"}, "b": "pow2"}), "'variant'"),
    "one arm": (minimal(arms=["orig"]), "at least two arms"),
    "no arms": ({}, "at least two arms"),
    "a seed": (minimal(seeds=3), "seeds takes different whole numbers"),
    "seed twice": (minimal(seeds=[1, 1]), "different whole numbers"),
    "unknown equal": (minimal(equal="time"), "tokens, flops, seconds"),
    "one rate": (minimal(sweep={"lr": [1e-3]}), "at least two rates"),
    "rate and sweep": (
        minimal(sweep={"lr": [1e-3, 2e-3]}, train={"steps": 3, "lr": 1e-3}),
        "either lr or",
    ),
    "wrong type": (minimal(train={"steps": "many"}), "steps takes a whole number"),
    "text for a switch": (minimal(train={"steps": 3, "compile": "no"}), "true or false"),
    "no table": (minimal(eval="hellaswag"), "write [eval]"),
    "unknown eval key": (minimal(eval={"task": "piqa"}), "Did you mean 'tasks'?"),
    "same runs twice": (
        minimal(arms={"a": "pow2", "b": "pow2"}),
        'b = { variant = "pow2", seeds = [3, 4, 5] }',
    ),
    "same model": (minimal(arms=["pow2", "pow2:n_kv_heads=4"]), "are the same model"),
    "names alike": (minimal(arms={"a:b": "pow2", "a-b": "orig"}), "the same names"),
    "arm twice": (minimal(arms=["orig", "orig", "pow2"]), "one of them twice"),
    "arm with a space": (minimal(arms={"a b": "pow2", "c": "orig"}), "no name for an arm"),
    "arm that is a path": (
        minimal(arms=["orig", "my/wide.toml"]),
        "'my/wide.toml' is no name for an arm; use letters, digits and . _ : , = -. A variant "
        'of your own is given one so: arms.wide = "my/wide.toml"',
    ),
    "empty sweep": (minimal(sweep={}), "at least two rates"),
    "rate set and sweep": (
        minimal(sweep={"lr": [1e-3, 2e-3]}, train={"steps": 3, "set": ["lr=0.5"]}),
        "either lr or",
    ),
    "rate twice": (minimal(sweep={"lr": [1e-3, 1e-3]}), "same to six digits"),
    "rates alike": (minimal(sweep={"lr": [1e-3, 1.0000001e-3]}), "same to six digits"),
    "negative rate": (minimal(sweep={"lr": [1e-3, -1]}), "positive and finite"),
    "seed of sweep and final": (
        minimal(sweep={"lr": [1e-3, 2e-3], "seeds": [7, 2]}),
        "seed 2 is of [sweep] and of arm 'orig'",
    ),
    "sweep of muon": (
        minimal(sweep={"lr": [1e-3, 2e-3]}, train={"steps": 3, "optimizer": "muon"}),
        "at muon_lr",
    ),
    "eval of nothing": (minimal(eval={}), "[eval] needs tasks"),
    "eval of no task": (minimal(eval={"tasks": ","}), "is no task for [eval]"),
    "eval of text": (minimal(eval={"tasks": "piqa, test"}), "'test' is no task for [eval]"),
    "eval of an unknown task": (minimal(eval={"tasks": "piqqa"}), "Did you mean 'piqa'?"),
    "folder of questions": (minimal(eval={"tasks": "piqa", "data_dir": 3}), "data_dir takes"),
    "dtype of eval": (minimal(eval={"tasks": "piqa", "dtype": "fp99"}), "Unknown dtype 'fp99'"),
    "no questions": (minimal(eval={"tasks": "piqa", "limit": 0}), "limit must be at least 1"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_study_file_is_a_sentence(case):
    table, sentence = BAD_FILES[case]
    with pytest.raises(UserError) as error:
        study_of(table, "x")
    assert sentence in str(error.value)


def test_an_arm_varies_nothing_but_the_model():
    study = study_of(
        minimal(arms={"a": "orig", "b": {"variant": "pow2", "set": ["grad_clip=2"]}}), "x"
    )
    with pytest.raises(UserError, match=r"Arm 'b' differs .* grad_clip: 1.0 there, 2.0 asked for"):
        horizons(study, {})


def test_the_same_variant_with_other_seeds_is_a_control():
    arms = {"a": "pow2", "b": {"variant": "pow2", "seeds": [3, 4]}}
    study = study_of(minimal(arms=arms, seeds=[0, 1]), "x")
    names = [run.name for run in final_runs(study, horizons(study, {}), {})]
    assert names == ["a-s0", "b-s3", "a-s1", "b-s4"]


ROUND_TRIPS = {
    "plain": minimal(),
    "everything": minimal(
        seeds=[4, 5],
        equal="flops",
        arms={
            "pow2:n_kv_heads=8": "pow2:n_kv_heads=8",
            "b": {"variant": "pow2", "set": ["n_layers=2"], "seeds": [7]},
        },
        train={"steps": 3, "scale": "nano", "compile": False, "set": ["eps=1e-7"]},
        sweep={"lr": [1e-5, 2], "seeds": [9]},
        eval={"tasks": "piqa,arc_easy", "limit": 3, "dtype": "fp32"},
    ),
    "rates": minimal(arms={"a": {"variant": "orig", "lr": 1e-5}, "b": "pow2"}),
}


@pytest.mark.parametrize("case", ROUND_TRIPS)
def test_the_kept_study_file_says_the_same(case):
    study = study_of(ROUND_TRIPS[case], "x")
    assert study_of(tomllib.loads(to_toml(study)), "x") == study


def test_the_kept_study_file_names_no_folder(variants):
    arms = {"a": f"{variants}/tiny.toml", "b": "orig"}
    train = {"steps": 3, "data": "/home/me/novels", "tokenizer": "/home/me/words"}
    table = minimal(arms=arms, train=train, eval={"tasks": "piqa", "data_dir": "/home/me/q"})
    text = to_toml(study_of(table, "x"))
    assert "/" not in text
    assert 'data = "novels"' in text
    assert 'data_dir = "q"' in text


def test_a_file_that_is_not_there_or_broken_is_a_sentence(workdir):
    with pytest.raises(UserError, match="no study file"):
        read_study(workdir / "none.toml")
    (workdir / "x.toml").write_text("arms = [")
    with pytest.raises(UserError, match="not a readable TOML"):
        read_study(workdir / "x.toml")
    (workdir / "My Study.toml").write_text('arms = ["orig", "pow2"]')
    with pytest.raises(UserError, match="no name for a study"):
        read_study(workdir / "My Study.toml")


# Running it


def runs_of(workdir: Path) -> dict[str, Run]:
    return {run.name: run for run in list_runs(workdir / "results", "tinies")[0]}


def test_a_study_runs_what_is_missing_and_nothing_twice(capsys, workdir, study_file):
    code, _, err = run_main(capsys, "study", str(study_file))
    assert code == 0
    assert "Run 1 of 4: two-s0\n" in err
    assert re.search(r"Run 4 of 4: three-s1, about [\d.]+ s of training left\n", err)
    runs = runs_of(workdir)
    assert set(runs) == {"two-s0", "three-s0", "two-s1", "three-s1"}
    assert [run.arm for run in runs.values()] == ["three", "three", "two", "two"]
    started = sorted(runs.values(), key=lambda run: run.manifest["created_at"])
    assert [run.name for run in started] == ["two-s0", "three-s0", "two-s1", "three-s1"]
    before = {name: run.manifest["finished_at"] for name, run in runs.items()}
    code, out, _ = run_main(capsys, "study", str(study_file), "--json")
    assert code == 0
    assert {run["state"] for run in json.loads(out)["runs"]} == {"finished"}
    assert {name: run.manifest["finished_at"] for name, run in runs_of(workdir).items()} == before


def test_the_card_of_a_study_repeats_it(capsys, workdir, study_file):
    assert run_main(capsys, "study", str(study_file))[0] == 0
    code, card, err = run_main(capsys, "report", "--study", "tinies")
    assert code == 0, err
    kept = (workdir / "results/tinies/study.toml").read_text()
    assert f"`tinies.toml`:\n\n```toml\n{kept}```\n\n```sh\nsmolctl study tinies.toml\n" in card
    assert "smolctl train" not in card
    (workdir / "results/tinies/study.toml").write_text("[")
    code, _, err = run_main(capsys, "report", "--study", "tinies")
    assert code == 2
    assert "not a readable TOML file" in err
    (workdir / "results/tinies/study.toml").unlink()
    code, card, err = run_main(capsys, "report", "--study", "tinies")
    assert card.count("\nsmolctl train") == 4


def test_a_dry_run_says_what_is_left_and_writes_nothing(capsys, workdir, study_file):
    code, out, _ = run_main(capsys, "study", str(study_file), "--dry-run", "--json")
    assert code == 0
    plan = json.loads(out)
    assert [run["state"] for run in plan["runs"]] == ["to do"] * 4
    assert plan["seconds_left"] == pytest.approx(sum(r["seconds_left"] for r in plan["runs"]))
    assert plan["seconds_left"] > 0
    assert not (workdir / "results").exists()
    assert run_main(capsys, "study", str(study_file))[0] == 0
    code, out, _ = run_main(capsys, "study", str(study_file), "--dry-run", "--json")
    assert json.loads(out)["seconds_left"] == 0


def test_the_sweep_chooses_the_best_rate_on_validation(capsys, workdir, study_file):
    with study_file.open("a") as file:
        file.write("[sweep]\nlr = [1e-8, 1e-2]\n")
    assert run_main(capsys, "study", str(study_file))[0] == 0
    runs = runs_of(workdir)
    assert len(runs) == 8
    assert {run.protocol.recipe.lr for run in runs.values() if run.manifest["role"] == "final"} == {
        1e-2
    }
    # The sweep's runs are in no comparison.
    code, out, _ = run_main(capsys, "compare", "two", "three", "--study", "tinies", "--json")
    assert code == 0
    assert json.loads(out)["arms"][0]["runs"] == ["two-s0", "two-s1"]


def test_a_failed_run_is_named_and_does_not_stop_the_rest(capsys, workdir, study_file, monkeypatch):
    from smollm2.train import Loop, NotFinite

    original = Loop.train_step

    def failing(self):
        if self.run.name == "three-s0":
            raise NotFinite("At step 1 the loss is nan.")
        original(self)

    monkeypatch.setattr(Loop, "train_step", failing)
    code, _, err = run_main(capsys, "study", str(study_file))
    assert code == 1
    assert "Run 'three-s0' failed: At step 1 the loss is nan" in err
    assert "3 of 4 runs are finished" in err
    monkeypatch.setattr(Loop, "train_step", original)
    assert run_main(capsys, "study", str(study_file))[0] == 0


@pytest.fixture
def diverging(monkeypatch):
    """Training that fails above a rate, which the test may change."""
    from smollm2.train import Loop, NotFinite

    original, limit = Loop.train_step, {"lr": 0.01}

    def failing(self):
        if self.run.protocol.recipe.lr > limit["lr"]:
            raise NotFinite("At step 1 the loss is nan.")
        original(self)

    monkeypatch.setattr(Loop, "train_step", failing)
    return limit


def test_a_diverging_rate_is_a_result_of_the_sweep(capsys, workdir, study_file, diverging):
    with study_file.open("a") as file:
        file.write("[sweep]\nlr = [1e-3, 0.1]\n")
    code, _, err = run_main(capsys, "study", str(study_file))
    assert code == 0
    assert "not chosen: two-lr0.1-s100, three-lr0.1-s100" in err
    assert "6 of 8 runs are finished" in err
    # The same command goes on, and tries the failed rate no more: the finals stand by the other.
    diverging["lr"] = 1.0
    code, out, _ = run_main(capsys, "study", str(study_file), "--dry-run", "--json")
    assert code == 0
    assert json.loads(out)["seconds_left"] == 0
    with study_file.open() as file:
        text = file.read()
    study_file.write_text(text.replace("seeds = [0, 1]", "seeds = [0, 1, 2]"))
    code, _, err = run_main(capsys, "study", str(study_file))
    assert code == 0
    assert "8 of 10 runs are finished" in err
    rates = {run.name: run.protocol.recipe.lr for run in runs_of(workdir).values()}
    assert rates["two-s2"] == 1e-3


def test_an_arm_that_fails_at_every_rate_is_a_sentence(capsys, workdir, study_file, diverging):
    with study_file.open("a") as file:
        file.write("[sweep]\nlr = [0.1, 0.2]\n")
    code, _, err = run_main(capsys, "study", str(study_file))
    assert code == 1
    assert "Error: Arm 'two' failed at every learning rate of the sweep" in err
    # No final run has begun: the same command tries them again.
    diverging["lr"] = 1.0
    assert run_main(capsys, "study", str(study_file))[0] == 0


def test_a_changed_file_does_not_mix_with_what_was_run(capsys, workdir, study_file):
    assert run_main(capsys, "study", str(study_file))[0] == 0
    study_file.write_text(study_file.read_text().replace("steps = 6", "steps = 7"))
    code, _, err = run_main(capsys, "study", str(study_file))
    assert code == 2
    assert "steps: 6 there, 7 asked for" in err


def test_equal_seconds_are_measured_once(capsys, workdir, study_file):
    study_file.write_text('equal = "seconds"\n' + study_file.read_text())
    assert run_main(capsys, "study", str(study_file))[0] == 0
    record = workdir / "results/tinies/study.json"
    before = record.read_bytes()
    assert json.loads(before)["step_seconds"].keys() == {"two", "three"}
    code, out, _ = run_main(capsys, "study", str(study_file), "--dry-run", "--json")
    assert code == 0
    assert json.loads(out)["seconds_left"] == 0
    assert record.read_bytes() == before


BROKEN_RECORDS = {
    "no JSON": (lambda record: "{", "cannot be read"),
    "a list": (lambda record: [1], "cannot be read"),
    "a missing key": (lambda record: {"step_seconds": record["step_seconds"]}, "lacks 'measured'"),
    "a zero": (
        lambda record: record | {"step_seconds": {"two": 0, "three": 1.0}},
        "no positive number",
    ),
    "a missing arm": (lambda record: record | {"step_seconds": {"two": 1.0}}, "without arm"),
    "other threads": (
        lambda record: record | {"measured": record["measured"] | {"threads": 99}},
        "threads: 99 at the start",
    ),
    "another machine": (
        lambda record: record | {"measured": record["measured"] | {"device_name": "abacus"}},
        "device_name: abacus at the start",
    ),
}


def test_a_record_of_step_times_that_will_not_do_is_a_sentence(capsys, workdir, study_file):
    study_file.write_text('equal = "seconds"\n' + study_file.read_text())
    assert run_main(capsys, "study", str(study_file))[0] == 0
    path = workdir / "results/tinies/study.json"
    good = json.loads(path.read_text())
    for case, (change, sentence) in BROKEN_RECORDS.items():
        bad = change(good)
        path.write_text(bad if isinstance(bad, str) else json.dumps(bad))
        code, _, err = run_main(capsys, "study", str(study_file))
        assert (code, sentence in err) == (2, True), (case, err)
    # Runs that were copied without it do not go on by times measured elsewhere.
    path.unlink()
    before = sorted(workdir.rglob("*"))
    code, _, err = run_main(capsys, "study", str(study_file))
    assert code == 2
    assert "study.json, which is gone; restore it, or give the study file another name" in err
    assert sorted(workdir.rglob("*")) == before
    # Nothing follows from it as long as there is no run.
    for run in runs_of(workdir).values():
        shutil.rmtree(run.path)
    assert run_main(capsys, "study", str(study_file), "--dry-run")[0] == 0


def test_a_tokenizer_too_large_for_an_arm_is_refused_before_the_text_is_read(
    capsys, workdir, study_file, fresh_cache
):
    study_file.write_text(study_file.read_text().replace("n_layers=3", "vocab_size=400"))
    code, _, err = run_main(capsys, "study", str(study_file))
    assert code == 2
    assert "The tokenizer has 512 tokens, the model 400; use --tokenizer train:400" in err
    assert not any(fresh_cache.iterdir())


def test_a_study_scores_its_final_runs(capsys, workdir, study_file):
    from test_tasks import ROWS, write

    (workdir / "questions").mkdir()
    write(workdir / "questions", "piqa_validation.jsonl", [ROWS["piqa"]] * 4)
    with study_file.open("a") as file:
        file.write('[eval]\ntasks = "piqa"\ndata_dir = "questions"\nlimit = 3\n')
    assert run_main(capsys, "study", str(study_file))[0] == 0
    for run in runs_of(workdir).values():
        table = run.table("eval")
        assert set(table[table["task"] == "piqa"]["n"]) == {3}


def test_missing_questions_are_said_before_anything_runs(capsys, workdir, study_file):
    with study_file.open("a") as file:
        file.write('[eval]\ntasks = "piqa"\ndata_dir = "nowhere"\n')
    code, _, err = run_main(capsys, "study", str(study_file))
    assert code == 2
    assert "no folder 'nowhere'" in err
    assert not (workdir / "results").exists()


STOPPED = """
import os, signal, sys
from smollm2.train import Loop
from smolctl.cli import main

original, number = Loop.train_step, getattr(signal, sys.argv.pop(1))

def train_step(self):
    original(self)
    if self.run.name == "three-s0" and self.trainer.step == 3:
        os.kill(os.getpid(), number)

Loop.train_step = train_step
main()
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGKILL"])
def test_a_stopped_study_goes_on_where_it_was(capsys, workdir, study_file, name):
    command = [sys.executable, "-c", STOPPED, name, "study", str(study_file)]
    process = subprocess.run(command, capture_output=True, text=True, timeout=240, env=os.environ)
    number = getattr(signal, name)
    assert process.returncode == (130 if name == "SIGINT" else -number), process.stderr
    if name == "SIGINT":
        assert "The same command goes on with the study" in process.stderr
    states = {run.name: run.is_finished for run in runs_of(workdir).values()}
    assert states == {"two-s0": True, "three-s0": False}
    stopped = dict(runs_of(workdir))
    code, _, err = run_main(capsys, "study", str(study_file))
    assert code == 0
    if name == "SIGINT":
        assert re.search("three-s0.*, which goes on from step 3\n", err)
    runs = runs_of(workdir)
    assert len(runs) == 4
    assert all(run.is_finished for run in runs.values())
    assert runs["two-s0"].manifest["finished_at"] == stopped["two-s0"].manifest["finished_at"]


def test_two_processes_share_a_study(workdir, study_file):
    command = [sys.executable, "-m", "smolctl", "study", str(study_file)]
    both = [
        subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [process.communicate(timeout=240)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    runs, _ = list_runs(Path("results"), "tinies")
    assert [len(run.rows("train")) for run in runs] == [6, 6, 6, 6]
    ended = re.findall(r"(\S+): step 6/6", "".join(said))  # each once
    assert sorted(ended) == ["three-s0", "three-s1", "two-s0", "two-s1"]


@pytest.fixture
def sessions(study_file):
    """Sessions of two processes, as far as locks and files can tell them apart."""
    return [Session(read_study(study_file), Path("results")) for _ in range(2)]


def test_a_run_that_another_process_has_is_waited_for(monkeypatch, sessions):
    ours, theirs = sessions
    first = ours.planned()[0]
    held = theirs.claim(first).writing()
    held.__enter__()
    waits = []

    def sleep(seconds):
        waits.append([ours.existing(planned).is_finished for planned in ours.planned()])
        if len(waits) == 2:
            held.__exit__(None, None, None)  # as if it had died

    ours_alone = SimpleNamespace(sleep=sleep, monotonic=time.monotonic)  # locks sleep too
    monkeypatch.setattr("smolctl.session.time", ours_alone)
    ours.run()
    assert waits == [[False, True, True, True]] * 2
    assert ours.existing(first).is_finished


def test_a_run_that_failed_in_another_process_is_not_tried_again(monkeypatch, sessions):
    ours, theirs = sessions
    run = theirs.claim(ours.planned()[0])
    run.update(state="failed", error="The disk was full.")
    ours.run()
    assert ours.failed == {"two-s0": "The disk was full."}
    assert not run.rows("train")
    again = Session(ours.study, ours.results)
    again.run()
    assert not again.failed
    assert again.existing(ours.planned()[0]).is_finished


def test_equal_seconds_are_for_one_process(monkeypatch, workdir, study_file):
    study = dataclasses.replace(read_study(study_file), equal="seconds")
    ours, theirs = (Session(study, Path("results")) for _ in range(2))
    with theirs.alone(), pytest.raises(UserError, match="Another process is running study"):
        ours.run()


def test_one_process_at_a_time_evaluates(monkeypatch, sessions):
    ours, theirs = sessions
    evaluated = []

    def evaluate(self, planned):
        with pytest.raises(Timeout):
            theirs.lock.acquire(timeout=0)
        evaluated.append(planned.name)

    monkeypatch.setattr(Session, "evaluate", evaluate)
    ours.run()
    assert len(evaluated) == 4
    with theirs.alone():
        pass
