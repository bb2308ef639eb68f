"""Log-likelihoods of the choices of multiple-choice questions, and their metrics.

The results are those of lm-evaluation-harness: the log-likelihood of a choice is the sum over the
tokens of its continuation. The cost is lower: a question's context is computed once for all its
choices (see `tasks.token_rows`), a batch has questions of similar length, and the head is applied
only to the hidden states that predict a token of a continuation.
"""

import math
from collections.abc import Collection, Iterator, Sequence
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from smollm2.errors import UserError
from smollm2.evaluation.answers import ItemScore
from smollm2.evaluation.tasks import Item, Task
from smollm2.evaluation.tasks.token_rows import TokenRow, batches, stack_rows, token_row
from smollm2.model.loss import score_tokens
from smollm2.model.transformer import SmolLM2

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Tokens per forward pass, padding included. On a CPU the activations then fit the cache.
BATCH_TOKENS = {"cpu": 512, "cuda": 16_384}


def score_items(
    model: SmolLM2,
    tokenizer: "Tokenizer",
    items: Sequence[Item],
    *,
    max_len: int,
    batch_size: int | None = None,
    skip: Collection[int] = (),
) -> Iterator[list[ItemScore]]:
    """Score items and yield the scores of each batch. The longest items come first, so a lack of
    memory shows at once.

    `batch_size`, the order of items and their number change a score by rounding only.

    Args:
        max_len: the most tokens that the model reads; a longer prompt loses its first tokens.
        batch_size: items per forward pass; None: as many as make `BATCH_TOKENS`.
        skip: indices of items that are scored already.

    Raises:
        UserError: at the first batch: the tokenizer is larger than the model's vocabulary, or a
            choice alone is longer than `max_len`.
    """
    vocab = tokenizer.get_vocab_size()
    if vocab > model.config.vocab_size:
        raise UserError(
            f"The tokenizer has {vocab:,} tokens, but the model only {model.config.vocab_size:,}; "
            "use the tokenizer that the model was trained with."
        )
    todo = [token_row(i, item, tokenizer, max_len) for i, item in enumerate(items) if i not in skip]
    if batch_size is None:
        device = model.device.type
        found = batches(todo, max_tokens=BATCH_TOKENS.get(device, BATCH_TOKENS["cpu"]))
    else:
        found = batches(todo, max_items=batch_size)
    for batch in found:
        yield score_batch(model, batch, items)


@torch.inference_mode()
def score_batch(model: SmolLM2, batch: list[TokenRow], items: Sequence[Item]) -> list[ItemScore]:
    """The scores of one forward pass, in the order of `batch`."""
    device = model.device
    tokens, positions, mask = stack_rows(batch, device)
    width = tokens.shape[1]
    places = [number * width + place for number, row in enumerate(batch) for place in row.scored]
    targets = [target for row in batch for target in row.targets]
    with OneDnnLinear():
        hidden, _ = model.hidden(tokens, positions, mask)
        losses, hits = score_tokens(
            hidden.flatten(0, 1)[torch.tensor(places, device=device)],
            model.head.weight,
            torch.tensor(targets, device=device),
        )
    sizes = [size for row in batch for size in row.n_scored]
    nats = iter([-part.sum().item() for part in losses.cpu().double().split(sizes)])
    greedy = iter([bool(part.all()) for part in hits.cpu().split(sizes)])
    scores = []
    for row in batch:
        item = items[row.index]
        scores.append(
            ItemScore(
                item=row.index,
                question=item.fingerprint,
                gold=item.gold,
                log_likelihoods=tuple(next(nats) for _ in item.continuations),
                greedy=tuple(next(greedy) for _ in item.continuations),
                characters=tuple(len(text.removeprefix(" ")) for text in item.continuations),
                n_bytes=tuple(row.n_bytes),
            )
        )
    return scores


class OneDnnLinear(TorchFunctionMode):
    """A context in which `F.linear` in fp32 uses oneDNN on CPUs with AVX-512, without gradients.

    torch itself uses MKL. On AMD processors oneDNN was 1.1 to 2.2 times as fast, depending on the
    machine, at the same precision.
    """

    available = (
        torch.backends.mkldnn.is_available()
        and torch.backends.cpu.get_cpu_capability().startswith("AVX512")
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")  # what Inductor calls; not public
    )

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        if func is F.linear and self.available and args and all(map(is_plain_fp32, args[:2])):
            x, weight, bias = (*args, None)[:3]
            return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return func(*args, **(kwargs or {}))


def is_plain_fp32(x: torch.Tensor) -> bool:
    """Whether `x` is fp32, on a CPU and not of a subclass, as quantized weights are."""
    plain = type(x) in (torch.Tensor, torch.nn.Parameter)
    return plain and x.device.type == "cpu" and x.dtype == torch.float32


def summarize(task: Task, scores: Sequence[ItemScore]) -> list[dict[str, Any]]:
    """A row per metric: task, metric, value, stderr, n, chance.

    `acc` and, if the task has it, `acc_norm` are shares of items; `bits_per_byte` is a mean over
    items. `stderr` uses the sample's variance, as in lm-evaluation-harness; None for one item.
    `chance` is the expected share of random guesses; None for bits per byte.

    Raises:
        ValueError: no scores.
    """
    chance = fmean(1 / len(score.log_likelihoods) for score in scores)
    values = {metric: [score.value(metric) for score in scores] for metric in task.metrics}
    return [
        {
            "task": task.name,
            "metric": metric,
            "value": fmean(column),
            "stderr": stdev(column) / math.sqrt(len(column)) if len(column) > 1 else None,
            "n": len(column),
            "chance": None if metric == "bits_per_byte" else chance,
        }
        for metric, column in values.items()
    ]
