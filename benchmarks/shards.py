"""Speed and memory of `prepare` in shards, compared with raw batch encoding of the same text.

    python benchmarks/shards.py FOLDER [--gigabytes 1] [--shards 16] [--rounds 1]

FOLDER gets the text, one file of JSONL, and a tokenizer, unless it has them: documents of 300 words
drawn from those of Python's own sources, as often as they occur there. Each way reads the text from
the disk. Raw encoding is timed without that, in the batches that `prepare` encodes, and discards
the tokens; the time of `prepare` includes all it does. Other work of the machine changes seconds of
the processor, of all cores together, less than the rate. With two processes, peak RSS is that of
the larger one. A MB is 10^6 bytes of UTF-8 text.
"""

import argparse
import json
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import side_by_side
from side_by_side import Row

CONTENDERS = ("prepare", "prepare in two processes", "raw")
WORDS_OF_A_DOCUMENT = 300
TOKENIZER_SIZE, TOKENIZER_DOCUMENTS = 16_384, 20_000
PREPARE = (
    "import sys; from pathlib import Path; from smollm2.data import prepare\n"
    "prepare(sys.argv[1], sys.argv[2], out=Path(sys.argv[3]), shards=int(sys.argv[4]))"
)


def main() -> None:
    parser = side_by_side.parser(__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--gigabytes", type=float, default=1)
    parser.add_argument("--shards", type=int, default=16)
    parser.set_defaults(rounds=1)
    options = side_by_side.start(parser, measure)
    make_text(options.folder, options.gigabytes)
    work = f"synthetic text, {options.gigabytes:g} GB"
    side_by_side.run(options, {work: CONTENDERS}, ["mb_per_second", "processor_seconds_per_mb"])


def make_text(folder: Path, gigabytes: float) -> None:
    """The text and its tokenizer, where they are missing."""
    import numpy as np

    from smollm2.data import documents, train_tokenizer

    folder.mkdir(parents=True, exist_ok=True)
    path = text_of(folder, gigabytes)
    counts = Counter(word for text in documents("builtin") for word in re.findall(r"\w+", text))
    words = np.array(list(counts), dtype=object)
    shares = np.array(list(counts.values())) / counts.total()
    random = np.random.default_rng(0)

    def texts():
        while True:
            drawn = random.choice(words, (1000, WORDS_OF_A_DOCUMENT), p=shares)
            yield from (" ".join(row) + "." for row in drawn)

    if not path.exists():
        with path.with_suffix(".part").open("w") as file:
            for text in texts():
                file.write(json.dumps({"text": text}) + "\n")
                if file.tell() >= gigabytes * 1e9:
                    break
        path.with_suffix(".part").rename(path)
    if not (folder / "tokenizer.json").exists():
        some = (text for text, _ in zip(texts(), range(TOKENIZER_DOCUMENTS), strict=False))
        train_tokenizer(TOKENIZER_SIZE, some).save(str(folder / "tokenizer.json"))


def text_of(folder: Path, gigabytes: float) -> Path:
    return folder / f"synthetic-{gigabytes:g}gb.jsonl"


def measure(work: str, contender: str, options: argparse.Namespace) -> Row:
    path = text_of(options.folder, options.gigabytes)
    if contender == "raw":
        return raw(path, options.folder)
    return prepared(path, options, 2 if "two" in contender else 1)


def prepared(path: Path, options: argparse.Namespace, n_processes: int) -> Row:
    """`prepare` in so many processes at once, into a temporary folder beside the text."""
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        out = Path(folder, "out")
        command = [sys.executable, "-c", PREPARE, path, options.folder, out, str(options.shards)]
        start = time.perf_counter()
        processes = [subprocess.Popen(command) for _ in range(n_processes)]
        for process in processes:
            if process.wait():
                raise subprocess.CalledProcessError(process.returncode, command)
        seconds = time.perf_counter() - start
        splits = json.loads((out / "data.json").read_text())["splits"].values()
    n_bytes = sum(split["bytes"] for split in splits)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    peak = used.ru_maxrss * 1024 / 1e6
    return rates(n_bytes, seconds, used.ru_utime + used.ru_stime) | {"peak_rss_mb": peak}


def raw(path: Path, tokenizer: Path) -> Row:
    """Encoding alone, of the batches that `prepare` makes of the text."""
    from smollm2.data import documents, load_tokenizer
    from smollm2.data.encode import cut, in_batches

    loaded = load_tokenizer(str(tokenizer))
    pieces = (piece for text in documents(str(path)) for piece in cut([("train", text)]))
    n_bytes = seconds = processor_seconds = 0.0
    for batch in in_batches(pieces):
        texts = [piece.text for piece in batch]
        n_bytes += sum(len(text.encode()) for text in texts)
        start, started_with = time.perf_counter(), time.process_time()
        loaded.encode_batch_fast(texts, add_special_tokens=False)
        seconds += time.perf_counter() - start
        processor_seconds += time.process_time() - started_with
    return rates(n_bytes, seconds, processor_seconds)


def rates(n_bytes: float, seconds: float, processor_seconds: float) -> Row:
    """The row of a measurement."""
    return {
        "mb_per_second": n_bytes / 1e6 / seconds,
        "processor_seconds_per_mb": processor_seconds / (n_bytes / 1e6),
    }


if __name__ == "__main__":
    main()
