"""How faithful a quantized model is to its original, on windows of held-out text.

Both predict the same tokens, and for each token their whole distributions are compared. All logits
would be 1.6 GB (16,384 tokens of a vocabulary of 49,152, in bf16), so the original keeps its final
hidden states, 19 MB, and the logits of both models are computed together, a chunk at a time.

Shape suffixes: W windows, T tokens in one, N = W·T, B tokens in a block; D and V as in the model.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from smollm2.data import require_uncut, spread_windows, window_count, windows
from smollm2.errors import RunError
from smollm2.evaluation.text import Estimate, documents_of_targets, ratio_of_sums
from smollm2.model.loss import block_tokens
from smollm2.model.transformer import SmolLM2

if TYPE_CHECKING:
    from smollm2.data import TokenData

LONGEST_WINDOW = 512  # tokens: many short windows reach many documents
BATCH_TOKENS = 2048  # in a forward pass
CHUNK_TOKENS = 512  # whose logits exist at a time, for both models: 2 × 50 MB in bf16
TAIL = 0.99  # the quantile of the KL divergence over tokens that is reported beside its mean


@dataclass(frozen=True)
class Passages:
    """Windows of held-out text: `inputs` and `targets` (W, T), and the number of the document that
    each target is in."""

    inputs: np.ndarray
    targets: np.ndarray
    documents: np.ndarray


def spread_passages(data: "TokenData", seq_len: int, n_tokens: int) -> Passages:
    """`n_tokens` of the validation split, rounded down to windows of `seq_len` spread over it.

    Raises:
        UserError: the split has no whole window.
        RunError: its file has been cut.
    """
    tokens = data.validation
    require_uncut(tokens)
    total, count = (window_count(tokens, seq_len, limit) for limit in (None, n_tokens))
    numbers = spread_windows(total, count)
    ends = data.ends["validation"]
    documents = np.stack([documents_of_targets(ends, seq_len, number) for number in numbers])
    return Passages(*windows(tokens, seq_len, numbers), documents)


@dataclass(frozen=True)
class Fidelity:
    """A quantized model beside its original. Errors are over documents, `ratio_of_sums` of a sum
    per document; an error of a change excludes how difficult a document is for both models.

    Args:
        loss: of the quantized model, in nats/token.
        loss_change: the loss minus that of the original.
        kl: KL(original || quantized), the mean over tokens of sum_v p(v) log(p(v) / q(v)), in
            nats/token.
        kl_p99: its 99th percentile over tokens.
        top1_agreement: share of the tokens for which both have the same first choice.
    """

    n_tokens: int
    n_documents: int
    loss: Estimate
    loss_change: Estimate
    kl: Estimate
    kl_p99: float
    top1_agreement: Estimate


class Original:
    """The model that others were made of, with what it computed of some passages.

    Args:
        on_progress: called after each forward pass with the number of windows done.
    """

    def __init__(
        self, model: SmolLM2, passages: Passages, on_progress: Callable[[int], None]
    ) -> None:
        self.model, self.passages = model, passages
        self.hidden_ND = final_states(model, passages, on_progress)

    def fidelity(self, model: SmolLM2, label: str, on_progress: Callable[[int], None]) -> Fidelity:
        """That of a quantized model, or of the original to itself.

        Args:
            label: what an error calls the model.

        Raises:
            RunError: a score is not finite.
        """
        hidden_ND = self.hidden_ND
        if model is not self.model:
            hidden_ND = final_states(model, self.passages, on_progress)
        scores = compare_tokens(
            (self.hidden_ND, self.model.head.weight),
            (hidden_ND, model.head.weight),  # of a quantized head, dequantized
            torch.from_numpy(self.passages.targets).flatten().to(model.device),
        )
        if not np.isfinite(scores).all():
            dtype = str(model.dtype).removeprefix("torch.")
            raise RunError(
                f"The scores of {label} are not finite: its weights make numbers that overflow "
                f"{dtype}."
            )
        return summarized(scores, self.passages.documents.flatten())


@torch.inference_mode()
def final_states(model: SmolLM2, passages: Passages, on_progress: Callable[[int], None]) -> Tensor:
    """Final hidden states (N, D)."""
    tokens_WT = torch.from_numpy(passages.inputs).to(model.device)
    states: list[Tensor] = []
    for batch in tokens_WT.split(max(1, BATCH_TOKENS // tokens_WT.shape[1])):
        states += model.hidden(batch)[0]
        on_progress(len(states))
    return torch.cat(states)


@torch.inference_mode()
def compare_tokens(
    original: tuple[Tensor, Tensor], quantized: tuple[Tensor, Tensor], targets_N: Tensor
) -> np.ndarray:
    """The rows of `compare_rows` for all tokens (4, N), in fp64.

    Args:
        original, quantized: final hidden states (N, D) and the weights of the head (V, D).
    """
    (p_ND, p_VD), (q_ND, q_VD) = original, quantized
    rows = block_tokens(targets_N.device)
    found = []
    for start in range(0, len(targets_N), CHUNK_TOKENS):
        here = slice(start, start + CHUNK_TOKENS)
        p_logits, q_logits = F.linear(p_ND[here], p_VD), F.linear(q_ND[here], q_VD)
        blocks = (x.split(rows) for x in (p_logits, q_logits, targets_N[here]))
        found += [compare_rows(*block) for block in zip(*blocks, strict=True)]
    return torch.cat(found, dim=1).cpu().double().numpy()  # MPS has no fp64


def compare_rows(p_logits_BV: Tensor, q_logits_BV: Tensor, targets_B: Tensor) -> Tensor:
    """For each token, in fp32 (4, B): the loss under p, the loss under q, KL(p || q), and whether
    both have the same first choice."""
    log_p_BV, log_q_BV = (x.float().log_softmax(dim=-1) for x in (p_logits_BV, q_logits_BV))
    losses = [-x.gather(1, targets_B[:, None])[:, 0] for x in (log_p_BV, log_q_BV)]
    kl_BV = F.kl_div(log_q_BV, log_p_BV, reduction="none", log_target=True)
    # The first of equals, as by argmax, which takes twice as long on a CPU.
    p_top, q_top = (x.max(dim=-1).indices for x in (log_p_BV, log_q_BV))
    return torch.stack([*losses, kl_BV.sum(dim=-1), (p_top == q_top).float()])


def summarized(scores: np.ndarray, documents: np.ndarray) -> Fidelity:
    """The fidelity over tokens with the scores (4, N) of `compare_tokens`, in `documents` (N,)."""
    before, after, kl, agrees = scores
    _, cluster = np.unique(documents, return_inverse=True)
    n_tokens = np.bincount(cluster)

    def mean(values: np.ndarray) -> Estimate:
        return ratio_of_sums(np.bincount(cluster, values), n_tokens)

    return Fidelity(
        n_tokens=len(documents),
        n_documents=len(n_tokens),
        loss=mean(after),
        loss_change=mean(after - before),
        kl=mean(kl),
        kl_p99=float(np.quantile(kl, TAIL)),
        top1_agreement=mean(agrees),
    )
