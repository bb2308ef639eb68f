"""`smolctl eval`: what is scored, what is saved, and what is refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from support.command import run_main
from support.evaluated import evaluated, values
from support.questions import ROWS, write

from smolctl.cli.eval_command import show_scores
from smollm2.data import find_prepared
from smollm2.errors import UserError
from smollm2.evaluation.answer_file import recorded_answers
from smollm2.runs.run import Run
from smollm2.runs.tables import TABLES

TASKS = "piqa,openbookqa"


# Held-out text


def test_eval_repeats_the_test_scores_of_the_run_and_keeps_them(capsys, finished):
    before = Run(finished).test_scores()
    repeated = evaluated(capsys, "--tokens", 256)
    assert {row["metric"]: row["value"] for row in repeated} == pytest.approx(before)
    whole = evaluated(capsys)
    assert whole[0]["n"] == whole[0]["total"] > 256
    part = evaluated(capsys, "--tokens", 64, "--tasks", "test,validation")
    assert {(row["task"], row["n"], row["n"] < row["total"]) for row in part} == {
        ("test", 64, True),
        ("validation", 64, True),
    }
    assert Run(finished).test_scores() == pytest.approx(before)


def test_scores_of_another_dtype_are_another_measurement(capsys, finished):
    before = Run(finished).test_scores()
    other = "bf16" if Run(finished).protocol.dtype == "float32" else "fp32"
    rows = evaluated(capsys, "--tokens", 256, "--dtype", other)
    assert rows[0]["value"] == pytest.approx(before["loss"], rel=1e-2)
    assert rows[0]["value"] != before["loss"]
    assert Run(finished).test_scores() == before


def test_few_documents_are_reported(capsys, finished):
    code, out, err = run_main(capsys, "eval", "first")
    assert code == 0
    assert "Held-out text" in out
    assert "Fewer than 5 documents give no standard error." in err
    assert "\u00b1" not in out
    rows = evaluated(capsys, "--tasks", "test")
    assert {(row["clusters"], row["stderr"]) for row in rows} == {(3, None)}
    show_scores([row | {"clusters": 7, "stderr": 0.05} for row in rows])
    shown = capsys.readouterr()
    assert "\u00b1 0.050" in shown.out
    assert "with only 7 it is rough" in shown.err


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
    from smollm2.evaluation import multiple_choice

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
    found = recorded_answers(run, row["items"], row["n"], row["fingerprint"])
    assert np.mean(found.values("acc")) == row["value"]
    with pytest.raises(UserError, match="lacks the 12 questions"):
        recorded_answers(run, row["items"], row["n"], "0" * 16)
    with pytest.raises(UserError, match="lacks the 11 questions"):
        recorded_answers(run, row["items"], 11, row["fingerprint"])


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
        (["--tasks", ","], "Name at least one task"),
        (["--tasks", "piqa", "--limit", "0"], "--limit must be at least 1"),
        (["--limit", "3"], "--limit applies to tasks"),
        (["--tasks", "test", "--data-dir", "x"], "--data-dir applies to tasks"),
        (["--tasks", "piqa", "--tokens", "9"], "--tokens applies to held-out text"),
        (["--tasks", "piqa", "--data", "x"], "--data applies to held-out text"),
        (["--tokens", "0"], "--tokens must be at least 1"),
        (["--batch-size", "-1"], "--batch-size must be at least 1"),
        (["--dtype", "fp8"], "fp32 or bf16"),
        (["--device", "tpu"], "Unknown device"),
        (["--tasks", "piqa", "--data-dir", "nowhere"], "no folder 'nowhere'"),
        (["--tasks", "hellaswag"], "use --data-dir with a folder of TASK_SPLIT.jsonl"),
    ],
)
def test_bad_options_report_an_error(capsys, finished, options, sentence):
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
    data = Run(finished).protocol.data
    path = find_prepared(data.fingerprint, data.tokenizer_fingerprint) / "test.bin"
    before = path.read_bytes()
    path.write_bytes(bytes(len(before)))
    try:
        code, _, err = run_main(capsys, "eval", "first")
    finally:
        path.write_bytes(before)
    assert code == 2
    assert "differ from those that were prepared" in err


def test_a_run_that_is_being_scored_is_left_alone(capsys, finished):
    with Run(finished).writing():
        code, _, err = run_main(capsys, "eval", "first")
    assert code == 2
    assert "Another process" in err
