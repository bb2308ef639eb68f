"""What training does: it learns, obeys its settings, and evaluation never disturbs it."""

import dataclasses
import gc
import math
import time
import weakref
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch

from smollm2.data import TokenData, spread_windows
from smollm2.evaluation.text import held_out, score_text
from smollm2.model import transformer
from smollm2.model.transformer import SmolLM2
from smollm2.protocol.resolve import resolve
from smollm2.protocol.run_config import ResolvedConfig, RunConfig
from smollm2.runs.create import create_run
from smollm2.runs.load_run import load_model
from smollm2.runs.run import Run
from smollm2.training.loop import Observer, Stopped, train
from smollm2.training.trainer import Probe, Trainer, probe, timed_steps


@pytest.fixture
def run_of(tmp_path, data) -> Callable[[RunConfig], Run]:
    def finished(request: RunConfig) -> Run:
        protocol = resolve(request).on(data)
        name = f"run{len(list(tmp_path.glob('runs/*')))}"
        run = create_run(tmp_path, "runs", name, request, protocol)
        train(run, data, Observer())
        return run

    return finished


def test_the_loss_falls(asked, run_of):
    losses = run_of(dataclasses.replace(asked, steps=60, lr=5e-3)).table("val")["loss"]
    assert losses.iloc[0] == pytest.approx(math.log(512), abs=0.6)
    assert losses.iloc[-1] < losses.iloc[0] - 1.0


def test_every_recipe_and_optimizer_learns(asked, run_of, variants):
    for changes in (
        {"recipe": "seed", "grad_accum": 2},
        {"optimizer": "muon", "schedule": "cosine"},
        {"variant": str(variants / "tinymoe.toml"), "optimizer": "muon"},
        {"variant": str(variants / "tinymoe.toml"), "dtype": "bf16"},
    ):
        losses = run_of(dataclasses.replace(asked, **changes, steps=40)).table("val")["loss"]
        assert losses.iloc[-1] < losses.iloc[0] - 0.3, changes


def test_bf16_with_fp32_masters_follows_fp32(asked, run_of):
    exact = run_of(asked).table("train")["loss"]
    rounded = run_of(dataclasses.replace(asked, dtype="bf16")).table("train")["loss"]
    np.testing.assert_allclose(rounded, exact, rtol=1e-3)
    assert not np.array_equal(rounded, exact)


def test_validating_more_often_changes_nothing(asked, run_of):
    often = run_of(dataclasses.replace(asked, val_every=1, val_tokens=64))
    seldom = run_of(asked)
    assert often.checkpoints.final().sha256 == seldom.checkpoints.final().sha256
    assert len(often.table("val")) == 21


def test_accumulating_micro_batches_equals_one_large_batch(asked, run_of):
    whole = run_of(asked).table("train")
    parts = run_of(dataclasses.replace(asked, micro_batch_size=1, grad_accum=4)).table("train")
    np.testing.assert_allclose(parts["loss"], whole["loss"], rtol=1e-5)
    np.testing.assert_allclose(parts["grad_norm"], whole["grad_norm"], rtol=1e-4)


def test_the_two_seeds_are_apart(asked, run_of):
    def first_losses(**seeds: int) -> tuple[float, float]:
        run = run_of(dataclasses.replace(asked, steps=1, **seeds))
        return run.table("val")["loss"].iloc[0], run.table("train")["loss"].iloc[0]

    validation, training = first_losses(seed=1, data_seed=1)
    assert first_losses(seed=1, data_seed=1) == (validation, training)
    same_weights = first_losses(seed=1, data_seed=2)
    assert same_weights[0] == validation
    assert same_weights[1] != training
    assert first_losses(seed=2, data_seed=1)[0] != validation


def test_the_tables_agree_with_the_protocol(asked, run_of):
    run = run_of(asked)
    rows, protocol = run.table("train"), run.protocol
    assert list(rows["tokens"]) == [128 * step for step in range(1, 21)]
    assert rows["lr"].iloc[0] == pytest.approx(protocol.recipe.lr)
    validations = run.table("val")
    assert list(validations["step"]) == [0, 5, 10, 15, 20]
    np.testing.assert_allclose(
        validations["flops"], validations["step"] * protocol.flops_per_step, rtol=1e-12
    )
    np.testing.assert_allclose(validations["perplexity"], np.exp(validations["loss"]), rtol=1e-9)


def test_an_moe_reports_its_balance_and_loads(asked, run_of, variants):
    run = run_of(dataclasses.replace(asked, variant=str(variants / "tinymoe.toml")))
    rows = run.table("train")
    assert rows["balance_loss"].between(0.9, 4).all()
    assert (rows["expert_load_min"] <= 0.25).all()
    assert (rows["expert_load_max"] >= 0.25).all()
    loads = run.table("experts").groupby(["step", "layer"])["load"]
    np.testing.assert_allclose(loads.sum(), 1.0, rtol=1e-6)
    assert loads.size().eq(4).all()
    assert set(run.table("experts")["step"]) == {5, 10, 15, 20}


def test_a_dense_model_leaves_the_expert_columns_empty(asked, run_of):
    run = run_of(asked)
    assert run.table("train")[["balance_loss", "expert_load_max"]].isna().all().all()
    assert not (run.path / "experts.csv").exists()


def plain_scores(
    model: SmolLM2, data: TokenData, protocol: ResolvedConfig
) -> tuple[float, float, float]:
    """Loss, accuracy and bits per byte token by token, from full logits."""
    n_tokens, width = protocol.test_tokens, protocol.seq_len
    nats, text_nats, hits, text = 0.0, 0.0, 0, b""
    for number in spread_windows((len(data.test) - 1) // width, n_tokens // width):
        start = number * width
        window = torch.from_numpy(data.test[start : start + width + 1].astype(np.int64))
        log_probs = model(window[None, :-1])[0].log_softmax(-1)
        for row, target in zip(log_probs, window[1:].tolist(), strict=True):
            nats -= row[target].item()
            hits += row.argmax().item() == target
            if target != data.end_of_text:
                text_nats -= row[target].item()
                text += data.tokenizer.decode([target]).encode()
    return nats / n_tokens, hits / n_tokens, text_nats / math.log(2) / len(text)


def test_a_finished_run_has_the_floors_of_the_tokens_it_has_seen(asked, run_of, data):
    floors = run_of(asked).manifest["floors"]
    assert floors.pop("text") == "scored"
    assert floors["tokens"] == 20 * 4 * 32
    assert floors["trigram"] < floors["unigram"]
    whole = dataclasses.asdict(data.floors_at(20 * 4 * 32))
    assert floors != whole  # a part of the test split is scored
    every = run_of(dataclasses.replace(asked, test_tokens=len(data.test))).manifest["floors"]
    assert every == whole | {"text": "scored"}
    first = run_of(dataclasses.replace(asked, held_out_windows="first")).manifest["floors"]
    assert first["trigram"] != floors["trigram"]


def test_held_out_scores_are_those_of_the_definition(asked, run_of, data):
    run = run_of(asked)
    model = load_model(run, "cpu", "float32")
    with torch.no_grad():
        loss, accuracy, bits = plain_scores(model, data, run.protocol)
    scores = run.table("eval").set_index("metric")["value"]
    assert scores["loss"] == pytest.approx(loss, rel=1e-5)
    assert scores["accuracy"] == pytest.approx(accuracy)
    assert scores["bits_per_byte"] == pytest.approx(bits, rel=1e-5)


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_held_out_scores_do_not_depend_on_the_batch_size(asked, data, batch_size):
    model = SmolLM2(resolve(asked).on(data).model)
    reference, other = (
        held_out(chain.from_iterable(score_text(model, data, "test", 32, size, range(20))))
        for size in (2, batch_size)
    )
    assert other.n_tokens == reference.n_tokens > 256
    for metric in ("loss", "bits_per_byte"):
        one, two = getattr(reference, metric), getattr(other, metric)
        assert one.value == pytest.approx(two.value, rel=1e-5)


def test_a_probe_measures_time_and_activations(asked, data):
    protocol = resolve(asked).on(data)
    small: Probe = probe(protocol, data)
    large = probe(dataclasses.replace(protocol, micro_batch_size=8), data)
    assert small.step_seconds > 0
    assert large.activation_bytes == 2 * small.activation_bytes
    deeper = dataclasses.replace(protocol.model, n_layers=4)
    deep = probe(dataclasses.replace(protocol, model=deeper), data)
    assert deep.activation_bytes > 1.5 * small.activation_bytes


def test_a_probe_is_not_misled_by_one_slow_sequence(asked, data, monkeypatch):
    calls = []
    gradients = Trainer.gradients

    def slow_at_first(trainer):
        calls.append(trainer)
        time.sleep(0.5 if len(calls) == 2 else 0.0)
        return gradients(trainer)

    monkeypatch.setattr(Trainer, "gradients", slow_at_first)
    protocol = resolve(asked).on(data)
    assert probe(protocol, data).step_seconds < 0.5 * protocol.rows_per_step
    assert len(calls) > 3


def test_training_files_are_the_contract(asked, run_of):
    run = run_of(asked)
    assert {path.name for path in Path(run.path).iterdir()} == {
        *("run.json", "run.lock", "train.csv", "val.csv", "eval.csv", "documents.csv"),
        "checkpoints",
    }
    assert run.manifest["state"] == "finished"
    assert run.manifest["finished_at"] >= run.manifest["created_at"]
    assert run.manifest["parameters"]["total"] == sum(
        p.numel() for p in load_model(run, "cpu", "float32").parameters()
    )


def test_a_released_trainer_frees_its_memory_at_once(asked, data):
    trainer = Trainer(resolve(asked).on(data), data)
    trainer.update(trainer.gradients())
    model = weakref.ref(trainer.model)
    gc.disable()
    try:
        del trainer
        assert model() is None
    finally:
        gc.enable()


# What the compiler warns of while it traces is not ours to keep quiet.
TRACING = (
    "ignore:`torch.jit.script_method` is deprecated:DeprecationWarning",
    "ignore:.*should not be instantiated:DeprecationWarning",
    "ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning",
)


@pytest.mark.slow
@pytest.mark.filterwarnings(*TRACING)
def test_compiled_training_follows_plain_training(asked, run_of):
    plain = run_of(asked).table("train")["loss"]
    compiled = run_of(dataclasses.replace(asked, compile=True)).table("train")["loss"]
    np.testing.assert_allclose(compiled, plain, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings(*TRACING)
def test_a_process_compiles_each_shape_once_and_every_run(asked, run_of, monkeypatch):
    torch.compiler.reset()
    monkeypatch.setattr(transformer, "compiled_kinds", set())
    monkeypatch.setattr(transformer, "MOST_KINDS", 2)
    compiled = []
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        for d_ff in (32, 32, 64, 32, 96, 32):
            torch._dynamo.utils.counters.clear()
            run_of(dataclasses.replace(asked, compile=True, settings=(f"d_ff={d_ff}",)))
            compiled.append(torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0)
    # The third shape discards the code of the first two.
    assert compiled == [True, False, True, False, True, True]


@pytest.mark.parametrize("is_stopping", [True, False])
def test_a_stop_that_ends_the_compiler_too_is_a_stop(
    asked, data, tmp_path, monkeypatch, is_stopping
):
    request = dataclasses.replace(asked, compile=True)
    run = create_run(tmp_path, "runs", "r", request, resolve(request).on(data))
    observer, gradients = Observer(), Trainer.gradients

    def interrupted(trainer):
        if trainer.step < 2:
            return gradients(trainer)
        observer.should_stop = lambda: is_stopping
        raise RuntimeError("C++ compile error")

    monkeypatch.setattr(SmolLM2, "compile_blocks", lambda *shape: None)
    monkeypatch.setattr(Trainer, "gradients", interrupted)
    with pytest.raises(Stopped if is_stopping else RuntimeError):
        train(run, data, observer)
    assert run.manifest["state"] == ("stopped" if is_stopping else "failed")
    assert run.checkpoints.steps() == ([2] if is_stopping else [])


def test_a_run_that_failed_with_a_long_message_can_be_opened(asked, data, tmp_path, monkeypatch):
    run = create_run(tmp_path, "runs", "r", asked, resolve(asked).on(data))

    def fail(trainer):
        raise RuntimeError("x" * 20_000)

    monkeypatch.setattr(Trainer, "gradients", fail)
    with pytest.raises(RuntimeError):
        train(run, data, Observer())
    assert Run(run.path).manifest["error"] == "x" * 10_000


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_training_on_a_gpu_follows_the_cpu(asked, run_of):
    on_cpu = run_of(asked).table("train")["loss"]
    on_gpu = run_of(dataclasses.replace(asked, device="cuda", compile=False)).table("train")["loss"]
    np.testing.assert_allclose(on_gpu, on_cpu, rtol=1e-3)


def test_timed_steps_are_whole_steps_after_a_first_one(asked, data, monkeypatch):
    updates = []
    update = Trainer.update

    def counted(trainer, result):
        updates.append(trainer.step)
        return update(trainer, result)

    monkeypatch.setattr(Trainer, "update", counted)
    protocol = dataclasses.replace(resolve(asked).on(data), steps=2)
    found = timed_steps(protocol, data, 3, 0.0)
    assert found.steps == 3
    assert updates == [0, 1, 0, 1]  # the schedule begins again
    assert found.seconds > 0
    assert timed_steps(protocol, data, 1, 0.05).seconds >= 0.05
