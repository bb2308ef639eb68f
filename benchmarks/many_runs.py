"""Time of the commands that read a whole study, for a study of 500 runs.

    python benchmarks/many_runs.py [--runs 500] [--rounds 3]
    python benchmarks/many_runs.py --keep FOLDER [--tasks]

The study has copies of runs of results/nano-main: four arms, one of them a mixture of experts, each
tuned at four learning rates with six seeds; the other runs are final ones. A run has 1000 steps,
sums over 40 documents, and in `with tasks` the scores of six tasks, question by question. Its
losses are those of the original plus noise. Making the study is not timed. There is no peer:
`seconds` is the wall clock of a command from the start of its process, `cpu_seconds` the processor
time of all of its threads. With --keep the study is only made, in FOLDER/results/many.
"""

import argparse
import csv
import io
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import side_by_side

ROOT = Path(__file__).resolve().parents[1]
STUDY = "many"
ARMS = ("orig", "pow2", "pow2-135m", "moe-160m")
RATES = (0.001, 0.002, 0.004, 0.008)
TUNING_SEEDS = tuple(range(1000, 1006))
DOCUMENTS = 40  # of the final test
NOISE = 0.01  # of a loss, in nats/token
FLOORS = {"tokens": 1_024_000, "unigram": 6.571, "trigram": 5.0, "text": "scored"}
TRAIN = '[train]\nscale = "nano"\nsteps = 1000\ndata = "novels.jsonl.gz"\n'
REPORT = ("report", "--out", "card.md", "--appendix", "appendix.md", "--html", "card.html")
COMMANDS = {
    "compare": ("compare",),
    "compare, as JSON": ("compare", "--json"),
    "report": REPORT,
    "runs list": ("runs", "list"),
    "compare, with tasks": ("compare",),
    "report, with tasks": REPORT,
}


def main() -> None:
    parser = side_by_side.parser(__doc__)
    parser.add_argument("--runs", type=int, default=500, help="of the study, with its tuning")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="only make the study there")
    parser.add_argument("--tasks", action="store_true", help="with --keep: with scores of tasks")
    options = side_by_side.start(parser, measure)
    if options.keep:
        plant_study(options.keep, options.runs, with_tasks=options.tasks)
        return
    works = dict.fromkeys(COMMANDS, ("ours",))
    side_by_side.run(options, works, ["seconds", "cpu_seconds"])


def measure(work: str, contender: str, options: argparse.Namespace) -> side_by_side.Row:
    with tempfile.TemporaryDirectory() as folder:
        plant_study(Path(folder), options.runs, with_tasks=work.endswith("tasks"))
        study = (STUDY,) if work == "runs list" else ("--study", STUDY)
        command = [sys.executable, "-m", "smolctl", *COMMANDS[work], *study]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        with Path(folder, "output").open("w") as output:
            before, start = cpu_seconds(), time.perf_counter()
            subprocess.run(command, check=True, cwd=folder, env=environment, stdout=output)
            seconds = time.perf_counter() - start
    return {"seconds": seconds, "cpu_seconds": cpu_seconds() - before}


def cpu_seconds() -> float:
    """Processor time of the processes that this one has started and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def plant_study(folder: Path, runs: int, *, with_tasks: bool) -> None:
    """Make the study in `folder`/results; every final run is planned in its ledger."""
    from smolctl.analysis.study_plan import Ledger, StudyPlan, TuningPlan
    from smolctl.studies.ledger import results_of_runs, write_ledger
    from smollm2.runs.packed import read_files
    from smollm2.runs.run import list_runs

    files, noise = read_files(ROOT / "results/nano-main"), random.Random(0)
    study = folder / "results" / STUDY
    n_tuning = len(ARMS) * len(RATES) * len(TUNING_SEEDS)
    seeds = tuple(range((runs - n_tuning) // len(ARMS)))
    copies = {
        f"{arm}-lr{rate:g}-s{seed}": (f"{arm}-lr{rate:g}-s{100 + seed % 2}", seed)
        for arm in ARMS
        for rate in RATES
        for seed in TUNING_SEEDS
    }
    copies |= {f"{arm}-s{seed}": (f"{arm}-s{seed % 3}", seed) for arm in ARMS for seed in seeds}
    for name, (original, seed) in copies.items():
        begin = f"{original}/"
        kept = {path: files[path] for path in files if path.startswith(begin)}
        own = {path.removeprefix(begin): content for path, content in kept.items()}
        for path, content in changed(own, name, seed, noise.gauss(0, NOISE), with_tasks).items():
            (study / name / path).parent.mkdir(parents=True, exist_ok=True)
            (study / name / path).write_bytes(content)
    plan = StudyPlan(
        dict.fromkeys(ARMS, seeds),
        (len(seeds),),
        0.01,
        True,
        tuning=TuningPlan(RATES, TUNING_SEEDS),
    )
    results = results_of_runs(list_runs(study.parent, STUDY)[0])
    first = min(result.finished_at for result in results.values())
    write_ledger(study, Ledger("2000-01-01", first, plan, results, ()))
    arms = [f'[arms."{arm}"]\nvariant = "{arm}"\nseeds = {[*seeds]}\n' for arm in ARMS]
    (study / "study.toml").write_text("\n".join(["margin = 0.01\n", *arms, TRAIN]))


def changed(
    files: Mapping[str, bytes], name: str, seed: int, noise: float, with_tasks: bool
) -> dict[str, bytes]:
    """The files of a run as those of the run `name`, by path."""
    from smollm2.runs.conditions import upgraded

    manifest = json.loads(files["run.json"])
    manifest |= {"name": name, "floors": FLOORS}
    manifest["protocol"] |= {"seed": seed, "data_seed": seed}
    train, val = (rows_of(files[path].decode()) for path in ("train.csv", "val.csv"))
    scores = rows_of(upgraded(files["eval.csv"].decode(), "eval.csv"))
    text = [row for row in scores if row["suite"] == "final-test"]
    for row in (*train, *val, *(row for row in text if row["metric"] == "loss")):
        column = "value" if "value" in row else "loss"
        row[column] = float(row[column]) + noise
    for row in text:
        row["clusters"] = DOCUMENTS
    made = {
        "run.json": json.dumps(manifest, indent=2).encode(),
        "train.csv": csv_of(train),
        "val.csv": csv_of(val),
    }
    if manifest["role"] == "final":
        made["documents.csv"] = csv_of(document_sums(text))
    else:
        for row in text:  # those of a tuning are of the validation split
            row |= {"task": "validation", "suite": "final-validation", "split": "validation"}
    made["eval.csv"] = csv_of(scores if with_tasks else text)
    rest = ("tokenizer.json", "experts.csv", *(["items/"] if with_tasks else []))
    return made | {path: files[path] for path in files if path.startswith(rest)}


def document_sums(scores: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of documents.csv that add up to the final test: documents of equal length and loss."""
    found = {row["metric"]: float(row["value"]) for row in scores}
    size = int(scores[0]["n"]) // DOCUMENTS
    sizes = [size] * (DOCUMENTS - 1) + [int(scores[0]["n"]) - size * (DOCUMENTS - 1)]
    return [
        {"document": number, "n_tokens": size, "nats": found["loss"] * size}
        | {"hits": size // 5, "text_nats": found["loss"] * size, "n_bytes": 4 * size}
        for number, size in enumerate(sizes)
    ]


def rows_of(text: str) -> list[dict[str, Any]]:
    return list(csv.DictReader(io.StringIO(text)))


def csv_of(rows: list[dict[str, Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


if __name__ == "__main__":
    main()
