"""Cross entropy of a linear head, computed in chunks so that all logits never exist at once."""

from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK_TOKENS = {"cpu": 512, "cuda": 4096}  # 512 × 49,152 logits in bf16 are 50 MB
PART_VOCABULARY = 8192  # rows of the head's gradient that are computed at a time
# Rows of logits that are widened to fp32 at a time: on a CPU they then stay in its cache.
BLOCK_TOKENS = {"cpu": 16, "cuda": 4096}


# Sum of the losses of rows of logits / n_tokens; the logits (N, V) become the gradient of that.
ToGrad = Callable[[Tensor, Tensor, int], Tensor]


def linear_cross_entropy(
    h_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, to_grad_: ToGrad | None = None
) -> Tensor:
    """Mean of -log softmax(h @ weight.T)[target] over N tokens, in nats, as an fp32 scalar.

    The forward pass already computes both gradients, chunk by chunk, so that neither logits nor
    their gradients outlive a chunk.

    Args:
        to_grad_: `cross_entropy_to_grad_` (default) or `compiled_cross_entropy_to_grad_`.
    """
    # Determined here: inside, gradients are off, and needs_input_grad is true even under no_grad.
    needs_grad = torch.is_grad_enabled() and (h_ND.requires_grad or weight_VD.requires_grad)
    to_grad_ = to_grad_ or cross_entropy_to_grad_
    return LinearCrossEntropy.apply(h_ND, weight_VD, targets_N, needs_grad, to_grad_)


class LinearCrossEntropy(torch.autograd.Function):
    """The head and the loss in chunks, with its own backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        h_ND: Tensor,
        weight_VD: Tensor,
        targets_N: Tensor,
        needs_grad: bool,
        to_grad_: ToGrad,
    ) -> Tensor:
        n_tokens, chunk = len(targets_N), chunk_tokens(h_ND.device)
        total = torch.zeros((), device=h_ND.device)
        grad_h = torch.empty_like(h_ND) if needs_grad else None
        grad_weight = None
        for start in range(0, n_tokens, chunk):
            rows = slice(start, start + chunk)
            logits = F.linear(h_ND[rows], weight_VD)
            total += to_grad_(logits, targets_N[rows], n_tokens)
            if grad_h is not None:
                torch.mm(logits, weight_VD, out=grad_h[rows])
                if n_tokens <= chunk:
                    grad_weight = logits.T @ h_ND[rows]
                else:  # chunks are summed in fp32
                    if grad_weight is None:
                        grad_weight = torch.zeros_like(weight_VD, dtype=torch.float32)
                    add_product_(grad_weight, logits, h_ND[rows])
            del logits  # or the logits of two chunks would exist
        if grad_h is not None and grad_weight is not None:
            ctx.save_for_backward(grad_h, grad_weight.to(weight_VD.dtype))
        return total

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        grad_h, grad_weight = ctx.saved_tensors
        # Saved only for this: scaled in place, which spares a second copy of the head's gradient.
        return grad_h.mul_(grad_output), grad_weight.mul_(grad_output), None, None, None


def add_product_(sum_VD: Tensor, logits_NV: Tensor, h_ND: Tensor) -> None:
    """sum += logits.T @ h in fp32, one part of the vocabulary at a time: the whole product would be
    as large as the weights."""
    for sums, logits in zip(
        sum_VD.split(PART_VOCABULARY), logits_NV.split(PART_VOCABULARY, dim=1), strict=True
    ):
        sums += logits.T @ h_ND


def cross_entropy_to_grad_(logits_NV: Tensor, targets_N: Tensor, n_tokens: int) -> Tensor:
    """See `ToGrad`."""
    total = torch.zeros((), device=logits_NV.device)
    for logits, targets in with_targets(block_tokens(logits_NV.device), logits_NV, targets_N):
        log_probs = logits.float().log_softmax(dim=-1)
        total += F.nll_loss(log_probs, targets, reduction="sum")
        grad = log_probs.exp_()
        grad[torch.arange(len(targets), device=grad.device), targets] -= 1.0
        logits.copy_(grad.div_(n_tokens))
    return total / n_tokens


def compiled_cross_entropy_to_grad_(logits_NV: Tensor, targets_N: Tensor, n_tokens: int) -> Tensor:
    """See `ToGrad`. It reads the logits three times, where `cross_entropy_to_grad_` goes over a
    block for each operation: half the time on a CPU."""
    places = torch.arange(len(targets_N), device=logits_NV.device), targets_N
    own_N = logits_NV[places].float()
    share = torch.tensor(1 / n_tokens, device=logits_NV.device)  # a number would be compiled in
    top_N, rest_N = compiled_softmax_()(logits_NV, share)
    losses_N = (top_N - own_N) + rest_N
    logits_NV[places] = (share * torch.expm1(-losses_N)).to(logits_NV.dtype)
    return losses_N.sum() * share


@cache
def compiled_softmax_() -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """`softmax_`, compiled when it is first called: not at import, which would take a second."""
    return torch.compile(softmax_, dynamic=False)


def softmax_(logits_NV: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
    """The logits become their softmax times a factor; returns each row's largest one, and the
    logarithm of the sum of the exponentials beside it (N, fp32)."""
    wide_NV = logits_NV.float()
    top_N1 = wide_NV.amax(dim=-1, keepdim=True)
    rest_N1 = (wide_NV - top_N1).exp().sum(dim=-1, keepdim=True).log()
    logits_NV.copy_((wide_NV - top_N1 - rest_N1).exp() * factor)
    return top_N1[:, 0], rest_N1[:, 0]


@torch.no_grad()
def score_tokens(h_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor]:
    """For each of N tokens its loss in nats (N, fp32) and whether it was the top choice (N)."""
    losses, hits = [], []
    for h, own in with_targets(chunk_tokens(h_ND.device), h_ND, targets_N):
        for narrow, targets in with_targets(block_tokens(h.device), F.linear(h, weight_VD), own):
            logits = narrow.float()
            losses.append(F.cross_entropy(logits, targets, reduction="none"))
            # The first of equals, as by argmax, which takes twice as long on a CPU.
            hits.append(logits.max(dim=-1).indices == targets)
    return torch.cat(losses), torch.cat(hits)


def with_targets(n: int, x_NX: Tensor, targets_N: Tensor) -> Iterable[tuple[Tensor, Tensor]]:
    """N rows, n at a time, with their targets."""
    return zip(x_NX.split(n), targets_N.split(n), strict=True)


def chunk_tokens(device: torch.device) -> int:
    """Tokens per chunk on a device."""
    return CHUNK_TOKENS.get(device.type, CHUNK_TOKENS["cpu"])


def block_tokens(device: torch.device) -> int:
    """Tokens per block of fp32 logits on a device."""
    return BLOCK_TOKENS.get(device.type, BLOCK_TOKENS["cpu"])
