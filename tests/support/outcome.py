"""What a finished run must have whatever interrupted it."""

import csv
import hashlib
from pathlib import Path

from smollm2.runs.run import STEP_TABLES

STEPS = 24
# Columns that may differ between two runs of the same protocol.
CLOCK_COLUMNS = {"seconds", "tokens_per_second", "mfu", "peak_memory_mb"}


def outcome(path: Path) -> dict[str, object]:
    """What must not depend on interruptions: rows without clocks, test scores, weights."""
    weights = (path / "checkpoints/final.safetensors").read_bytes()
    found: dict[str, object] = {"weights": hashlib.sha256(weights).hexdigest()}
    for table in (*STEP_TABLES, "eval", "documents"):
        file = path / f"{table}.csv"
        if file.exists():
            with file.open(newline="") as rows:
                found[table] = [
                    {k: v for k, v in row.items() if k not in CLOCK_COLUMNS}
                    for row in csv.DictReader(rows)
                ]
    return found
