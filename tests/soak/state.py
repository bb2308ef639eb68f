"""The state of a folder as far as it may not depend on interruptions: files without clocks."""

import csv
import hashlib
import io
import json
import re
from pathlib import Path
from typing import Any

from support.outcome import CLOCK_COLUMNS

# Of JSON. The commit changes when the source does, which may be worked on meanwhile.
CLOCK_FIELDS = {"created_at", "finished_at", "seconds", "matmul_flops_per_second", "git_commit"}
CLOCK_FIELDS |= {"planned_at", "first_result_at", "at", "checksum"}  # of a ledger
CACHE_KEY = re.compile(r"(corpus\.jsonl)-[0-9a-f]{16}")  # of the corpus's path and time
TEMPORARY = re.compile(r"\.tmp\b|^\.")


def state(work: Path, *, parse: bool = True) -> dict[str, str]:
    """The hash of each file by its path in `work`, with a `/` for an empty folder.

    Args:
        parse: whether clocks are taken out of JSON and CSV. Otherwise the bytes count, and the
            cache does not.
    """
    found = {}
    for path in sorted(work.rglob("*")):
        name = CACHE_KEY.sub(r"\1-KEY", str(path.relative_to(work)))
        if name.startswith("cache") and not parse:
            continue
        if path.is_symlink() or not path.is_dir():
            found[name] = digest(path) if parse else hashlib.sha256(path.read_bytes()).hexdigest()
        elif not any(path.iterdir()):
            found[f"{name}/"] = ""
    return found


def digest(path: Path) -> str:
    """The hash of what a file says apart from clocks."""
    content = path.read_bytes()
    if path.suffix == ".json":
        content = json.dumps(without_clocks(json.loads(content))).encode()
    elif path.suffix == ".csv":
        content = json.dumps(rows(content.decode())).encode()
    return hashlib.sha256(content).hexdigest()[:16]


def rows(text: str) -> list[dict[str, str]]:
    """The rows of a table, without columns of time."""
    table = csv.DictReader(io.StringIO(text, newline=""))
    return [{name: v for name, v in row.items() if name not in CLOCK_COLUMNS} for row in table]


def without_clocks(value: Any) -> Any:
    """A value of JSON without the fields that hold times."""
    if isinstance(value, dict):
        return {k: without_clocks(v) for k, v in value.items() if k not in CLOCK_FIELDS}
    return [without_clocks(each) for each in value] if isinstance(value, list) else value


def difference(expected: dict[str, str], found: dict[str, str]) -> str | None:
    """What is missing, left over or different; None if nothing is."""
    missing, extra = expected.keys() - found.keys(), found.keys() - expected.keys()
    changed = {name for name in expected.keys() & found.keys() if expected[name] != found[name]}
    parts = [
        f"{what}: {', '.join(sorted(names))}"
        for what, names in (("missing", missing), ("left over", extra), ("different", changed))
        if names
    ]
    return "; ".join(parts) or None


def temporaries(work: Path) -> list[str]:
    """The hidden and temporary files in a folder."""
    return sorted(
        str(path.relative_to(work)) for path in work.rglob("*") if TEMPORARY.search(path.name)
    )
