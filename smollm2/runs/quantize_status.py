"""The columns of quantize.csv that older versions lack: the outcome of a configuration, how
faithful it is to the model as trained, and the text that calibrated it."""

import csv
import io
from enum import StrEnum

# Empty where an older version measured the loss alone.
FIDELITY = (
    "kl_mean", "kl_mean_stderr", "kl_p99", "top1_agreement", "top1_agreement_stderr", "context",
)  # fmt: skip
CALIBRATION = ("calibration",)
NO_LAYER_REASON = "No layer can be quantized"  # how the reason began before there was a status


class Status(StrEnum):
    """The outcome of quantizing a model in one configuration."""

    OK = "ok"  # quantized and measured
    NO_LAYER = "no_layer"  # it fits no layer of the model, and never will
    FAILED = "failed"  # it could not be quantized or run here; worth trying again


def with_status(text: str) -> str:
    """The text of a quantize.csv with the column, which files of older versions lack."""
    header, *rows = list(csv.reader(io.StringIO(text))) or [[]]
    if "status" in header or not {"loss", "reason"} <= set(header):
        return text
    loss, reason = header.index("loss"), header.index("reason")
    for row in rows:
        if len(row) == len(header):  # a truncated row stays truncated, for the reader to detect
            row.insert(reason, row_status(row[loss], row[reason]))
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(
        [[*header[:reason], "status", *header[reason:]], *rows]
    )
    return out.getvalue()


def with_later_columns(text: str) -> str:
    """The text of a quantize.csv with the columns that came later, empty where a file lacks all of
    those that came together."""
    return with_empty(with_empty(text, FIDELITY, "n"), CALIBRATION, "dtype")


def with_empty(text: str, columns: tuple[str, ...], after: str) -> str:
    """The text of a quantize.csv with empty columns before the column `after`, if it has none of
    them."""
    header, *rows = list(csv.reader(io.StringIO(text))) or [[]]
    if set(columns) & set(header) or not {"loss", after} <= set(header):
        return text
    place = header.index(after)
    for row in rows:
        if len(row) == len(header):  # as above
            row[place:place] = [""] * len(columns)
    header[place:place] = columns
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([header, *rows])
    return out.getvalue()


def row_status(loss: str, reason: str) -> Status:
    """The status of a row that was written without one."""
    if loss:
        return Status.OK
    return Status.NO_LAYER if reason.startswith(NO_LAYER_REASON) else Status.FAILED
