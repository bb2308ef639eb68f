"""Simulates the error rates of the verdicts and writes the table of docs/statistics.md; minutes.

    python benchmarks/simulations.py [STUDIES]

STUDIES of every design, 50,000 by default; a fifth of them of most grids of tuning and of ladders,
which take longer.
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from support.simulated_cases import GROUPS, Rates, rates_of  # noqa: E402

PAGE = ROOT / "docs" / "statistics.md"
SLOWER = {"tuning": 5, "growing": 5, "ladders": 5, "tuned_ladders": 5}
MARKS = ("<!-- simulations: begin -->", "<!-- simulations: end -->")


def table(studies: int) -> str:
    """A row per group: the worst shares over its designs."""
    rows = [
        "| simulated | designs | studies of each | most false verdicts | least coverage |",
        "|:--|--:|--:|--:|--:|",
    ]
    for group, simulations in GROUPS.items():
        part = studies // SLOWER.get(simulations.__name__, 1)
        rows.append(row(group, rates_of(group, part)))
    return "\n".join(rows)


def row(group: str, found: Rates) -> str:
    false = "–" if found.false is None else f"{100 * found.false:.1f} %"
    numbers = (str(found.designs), f"{found.studies:,}", false, f"{100 * found.covered:.1f} %")
    return f"| {' | '.join((group, *numbers))} |"


if __name__ == "__main__":
    begin, end = MARKS
    made = table(int(sys.argv[1]) if len(sys.argv) > 1 else 50_000)
    text = PAGE.read_text(encoding="utf-8")
    pattern = re.escape(begin) + ".*" + re.escape(end)
    if not re.search(pattern, text, flags=re.DOTALL):
        raise SystemExit(f"{PAGE} lacks the marks {begin} and {end}.")
    page = re.sub(pattern, lambda _: f"{begin}\n{made}\n{end}", text, flags=re.DOTALL)
    PAGE.write_text(page, encoding="utf-8")
