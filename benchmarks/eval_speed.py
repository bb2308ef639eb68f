"""How fast multiple-choice items are scored, beside lm-evaluation-harness.

    python benchmarks/eval_speed.py --data DATA [--items 200] [--rounds 2]

Ours is `score_items`; its peer is lm-eval's `hf` model, given the same questions as its own task
would give them, at the fastest of `--peer-batches` (tried on the first items). Weights are the
same random ones. Timed is from the questions as text to the log-likelihoods; starting, loading and
a first small call are not. Each measurement is a process of its own, and they take turns. Choices
are compared with those of lm-eval in fp32.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from smollm2.tasks import Item, find_task, load_items

COLUMNS = (
    "contender", "dtype", "batch_size", "round", "items", "seconds", "items_per_second",
    "changed_acc", "changed_acc_norm", "largest_difference", "device", "torch", "threads",
)  # fmt: skip
OURS, PEER = "smolctl", "lm-eval"
CONTENDERS = ((PEER, "float32"), (PEER, "bfloat16"), (OURS, "float32"), (OURS, "bfloat16"))
WARMUP_ITEMS, PILOT_ITEMS = 2, 24
Likelihoods = list[list[float]]
Row = dict[str, Any]


def main() -> None:
    options = parse_options()
    if options.measure:
        print(json.dumps(measure(options)))
        return
    console, rows = Console(), []
    with tempfile.TemporaryDirectory() as folder, options.csv.open("w", newline="") as file:
        options.model = Path(folder)
        save_model(options)
        batches = {dtype: best_peer_batch(options, dtype, console) for _, dtype in CONTENDERS[:2]}
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        for number in range(options.rounds):
            for contender, dtype in CONTENDERS:
                batch = batches[dtype] if contender == PEER else None
                row = in_process(options, contender, dtype, batch, options.items)
                rows.append(row | {"round": number + 1})
                rows[-1] |= changes(options, rows[0]["likelihoods"], row["likelihoods"])
                writer.writerow(rows[-1])
                file.flush()
                console.log(f"{contender} {dtype}: {row['items_per_second']:.2f} items/s")
    console.print(comparison(rows))


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--data",
        type=Path,
        required="SMOLCTL_DATA" not in os.environ,
        default=os.environ.get("SMOLCTL_DATA"),
        help="a folder with tokenizer/ and eval/ (default: $SMOLCTL_DATA)",
    )
    parser.add_argument("--variant", default="orig")
    parser.add_argument("--task", default="hellaswag")
    parser.add_argument("--items", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--peer-batches", default="1,4,16,64", help="tried for lm-eval")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--csv", type=Path, default=Path("eval_speed.csv"))
    parser.add_argument("--measure", choices=(OURS, PEER), help="measure one, in this process")
    parser.add_argument("--dtype", help="of --measure")
    parser.add_argument("--batch", type=int, help="of --measure")
    parser.add_argument("--model", type=Path, help="of --measure")
    return parser.parse_args()


def save_model(options: argparse.Namespace) -> None:
    """Random weights as transformers reads them; ours makes the same from the seed."""
    from smollm2.config import variant
    from smollm2.hf import save_hf
    from smollm2.model import SmolLM2

    config = variant(options.variant)
    tokenizer = options.data / "tokenizer/tokenizer.json"
    save_hf(options.model, SmolLM2(config).state_dict(), config, tokenizer)


def best_peer_batch(options: argparse.Namespace, dtype: str, console: Console) -> int:
    """The batch size at which lm-eval scores the first items fastest."""
    speeds = {}
    for batch in map(int, options.peer_batches.split(",")):
        row = in_process(options, PEER, dtype, batch, min(options.items, PILOT_ITEMS))
        speeds[batch] = row["items_per_second"]
        console.log(f"{PEER} {dtype}, batch {batch}: {speeds[batch]:.2f} items/s")
    return max(speeds, key=speeds.__getitem__)


def in_process(
    options: argparse.Namespace, contender: str, dtype: str, batch: int | None, items: int
) -> Row:
    """One measurement, in a process of its own."""
    command = [sys.executable, __file__, "--measure", contender, "--dtype", dtype]
    command += ["--data", str(options.data), "--model", str(options.model)]
    command += ["--variant", options.variant, "--task", options.task, "--items", str(items)]
    if batch is not None:
        command += ["--batch", str(batch)]
    threads = {"OMP_NUM_THREADS": str(options.threads)}
    output = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ | threads
    ).stdout
    row: Row = json.loads(output.splitlines()[-1])
    return row | {"contender": contender, "dtype": dtype, "batch_size": batch}


def measure(options: argparse.Namespace) -> Row:
    """Speed and log-likelihoods of one contender, in this process."""
    import torch

    from smollm2.device import device_name

    items = questions(options)
    score = {OURS: ours, PEER: peer}[options.measure](options)
    score(items[:WARMUP_ITEMS])
    start = time.perf_counter()
    likelihoods = score(items)
    seconds = time.perf_counter() - start
    return {
        "items": len(items),
        "seconds": seconds,
        "items_per_second": len(items) / seconds,
        "likelihoods": likelihoods,
        "device": device_name("cpu"),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }


def questions(options: argparse.Namespace) -> Sequence[Item]:
    return load_items(find_task(options.task), options.data / "eval", options.items).items


def ours(options: argparse.Namespace) -> Callable[[Sequence[Item]], Likelihoods]:
    from smollm2.config import variant
    from smollm2.data import load_tokenizer
    from smollm2.device import DTYPES
    from smollm2.model import SmolLM2
    from smollm2.multiple_choice import score_items

    config = variant(options.variant)
    model = SmolLM2(config).to(DTYPES[options.dtype]).eval()
    tokenizer = load_tokenizer(str(options.data / "tokenizer"))

    def score(items: Sequence[Item]) -> Likelihoods:
        batches = score_items(model, tokenizer, items, max_len=config.max_seq_len)
        found = sorted(chain.from_iterable(batches), key=lambda score: score.item)
        return [list(score.log_likelihoods) for score in found]

    return score


def peer(options: argparse.Namespace) -> Callable[[Sequence[Item]], Likelihoods]:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    lm = HFLM(str(options.model), device="cpu", dtype=options.dtype, batch_size=options.batch)

    def score(items: Sequence[Item]) -> Likelihoods:
        requests = [
            Instance("loglikelihood", doc={}, arguments=pair, idx=i)
            for item in items
            for i, pair in enumerate(zip(item.contexts, item.continuations, strict=True))
        ]
        found = iter(lm.loglikelihood(requests, disable_tqdm=True))
        return [[next(found)[0] for _ in item.continuations] for item in items]

    return score


def changes(options: argparse.Namespace, before: Likelihoods, after: Likelihoods) -> Row:
    """Shares of items with another choice, and how far a log-likelihood moved at most."""
    items = questions(options)

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


def comparison(rows: list[Row]) -> Table:
    """Medians side by side; × and changes are against lm-eval in fp32, × same in this dtype."""
    table = Table(title=f"{rows[0]['items']} items, {rows[0]['threads']} threads, medians")
    for column in ("", "dtype", "batch", "items/s", "× fp32", "× same", "changed",
                   "(norm)", "nats"):  # fmt: skip
        table.add_column(column, justify="left" if column in ("", "dtype") else "right")
    speeds = {
        key: median(r["items_per_second"] for r in rows if (r["contender"], r["dtype"]) == key)
        for key in CONTENDERS
    }
    for (contender, dtype), speed in speeds.items():
        row = next(r for r in rows if (r["contender"], r["dtype"]) == (contender, dtype))
        table.add_row(
            contender,
            dtype,
            str(row["batch_size"] or "default"),
            f"{speed:.2f}",
            f"{speed / speeds[PEER, 'float32']:.2f}",
            f"{speed / speeds[PEER, dtype]:.2f}",
            f"{row['changed_acc']:.1%}",
            f"{row['changed_acc_norm']:.1%}",
            f"{row['largest_difference']:.1g}",
        )
    return table


if __name__ == "__main__":
    main()
