"""Scores beside lm-evaluation-harness: its own task definitions and `hf` model, the same weights.

Nothing of it is changed but where the rows come from: local files in place of the hub.
"""

import logging
import warnings
from itertools import chain

import pytest
import torch
from support.planted import plant_weights

from smolctl.cli.app import main
from smollm2.data import load_tokenizer
from smollm2.evaluation.multiple_choice import score_items, summarize
from smollm2.evaluation.tasks import TASKS, load_items
from smollm2.model.config import ModelConfig
from smollm2.model.transformer import SmolLM2

pytestmark = [
    pytest.mark.slow,
    # What lm-eval's own code and its dependencies warn about is not ours to keep quiet.
    pytest.mark.filterwarnings("default"),
]
LIMIT = 250
SMALL = ModelConfig(d_model=64, n_heads=4, n_kv_heads=2, n_layers=2, d_ff=128)


@pytest.fixture(scope="module")
def harness():
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        return pytest.importorskip(
            "lm_eval", reason="needs lm-evaluation-harness: pip install 'smolctl[lm-eval]'"
        )


@pytest.fixture(scope="module")
def model():
    """Random weights, wide enough that a word says much about the next ones."""
    model = SmolLM2(SMALL).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(2.0)
    return model


@pytest.fixture(scope="module")
def folder(model, real_data, tmp_path_factory):
    """What `smolctl export` makes of a run of the model."""
    path = tmp_path_factory.mktemp("exported")
    run = plant_weights(path, "r", model, load_tokenizer(str(real_data / "tokenizer")))
    with pytest.raises(SystemExit, match="0"):
        main(["export", str(run.path), "--to", "hf", str(path / "hf")])
    return str(path / "hf")


@pytest.fixture
def local_rows(real_data, monkeypatch, tmp_path):
    """Have `datasets.load_dataset` take the rows of a task from the local files, as any split.

    It answers only to the names that our registry has for the task.
    """
    import datasets

    def serve(loaded):
        task, read = loaded.task, datasets.load_dataset
        path = str(real_data / f"eval/{task.name}_{loaded.split}.jsonl.gz")
        rows = read("json", data_files=path, split="train", cache_dir=str(tmp_path))

        def load_dataset(path, name=None, **options):
            assert (path, name) == (task.repo, task.config)
            return datasets.DatasetDict(train=rows, validation=rows, test=rows)

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)

    return serve


def theirs(harness, folder, name, limit, max_length):
    """What lm-eval says of a task's first items: its results, and a sample for each item."""
    from lm_eval.models.huggingface import HFLM

    lm = HFLM(folder, device="cpu", dtype="float32", batch_size=8, max_length=max_length)
    output = harness.simple_evaluate(lm, tasks=[name], limit=limit, bootstrap_iters=1)
    return output["results"][name], sorted(output["samples"][name], key=lambda s: s["doc_id"])


@pytest.mark.parametrize(
    ("name", "max_len", "limit"),
    [(name, 2048, LIMIT) for name in TASKS] + [("hellaswag", 64, 50), ("winogrande", 16, 50)],
)
def test_each_choice_scores_as_in_lm_eval(
    harness, folder, model, real_data, local_rows, caplog, name, max_len, limit
):
    loaded = load_items(TASKS[name], real_data / "eval", limit)
    local_rows(loaded)
    caplog.set_level(logging.ERROR, "lm_eval")  # it warns of each item that it cuts
    results, samples = theirs(harness, folder, name, limit, max_len)

    tokenizer = load_tokenizer(str(real_data / "tokenizer"))
    found = chain.from_iterable(score_items(model, tokenizer, loaded.items, max_len=max_len))
    scores = sorted(found, key=lambda score: score.item)
    assert len(scores) == len(samples) == limit
    for score, sample in zip(scores, samples, strict=True):
        likelihoods, greedy = zip(*sample["filtered_resps"], strict=True)
        assert score.log_likelihoods == pytest.approx(likelihoods, abs=1e-3)
        assert score.greedy == greedy
        assert float(score.choice == score.gold) == sample["acc"]
        if "acc_norm" in loaded.task.metrics:
            assert float(score.choice_norm == score.gold) == sample["acc_norm"]
    ours = {row["metric"]: row for row in summarize(loaded.task, scores)}
    assert ours.keys() - {"bits_per_byte"} == {
        key.removesuffix(",none") for key in results if key in ("acc,none", "acc_norm,none")
    }
    for metric in ours.keys() - {"bits_per_byte"}:
        assert ours[metric]["value"] == pytest.approx(results[f"{metric},none"], abs=1e-12)
        assert ours[metric]["stderr"] == pytest.approx(results[f"{metric}_stderr,none"])
    # The model must tell choices apart, or the comparison says nothing.
    assert len({score.choice for score in scores}) > 1
