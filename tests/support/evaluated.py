"""What `smolctl eval` says about a run."""

import json

from support.command import run_main


def evaluated(capsys, *options) -> list[dict]:
    """The rows that eval prints for the run `first`."""
    code, out, err = run_main(capsys, "eval", "first", *map(str, options), "--json")
    assert code == 0, err
    return json.loads(out)


def values(rows) -> dict[tuple[str, str], float]:
    return {(row["task"], row["metric"]): row["value"] for row in rows}
