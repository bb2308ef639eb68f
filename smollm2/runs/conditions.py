"""How a score in eval.csv was made: six of its columns, `CONDITIONS`.

Two scores were made in the same way exactly if they agree in all six. Older versions kept one
column `protocol`, a sentence; `upgraded` turns it into the six.
"""

import csv
import dataclasses
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from smollm2.errors import UserError

TEXT_SPLITS = ("test", "validation")  # of held-out text; a model is trained on the third
# Suites of held-out text. A task names a suite of its own, such as `lm-eval`.
FINAL_TEST = "final-test"  # the test split, at the end of training
FINAL_VALIDATION = "final-validation"  # all of the validation split, at the end of a tuning run
TEXT = "text"  # a whole split; in older versions also the first windows of one
SPREAD_TEXT = "spread-text"  # windows at even distances
TEXT_SUITES = {
    FINAL_TEST: ", at the end of training",
    FINAL_VALIDATION: ", at the end of tuning",
    TEXT: "",
    SPREAD_TEXT: ", spread",
}

# With fewer clusters, a cluster-robust standard error is uncertain and on average too small;
# "few" begins between 20 and 50 (Cameron and Miller 2015, J. Human Resources).
FEW_DOCUMENTS = 30
# With fewer, a standard error over documents is not computed: with 5 it has 4 degrees of freedom,
# and Student's interval is 1.4 times as wide as the normal one; with 2, 6.5 times.
FEWEST_DOCUMENTS = 5


@dataclass(frozen=True)
class Conditions:
    """How a model was scored.

    Args:
        suite: the rules: one of `TEXT_SUITES`, or what a task names.
        shots: examples in the prompt; None for held-out text.
        split: of the text or the task's data set.
        context: tokens in a window of text; for a task, the most that the model reads.
        dtype, device: in which and on which the model computed.
    """

    suite: str
    shots: int | None
    split: str
    context: int
    dtype: str
    device: str


CONDITIONS = tuple(field.name for field in dataclasses.fields(Conditions))


def error_of(row: Mapping[Any, Any]) -> Any:
    """The standard error in a row of eval.csv; None where it is over fewer than
    `FEWEST_DOCUMENTS`, as older versions computed it."""
    is_text = row["suite"] in TEXT_SUITES
    return None if is_text and (row["clusters"] or 0) < FEWEST_DOCUMENTS else row["stderr"]


def describe(row: Mapping[Any, Any]) -> str:
    """The conditions of a row for a reader:
    `lm-eval, 0-shot, validation split, context 2048, bfloat16, cpu`."""
    if row["suite"] in TEXT_SUITES:
        end = TEXT_SUITES[row["suite"]]
        return f"windows of {row['context']}, {row['dtype']}, {row['device']}{end}"
    return f"{row['suite']}, {row['shots']}-shot, {describe_setting(row)}"


def describe_setting(row: Mapping[Any, Any]) -> str:
    """`describe` of a task without its suite and shots."""
    return f"{row['split']} split, context {row['context']}, {row['dtype']}, {row['device']}"


def upgraded(text: str, name: str) -> str:
    """The text of an eval.csv in the columns of this version.

    Args:
        name: what errors call the file.

    Raises:
        UserError: a row's `protocol` is not a sentence that an older version wrote.
    """
    try:
        header, *rows = list(csv.reader(io.StringIO(text))) or [[]]
    except csv.Error as error:
        raise UserError(f"{name} cannot be read: {error}.") from None
    if not {"task", "protocol"} <= set(header):
        return text
    at, task = header.index("protocol"), header.index("task")
    lines = [[*header[:at], *CONDITIONS, *header[at + 1 :]]]
    for row in rows:
        if len(row) > at:  # a truncated row stays truncated, for the reader to detect
            cells = old_cells(row[task], row[at])
            if cells is None:
                raise UserError(f"{name} has a protocol that cannot be read: {row[at]!r}.")
            row[at : at + 1] = cells
        lines.append(row)
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(lines)
    return out.getvalue()


OLD_TEXT = re.compile(r"windows of (?P<context>\d+), (?P<dtype>\w+), (?P<device>\w+)(?P<end>, .+)?")
OLD_TASK = re.compile(
    r"(?P<suite>[\w-]+), (?P<shots>\d+)-shot, (?P<split>\w+) split, "
    r"context (?P<context>\d+), (?P<dtype>\w+), (?P<device>\w+)"
)


def old_cells(task: str, protocol: str) -> list[str] | None:
    """The cells of `CONDITIONS` for a row of an older version; None if no version wrote it."""
    suites = {end: suite for suite, end in TEXT_SUITES.items()}
    if found := OLD_TEXT.fullmatch(protocol):
        cells = found.groupdict("")
        if suite := suites.get(cells.pop("end")):
            cells |= {"suite": suite, "shots": "", "split": task}
            return [cells[name] for name in CONDITIONS]
    elif found := OLD_TASK.fullmatch(protocol):
        return [found[name] for name in CONDITIONS]
    return None
