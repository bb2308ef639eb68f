"""What share of a study's time is training steps.

    python benchmarks/study_overhead.py [CORPUS] [--runs 20] [--steps 200]

Two arms of 2.5 M parameters, half of the runs each, on a text that is not prepared yet and with an
empty cache: start, preparing, measuring, compiling, validation, the final test and writing are the
rest. `share` is the time of the steps by the runs' own clocks, without the first two of each run,
over the wall clock times the runs that were trained at once.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import side_by_side

STUDY = """
[train]
scale = "nano"
steps = {steps}
data = {data}
micro_batch_size = 4

[arms.orig]
variant = "orig:n_layers=8,d_ff=424"
seeds = {seeds}

[arms.pow2]
variant = "pow2-135m:n_layers=8"
seeds = {seeds}
"""


def main() -> None:
    parser = side_by_side.parser(__doc__)
    parser.add_argument("corpus", nargs="?", default="builtin")
    parser.add_argument("--runs", type=int, default=20, help="an even number")
    parser.add_argument("--steps", type=int, default=200)
    parser.set_defaults(rounds=1)
    options = side_by_side.start(parser, measure)
    if options.runs < 2 or options.runs % 2:
        parser.error("--runs takes an even number: two arms have half of them each.")
    work = f"study of {options.runs} runs of {options.steps} steps"
    side_by_side.run(options, {work: ("ours",)}, ["seconds", "at_once", "share"])


def measure(work: str, contender: str, options: argparse.Namespace) -> side_by_side.Row:
    with tempfile.TemporaryDirectory() as folder:
        corpus = options.corpus
        data = json.dumps(str(Path(corpus).resolve()) if Path(corpus).exists() else corpus)
        seeds = list(range(options.runs // 2))
        file = Path(folder, "study.toml")
        file.write_text(STUDY.format(steps=options.steps, data=data, seeds=seeds))
        environment = os.environ | {"SMOLCTL_CACHE": str(Path(folder, "cache"))}
        environment |= {"TORCHINDUCTOR_CACHE_DIR": str(Path(folder, "code"))}
        command = [sys.executable, "-m", "smolctl", "study", str(file)]
        start = time.perf_counter()
        subprocess.run(command, check=True, cwd=folder, env=environment, stdout=subprocess.DEVNULL)
        wall = time.perf_counter() - start
        runs = list(Path(folder).glob("results/study/*/run.json"))
        at_once = max(json.loads(run.read_text()).get("at_once", 1) for run in runs)
        trained = sum(seconds_of(run.with_name("train.csv")) for run in runs)
    row = {"seconds": wall, "at_once": at_once, "share": trained / (wall * at_once)}
    return row | {"peak_rss_mb": None}  # of this process, which trains nothing


def seconds_of(table: Path) -> float:
    """Of all steps of a run."""
    with table.open(newline="") as file:
        *_, last = csv.DictReader(file)
    return float(last["seconds"])


if __name__ == "__main__":
    main()
