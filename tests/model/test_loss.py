"""The chunked cross entropy is the plain one, in less memory."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from smollm2.model.loss import (
    CHUNK_TOKENS,
    compiled_cross_entropy_to_grad_,
    cross_entropy_to_grad_,
    linear_cross_entropy,
    score_tokens,
)

CHUNK = CHUNK_TOKENS["cpu"]
D, V = 24, 301


def example(n_tokens, dtype=torch.float32):
    generator = torch.Generator().manual_seed(n_tokens)
    h = torch.randn(n_tokens, D, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(V, D, generator=generator).mul(0.5).to(dtype).requires_grad_()
    return h, weight, torch.randint(V, (n_tokens,), generator=generator)


class LargestOutput(TorchDispatchMode):
    """Notes the number of elements of the largest tensor that any operation returns."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(value, torch.Tensor):
                self.numel = max(self.numel, value.numel())
        return result


@pytest.mark.parametrize("n_tokens", [1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, 3 * CHUNK + 17])
@pytest.mark.parametrize("part", [100, 8192])
def test_loss_and_gradients_are_those_of_the_full_logits(monkeypatch, n_tokens, part):
    monkeypatch.setattr("smollm2.model.loss.PART_VOCABULARY", part)
    h, weight, targets = example(n_tokens)
    expected = F.cross_entropy(h @ weight.T, targets)
    loss = linear_cross_entropy(h, weight, targets)
    torch.testing.assert_close(loss, expected)
    inputs = (h, weight)
    # Scaled, as gradient accumulation does.
    grads = torch.autograd.grad(loss / 3, inputs)
    for grad, plain in zip(grads, torch.autograd.grad(expected / 3, inputs), strict=True):
        torch.testing.assert_close(grad, plain, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("n_tokens", [CHUNK, 3 * CHUNK + 17])
def test_bfloat16_gradients_are_as_good_as_those_of_the_full_logits(n_tokens):
    h, weight, targets = example(n_tokens, torch.bfloat16)
    exact_h, exact_weight = (t.detach().float().requires_grad_() for t in (h, weight))
    exact = F.cross_entropy(exact_h @ exact_weight.T, targets)
    exact.backward()
    loss = linear_cross_entropy(h, weight, targets)
    loss.backward()
    assert loss.dtype == torch.float32
    assert h.grad.dtype == weight.grad.dtype == torch.bfloat16
    assert loss.item() == pytest.approx(exact.item(), rel=2e-3)
    for grad, plain in ((h.grad, exact_h.grad), (weight.grad, exact_weight.grad)):
        assert (grad.float() - plain).norm() < 0.01 * plain.norm()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_compiled_gradients_of_logits_are_those_of_the_plain_ones(dtype):
    """Also where the target has nearly all of the probability, and where it has nearly none."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(40, V, generator=generator)
    targets = torch.randint(V, (40,), generator=generator)
    logits[torch.arange(20), targets[:20]] += torch.linspace(5, 30, 20)
    logits[torch.arange(20, 40), targets[20:]] -= torch.linspace(5, 200, 20)
    plain, compiled = (logits.to(dtype, copy=True) for _ in range(2))
    expected = cross_entropy_to_grad_(plain, targets, 70)
    loss = compiled_cross_entropy_to_grad_(compiled, targets, 70)
    torch.testing.assert_close(loss, expected)
    rounding = 2**-8 if dtype == torch.bfloat16 else 1e-6
    torch.testing.assert_close(compiled, plain, atol=1e-8, rtol=rounding)


def test_weight_gradient_is_summed_over_chunks_in_fp32():
    # Each chunk adds 1/2048: a sum in bf16 would stop growing at 1/8, where that is less than
    # half a unit in the last place.
    h = torch.ones(1024 * CHUNK, 1, dtype=torch.bfloat16)
    weight = torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True)
    linear_cross_entropy(h, weight, torch.zeros(len(h), dtype=torch.long)).backward()
    assert weight.grad.flatten().tolist() == pytest.approx([-0.5, 0.5])


@pytest.mark.parametrize("grad", [True, False])
def test_all_logits_never_exist_at_once(grad):
    n_tokens = 4 * CHUNK
    h, weight, targets = example(n_tokens)
    with LargestOutput() as plain:
        F.cross_entropy(h @ weight.T, targets).backward()
    assert plain.numel == n_tokens * V  # the instrument works
    h.grad = weight.grad = None
    with LargestOutput() as chunked, torch.set_grad_enabled(grad):
        loss = linear_cross_entropy(h, weight, targets)
        if grad:
            loss.backward()
        else:
            score_tokens(h, weight, targets)
    assert chunked.numel == CHUNK * V


def test_gradients_are_not_computed_where_none_are_wanted():
    h, weight, targets = example(2 * CHUNK)
    product = 2 * h.numel() * V
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        linear_cross_entropy(h, weight, targets)
    assert counter.get_total_flops() == product
    with FlopCounterMode(display=False) as counter:
        linear_cross_entropy(h, weight, targets).backward()
    assert counter.get_total_flops() == 3 * product


def test_second_backward_pass_is_refused_rather_than_wrong():
    h, weight, targets = example(8)
    loss = linear_cross_entropy(h, weight, targets)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("n_tokens", [5, 2 * CHUNK + 3])
def test_scores_are_each_tokens_loss_and_whether_it_was_first_choice(n_tokens):
    h, weight, targets = example(n_tokens)
    logits = h @ weight.T
    targets[::2] = logits.argmax(dim=-1)[::2]
    losses, hits = score_tokens(h, weight, targets)
    torch.testing.assert_close(losses, F.cross_entropy(logits, targets, reduction="none"))
    assert hits.tolist() == (logits.argmax(dim=-1) == targets).tolist()
    assert losses.dtype == torch.float32
    assert not losses.requires_grad


def test_of_equal_logits_the_first_is_the_choice():
    h, weight = torch.ones(70, 2), torch.zeros(9, 2)
    weight[[4, 7]] = 1.0
    targets = torch.arange(70) % 9
    for dtype in (torch.float32, torch.bfloat16):
        _, hits = score_tokens(h.to(dtype), weight.to(dtype), targets)
        assert hits.tolist() == (targets == 4).tolist()


def test_scores_of_bfloat16_are_softmaxed_in_fp32():
    h, weight, targets = example(40, torch.bfloat16)
    losses, _ = score_tokens(h, weight, targets)
    expected = F.cross_entropy((h @ weight.T).float(), targets, reduction="none")
    torch.testing.assert_close(losses, expected)
