"""Loss, accuracy, perplexity and bits per byte of a model on held-out text."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from smollm2.data import windows
from smollm2.loss import score_tokens
from smollm2.model import SmolLM2

if TYPE_CHECKING:
    from smollm2.data import TokenData


@dataclass(frozen=True)
class HeldOut:
    """Scores over `n_tokens` predicted tokens.

    loss: mean in nats a token. accuracy: share of tokens that were the model's first choice.
    bits_per_byte: the loss of the text's tokens in bits over the UTF-8 bytes of exactly those
        tokens; end-of-text counts in neither, so tokenizers can be compared.
    """

    n_tokens: int
    loss: float
    accuracy: float
    bits_per_byte: float

    @property
    def perplexity(self) -> float:
        return math.exp(min(self.loss, 700.0))  # exp overflows a float beyond 709


@torch.inference_mode()
def held_out(
    model: SmolLM2,
    data: "TokenData",
    split: str,
    n_tokens: int,
    seq_len: int,
    batch_size: int,
    on_batch: Callable[[int], None] = lambda n: None,
) -> HeldOut:
    """Score the first `n_tokens` of a split in consecutive windows of `seq_len`.

    Args:
        on_batch: called after each batch with the number of tokens scored so far; what it raises
            ends the evaluation.
    """
    device = model.embed.weight.device
    token_bytes = torch.from_numpy(data.token_bytes.astype("int64"))
    nats = text_nats = 0.0
    hits = n_bytes = done = 0
    for inputs, targets in windows(getattr(data, split), seq_len, n_tokens, batch_size):
        hidden, _ = model.hidden(torch.from_numpy(inputs).to(device))
        flat = torch.from_numpy(targets).flatten()
        losses, correct = score_tokens(hidden.flatten(0, 1), model.embed.weight, flat.to(device))
        losses = losses.cpu().double()  # MPS has no fp64
        nats += losses.sum().item()
        text_nats += losses[flat != data.end_of_text].sum().item()
        hits += int(correct.sum())
        n_bytes += int(token_bytes[flat].sum())
        done += len(flat)
        on_batch(done)
    return HeldOut(done, nats / done, hits / done, text_nats / math.log(2) / max(n_bytes, 1))


def held_out_rows(
    split: str, scores: HeldOut, fingerprint: str, seq_len: int
) -> list[dict[str, Any]]:
    """The scores as rows of eval.csv."""
    return [
        {
            "task": split,
            "metric": metric,
            "value": getattr(scores, metric),
            "n": scores.n_tokens,
            "protocol": f"held-out text, windows of {seq_len}",
            "fingerprint": fingerprint,
        }
        for metric in ("loss", "accuracy", "perplexity", "bits_per_byte")
    ]
