"""Speed of `prepare`, compared with raw batch encoding by `tokenizers` of the same text.

    python benchmarks/tokenization.py --data DATA [--rounds 2]

DATA is a folder with `corpus/novels.jsonl.gz` and `tokenizer/`, by default $SMOLCTL_DATA. The time
of `prepare` includes reading, hashing and writing. Raw encoding has the whole corpus in memory
before its clock starts, and discards the tokens; it is measured with whole documents, eight at a
time, and with the pieces that `prepare` cuts them into. A MB is 10^6 bytes of UTF-8 text.
"""

import argparse
import tempfile
import time
from pathlib import Path

import side_by_side
from side_by_side import Row

CONTENDERS = {"novels": ("prepare", "raw documents", "raw pieces")}


def main() -> None:
    parser = side_by_side.parser(__doc__)
    side_by_side.add_data(parser)
    parser.set_defaults(rounds=2)
    options = side_by_side.start(parser, measure)
    side_by_side.run(options, CONTENDERS, ["mb_per_second"])


def measure(work: str, contender: str, options: argparse.Namespace) -> Row:
    from smollm2.data import documents

    corpus, tokenizer = options.data / f"corpus/{work}.jsonl.gz", options.data / "tokenizer"
    megabytes = sum(len(text.encode()) for text in documents(str(corpus))) / 1e6
    way = prepare_seconds if contender == "prepare" else raw_seconds
    return {"mb_per_second": megabytes / way(str(corpus), str(tokenizer), contender)}


def prepare_seconds(corpus: str, tokenizer: str, contender: str) -> float:
    """Seconds to prepare `corpus`, into a temporary folder."""
    from smollm2.data import prepare

    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        prepare(corpus, tokenizer, out=Path(folder, "out"))
        return time.perf_counter() - start


def raw_seconds(corpus: str, tokenizer: str, contender: str) -> float:
    """Seconds to encode the texts of `corpus`, already in memory."""
    from smollm2.data import documents, load_tokenizer
    from smollm2.data.encode import cut, in_batches

    texts = list(documents(corpus))
    batches = [texts[i : i + 8] for i in range(0, len(texts), 8)]
    if contender == "raw pieces":
        pieces = (piece for text in texts for piece in cut([("train", text)]))
        batches = [[piece.text for piece in batch] for batch in in_batches(pieces)]
    loaded = load_tokenizer(tokenizer)
    start = time.perf_counter()
    for batch in batches:
        loaded.encode_batch_fast(batch, add_special_tokens=False)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
