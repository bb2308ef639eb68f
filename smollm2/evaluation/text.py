"""Loss, accuracy, perplexity and bits per byte of a model on held-out text.

A split is read in consecutive windows. Each document in a window gives one `TextScore`;
`held_out` turns these into metrics with standard errors over documents.
"""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from smollm2.data import require_uncut, window_count, windows
from smollm2.model.loss import score_tokens
from smollm2.model.transformer import SmolLM2
from smollm2.runs.conditions import FEWEST_DOCUMENTS, Conditions

if TYPE_CHECKING:
    from smollm2.data import TokenData


@dataclass(frozen=True)
class TextScore:
    """Sums over the predicted tokens of one document in one window.

    Args:
        window, document: their numbers from the start of the split.
        n_tokens: the number of predicted tokens.
        nats: their negative log-likelihood.
        hits: the number that were the model's first choice.
        text_nats: `nats` without the end-of-text token.
        n_bytes: the UTF-8 bytes of the tokens' text.
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
    """A value and its standard error; None below `FEWEST_DOCUMENTS`."""

    value: float
    stderr: float | None


@dataclass(frozen=True)
class HeldOut:
    """Scores over `n_tokens` predicted tokens of `n_documents` documents.

    Args:
        loss: mean in nats/token.
        accuracy: share of tokens that were the model's first choice.
        bits_per_byte: the loss of the text's tokens in bits, per UTF-8 byte of these tokens.
            End-of-text counts in neither, so scores of different tokenizers are comparable.
    """

    n_tokens: int
    n_documents: int
    loss: Estimate
    accuracy: Estimate
    bits_per_byte: Estimate

    @property
    def perplexity(self) -> Estimate:
        """exp(loss), with the standard error from the delta method."""
        value = math.exp(min(self.loss.value, 700.0))  # exp overflows a float beyond 709
        return Estimate(value, self.loss.stderr and value * self.loss.stderr)


@torch.no_grad()  # in inference mode, FSDP would gather weights that cannot be trained afterwards
def score_text(
    model: SmolLM2,
    data: "TokenData",
    split: str,
    seq_len: int,
    batch_size: int,
    numbers: Sequence[int],
) -> Iterator[list[TextScore]]:
    """Score the windows `numbers` of `seq_len` tokens in a split, and yield `batch_size` at a
    time."""
    tokens = getattr(data, split)
    require_uncut(tokens)
    for start in range(0, len(numbers), batch_size):
        batch = numbers[start : start + batch_size]
        inputs, targets = windows(tokens, seq_len, batch)
        nats, hits = token_scores(model, inputs, targets)
        is_text = targets != data.end_of_text
        columns = (nats, hits, nats * is_text, data.token_bytes[targets])
        scores = []
        for row, number in enumerate(batch):
            documents = documents_of_targets(data.ends[split], seq_len, number)
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


def documents_of_targets(ends: np.ndarray, seq_len: int, number: int) -> np.ndarray:
    """For each target of window `number` the document that it is in, counted from the start of the
    split.

    Args:
        ends: the positions of the split's end-of-text tokens.
    """
    first = number * seq_len + 1  # the position of the first target in the split
    return np.searchsorted(ends, np.arange(first, first + seq_len))


def token_scores(
    model: SmolLM2, inputs: np.ndarray, targets: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """For each target (B, T): its negative log-likelihood in nats, and whether it was the model's
    first choice."""
    device = model.device
    hidden, _ = model.hidden(torch.from_numpy(inputs).to(device))
    flat = torch.from_numpy(targets).flatten().to(device)
    losses, hits = score_tokens(hidden.flatten(0, 1), model.head.weight, flat)
    losses = losses.cpu().double()  # MPS has no fp64
    return losses.numpy().reshape(targets.shape), hits.cpu().numpy().reshape(targets.shape)


def held_out(scores: Iterable[TextScore]) -> HeldOut:
    """The metrics of `scores`, whatever their order.

    Each is a ratio of two sums over documents. Its standard error is that of a ratio estimator over
    clusters (Cochran 1977, Sampling Techniques, 6.4); None below `FEWEST_DOCUMENTS`.

    Raises:
        ValueError: no scores.
    """
    rows = sorted(scores, key=lambda score: score.key)
    if not rows:
        raise ValueError("There are no scores.")
    documents, cluster = np.unique([row.document for row in rows], return_inverse=True)

    def by_document(name: str) -> np.ndarray:
        return np.bincount(cluster, [getattr(row, name) for row in rows])

    n_tokens = by_document("n_tokens")
    return HeldOut(
        n_tokens=int(n_tokens.sum()),
        n_documents=len(documents),
        loss=ratio_of_sums(by_document("nats"), n_tokens),
        accuracy=ratio_of_sums(by_document("hits"), n_tokens),
        bits_per_byte=ratio_of_sums(by_document("text_nats") / math.log(2), by_document("n_bytes")),
    )


def document_rows(scores: Iterable[TextScore]) -> list[dict[str, Any]]:
    """The sums of `scores` over each document, in order: the rows of documents.csv."""
    rows = sorted(scores, key=lambda score: score.key)
    documents, cluster = np.unique([row.document for row in rows], return_inverse=True)
    names = ("n_tokens", "nats", "hits", "text_nats", "n_bytes")
    sums = {name: np.bincount(cluster, [getattr(row, name) for row in rows]) for name in names}
    return [
        {"document": int(document)}
        | {name: float(sums[name][i]) for name in ("nats", "text_nats")}
        | {name: int(sums[name][i]) for name in ("n_tokens", "hits", "n_bytes")}
        for i, document in enumerate(documents)
    ]


def ratio_of_sums(above: np.ndarray, below: np.ndarray) -> Estimate:
    """sum(above) / sum(below), with its standard error if each entry is a cluster."""
    n, total = len(above), max(below.sum(), 1)
    value = above.sum() / total
    if n < FEWEST_DOCUMENTS:
        return Estimate(float(value), None)
    residuals = above - value * below
    return Estimate(float(value), float(np.sqrt(n / (n - 1) * (residuals**2).sum()) / total))


def held_out_rows(
    scores: HeldOut, data: "TokenData", conditions: Conditions
) -> list[dict[str, Any]]:
    """The scores as rows of eval.csv."""
    seq_len = conditions.context
    total = window_count(getattr(data, conditions.split), seq_len) * seq_len
    return [
        {
            "task": conditions.split,
            "metric": metric,
            "value": getattr(scores, metric).value,
            "stderr": getattr(scores, metric).stderr,
            "n": scores.n_tokens,
            "total": total,
            "clusters": scores.n_documents,
            "chance": None,
            **dataclasses.asdict(conditions),
            "fingerprint": data.fingerprint,
            "items": None,
        }
        for metric in ("loss", "accuracy", "perplexity", "bits_per_byte")
    ]
