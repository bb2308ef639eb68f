"""Speed of scoring multiple-choice items, compared with lm-evaluation-harness.

    python benchmarks/eval_speed.py --data DATA [--items 80] [--rounds 2]

DATA is a folder with `eval/` and `tokenizer/`, by default $SMOLCTL_DATA. Ours is `score_items`; its
peer is lm-eval's `hf` model, given the same questions as its own task would give them, at the
fastest of `--batches`, which its process finds on 16 of the items. Weights are the same random
ones. The time runs from the questions as text to the log-likelihoods, without starting, loading
and a first small call.

The items are spread evenly over the whole split: HellaSwag begins with captions of videos, half as
long as its average, so its first items would not be representative.

`changed_acc` and `changed_acc_norm` are the shares of items whose choice differs from lm-eval's in
fp32; `largest_difference` is the largest change of a log-likelihood, in nats. `limit` is the rate
if only the matrix products of ours ran (forward, without padding and attention), each at its best
rate here for the rows of one of its batches.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path

import side_by_side
from side_by_side import Row
from train_speed import linear_layers

from smollm2.evaluation.tasks import Item, find_task, load_items
from smollm2.model.config import ModelConfig, variant

PEER = "lm-eval fp32"
CONTENDERS = {"hellaswag orig": (PEER, "ours fp32", "ours bf16", "limit fp32", "limit bf16")}
QUANTITIES = (
    *("items_per_second", "items", "batch_size"),
    *("changed_acc", "changed_acc_norm", "largest_difference"),
)
DTYPES = {"fp32": "float32", "bf16": "bfloat16"}
WARMUP_ITEMS, PILOT_ITEMS = 2, 16  # the latter fill a batch of 64 with their four choices
Likelihoods = list[list[float]]
Score = Callable[[Sequence[Item]], Likelihoods]


def main() -> None:
    parser = side_by_side.parser(__doc__)
    side_by_side.add_data(parser)
    parser.add_argument("--items", type=int, default=80)
    parser.add_argument("--batches", default="1,4,16,64", help="tried for lm-eval")
    parser.set_defaults(rounds=2)
    options = side_by_side.start(parser, measure)

    def amend(row: Row, before: list[Row]) -> Row:
        peers = [found for found in before if found["contender"] == PEER]
        if not peers or "likelihoods" not in row:
            return row
        items = questions(row["work"], options)
        return row | changes(items, peers[0]["likelihoods"], row["likelihoods"])

    side_by_side.run(options, CONTENDERS, QUANTITIES, amend)


def measure(work: str, contender: str, options: argparse.Namespace) -> Row:
    items, config = questions(work, options), variant(work.split()[1])
    who, dtype = contender.split()
    if who == "limit":
        return {"items_per_second": len(items) / matmul_seconds(items, config, dtype, options)}
    score, how = {"ours": ours, "lm-eval": lm_eval}[who](items, config, dtype, options)
    seconds, likelihoods = timed(score, items)
    row = {"items_per_second": len(items) / seconds, "items": len(items)}
    return row | how | {"likelihoods": likelihoods}


def questions(work: str, options: argparse.Namespace) -> list[Item]:
    """The requested number of items, spread evenly over the split."""
    found = load_items(find_task(work.split()[0]), options.data / "eval", None).items
    n_items = min(options.items, len(found))
    return [found[i * len(found) // n_items] for i in range(n_items)]


def timed(score: Score, items: Sequence[Item]) -> tuple[float, Likelihoods]:
    start = time.perf_counter()
    likelihoods = score(items)
    return time.perf_counter() - start, likelihoods


def ours(
    items: Sequence[Item], config: ModelConfig, dtype: str, options: argparse.Namespace
) -> tuple[Score, Row]:
    from smollm2.data import load_tokenizer
    from smollm2.device import DTYPES as TORCH_DTYPES
    from smollm2.evaluation.multiple_choice import score_items
    from smollm2.model.transformer import SmolLM2

    model = SmolLM2(config).to(TORCH_DTYPES[DTYPES[dtype]]).eval()
    tokenizer = load_tokenizer(str(options.data / "tokenizer"))

    def score(items: Sequence[Item]) -> Likelihoods:
        batches = score_items(model, tokenizer, items, max_len=config.max_seq_len)
        found = sorted(chain.from_iterable(batches), key=lambda score: score.item)
        return [list(score.log_likelihoods) for score in found]

    score(items[:WARMUP_ITEMS])
    return score, {}


def lm_eval(
    items: Sequence[Item], config: ModelConfig, dtype: str, options: argparse.Namespace
) -> tuple[Score, Row]:
    """lm-eval at its best batch size; the seed gives it the weights of ours."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    from smollm2.interop.hf import save_hf
    from smollm2.model.transformer import SmolLM2

    with tempfile.TemporaryDirectory() as folder:
        tokenizer = options.data / "tokenizer/tokenizer.json"
        save_hf(Path(folder), SmolLM2(config).state_dict(), config, tokenizer)
        lm = HFLM(folder, device="cpu", dtype=DTYPES[dtype], batch_size=1)

    def score(items: Sequence[Item]) -> Likelihoods:
        requests = [
            Instance("loglikelihood", doc={}, arguments=pair, idx=i)
            for item in items
            for i, pair in enumerate(zip(item.contexts, item.continuations, strict=True))
        ]
        found = iter(lm.loglikelihood(requests, disable_tqdm=True))
        return [[next(found)[0] for _ in item.continuations] for item in items]

    def pilot_seconds(batch_size: int) -> float:
        lm.batch_size_per_gpu = batch_size
        return timed(score, items[:: -(-len(items) // PILOT_ITEMS)])[0]

    score(items[:WARMUP_ITEMS])
    best = min(map(int, options.batches.split(",")), key=pilot_seconds)
    lm.batch_size_per_gpu = best
    return score, {"batch_size": best}


def matmul_seconds(
    items: Sequence[Item], config: ModelConfig, dtype: str, options: argparse.Namespace
) -> float:
    """Seconds of the matrix products that score `items`, with a question's context once."""
    from smollm2.data import load_tokenizer
    from smollm2.evaluation.multiple_choice import BATCH_TOKENS
    from smollm2.evaluation.tasks.token_rows import token_row

    tokenizer, rows = load_tokenizer(str(options.data / "tokenizer")), BATCH_TOKENS["cpu"]
    packed = [token_row(i, item, tokenizer, config.max_seq_len) for i, item in enumerate(items)]
    *layers, head = linear_layers(config, rows)
    in_layers = sum(len(row.tokens) for row in packed)
    in_head = sum(len(row.scored) for row in packed)
    counted = [*((in_layers, layer) for layer in layers), (in_head, head)]
    return sum(
        n_tokens / rows * count * linear_seconds(*shape, dtype)
        for n_tokens, (count, *shape) in counted
    )


def linear_seconds(rows: int, n_in: int, n_out: int, dtype: str) -> float:
    """Seconds of a linear layer's product: the shortest of five times and of two ways."""
    import torch
    import torch.nn.functional as F

    from smollm2.device import DTYPES as TORCH_DTYPES
    from smollm2.device import best_seconds
    from smollm2.evaluation.multiple_choice import OneDnnLinear

    shapes, torch_dtype = ((rows, n_in), (n_out, n_in)), TORCH_DTYPES[DTYPES[dtype]]
    with torch.inference_mode():
        x, w = (torch.randn(*shape).to(torch_dtype) for shape in shapes)
        plain = best_seconds(lambda: F.linear(x, w), "cpu")
        with OneDnnLinear():
            return min(plain, best_seconds(lambda: F.linear(x, w), "cpu"))


def changes(items: Sequence[Item], before: Likelihoods, after: Likelihoods) -> Row:
    """Shares of items with another choice, and the largest change of a log-likelihood."""

    def changed(by_character: bool) -> float:
        pairs = zip(items, before, after, strict=True)
        different = [
            chosen(item, a, by_character) != chosen(item, b, by_character) for item, a, b in pairs
        ]
        return sum(different) / len(items)

    differences = [
        abs(x - y) for a, b in zip(before, after, strict=True) for x, y in zip(a, b, strict=True)
    ]
    return {
        "changed_acc": changed(False),
        "changed_acc_norm": changed(True),
        "largest_difference": max(differences),
    }


def chosen(item: Item, likelihoods: list[float], by_character: bool) -> int:
    lengths = [len(text) - 1 if by_character else 1 for text in item.continuations]
    values = [nats / length for nats, length in zip(likelihoods, lengths, strict=True)]
    return values.index(max(values))


if __name__ == "__main__":
    main()
