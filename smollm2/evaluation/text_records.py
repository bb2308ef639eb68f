"""The scores of held-out text behind a row of eval.csv, read back window by window."""

import math
from collections.abc import Mapping
from typing import Any

from smollm2.data import spread_windows
from smollm2.errors import UserError
from smollm2.evaluation.score_file import ScoreFile
from smollm2.evaluation.text import TextScore
from smollm2.runs.conditions import SPREAD_TEXT
from smollm2.runs.tables import TableFolder

TOLERANCE = 1e-9  # relative, of sums in another order


def recorded_text(tables: TableFolder, row: Mapping[str, Any]) -> list[TextScore]:
    """The scores of the windows behind a row of eval.csv.

    Args:
        row: of the metric `loss`, in the suite `text` or `spread-text`.

    Raises:
        UserError: they are missing, damaged, or do not add up to the value of the row.
    """
    n, total, context = (int(row[name]) for name in ("n", "total", "context"))
    whole, count = total // context, n // context
    is_spread = row["suite"] == SPREAD_TEXT
    wanted = set(spread_windows(whole, count) if is_spread else range(count))
    file = ScoreFile(tables.path / "items" / str(row["items"]), TextScore)
    found = [score for score in file.read() if score.window in wanted]
    n_tokens, nats = sum(s.n_tokens for s in found), math.fsum(s.nats for s in found)
    if n_tokens != n or not math.isclose(nats / n, row["value"], rel_tol=TOLERANCE):
        raise UserError(
            f"items/{row['items']} of {tables.name!r} does not add up to the loss in eval.csv: one "
            "of the two was changed or is gone."
        )
    return found
