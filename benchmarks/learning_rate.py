"""Choose the default learning rate: short runs of every variant over a grid, on validation.

    python benchmarks/learning_rate.py --data novels.jsonl.gz

Adds one row a run to benchmarks/learning_rate.csv and skips what is there, so it can be stopped
and started again.
"""

import csv
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from smollm2.data import prepare
from smollm2.errors import RunError
from smollm2.protocol import Request, resolve
from smollm2.runs import create_run
from smollm2.train import Observer, train

COLUMNS = (
    "variant", "scale", "lr", "seed", "steps", "tokens_per_step", "data", "dtype",
    "validation_loss", "largest_rise",
)  # fmt: skip

OUT = Path(__file__).with_suffix(".csv")


def measure(request: Request, data_source: str, tokenizer: str) -> dict[str, object]:
    """One run: its final validation loss, and how far the training loss ever rose again.

    largest_rise: the largest mean loss of ten steps minus the smallest such mean before it.
    """
    data = prepare(data_source, tokenizer)
    protocol = resolve(request).on(data)
    row: dict[str, object] = {
        "variant": request.variant,
        "scale": request.scale,
        "lr": request.lr,
        "seed": request.seed,
        "steps": protocol.steps,
        "tokens_per_step": protocol.tokens_per_step,
        "data": data.source,
        "dtype": protocol.dtype,
    }
    with TemporaryDirectory() as folder:
        run = create_run(Path(folder), "lr", "run", request, protocol)
        try:
            train(run, data, Observer())
        except RunError:  # the loss is not finite: that is the finding
            return row | {"validation_loss": "", "largest_rise": "inf"}
        means = run.table("train")["loss"].rolling(10).mean().dropna()
        return row | {
            "validation_loss": float(run.table("val")["loss"].iloc[-1]),
            "largest_rise": round(float((means - means.cummin()).max()), 4),
        }


def main(
    data: str,
    variants: str = "orig,orig-174m,pow2,pow2-135m,moe-160m",
    rates: str = "5e-4,1e-3,2e-3,4e-3,8e-3",
    seeds: str = "100,101",
    scale: str = "nano",
    steps: int = 300,
    batch_size: int = 4,
    seq_len: Annotated[int, typer.Option(help="0 for the scale's default.")] = 0,
    tokenizer: str = "train:4096",
    out: Path = OUT,
) -> None:
    done = set()
    if out.exists():
        with out.open(newline="") as file:
            done = {
                (
                    row["variant"],
                    row["scale"],
                    float(row["lr"]),
                    int(row["seed"]),
                    int(row["steps"]),
                )
                for row in csv.DictReader(file)
            }
    for seed in seeds.split(","):
        for rate in rates.split(","):
            for variant in variants.split(","):
                if (variant, scale, float(rate), int(seed), steps) in done:
                    continue
                request = Request(
                    variant,
                    scale,
                    steps=steps,
                    lr=float(rate),
                    seed=int(seed),
                    batch_size=batch_size,
                    seq_len=seq_len or None,
                    test_tokens=1,
                )
                row = measure(request, data, tokenizer)
                typer.echo(row)
                with out.open("a", newline="") as file:
                    writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
                    if file.tell() == 0:
                        writer.writeheader()
                    writer.writerow(row)


if __name__ == "__main__":
    typer.run(main)
