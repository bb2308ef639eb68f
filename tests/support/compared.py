"""What `smolctl compare --json` prints."""

import json

from support.command import run_main


def compared(capsys, *arms, study="s") -> dict:
    code, out, err = run_main(capsys, "compare", *arms, "--study", study, "--json")
    assert code == 0, err
    return json.loads(out)


def primary(found: dict) -> dict[str, dict]:
    """The difference of the primary metric by arm, in what `compared` gives."""
    return {row["arm"]: row for row in found["differences"] if row["primary"]}
