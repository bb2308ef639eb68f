"""documents.csv of a run, checked."""

import os
from typing import TYPE_CHECKING

from smollm2.errors import UserError
from smollm2.runs.conditions import FINAL_TEST
from smollm2.runs.run import Run

if TYPE_CHECKING:
    import pandas as pd

TOLERANCE = 1e-9  # relative, of sums in another order


def read_documents(run: Run) -> "pd.DataFrame | None":
    """The sums over each document of the final test, with the columns of documents.csv; None if
    there is no such file, as in a run that tunes or is of an older version.

    Raises:
        UserError: a table cannot be read; or a document is repeated, has no token or a sum that
            is not finite; or they do not add up to the test loss in eval.csv.
    """
    import numpy as np

    if not os.path.lexists(run.path / "documents.csv"):  # a broken link is reported below
        return None
    found, scores = run.table("documents"), run.table("eval")
    test = scores[(scores["suite"] == FINAL_TEST) & (scores["metric"] == "loss")]
    is_whole = (
        len(found) > 0
        and found["document"].is_unique
        and (found["n_tokens"] > 0).all()
        and np.isfinite(found[["nats", "text_nats"]].to_numpy(dtype=float)).all()
    )
    if not is_whole:
        raise UserError(f"{run.name}/documents.csv has a row that no training writes.")
    n_tokens, nats = found["n_tokens"].sum(), found["nats"].sum()
    adds_up = (
        len(test) == 1
        and n_tokens == test["n"].iloc[0]
        and len(found) == test["clusters"].iloc[0]
        and np.isclose(nats / n_tokens, test["value"].iloc[0], rtol=TOLERANCE)
    )
    if not adds_up:
        raise UserError(f"{run.name}/documents.csv does not add up to the test loss in eval.csv.")
    return found
