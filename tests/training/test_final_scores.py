"""What text a run is scored on: spread windows, all of the test at small scale, and validation
alone when it tunes."""

import dataclasses
import json

import numpy as np
import pytest
from support.interrupted import new_run
from support.outcome import outcome

from smolctl.analysis.run_metrics import tuning_loss
from smollm2.data import spread_windows
from smollm2.errors import UserError
from smollm2.evaluation.text import held_out, score_text
from smollm2.files import write_json
from smollm2.protocol.resolve import resolve
from smollm2.protocol.run_config import RunConfig
from smollm2.runs.create import create_run
from smollm2.runs.document_sums import read_documents
from smollm2.runs.load_run import load_model
from smollm2.runs.manifest import Role
from smollm2.runs.run import Run
from smollm2.training.loop import Observer, train
from smollm2.training.trainer import Trainer

CPU = {"device": "cpu", "dtype": "fp32", "compile": False}


def finished(asked, data, folder, **options) -> Run:
    run = new_run(asked, data, folder, **options)
    train(run, data, Observer())
    return run


@pytest.mark.parametrize(("scale", "steps_of_test"), [("nano", 300), ("full", 60)])
def test_by_default_the_test_of_a_small_model_is_as_long_as_its_training(scale, steps_of_test):
    by_default = resolve(RunConfig("pow2", scale, steps=300, **CPU))
    assert by_default.test_tokens == by_default.tokens_per_step * steps_of_test
    assert by_default.held_out_windows == "spread"
    asked = resolve(RunConfig("pow2", scale, steps=300, test_tokens=4096, **CPU))
    assert asked.test_tokens == 4096
    as_before = resolve(RunConfig("pow2", scale, steps=300, held_out_windows="first", **CPU))
    assert as_before.test_tokens == as_before.tokens_per_step * 60
    with pytest.raises(UserError, match="`held_out_windows` takes first or spread, not 'last'"):
        resolve(RunConfig("pow2", scale, steps=300, held_out_windows="last", **CPU))


def test_all_tokens_are_those_of_the_test_split(asked, data, tmp_path):
    asked = dataclasses.replace(asked, scale="nano", test_tokens=None, steps=50)
    protocol = resolve(asked, resolve(dataclasses.replace(asked, scale="full")).model).on(data)
    assert protocol.test_tokens == (len(data.test) - 1) // 32 * 32
    run = create_run(tmp_path, "runs", "all", asked, protocol)
    train(run, data, Observer())
    assert len(read_documents(run)["document"]) == data.documents["test"]


@pytest.mark.parametrize("windows", ["first", "spread"])
def test_the_scored_windows_are_those_of_the_protocol(asked, data, tmp_path, windows):
    run = finished(dataclasses.replace(asked, held_out_windows=windows), data, tmp_path)
    model = load_model(run, "cpu", "float32")
    for split, table, loss in (
        ("test", "eval", run.test_scores()["loss"]),
        ("validation", "val", run.table("val")["loss"].iloc[-1]),
    ):
        total = (len(getattr(data, split)) - 1) // 32
        numbers = spread_windows(total, 8) if windows == "spread" else range(8)
        batches = score_text(model, data, split, 32, 4, numbers)
        found = held_out(score for batch in batches for score in batch)
        assert found.loss.value == pytest.approx(loss, rel=1e-6), table
    documents = read_documents(run)["document"]
    assert (np.diff(documents) > 0).all()
    assert (documents[-1] == data.documents["test"] - 1) == (windows == "spread")


def test_the_two_kinds_of_windows_train_alike_and_are_never_compared(asked, data, tmp_path):
    first, spread = (
        finished(dataclasses.replace(asked, held_out_windows=windows), data, tmp_path)
        for windows in ("first", "spread")
    )
    assert outcome(first.path)["weights"] == outcome(spread.path)["weights"]
    assert first.protocol.controlled() != spread.protocol.controlled()


def test_an_older_run_goes_on_with_its_windows(asked, data, tmp_path):
    """Its manifest has no word about them: they are the first ones."""
    expected = finished(dataclasses.replace(asked, held_out_windows="first"), data, tmp_path)
    older = new_run(asked, data, tmp_path)
    manifest = json.loads((older.path / "run.json").read_text())
    del manifest["protocol"]["held_out_windows"], manifest["request"]["held_out_windows"]
    write_json(older.path / "run.json", manifest)
    older.read()
    assert older.protocol.held_out_windows == "first"
    train(older, data, Observer())
    assert outcome(older.path) == outcome(expected.path)


def test_a_tuning_run_scores_every_validation_document_and_no_test(
    asked, data, tmp_path, monkeypatch
):
    asked = dataclasses.replace(asked, test_tokens=4096)
    run = finished(asked, data, tmp_path, role=Role.SWEEP)
    rows = run.table("eval")
    assert set(rows["suite"]) == {"final-validation"}
    assert set(rows["task"]) == set(rows["split"]) == {"validation"}
    assert rows["n"].eq((len(data.validation) - 1) // 32 * 32).all()
    assert rows["clusters"].eq(data.documents["validation"]).all()
    assert not (run.path / "documents.csv").exists()
    with pytest.raises(UserError, match="has no test scores"):
        run.test_scores()
    loss = rows.set_index("metric")["value"]["loss"]
    assert tuning_loss(run) == run.final_scores()["loss"] == loss
    assert loss != run.table("val")["loss"].iloc[-1]
    assert run.is_finished


def test_an_older_tuning_run_has_the_loss_of_its_last_validation(asked, data, tmp_path):
    run = finished(asked, data, tmp_path)
    run.update(role=Role.SWEEP)
    assert tuning_loss(run) == run.table("val")["loss"].iloc[-1]


def test_the_windows_do_not_move_the_batches(asked, data):
    """The data that training sees has nothing to do with how it is scored."""
    batches = []
    for windows in ("first", "spread"):
        request = dataclasses.replace(asked, held_out_windows=windows)
        batches.append(Trainer(resolve(request).on(data), data).gradients().loss)
    np.testing.assert_array_equal(*batches)
