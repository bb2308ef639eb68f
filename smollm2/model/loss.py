"""Cross entropy of a linear head, computed in chunks so that all logits never exist at once."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK_TOKENS = {"cpu": 512, "cuda": 4096}  # 512 × 49,152 logits in bf16 are 50 MB
PART_VOCABULARY = 8192  # rows of the head's gradient that are computed at a time
# Rows of logits that are widened to fp32 at a time: on a CPU they then stay in its cache.
BLOCK_TOKENS = {"cpu": 16, "cuda": 4096}


def linear_cross_entropy(h_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
    """Mean of -log softmax(h @ weight.T)[target] over N tokens, in nats, as an fp32 scalar.

    The forward pass already computes both gradients, chunk by chunk, so that neither logits nor
    their gradients outlive a chunk.
    """
    # Determined here: inside, gradients are off, and needs_input_grad is true even under no_grad.
    needs_grad = torch.is_grad_enabled() and (h_ND.requires_grad or weight_VD.requires_grad)
    return LinearCrossEntropy.apply(h_ND, weight_VD, targets_N, needs_grad)


class LinearCrossEntropy(torch.autograd.Function):
    """The head and the loss in chunks, with its own backward pass."""

    @staticmethod
    def forward(
        ctx: Any, h_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, needs_grad: bool
    ) -> Tensor:
        n_tokens, chunk = len(targets_N), chunk_tokens(h_ND.device)
        total = torch.zeros((), device=h_ND.device)
        grad_h = torch.empty_like(h_ND) if needs_grad else None
        grad_weight = None
        for start in range(0, n_tokens, chunk):
            rows = slice(start, start + chunk)
            logits = F.linear(h_ND[rows], weight_VD)
            total += cross_entropy_to_grad_(logits, targets_N[rows], n_tokens)
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
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, Tensor, None, None]:
        grad_h, grad_weight = ctx.saved_tensors
        # Saved only for this: scaled in place, which spares a second copy of the head's gradient.
        return grad_h.mul_(grad_output), grad_weight.mul_(grad_output), None, None


def add_product_(sum_VD: Tensor, logits_NV: Tensor, h_ND: Tensor) -> None:
    """sum += logits.T @ h in fp32, one part of the vocabulary at a time: the whole product would be
    as large as the weights."""
    for sums, logits in zip(
        sum_VD.split(PART_VOCABULARY), logits_NV.split(PART_VOCABULARY, dim=1), strict=True
    ):
        sums += logits.T @ h_ND


def cross_entropy_to_grad_(logits_NV: Tensor, targets_N: Tensor, n_tokens: int) -> Tensor:
    """Sum of the rows' losses / n_tokens; the logits become the gradient of that, in place."""
    block = BLOCK_TOKENS.get(logits_NV.device.type, BLOCK_TOKENS["cpu"])
    total = torch.zeros((), device=logits_NV.device)
    for logits, targets in zip(logits_NV.split(block), targets_N.split(block), strict=True):
        log_probs = logits.float().log_softmax(dim=-1)
        total += F.nll_loss(log_probs, targets, reduction="sum")
        grad = log_probs.exp_()
        grad[torch.arange(len(targets), device=grad.device), targets] -= 1.0
        logits.copy_(grad.div_(n_tokens))
    return total / n_tokens


@torch.no_grad()
def score_tokens(h_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor]:
    """For each of N tokens its loss in nats (N, fp32) and whether it was the top choice (N)."""
    losses, hits = [], []
    for h, targets in zip(
        h_ND.split(chunk_tokens(h_ND.device)),
        targets_N.split(chunk_tokens(h_ND.device)),
        strict=True,
    ):
        logits = F.linear(h, weight_VD).float()
        losses.append(F.cross_entropy(logits, targets, reduction="none"))
        hits.append(logits.argmax(dim=-1) == targets)
    return torch.cat(losses), torch.cat(hits)


def chunk_tokens(device: torch.device) -> int:
    """Tokens per chunk on a device."""
    return CHUNK_TOKENS.get(device.type, CHUNK_TOKENS["cpu"])
