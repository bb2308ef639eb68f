"""KL divergence, agreement and the change of the loss, against closed forms and all logits."""

import math

import numpy as np
import pytest
import torch

from smollm2 import SmolLM2, variant
from smollm2.data import spread_windows, windows
from smollm2.errors import RunError
from smollm2.quantize.convert import assemble, quantize
from smollm2.quantize.fidelity import (
    CHUNK_TOKENS,
    Fidelity,
    Original,
    Passages,
    compare_tokens,
    spread_passages,
    summarized,
)
from smollm2.quantize.quant_config import QuantConfig

INT4 = QuantConfig(4, method="rtn", group_size=32)


def nothing(done: int) -> None:
    """No progress is shown."""


# Tokens


@pytest.mark.parametrize("n_tokens", [1, 17, CHUNK_TOKENS, CHUNK_TOKENS + 5])
@pytest.mark.parametrize("raised", [0.5, 3.0])
def test_a_planted_head_has_the_divergence_of_the_closed_form(n_tokens, raised):
    """The original finds all 300 tokens equally likely; the other raises the logit of token 7."""
    size = 300
    hidden = torch.ones(n_tokens, 1)
    other = torch.zeros(size, 1)
    other[7] = raised
    targets = torch.arange(n_tokens) % size
    before, after, kl, agrees = compare_tokens(
        (hidden, torch.zeros(size, 1)), (hidden, other), targets
    )
    norm = math.log(size - 1 + math.exp(raised))
    np.testing.assert_allclose(kl, norm - math.log(size) - raised / size, atol=2e-6)
    np.testing.assert_allclose(before, math.log(size), rtol=1e-6)
    np.testing.assert_allclose(after, norm - raised * (targets.numpy() == 7), rtol=1e-5)
    assert not agrees.any()  # of equals the first is chosen, and it is not 7


def example(seq_len: int = 90, n_windows: int = 7) -> Passages:
    """Windows of random tokens in documents of 50 tokens."""
    tokens = np.random.default_rng(0).integers(0, 4096, n_windows * seq_len + 1)
    inputs, targets = windows(tokens, seq_len, range(n_windows))
    return Passages(inputs, targets, np.arange(1, len(tokens)).reshape(targets.shape) // 50)


@pytest.fixture(scope="module")
def models() -> tuple[SmolLM2, SmolLM2]:
    """A model in fp32, and what 4 bits make of it."""
    model = SmolLM2(variant("pow2:n_layers=2", scale="nano")).eval()
    return model, assemble(model.config, INT4, quantize(model, INT4), torch.float32)


def test_the_scores_are_those_of_all_logits_in_fp64(models):
    passages = example()
    found = Original(models[0], passages, nothing).fidelity(models[1], "it", nothing)
    inputs, targets = map(torch.from_numpy, (passages.inputs, passages.targets))
    with torch.inference_mode():
        logits = [
            torch.nn.functional.linear(model.hidden(inputs)[0], model.head.weight)
            for model in models
        ]
        log_p, log_q = (each.flatten(0, 1).double().log_softmax(dim=-1) for each in logits)
    kl = (log_p.exp() * (log_p - log_q)).sum(dim=-1)
    losses = [-each.gather(1, targets.flatten()[:, None]) for each in (log_p, log_q)]
    assert found.n_tokens == targets.numel() > CHUNK_TOKENS
    assert found.kl.value == pytest.approx(kl.mean().item(), rel=1e-4)
    assert found.kl_p99 == pytest.approx(kl.quantile(0.99).item(), rel=1e-4)
    assert found.loss.value == pytest.approx(losses[1].mean().item(), rel=1e-6)
    change = (losses[1] - losses[0]).mean().item()
    assert found.loss_change.value == pytest.approx(change, abs=1e-6)
    agrees = (log_p.argmax(dim=-1) == log_q.argmax(dim=-1)).double().mean().item()
    assert found.top1_agreement.value == pytest.approx(agrees)
    assert 0.001 < found.kl.value < found.kl_p99
    assert 0 < found.top1_agreement.value < 1


def test_a_model_is_as_it_is_itself(models):
    model = SmolLM2(models[0].config).bfloat16().eval()
    found = Original(model, example(), nothing).fidelity(model, "it", nothing)
    assert (found.kl.value, found.kl.stderr, found.kl_p99) == (0, 0, 0)
    assert (found.loss_change.value, found.top1_agreement.value) == (0, 1)


def test_scores_that_are_not_finite_are_refused(models):
    passages = example(n_windows=1)
    broken = SmolLM2(models[0].config, seed=1).eval()
    with torch.no_grad():
        broken.embed.weight[int(passages.inputs[0, 0])] = torch.nan
    original = Original(models[0], passages, nothing)
    with pytest.raises(RunError, match="The scores of run\\+int4 are not finite"):
        original.fidelity(broken, "run+int4", nothing)


def test_progress_counts_the_windows(models):
    done: list[int] = []
    Original(models[0], example(seq_len=512, n_windows=9), done.append)
    assert done == [4, 8, 9]


# Documents


def planted(n_documents: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores of tokens, and their documents, of 20, 30, 40, ... tokens."""
    rng = np.random.default_rng(1)
    documents = np.repeat(np.arange(n_documents), 20 + 10 * np.arange(n_documents))
    rng.shuffle(documents)
    scores = rng.exponential(size=(4, len(documents))) + documents / 10
    scores[3] = scores[3] > 1
    return scores, documents


def test_errors_are_those_of_a_ratio_over_documents():
    scores, documents = planted(8)
    found = summarized(scores, documents)
    columns = {
        "loss": scores[1],
        "loss_change": scores[1] - scores[0],
        "kl": scores[2],
        "top1_agreement": scores[3],
    }
    for name, values in columns.items():
        mean = values.mean()
        residuals = [(values[documents == d] - mean).sum() for d in range(8)]
        error = math.sqrt(8 / 7 * sum(r * r for r in residuals)) / len(values)
        estimate = getattr(found, name)
        assert estimate.value == pytest.approx(mean)
        assert estimate.stderr == pytest.approx(error)
    assert found.kl_p99 == pytest.approx(np.quantile(scores[2], 0.99))
    assert (found.n_tokens, found.n_documents) == (len(documents), 8)


def test_few_documents_give_no_error():
    few, enough = (summarized(*planted(count)) for count in (4, 5))
    assert errors_of(few) == [None] * 4
    assert None not in errors_of(enough)


def errors_of(found: Fidelity) -> list[float | None]:
    estimates = (found.loss, found.loss_change, found.kl, found.top1_agreement)
    return [estimate.stderr for estimate in estimates]


def test_passages_are_spread_over_the_documents_of_the_split(data):
    passages = spread_passages(data, 32, 200)
    tokens = np.asarray(data.validation)
    total = (len(tokens) - 1) // 32
    assert passages.inputs.shape == passages.targets.shape == passages.documents.shape == (6, 32)
    ends = np.flatnonzero(tokens == data.end_of_text)
    for row, number in enumerate(spread_windows(total, 6)):
        start = 32 * number
        assert list(passages.inputs[row]) == list(tokens[start : start + 32])
        assert list(passages.targets[row]) == list(tokens[start + 1 : start + 33])
        before = [int((ends < place).sum()) for place in range(start + 1, start + 33)]
        assert list(passages.documents[row]) == before
    assert len(np.unique(passages.documents)) > 1
