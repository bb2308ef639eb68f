"""Choose the default learning rate: short runs of every variant over a grid, on validation.

    python benchmarks/learning_rate.py novels.jsonl.gz

Adds one row per run to benchmarks/learning_rate.csv and skips existing ones, so it can be stopped
and started again.
"""

import csv
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import pandas as pd
import typer

from smollm2.data import TokenData, prepare
from smollm2.protocol.resolve import resolve
from smollm2.protocol.run_config import RunConfig
from smollm2.runs.create import create_run
from smollm2.training.loop import Observer, train
from smollm2.training.trainer import NotFinite

WHAT = ("variant", "scale", "lr", "seed", "steps", "tokens_per_step", "data", "dtype")
COLUMNS = (*WHAT, "validation_loss", "largest_rise")
OUT = Path(__file__).with_suffix(".csv")


def measure(request: RunConfig, data: TokenData) -> dict[str, object]:
    """One run: its final validation loss, and the largest rise of its training loss.

    largest_rise: the largest mean loss of ten steps minus the smallest such mean before it.
    """
    protocol = resolve(request).on(data)
    with TemporaryDirectory() as folder:
        run = create_run(Path(folder), "lr", "run", request, protocol)
        try:
            train(run, data, Observer())
        except NotFinite:  # that is the finding
            return {"validation_loss": "", "largest_rise": "inf"}
        means = run.table("train")["loss"].rolling(10).mean().dropna()
        return {
            "validation_loss": float(run.table("val")["loss"].iloc[-1]),
            "largest_rise": round(float((means - means.cummin()).max()), 4),
        }


def what(request: RunConfig, data: TokenData) -> dict[str, str]:
    """The cells that identify a run."""
    protocol = resolve(request)
    cells = (
        *(request.variant, request.scale, request.lr, request.seed, protocol.steps),
        *(protocol.tokens_per_step, data.source, protocol.dtype),
    )
    return dict(zip(WHAT, map(str, cells), strict=True))


def main(
    corpus: str,
    variants: str = "orig,orig-174m,pow2,pow2-135m,moe-160m",
    rates: str = "1e-3,2e-3,3e-3,4e-3",
    seeds: str = "100,101",
    scale: str = "nano",
    steps: int = 300,
    micro_batch_size: int = 4,
    seq_len: Annotated[int, typer.Option(help="0 for the scale's default.")] = 0,
    tokenizer: str = "train:4096",
    out: Path = OUT,
) -> None:
    data = prepare(corpus, tokenizer)
    rows = list(csv.DictReader(out.read_text().splitlines())) if out.exists() else []
    done = [{column: row[column] for column in WHAT} for row in rows]
    for seed, rate, variant in product(seeds.split(","), rates.split(","), variants.split(",")):
        request = RunConfig(
            variant,
            scale,
            steps=steps,
            lr=float(rate),
            seed=int(seed),
            micro_batch_size=micro_batch_size,
            seq_len=seq_len or None,
            test_tokens=1,
        )
        cells = what(request, data)
        if cells in done:
            continue
        row = cells | measure(request, data)
        typer.echo(row)
        with out.open("a", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            if file.tell() == 0:
                writer.writeheader()
            writer.writerow(row)
    table = pd.read_csv(out)
    by = ["scale", "tokens_per_step", "steps", "variant"]
    typer.echo(table.pivot_table(values="validation_loss", index=by, columns="lr").round(3))


if __name__ == "__main__":
    typer.run(main)
