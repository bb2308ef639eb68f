"""The outcome of a configuration: the column `status` of quantize.csv."""

import csv
import io
from enum import StrEnum

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


def row_status(loss: str, reason: str) -> Status:
    """The status of a row that was written without one."""
    if loss:
        return Status.OK
    return Status.NO_LAYER if reason.startswith(NO_LAYER_REASON) else Status.FAILED
