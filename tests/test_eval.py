"""`smolctl eval`: what is scored, what is recorded, and going on after a stop."""

import gzip
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import run_main
from hypothesis import given
from hypothesis import strategies as st
from test_tasks import ROWS, write

from smollm2.data import find_prepared
from smollm2.errors import UserError
from smollm2.multiple_choice import ItemScore
from smollm2.runs import Run
from smollm2.scores import ScoreFile, recorded_items
from smollm2.tables import TABLES

TASKS = "piqa,openbookqa"


@pytest.fixture
def questions(tmp_path) -> Path:
    """A folder with 12 questions of piqa and of openbookqa."""
    folder = tmp_path / "questions"
    folder.mkdir()
    piqa = [ROWS["piqa"] | {"goal": f"dry cup {i} " * (i + 1), "label": i % 2} for i in range(12)]
    openbookqa = [ROWS["openbookqa"] | {"question_stem": f"Ice {i} is"} for i in range(12)]
    write(folder, "piqa_validation.jsonl", piqa)
    write(folder, "openbookqa_test.jsonl", openbookqa)
    return folder


def evaluated(capsys, *options) -> list[dict]:
    """The rows that eval prints for the run `first`."""
    code, out, err = run_main(capsys, "eval", "first", *map(str, options), "--json")
    assert code == 0, err
    return json.loads(out)


def values(rows) -> dict[tuple[str, str], float]:
    return {(row["task"], row["metric"]): row["value"] for row in rows}


# Held-out text


def test_eval_repeats_the_test_scores_of_the_run_and_keeps_them(capsys, finished):
    before = Run(finished).test_scores()
    repeated = evaluated(capsys, "--tokens", 256)
    assert {row["metric"]: row["value"] for row in repeated} == pytest.approx(before.to_dict())
    whole = evaluated(capsys)
    assert whole[0]["n"] == whole[0]["total"] > 256
    part = evaluated(capsys, "--tokens", 64, "--tasks", "test,validation")
    assert {(row["task"], row["n"], row["n"] < row["total"]) for row in part} == {
        ("test", 64, True),
        ("validation", 64, True),
    }
    assert Run(finished).test_scores().to_dict() == pytest.approx(before.to_dict())


def test_scores_of_another_dtype_are_another_measurement(capsys, finished):
    before = Run(finished).test_scores()
    other = "bf16" if Run(finished).protocol.dtype == "float32" else "fp32"
    rows = evaluated(capsys, "--tokens", 256, "--dtype", other)
    assert rows[0]["value"] == pytest.approx(before["loss"], rel=1e-2)
    assert rows[0]["value"] != before["loss"]
    assert Run(finished).test_scores().equals(before)


def test_few_documents_are_said_to_be_few(capsys, finished):
    code, out, err = run_main(capsys, "eval", "first")
    assert code == 0
    assert "Held-out text" in out
    assert "rough, for there are only" in err


# Tasks and their records


def test_rows_have_the_columns_of_the_contract_and_chance(capsys, finished, questions):
    rows = evaluated(capsys, "--data-dir", questions, "--tasks", TASKS)
    text = evaluated(capsys, "--tasks", "test")
    assert all(row.keys() == {"study", "run", *TABLES["eval"]} for row in rows + text)
    table = Run(finished).table("eval")
    for row in rows:
        (recorded,) = table[(table["task"] == row["task"]) & (table["metric"] == row["metric"])][
            "value"
        ]
        assert recorded == row["value"]
        assert row["n"] == row["total"] == row["clusters"] == 12
        assert row["chance"] == (None if row["metric"] == "bits_per_byte" else 0.5)
    items = pd.read_csv(next(finished.glob("items/piqa*.csv.gz")))
    acc = (items["choice"] == items["gold"]).mean()
    assert acc == values(rows)["piqa", "acc"]
    assert list(items["item"]) == list(range(12))


def test_scoring_again_leaves_the_table_as_it_is(capsys, finished, questions):
    evaluated(capsys, "--data-dir", questions, "--tasks", TASKS)
    evaluated(capsys, "--tasks", "validation")
    before = (finished / "eval.csv").read_bytes()
    evaluated(capsys, "--data-dir", questions, "--tasks", TASKS)
    assert (finished / "eval.csv").read_bytes() == before


def test_a_default_folder_of_questions_does_not_ask_for_them(capsys, finished, questions):
    Path("smolctl.toml").write_text(f"[eval]\ndata-dir = {json.dumps(str(questions))}\n")
    rows = evaluated(capsys)
    assert {row["task"] for row in rows} == {"test"}


def test_a_limited_score_is_marked_and_its_items_serve_the_whole(
    capsys, finished, questions, monkeypatch
):
    from smollm2 import multiple_choice

    scored = []
    original = multiple_choice.score_batch

    def counted(model, batch, items):
        scored.extend(packed.index for packed in batch)
        return original(model, batch, items)

    monkeypatch.setattr(multiple_choice, "score_batch", counted)
    options = ["--data-dir", questions, "--tasks", "piqa"]
    limited = evaluated(capsys, *options, "--limit", 5)
    assert {(row["n"], row["total"]) for row in limited} == {(5, 12)}
    assert sorted(scored) == [0, 1, 2, 3, 4]
    whole = evaluated(capsys, *options)
    assert sorted(scored) == list(range(12))
    again = evaluated(capsys, *options, "--limit", 5)
    assert sorted(scored) == list(range(12))
    assert again == limited
    table = Run(finished).table("eval")
    assert sorted(table[table["task"] == "piqa"]["n"]) == [5, 5, 5, 12, 12, 12]
    assert limited[0]["fingerprint"] != whole[0]["fingerprint"]
    _, out, _ = run_main(capsys, "eval", "first", *map(str, options), "--limit", "5")
    assert "5 of 12" in out


def test_scores_of_another_dtype_split_or_file_never_mix(capsys, finished, questions):
    """Each of them is scored after the others as it would have been alone."""
    own = Run(finished).protocol.dtype
    other = "fp32" if own == "bfloat16" else "bf16"
    more = questions.with_name("more")
    shutil.copytree(questions, more)
    rows = [json.loads(line) for line in (more / "piqa_validation.jsonl").read_text().splitlines()]
    write(more, "piqa_validation.jsonl", rows[::-1])
    validation = questions.with_name("validation")
    validation.mkdir()
    write(validation, "openbookqa_validation.jsonl", [ROWS["openbookqa"]] * 3)
    kinds = [
        ["--tasks", TASKS, "--data-dir", questions],
        ["--tasks", TASKS, "--data-dir", questions, "--dtype", other],
        ["--tasks", "piqa", "--data-dir", more, "--limit", 5],
        ["--tasks", "openbookqa", "--data-dir", validation],
        ["--tasks", "test"],
        ["--tasks", "test", "--dtype", other],
    ]
    after_others = [values(evaluated(capsys, *kind)) for kind in kinds]
    for kind, found in zip(kinds, after_others, strict=True):
        shutil.rmtree(finished / "items")
        assert values(evaluated(capsys, *kind)) == pytest.approx(found, abs=1e-6)
    assert len({tuple(found.values()) for found in after_others}) == len(kinds)


def test_scores_of_other_weights_are_not_taken(capsys, finished, tiny):
    assert run_main(capsys, *tiny, "--steps", "6", "--seed", "5", "--name", "other")[0] == 0
    before = values(evaluated(capsys))
    for path in finished.glob("checkpoints/final.*"):
        shutil.copyfile(finished.with_name("other") / "checkpoints" / path.name, path)
    after = values(evaluated(capsys))
    assert after != before
    shutil.rmtree(finished / "items")
    assert values(evaluated(capsys)) == after


def test_records_of_other_questions_are_not_taken_for_those_of_a_score(capsys, finished, questions):
    rows = evaluated(capsys, "--data-dir", questions, "--tasks", "piqa")
    run, row = Run(finished), rows[0]
    found = recorded_items(run, row["items"], row["n"], row["fingerprint"])
    assert np.mean([score.value("acc") for score in found]) == row["value"]
    with pytest.raises(UserError, match="does not hold the 12 questions"):
        recorded_items(run, row["items"], row["n"], "0" * 16)
    with pytest.raises(UserError, match="does not hold the 11 questions"):
        recorded_items(run, row["items"], 11, row["fingerprint"])


def test_a_question_that_changed_is_scored_again(capsys, finished, questions):
    options = ["--data-dir", questions, "--tasks", "piqa"]
    before = evaluated(capsys, *options)
    lines = (questions / "piqa_validation.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    rows[3] |= {"sol1": "something else", "sol2": "and more"}
    write(questions, "piqa_validation.jsonl", rows)
    after = evaluated(capsys, *options)
    assert values(after)["piqa", "bits_per_byte"] != values(before)["piqa", "bits_per_byte"]
    shutil.rmtree(finished / "items")
    fresh = evaluated(capsys, *options)
    assert values(after) == pytest.approx(values(fresh))


@pytest.mark.parametrize("batch_size", [1, 5, 100])
def test_scores_do_not_depend_on_the_batch_size(capsys, finished, questions, batch_size):
    options = ["--data-dir", questions, "--tasks", f"test,{TASKS}", "--dtype", "fp32"]
    reference = evaluated(capsys, *options)
    shutil.rmtree(finished / "items")
    found = evaluated(capsys, *options, "--batch-size", batch_size)
    assert values(found) == pytest.approx(values(reference), abs=1e-4)


# Going on

KILLED = """
import os, signal, sys
from smollm2 import scores
from smolctl.cli import main

original, left = scores.ScoreFile.extend, int(sys.argv.pop(1))

def extend(self, known, batches, on_scores):
    def dying():
        for number, batch in enumerate(batches):
            if number == left:
                with self.growing.open("a") as file:
                    file.write("7,half a li")
                os.kill(os.getpid(), signal.SIGKILL)
            yield batch
    return original(self, known, dying(), on_scores)

scores.ScoreFile.extend = extend
main()
"""


@pytest.mark.parametrize("task", ["piqa", "test"])
def test_a_killed_evaluation_goes_on_with_what_is_missing(capsys, finished, questions, task):
    options = ["--tasks", task, "--batch-size", "2"]
    options += ["--data-dir", str(questions)] if task == "piqa" else []
    expected = evaluated(capsys, *options)
    shutil.rmtree(finished / "items")
    (finished / "eval.csv").write_text(",".join(TABLES["eval"]) + "\n")
    command = [sys.executable, "-c", KILLED, "3", "eval", "first", *options]
    assert subprocess.run(command, timeout=120).returncode == -signal.SIGKILL
    (growing,) = finished.glob("items/*.csv")
    assert growing.read_text().endswith("half a li")
    assert Run(finished).table("eval").empty
    kept = {tuple(line.split(",")) for line in growing.read_text().splitlines()[1:-1]}
    assert kept
    # Nothing that is recorded is computed again: the kept rows are in the end result as they were.
    assert values(evaluated(capsys, *options)) == pytest.approx(values(expected))
    (path,) = finished.glob("items/*")
    rows = gzip.decompress(path.read_bytes()).decode().splitlines()[1:]
    assert kept <= {tuple(row.split(",")) for row in rows}
    assert len(rows) == len({tuple(row.split(",")[:2]) for row in rows})


def test_a_window_half_recorded_is_scored_again(capsys, finished):
    expected = evaluated(capsys)
    (path,) = finished.glob("items/test*.csv.gz")
    lines = gzip.decompress(path.read_bytes()).decode().splitlines(keepends=True)
    windows = [line.split(",")[0] for line in lines]
    first = next(i for i, window in enumerate(windows) if windows.count(window) > 1)
    path.unlink()
    path.with_suffix("").write_text("".join(lines[: first + 1]))
    assert evaluated(capsys) == expected


def test_ctrl_c_says_how_to_go_on(finished, questions, tmp_path):
    many = [ROWS["piqa"] | {"goal": f"dry cup {i} " * 12} for i in range(30_000)]
    write(questions, "piqa_validation.jsonl", many)
    command = [sys.executable, "-m", "smolctl", "eval", "first", "--tasks", "piqa"]
    process = subprocess.Popen(
        [*command, "--data-dir", str(questions), "--batch-size", "1"],
        stderr=subprocess.PIPE,
        text=True,
        # A job that a shell started in the background ignores it, and so would what it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 90
    while not list(finished.glob("items/piqa*.csv")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "give the same command again" in err


@given(
    st.lists(
        st.builds(
            ItemScore,
            item=st.integers(0, 10**6),
            question=st.text("0123456789abcdef", min_size=8, max_size=8),
            gold=st.integers(0, 1),
            log_likelihoods=st.tuples(st.floats(-1e4, 0), st.floats(-1e4, 0)),
            greedy=st.tuples(st.booleans(), st.booleans()),
            characters=st.tuples(st.integers(0, 9), st.integers(0, 9)),
            n_bytes=st.tuples(st.integers(1, 9), st.integers(1, 9)),
        ),
        unique_by=lambda score: score.item,
    )
)
def test_scores_are_read_as_they_were_written(tmp_path_factory, scores):
    file = ScoreFile(tmp_path_factory.mktemp("items") / "x" / "piqa.csv.gz", ItemScore)
    halves = [scores[: len(scores) // 2], scores[len(scores) // 2 :]]
    file.extend([], [half for half in halves if half], lambda scores: None)
    assert file.read() == sorted(scores, key=lambda score: score.item)


def test_a_damaged_record_is_a_sentence(capsys, finished, questions):
    options = ["eval", "first", "--data-dir", str(questions), "--tasks", "piqa"]
    assert run_main(capsys, *options)[0] == 0
    (path,) = finished.glob("items/piqa*.csv.gz")
    whole = path.read_bytes()
    for damaged in (whole[:60], b"no gzip", gzip.compress(b"item,question\n1,2\n")):
        path.write_bytes(damaged)
        code, _, err = run_main(capsys, *options)
        assert code == 2
        assert f"{path.name} of run 'first' is damaged" in err
        assert "remove it" in err


# Bad input


def broken_line(folder):
    with (folder / "piqa_validation.jsonl").open("a") as file:
        file.write('{"goal": \n')


def missing_column(folder):
    rows = [ROWS["piqa"], {"goal": "x", "sol1": "a", "label": 0}]
    write(folder, "piqa_validation.jsonl", rows)


def label_out_of_range(folder):
    write(folder, "piqa_validation.jsonl", [ROWS["piqa"], ROWS["piqa"] | {"label": 2}])


def empty(folder):
    (folder / "piqa_validation.jsonl").write_text("")


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (broken_line, "piqa_validation.jsonl, line 13"),
        (missing_column, "piqa_validation.jsonl, line 2: no column 'sol2'"),
        (label_out_of_range, "line 2: the label is out of range"),
        (empty, "piqa_validation.jsonl is empty"),
    ],
)
def test_a_bad_file_is_named_with_its_line(capsys, finished, questions, spoil, sentence):
    spoil(questions)
    before = sorted(finished.rglob("*"))
    code, out, err = run_main(
        capsys, "eval", "first", "--data-dir", str(questions), "--tasks", TASKS
    )
    assert (code, out) == (2, "")
    assert sentence in err
    assert sorted(finished.rglob("*")) == before


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--tasks", "hellaswagg"], "Did you mean 'hellaswag'?"),
        (["--tasks", ","], "Name a task"),
        (["--tasks", "piqa", "--limit", "0"], "--limit must be at least 1"),
        (["--limit", "3"], "--limit is for tasks"),
        (["--tasks", "test", "--data-dir", "x"], "--data-dir is for tasks"),
        (["--tasks", "piqa", "--tokens", "9"], "--tokens is for held-out text"),
        (["--tasks", "piqa", "--data", "x"], "--data is for held-out text"),
        (["--tokens", "0"], "--tokens must be at least 1"),
        (["--batch-size", "-1"], "--batch-size must be at least 1"),
        (["--dtype", "fp8"], "fp32 or bf16"),
        (["--device", "tpu"], "Unknown device"),
        (["--tasks", "piqa", "--data-dir", "nowhere"], "no folder 'nowhere'"),
        (["--tasks", "hellaswag"], "use --data-dir with a folder of TASK_SPLIT.jsonl"),
    ],
)
def test_bad_options_are_a_sentence(capsys, finished, options, sentence):
    before = sorted(finished.rglob("*"))
    code, out, err = run_main(capsys, "eval", "first", *options)
    assert (code, out) == (2, "")
    assert sentence in err
    assert sorted(finished.rglob("*")) == before


def test_a_run_without_weights_is_refused_before_any_is_scored(capsys, finished):
    bare = finished.with_name("bare")
    shutil.copytree(finished, bare)
    (bare / "checkpoints/final.safetensors").unlink()
    before = (finished / "eval.csv").read_bytes()
    code, _, err = run_main(capsys, "eval", "first", "bare", "--tokens", "64")
    assert code == 2
    assert "Run 'bare' has no weights" in err
    assert (finished / "eval.csv").read_bytes() == before


def test_damaged_weights_are_refused(capsys, finished):
    weights = finished / "checkpoints/final.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    code, _, err = run_main(capsys, "eval", "first")
    assert code == 2
    assert "its checksum differs" in err


def test_a_tokenizer_that_is_not_the_runs_is_refused(capsys, finished, questions):
    path = finished / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["model"]["merges"].pop()
    path.write_text(json.dumps(tokenizer))
    code, _, err = run_main(
        capsys, "eval", "first", "--data-dir", str(questions), "--tasks", "piqa"
    )
    assert code == 2
    assert "not the tokenizer it was trained with" in err
    assert not list(finished.glob("items/*"))


def test_what_is_scored_is_shown_though_a_later_run_cannot_be(capsys, finished):
    busy = finished.with_name("busy")
    shutil.copytree(finished, busy)
    with Run(busy).writing():
        code, out, err = run_main(capsys, "eval", "first", "busy", "--json")
    assert code == 2
    assert "Another process" in err
    assert {row["run"] for row in json.loads(out)} == {"first"}


def test_altered_tokens_are_not_scored(capsys, finished):
    path = find_prepared(Run(finished).protocol.data.fingerprint) / "test.bin"
    before = path.read_bytes()
    path.write_bytes(bytes(len(before)))
    try:
        code, _, err = run_main(capsys, "eval", "first")
    finally:
        path.write_bytes(before)
    assert code == 2
    assert "not those that were prepared" in err


def test_a_run_that_is_being_scored_is_left_alone(capsys, finished):
    with Run(finished).writing():
        code, _, err = run_main(capsys, "eval", "first")
    assert code == 2
    assert "Another process" in err
