"""How fast `prepare` is, beside the raw batch encoding of `tokenizers` on the same text.

    python benchmarks/tokenization.py CORPUS TOKENIZER [--rounds 3]

Each measurement is a process of its own, the three take turns and the best round of each counts,
so that other work on the machine does not decide the comparison. The time of `prepare` includes
reading, hashing and writing. Raw encoding has the whole corpus in memory before its clock starts,
and throws the tokens away; it is measured with whole documents and with the pieces that `prepare`
cuts them into.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from smollm2.data import documents, load_tokenizer, prepare
from smollm2.data.prepare import _batches, _pieces

WAYS = ("prepare", "raw pieces", "raw documents")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("corpus")
    parser.add_argument("tokenizer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--measure", choices=WAYS, help="measure one way, in this process")
    options = parser.parse_args()
    if options.measure:
        measure = measure_prepare if options.measure == "prepare" else measure_raw
        print(measure(options.corpus, options.tokenizer, options.measure), peak_megabytes())
        return
    size = sum(len(text.encode()) for text in documents(options.corpus)) / 1e6
    results: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
    for _ in range(options.rounds):
        for way in WAYS:
            command = [sys.executable, *sys.argv, "--measure", way]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            seconds, peak = map(float, output.split())
            results[way].append((size / seconds, peak))
    rates = {way: max(rate for rate, _ in results[way]) for way in WAYS}
    print(f"{size:.1f} MB of text, the best of {options.rounds} rounds")
    for way in WAYS:
        peak, share = max(peak for _, peak in results[way]), rates["prepare"] / rates[way]
        print(f"{way:14} {rates[way]:6.2f} MB/s, peak {peak:5.0f} MB; prepare is {share:.0%} of it")


def measure_prepare(corpus: str, tokenizer: str, way: str) -> float:
    """Seconds to prepare `corpus`, into a folder that is thrown away."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        prepare(corpus, tokenizer, out=Path(folder, "out"))
        return time.perf_counter() - start


def measure_raw(corpus: str, tokenizer: str, way: str) -> float:
    """Seconds to encode the texts of `corpus`, already in memory."""
    texts = list(documents(corpus))
    batches = [texts[i : i + 8] for i in range(0, len(texts), 8)]
    if way == "raw pieces":
        pieces = (piece for text in texts for piece in _pieces([("train", text)]))
        batches = [[piece.text for piece in batch] for batch in _batches(pieces)]
    loaded = load_tokenizer(tokenizer)
    start = time.perf_counter()
    for batch in batches:
        loaded.encode_batch_fast(batch, add_special_tokens=False)
    return time.perf_counter() - start


def peak_megabytes() -> float:
    """Peak resident memory of this process (Linux; rusage would count the parent's as well)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1000
    return float("nan")


if __name__ == "__main__":
    main()
