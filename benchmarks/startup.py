"""Time of `smolctl --help`, and time to the first training step.

    python benchmarks/startup.py [CORPUS] [--rounds 5]

`--help` is compared with that of an empty Typer app. `train` is a nano `pow2` on tokens of CORPUS
(default `builtin`) that were prepared before, without compilation: from the start of the process to
the first row of train.csv. Its goal of 6 seconds has no peer.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import side_by_side

EMPTY_APP = """
import typer

app = typer.Typer()


@app.command()
def nothing() -> None:
    pass


app()
"""
TRAIN = "train --variant pow2 --scale nano --steps 3 --no-compile"
CONTENDERS = {"help": ("ours", "empty Typer app"), "first step, nano": ("ours",)}


def main() -> None:
    parser = side_by_side.parser(__doc__)
    parser.add_argument("corpus", nargs="?", default="builtin")
    parser.set_defaults(rounds=5)
    options = side_by_side.start(parser, measure)
    side_by_side.run(options, CONTENDERS, ["seconds"])


def measure(work: str, contender: str, options: argparse.Namespace) -> side_by_side.Row:
    with tempfile.TemporaryDirectory() as folder:
        if work != "help":
            return {"seconds": first_step(options.corpus, Path(folder))}
        app = Path(folder, "app.py")
        app.write_text(EMPTY_APP)
        what = ["-m", "smolctl"] if contender == "ours" else [str(app)]
        command = [sys.executable, *what, "--help"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)  # its files are cached then
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return {"seconds": time.perf_counter() - start}


def first_step(corpus: str, folder: Path) -> float:
    """Seconds to the first row of train.csv."""
    smolctl = [sys.executable, "-m", "smolctl"]
    tokens, results = folder / "tokens", folder / "results"
    prepare = ["prepare", "--data", corpus, "--tokenizer", "train:4096", "--out", str(tokens)]
    subprocess.run([*smolctl, *prepare], check=True, stdout=subprocess.DEVNULL)
    train = [*smolctl, *TRAIN.split(), "--data", str(tokens), "--results", str(results)]
    start = time.perf_counter()
    process = subprocess.Popen(train, stdout=subprocess.DEVNULL)
    while rows(results) < 1:
        if process.poll():
            raise subprocess.CalledProcessError(process.returncode, train)
        time.sleep(0.005)
    seconds = time.perf_counter() - start
    process.wait()
    return seconds


def rows(results: Path) -> int:
    """Steps in the train.csv of the only run."""
    return sum(file.read_text().count("\n") - 1 for file in results.glob("*/*/train.csv"))


if __name__ == "__main__":
    main()
