"""Loss, accuracy, perplexity and bits per byte of a model on held-out text.

A split is read in consecutive windows. What a window says of each document in it is one
`TextScore`; `held_out` makes the metrics of them, with standard errors over documents.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from smollm2.data import window_count, windows
from smollm2.loss import score_tokens
from smollm2.model import SmolLM2

if TYPE_CHECKING:
    from smollm2.data import TokenData

# With fewer clusters a cluster-robust standard error is itself uncertain and on average too small;
# the literature's "few" begins between 20 and 50 (Cameron and Miller 2015, J. Human Resources).
FEW_DOCUMENTS = 30


@dataclass(frozen=True)
class TextScore:
    """Sums over the predicted tokens that a window has of one document.

    Args:
        window: its number from the start of the split.
        document: its number from the start of the split.
        n_tokens: how many tokens were predicted.
        nats: their negative log-likelihood.
        hits: how many were the model's first choice.
        text_nats: `nats` without the token that ends a document.
        n_bytes: of the text of those tokens, in UTF-8.
    """

    derived: ClassVar[tuple[str, ...]] = ()

    window: int
    document: int
    n_tokens: int
    nats: float
    hits: int
    text_nats: float
    n_bytes: int

    @property
    def key(self) -> tuple[int, int]:
        return self.window, self.document


@dataclass(frozen=True)
class Estimate:
    """A value and its standard error, None where there is nothing to estimate it from."""

    value: float
    stderr: float | None


@dataclass(frozen=True)
class HeldOut:
    """Scores over `n_tokens` predicted tokens of `n_documents` documents.

    loss: mean in nats a token. accuracy: share of tokens that were the model's first choice.
    bits_per_byte: the loss of the text's tokens in bits over the UTF-8 bytes of exactly those
        tokens; end-of-text counts in neither, so tokenizers can be compared.
    """

    n_tokens: int
    n_documents: int
    loss: Estimate
    accuracy: Estimate
    bits_per_byte: Estimate

    @property
    def perplexity(self) -> Estimate:
        """exp(loss), its standard error by the delta method."""
        value = math.exp(min(self.loss.value, 700.0))  # exp overflows a float beyond 709
        return Estimate(value, self.loss.stderr and value * self.loss.stderr)


@torch.inference_mode()
def score_text(
    model: SmolLM2,
    data: "TokenData",
    split: str,
    seq_len: int,
    batch_size: int,
    numbers: Sequence[int],
) -> Iterator[list[TextScore]]:
    """Score the windows of `seq_len` with these numbers in a split, `batch_size` of them at a
    time."""
    tokens = getattr(data, split)
    ends = np.flatnonzero(tokens == data.end_of_text)  # a document ends with its end-of-text
    for start in range(0, len(numbers), batch_size):
        batch = numbers[start : start + batch_size]
        inputs, targets = windows(tokens, seq_len, batch)
        nats, hits = token_scores(model, inputs, targets)
        is_text = targets != data.end_of_text
        columns = (nats, hits, nats * is_text, data.token_bytes[targets])
        scores = []
        for row, number in enumerate(batch):
            first = number * seq_len + 1  # the first target's place in the split
            documents = np.searchsorted(ends, np.arange(first, first + seq_len))
            for document in np.unique(documents):
                here = documents == document
                nats_, hits_, text_nats, n_bytes = (column[row, here].sum() for column in columns)
                scores.append(
                    TextScore(
                        window=number,
                        document=int(document),
                        n_tokens=int(here.sum()),
                        nats=float(nats_),
                        hits=int(hits_),
                        text_nats=float(text_nats),
                        n_bytes=int(n_bytes),
                    )
                )
        yield scores


def token_scores(
    model: SmolLM2, inputs: np.ndarray, targets: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """For each target (B, T) its negative log-likelihood in nats, and whether it came first."""
    device = model.device
    hidden, _ = model.hidden(torch.from_numpy(inputs).to(device))
    flat = torch.from_numpy(targets).flatten().to(device)
    losses, hits = score_tokens(hidden.flatten(0, 1), model.head.weight, flat)
    losses = losses.cpu().double()  # MPS has no fp64
    return losses.numpy().reshape(targets.shape), hits.cpu().numpy().reshape(targets.shape)


def held_out(scores: Iterable[TextScore]) -> HeldOut:
    """The metrics that `scores` add up to, the same in whatever order they come.

    Each is a ratio of two sums over documents, whose standard error is that of a ratio estimator
    over clusters (Cochran 1977, Sampling Techniques, 6.4); None for a single document.

    Raises:
        ValueError: no scores.
    """
    rows = sorted(scores, key=lambda score: score.key)
    if not rows:
        raise ValueError("There are no scores to sum up.")
    documents, cluster = np.unique([row.document for row in rows], return_inverse=True)

    def by_document(name: str) -> np.ndarray:
        return np.bincount(cluster, [getattr(row, name) for row in rows])

    n_tokens = by_document("n_tokens")
    return HeldOut(
        n_tokens=int(n_tokens.sum()),
        n_documents=len(documents),
        loss=ratio(by_document("nats"), n_tokens),
        accuracy=ratio(by_document("hits"), n_tokens),
        bits_per_byte=ratio(by_document("text_nats") / math.log(2), by_document("n_bytes")),
    )


def ratio(above: np.ndarray, below: np.ndarray) -> Estimate:
    """sum(above) / sum(below), with its standard error over the entries as clusters."""
    n, total = len(above), max(below.sum(), 1)
    value = above.sum() / total
    if n < 2:
        return Estimate(float(value), None)
    residuals = above - value * below
    return Estimate(float(value), float(np.sqrt(n / (n - 1) * (residuals**2).sum()) / total))


def held_out_rows(
    split: str, scores: HeldOut, data: "TokenData", seq_len: int, protocol: str
) -> list[dict[str, Any]]:
    """The scores as rows of eval.csv; `protocol` says how they were made."""
    return [
        {
            "task": split,
            "metric": metric,
            "value": getattr(scores, metric).value,
            "stderr": getattr(scores, metric).stderr,
            "n": scores.n_tokens,
            "total": window_count(getattr(data, split), seq_len) * seq_len,
            "clusters": scores.n_documents,
            "chance": None,
            "protocol": protocol,
            "fingerprint": data.fingerprint,
            "items": None,
        }
        for metric in ("loss", "accuracy", "perplexity", "bits_per_byte")
    ]
