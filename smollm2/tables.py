"""CSV tables of a folder: their columns, and the one way to add, replace and read rows."""

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smollm2.errors import UserError
from smollm2.files import replace_file

if TYPE_CHECKING:
    import pandas as pd

TABLES: dict[str, tuple[str, ...]] = {
    "train": (
        "step", "tokens", "seconds", "loss", "lr", "grad_norm", "tokens_per_second", "mfu",
        "peak_memory_mb", "balance_loss", "expert_load_min", "expert_load_max",
    ),
    "val": (
        "step", "tokens", "flops", "seconds", "loss", "accuracy", "perplexity", "bits_per_byte",
    ),
    "experts": ("step", "layer", "expert", "load"),
    # n of total tokens or questions were scored; stderr is over clusters (documents or questions);
    # the scores one by one are in items/ in the file that is named.
    "eval": (
        "task", "metric", "value", "stderr", "n", "total", "clusters", "chance", "protocol",
        "fingerprint", "items",
    ),
    # One row a configuration, `bf16` the model as it was trained, and what is not measured empty.
    # quantized_share is of all parameters; loss_delta is on the validation documents of which
    # loss_delta_stderr counts `clusters`; the ratios are to bf16 in the same run of the command.
    "quantize": (
        "name", "bits", "backend", "method", "group_size", "embedding_bits", "quantized_share",
        "skipped", "memory_bytes", "disk_bytes", "memory_bytes_without_embedding",
        "disk_bytes_without_embedding", "loss", "loss_delta", "loss_delta_stderr", "n", "clusters",
        "prefill_tokens_per_second", "decode_tokens_per_second", "prefill_ratio", "decode_ratio",
        "compiled_decode_tokens_per_second", "compiled_decode_ratio", "dtype", "device",
        "device_name", "threads", "fingerprint", "reason",
    ),
}  # fmt: skip


class Tables:
    """The CSV tables in the folder `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def name(self) -> str:
        """What errors call the folder."""
        return self.path.resolve().name

    def append(self, table: str, row: dict[str, Any]) -> None:
        """Add one row; columns that are missing in `row` stay empty."""
        path = self.path / f"{table}.csv"
        with path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, TABLES[table], restval="", lineterminator="\n")
            if file.tell() == 0:
                writer.writeheader()
            writer.writerow(row)

    def replace(self, table: str, rows: list[dict[str, Any]]) -> None:
        """Write the table anew, whole; of columns that are none of the table's nothing stays."""
        text = io.StringIO()
        writer = csv.DictWriter(
            text, TABLES[table], restval="", extrasaction="ignore", lineterminator="\n"
        )
        writer.writeheader()
        writer.writerows(rows)
        replace_file(self.path / f"{table}.csv", text.getvalue())

    def table(self, table: str) -> "pd.DataFrame":
        """A table as numbers, but for words and fingerprints; empty cells are NaN.

        Raises:
            UserError: the file is missing, lacks a column, or ends in the middle of a line.
        """
        import pandas as pd

        path = self.path / f"{table}.csv"
        if not path.exists():
            raise UserError(f"Run {self.name!r} has no {path.name}.")
        text = path.read_text(encoding="utf-8")
        if not text.endswith("\n"):
            raise UserError(f"{self.name}/{path.name} ends in the middle of a line.")
        frame = pd.read_csv(path, dtype={"fingerprint": str})  # which may have digits only
        missing = [column for column in TABLES[table] if column not in frame.columns]
        if missing:
            raise UserError(f"{self.name}/{path.name} lacks the column {missing[0]!r}.")
        return frame

    def rows(self, table: str) -> list[dict[str, Any]]:
        """A table's rows as text, none if it does not exist; for rewriting, not for reckoning."""
        path = self.path / f"{table}.csv"
        if not path.exists():
            return []
        with path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
