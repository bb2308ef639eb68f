"""documents.csv of a run, checked."""

import os
from typing import TYPE_CHECKING

from smollm2.errors import UserError
from smollm2.runs.conditions import FINAL_TEST
from smollm2.runs.run import Run

if TYPE_CHECKING:
    from smollm2.runs.tables import Columns

TOLERANCE = 1e-9  # relative, of sums in another order


def read_documents(run: Run) -> "Columns | None":
    """The sums over each document of the final test, with the columns of documents.csv; None if
    there is no such file, as in a run that tunes or is of an older version.

    Raises:
        UserError: a table cannot be read; or a document is repeated, has no token or a sum that
            is not finite; or they do not add up to the test loss in eval.csv.
    """
    import numpy as np

    if not os.path.lexists(run.path / "documents.csv"):  # a broken link is reported below
        return None
    found, scores = run.columns("documents"), run.columns("eval")
    (test,) = np.nonzero((scores["suite"] == FINAL_TEST) & (scores["metric"] == "loss"))
    documents = len(found["document"])
    is_whole = (
        documents > 0
        and len(np.unique(found["document"])) == documents
        and (found["n_tokens"] > 0).all()
        and all(np.isfinite(found[sums]).all() for sums in ("nats", "text_nats"))
    )
    if not is_whole:
        raise UserError(f"{run.name}/documents.csv has a row that no training writes.")
    n_tokens, nats = found["n_tokens"].sum(), found["nats"].sum()
    adds_up = (
        len(test) == 1
        and n_tokens == scores["n"][test[0]]
        and documents == scores["clusters"][test[0]]
        and np.isclose(nats / n_tokens, scores["value"][test[0]], rtol=TOLERANCE)
    )
    if not adds_up:
        raise UserError(f"{run.name}/documents.csv does not add up to the test loss in eval.csv.")
    return found
