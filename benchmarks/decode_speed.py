"""How fast text is generated, one sequence at a time, beside the same model in transformers.

    python benchmarks/decode_speed.py [--models pow2,orig] [--rounds 3]

Ours is `smollm2.generate.Decoder`, eager and with a compiled layer; its peer is the `generate` of
transformers, greedy, with its KV cache. Both compute in bf16 with random weights, which ours also
quantizes, read the same prompt of 64 tokens and write 64. Reading and writing are timed apart;
loading, compilation and a first short pass are not timed.

Each measurement is a process of its own, and they take turns, so that a machine that slows down
slows all. Medians of the rounds are printed, every round goes to the CSV.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from smollm2.generate import Speed
    from smollm2.model import SmolLM2

COLUMNS = (
    "model", "contender", "round", "prefill_tokens_per_second", "decode_tokens_per_second",
    "prompt", "new", "device", "torch", "threads",
)  # fmt: skip
SPEEDS = ("decode_tokens_per_second", "prefill_tokens_per_second")
# A contender of ours is what its weights are in, and whether the layer is compiled.
PEER, COMPILED = "transformers bf16", " compiled"
CONTENDERS = (
    *(PEER, "bf16", "int8", "int4-g64", "nf4-g64", "llm-int8"),
    *("bf16 compiled", "int8 compiled", "int4-g64 compiled"),
)
Row = dict[str, Any]


def main() -> None:
    options = parse_options()
    if options.measure:
        print(json.dumps(measure(options)))
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
                f"{row['decode_tokens_per_second']:.1f} tokens/s, "
                f"prompt {row['prefill_tokens_per_second']:,.0f}"
            )
    console.print(comparison(rows))


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", default="pow2", help="variants, with commas between")
    parser.add_argument("--contenders", default=",".join(CONTENDERS), help="with commas between")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompt", type=int, default=64, help="tokens")
    parser.add_argument("--new", type=int, default=64, help="tokens")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--csv", type=Path, default=Path("decode_speed.csv"))
    parser.add_argument("--measure", help="measure one contender, in this process")
    return parser.parse_args()


def measurements(options: argparse.Namespace) -> Iterator[Row]:
    """A row for each process, as they end."""
    threads = {"OMP_NUM_THREADS": str(options.threads)}
    for model in options.models.split(","):
        for number in range(options.rounds):
            for contender in options.contenders.split(","):
                command = [sys.executable, *sys.argv, "--measure", contender, "--models", model]
                output = subprocess.run(
                    command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ | threads
                ).stdout
                shared = {"model": model, "contender": contender, "round": number + 1}
                yield shared | json.loads(output.splitlines()[-1])


def measure(options: argparse.Namespace) -> Row:
    """The speed of one contender, in this process."""
    import torch

    from smollm2.device import device_name

    speed = (peer if options.measure == PEER else ours)(options)
    return {
        "prefill_tokens_per_second": speed.prefill_tokens_per_second,
        "decode_tokens_per_second": speed.decode_tokens_per_second,
        "prompt": options.prompt,
        "new": options.new,
        "device": device_name(options.device),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }


def ours(options: argparse.Namespace) -> "Speed":
    from smollm2.generate import Decoder, measure_speed

    weights = options.measure.removesuffix(COMPILED)
    model = model_in(weights, options.models).to(options.device).eval()
    decoder = Decoder(model, options.prompt + options.new, options.measure != weights)
    return measure_speed(decoder, options.prompt, options.new)


def model_in(weights: str, name: str) -> "SmolLM2":
    """The variant `name` with its weights in `weights`: bf16, or as `QuantConfig.name` says."""
    from smollm2 import SmolLM2, variant
    from smollm2.quantize.config import QuantConfig
    from smollm2.quantize.convert import assemble, quantize

    model = SmolLM2(variant(name)).bfloat16()
    if weights == "bf16":
        return model
    config = QuantConfig.of(weights)
    return assemble(model.config, config, quantize(model, config), model.dtype)


def peer(options: argparse.Namespace) -> "Speed":
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from smollm2 import variant
    from smollm2.generate import Speed
    from smollm2.hf import hf_config

    config = AutoConfig.for_model(**hf_config(variant(options.models), "bfloat16"))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model = model.to(options.device).eval()
    tokens = torch.arange(options.prompt, device=options.device)[None]

    def seconds(n_new: int) -> float:
        start = time.perf_counter()
        out = model.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            do_sample=False,
            use_cache=True,
            max_new_tokens=n_new,
            pad_token_id=0,
        )
        assert out.shape[1] == options.prompt + n_new
        out.cpu()  # waits for a GPU
        return time.perf_counter() - start

    seconds(4)
    reading = seconds(1)
    return Speed(options.prompt / reading, options.new / (seconds(1 + options.new) - reading))


def comparison(rows: list[Row]) -> Table:
    """Medians side by side, and their ratios to the peer's."""
    table = Table(title=f"{rows[0]['new']} tokens after {rows[0]['prompt']}, medians")
    for column in ("model", "contender", "tokens/s", "ratio", "prompt tokens/s", "ratio"):
        table.add_column(column, justify="left" if column in ("model", "contender") else "right")
    for model, contender in dict.fromkeys((row["model"], row["contender"]) for row in rows):
        cells = []
        for quantity in SPEEDS:
            speed = middle(rows, model, contender, quantity)
            theirs = middle(rows, model, PEER, quantity)
            cells += [f"{speed:,.1f}", "–" if theirs is None else f"{speed / theirs:.2f}"]
        table.add_row(model, contender, *cells)
    return table


def middle(rows: list[Row], model: str, contender: str, quantity: str) -> Any:
    """The median over the rounds; None where there are none."""
    values = [r[quantity] for r in rows if (r["model"], r["contender"]) == (model, contender)]
    return median(values) if values else None


if __name__ == "__main__":
    main()
