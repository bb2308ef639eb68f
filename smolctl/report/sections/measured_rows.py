"""What one call of `smolctl quantize` measured: a row per configuration, and which one to take."""

from collections.abc import Mapping, Sequence
from typing import Any

from smolctl.analysis.quantization_rows import with_error
from smolctl.analysis.quantized_arms import BF16, percent
from smolctl.analysis.quantized_ranks import Ranking
from smolctl.report.document import Table

Row = Mapping[str, Any]  # of quantize.csv; what was not measured is missing or None


def measured_table(rows: Sequence[Row]) -> Table:
    """The rows of a call.

    Args:
        rows: with `run`, and what `ranked` adds.
    """
    runs = list(dict.fromkeys(row["run"] for row in rows))
    table = Table(
        f"{runs[0] if len(runs) == 1 else 'Quantized'}, beside bf16",
        (
            *("run", "configuration", "note", "MB on disk", "KL, nats/token", "KL p99", "top-1"),
            *("loss change", "decoding", "compiled"),
        ),
        [row_cells(row) for row in rows],
        n_words=3,
    ).without_empty_columns()
    if len(runs) > 1:
        return table
    return Table(table.title, table.header[1:], [row[1:] for row in table.rows], n_words=2)


def row_cells(row: Row) -> tuple[str, ...]:
    """A row of `measured_table`."""
    note = f"dominated by {row['dominated_by']}" if row["dominated_by"] else ""
    if row["recommended"]:
        note = "recommended"
    if "loss" not in row:
        return (row["run"], row["name"], "not measured", *["–"] * 7)
    own = ("–", "–", "–", "–")  # the model as trained has no distance to itself
    if row["name"] != BF16:
        own = (
            with_error(row, "kl_mean", ".4f"),
            f"{row['kl_p99']:.3f}",
            percent(row["top1_agreement"]),
            with_error(row, "loss_delta", "+.4f"),
        )
    ratios = (row.get(f"{how}decode_ratio") for how in ("", "compiled_"))
    return (
        *(row["run"], row["name"], note, megabytes_text(row["disk_bytes"]), *own),
        *("–" if ratio is None else f"{ratio:.2f} ×" for ratio in ratios),
    )


def megabytes_text(n_bytes: float) -> str:
    """`88.2`; below one with three decimals."""
    size = n_bytes / 1e6
    return f"{size:,.1f}" if size >= 1 else f"{size:.3f}"


def ranked(row: Row, ranking: Ranking) -> dict[str, Any]:
    """A row with `recommended`, and `dominated_by`, the name of another configuration or None."""
    best = ranking.recommended
    return {
        **row,
        "recommended": best is not None and row["name"] == best.name,
        "dominated_by": ranking.dominated.get(row["name"]),
    }


def recommendation(ranking: Ranking) -> str:
    """Which configuration of a run to take; empty if none was measured."""
    name, best, closest = ranking.run.name, ranking.recommended, ranking.closest
    within = f"a KL divergence of at most {ranking.max_kl:g} nats/token"
    if best is not None:
        size = megabytes_text(best.mean("disk_bytes"))
        return f"Recommended for {name}: {best.name}, {size} MB, the smallest with {within}."
    if closest is None:
        return ""
    return (
        f"None of these configurations of {name} has {within}; the least is "
        f"{closest.mean('kl_mean'):.4f}, of {closest.name}. Smaller groups, --method gptq and more "
        "bits have less."
    )
