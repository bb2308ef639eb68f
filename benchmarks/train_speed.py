"""How fast and how large training is, beside the same model in transformers.

    python benchmarks/train_speed.py [--rounds 3] [--steps 10]
    python benchmarks/train_speed.py --device cuda --batch 8 --models orig,pow2,moe-160m

Ours is the training step of `smolctl train` in bf16. Its peer is Llama as transformers writes it,
trained as its users do: fp32 weights, bf16 autocast, the fused AdamW of torch, the same clipping.
Both see the same random tokens.

Each measurement is a process of its own, so that its peak memory is its own, imports included; the
two take turns, so that a machine that slows down slows both; and both get the same threads and,
by inheritance, the same allocator. Medians of the rounds are printed, every round goes to the CSV.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from smollm2.protocol import Protocol, Request, resolve

COLUMNS = (
    "model", "contender", "round", "tokens_per_second", "peak_rss_mb", "device", "torch",
    "threads", "batch_size", "seq_len", "peak_cuda_mb", "matmul_flops_per_second", "mfu",
)  # fmt: skip
SMALL = "2.5m"  # 2.5 M parameters: the cost of everything but the arithmetic shows
Row = dict[str, Any]
Step = Callable[[], object]


def main() -> None:
    options = parse_options()
    if options.measure:
        print(json.dumps(measure(resolve(request(options.models, options)), options)))
        return
    console, rows = Console(), []
    with options.csv.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for row in measurements(options):
            rows.append(row)
            writer.writerow(row)
            file.flush()
            console.log(
                f"{row['model']} {row['contender']} round {row['round']}: "
                f"{row['tokens_per_second']:,.0f} tokens/s, {row['peak_rss_mb']:,.0f} MB"
            )
    console.print(comparison(rows))
    if options.device == "cuda":
        console.print(use_of_the_gpu(rows))


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", help=f"variants and {SMALL}, with commas between")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10, help="timed steps of each measurement")
    parser.add_argument("--warmup", type=int, default=3, help="steps before them")
    parser.add_argument("--batch", type=int, help="sequences (default: 1, on cuda 8)")
    parser.add_argument("--seq-len", type=int, help="tokens (default: 512, on cuda 2048)")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--peer-moe", action="store_true", help="measure Mixtral as well")
    parser.add_argument("--csv", type=Path, default=Path("train_speed.csv"))
    parser.add_argument("--measure", choices=CONTENDERS, help="measure one, in this process")
    options = parser.parse_args()
    if options.models is None:
        options.models = "pow2" if options.device == "cuda" else f"pow2,{SMALL}"
    return options


def request(model: str, options: argparse.Namespace) -> Request:
    """The training that is measured: model, shape of a batch, device."""
    small, cuda = model == SMALL, options.device == "cuda"
    return Request(
        variant="pow2:n_layers=8" if small else model,
        scale="nano" if small else "full",
        steps=options.warmup + options.steps,
        batch_size=options.batch or (8 if small or cuda else 1),
        seq_len=options.seq_len or (256 if small else 2048 if cuda else 512),
        device=options.device,
        dtype="bf16",
        compile=cuda,
    )


def measurements(options: argparse.Namespace) -> Iterator[Row]:
    """A row for each process, as they end."""
    threads = {"OMP_NUM_THREADS": str(options.threads)}
    for model in options.models.split(","):
        has_peer = options.peer_moe or not resolve(request(model, options)).model.is_moe
        for number in range(options.rounds):
            for contender in CONTENDERS if has_peer else [OURS]:
                command = [sys.executable, *sys.argv, "--measure", contender, "--models", model]
                output = subprocess.run(
                    command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ | threads
                ).stdout
                shared = {"model": model, "contender": contender, "round": number + 1}
                yield shared | json.loads(output.splitlines()[-1])


def measure(protocol: Protocol, options: argparse.Namespace) -> Row:
    """Speed and peak memory of one contender, in this process."""
    import torch

    from smollm2.device import device_name, matmul_flops_per_second, peak_memory_mb, synchronize

    step, device = CONTENDERS[options.measure](protocol), protocol.device
    for _ in range(options.warmup):
        step()
    synchronize(device)
    start = time.perf_counter()
    for _ in range(options.steps):
        step()
    synchronize(device)
    seconds = (time.perf_counter() - start) / options.steps
    row: Row = {
        "tokens_per_second": protocol.tokens_per_step / seconds,
        "peak_rss_mb": peak_memory_mb("cpu"),
        "device": device_name(device),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "batch_size": protocol.batch_size,
        "seq_len": protocol.seq_len,
    }
    if device == "cuda":
        row["peak_cuda_mb"] = peak_memory_mb(device)
        rate = row["matmul_flops_per_second"] = matmul_flops_per_second(device, protocol.dtype)
        row["mfu"] = protocol.flops_per_step / seconds / rate
    return row


def our_step(protocol: Protocol) -> Step:
    from smollm2.train import Trainer

    trainer = Trainer(protocol, random_tokens(protocol))
    return lambda: trainer.update(trainer.gradients())


def transformers_step(protocol: Protocol) -> Step:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from smollm2.data import batch
    from smollm2.hf import hf_config

    recipe, data, steps = protocol.recipe, random_tokens(protocol), iter(range(protocol.steps))
    config = AutoConfig.for_model(**hf_config(protocol.model))
    model = AutoModelForCausalLM.from_config(config).to(protocol.device).train()
    if protocol.compile:
        model.compile()
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=recipe.lr,
        betas=(recipe.beta1, recipe.beta2),
        eps=recipe.eps,
        weight_decay=recipe.weight_decay,
        fused=True,
    )

    def step() -> None:
        shape = protocol.rows_per_step, protocol.seq_len
        inputs, _ = batch(data.train, data.fingerprint, protocol.data_seed, next(steps), *shape)
        tokens = torch.from_numpy(inputs).to(protocol.device)
        with torch.autocast(protocol.device, torch.bfloat16):
            loss = model(input_ids=tokens, labels=tokens, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.grad_clip)
        optimizer.step()
        optimizer.zero_grad()

    return step


OURS, PEER = "smolctl", "transformers"
CONTENDERS: dict[str, Callable[[Protocol], Step]] = {OURS: our_step, PEER: transformers_step}


def random_tokens(protocol: Protocol) -> Any:
    """What a training step reads of prepared data."""
    tokens = np.random.default_rng(0).integers(protocol.model.vocab_size, size=500_000)
    return SimpleNamespace(train=tokens.astype(np.uint16), fingerprint="random")


def comparison(rows: list[Row]) -> Table:
    """Medians side by side; each ratio is ours to the peer's."""
    table = Table(title=f"Training: {OURS} (ours) beside {PEER} (theirs), medians")
    for column in ("model", "batch", "tokens/s", "theirs", "ratio", "peak MB", "theirs", "ratio"):
        table.add_column(column, justify="left" if column == "model" else "right")
    memory = "peak_cuda_mb" if "peak_cuda_mb" in rows[0] else "peak_rss_mb"
    for model in dict.fromkeys(row["model"] for row in rows):
        shape = next(row for row in rows if row["model"] == model)
        cells = [model, f"{shape['batch_size']} × {shape['seq_len']}"]
        for quantity in ("tokens_per_second", memory):
            ours, peer = (middle(rows, model, who, quantity) for who in CONTENDERS)
            cells.append(f"{ours:,.0f}")
            cells += ["–", "–"] if peer is None else [f"{peer:,.0f}", f"{ours / peer:.2f}"]
        table.add_row(*cells)
    return table


def use_of_the_gpu(rows: list[Row]) -> Table:
    """How much of the measured rate of a large matrix product the training reaches."""
    table = Table("model", "contender", "matrix product, TFLOP/s", "share reached")
    for model, contender in dict.fromkeys((row["model"], row["contender"]) for row in rows):
        rate = middle(rows, model, contender, "matmul_flops_per_second")
        share = middle(rows, model, contender, "mfu")
        table.add_row(model, contender, f"{rate / 1e12:.0f}", f"{share:.1%}")
    return table


def middle(rows: list[Row], model: str, contender: str, quantity: str) -> Any:
    """The median over the rounds; None where there are none."""
    values = [r[quantity] for r in rows if (r["model"], r["contender"]) == (model, contender)]
    return median(values) if values else None


if __name__ == "__main__":
    main()
