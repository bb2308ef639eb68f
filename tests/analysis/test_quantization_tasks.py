"""Task scores before and after quantizing."""

import gzip
import math
import shutil
from pathlib import Path

import pytest
from support.planted import delta, found, task_conditions
from support.quantized import card

from smolctl.report.sections.quantization_tables import (
    quantized_tasks_table,
)

QUESTIONS = "item,question,gold,log_likelihoods,greedy,characters,n_bytes,choice,choice_norm\n"


def plant_task(folder: Path, right: str, name: str = "arc-x.csv.gz") -> None:
    """Four questions of two choices, `right` as `1101`, in items/ and eval.csv of `folder`."""
    from smollm2.evaluation.tasks import items_fingerprint
    from smollm2.runs.tables import TableFolder

    questions = [f"q{i}" for i in range(len(right))]
    lines = [
        f"{i},{question},{0 if is_right == '1' else 1},-1.0 -2.0,1 0,4 4,5 5,0,0\n"
        for i, (question, is_right) in enumerate(zip(questions, right, strict=True))
    ]
    (folder / "items").mkdir(parents=True, exist_ok=True)
    (folder / "items" / name).write_bytes(gzip.compress((QUESTIONS + "".join(lines)).encode()))
    row = {
        "task": "arc_easy",
        "value": 0.5,  # the questions count
        "n": len(right),
        "total": len(right),
        "clusters": len(right),
        **task_conditions(),
        "fingerprint": items_fingerprint(questions),
        "items": name,
    }
    tables = TableFolder(folder)
    rows = [row | {"metric": metric} for metric in ("acc", "bits_per_byte")]
    tables.replace("eval", [*tables.rows("eval"), *rows])


def test_tasks_are_paired_with_the_run_s_own(plant):
    for seed, after in enumerate(("1000", "0100")):
        run = plant("orig", seed, int4_g64=delta(0.01))
        plant_task(run.path, "1100")
        plant_task(run.path / "quantized/int4-g64", after)
        (run.path / "quantized/int8").mkdir()  # was not scored
    accuracy, bits = found().tasks
    assert (accuracy.name, accuracy.runs) == ("int4-g64", 2)
    assert (accuracy.before, accuracy.after, accuracy.change.mean) == (0.5, 0.25, -0.25)
    # On a quarter of the questions the right choice costs a nat more for its five bytes.
    assert bits.change.mean == pytest.approx(0.25 / 5 / math.log(2))
    row, _ = quantized_tasks_table(found()).rows
    assert row[:4] == ("orig", "int4-g64", "arc_easy acc", "4")
    text = card()
    assert "Tasks before and after quantizing" in text
    # Its items are in the fingerprint of the run.
    path = run.path / "quantized/int4-g64/items/arc-x.csv.gz"
    scores = gzip.decompress(path.read_bytes()).decode()
    path.write_bytes(gzip.compress(scores.replace("-2.0", "-3.0").encode()))
    assert card() != text


def test_damaged_items_of_a_quantized_model_report_an_error(plant):
    run = plant("orig", 0, int4_g64=delta(0.01))
    plant_task(run.path, "1100")
    plant_task(run.path / "quantized/int4-g64", "1000")
    shutil.rmtree(run.path / "quantized/int4-g64/items")
    (sentence,) = found().task_notes
    assert sentence.startswith("The tasks of orig-s0+int4-g64 are excluded: ")
    assert sentence in card()
    (run.path / "quantized/int4-g64/eval.csv").write_text("task\n")
    assert "lacks the column" in found().task_notes[0]
