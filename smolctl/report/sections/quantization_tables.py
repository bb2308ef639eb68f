"""Quantized arms as tables."""

import math
from collections.abc import Callable

from smolctl.analysis.quantized_arms import BF16, KL, LOSS_DELTA, Configuration, Pair, Quantized
from smolctl.analysis.quantized_ranks import dominated
from smolctl.analysis.run_metrics import LOSS, mean_and_spread
from smolctl.report.document import Table
from smolctl.report.sections.quantized_verdicts import apart, ratio_bounds
from smolctl.report.verdict_words import verdict_text
from smolctl.report.wording import bounds_text, interval_text, number, percent_cell
from smolctl.units import of_total

CHANGE = "Change of the loss minus that of {base}'s"


def configurations_table(arm: str, configurations: dict[str, Configuration]) -> Table:
    """A row per configuration of one arm: what is quantized, bytes, KL divergence, change of the
    loss, speed."""
    beaten = dominated(configurations.values())
    rows = [
        (
            one.name,
            str(len(one.rows)),
            percent_cell(one.mean("quantized_share")),
            megabytes(one, "disk_bytes"),
            megabytes(one, "memory_bytes"),
            over_runs(one, KL),
            own(one, "kl_mean_stderr"),
            own(one, "kl_p99"),
            "–" if one.name == BF16 else percent_cell(one.mean("top1_agreement")),
            number(one.mean("loss"), LOSS),
            over_runs(one, LOSS_DELTA, signed=True),
            own(one, "loss_delta_stderr"),
            sample_text(one),
            ratio_text(one, "prefill_ratio"),
            ratio_text(one, "decode_ratio"),
            ratio_text(one, "compiled_decode_ratio"),
            f"dominated by {beaten[one.name]}" if one.name in beaten else "–",
        )
        for one in configurations.values()
    ]
    return Table(
        f"{arm}, mean ± standard deviation over runs",
        (
            *("configuration", "runs", "quantized", "MB on disk", "MB in memory"),
            *("KL", "its error over documents", "KL p99", "top-1", "loss"),
            *("loss change", "error over documents", "tokens (documents)"),
            *("prefill", "decoding", "compiled", "note"),
        ),
        rows,
    ).without_empty_columns()


def notes_table(arms: dict[str, dict[str, Configuration]]) -> Table:
    """What was not quantized or not measured, and why; configurations with the same notes
    together."""
    notes: dict[tuple[str, str], list[str]] = {}
    for arm, configurations in arms.items():
        for one in configurations.values():
            for text in [*one.texts("skipped"), *one.texts("reason")]:
                notes.setdefault((arm, text), []).append(one.name)
    return Table(
        "Not quantized, or not measured",
        ("arm", "configurations", "what and why"),
        [(arm, ", ".join(names), text) for (arm, text), names in notes.items()],
        n_words=3,
    )


def pairs_table(found: Quantized) -> Table:
    """Every arm beside the first in each configuration; no rows where nothing is judged."""
    base = found.comparison.base.name
    rows = []
    for pair in found.pairs if found.is_judged else ():
        both = (pair.second, pair.first)
        difference = pair.difference
        rows.append(
            (
                pair.arm,
                pair.name,
                verdict_text(difference) if difference else "not compared",
                *(pair_cells(pair) if difference else ["–"] * 4),
                beside(both, lambda one: plain(one.bytes_per_parameter, 3)),
                beside(both, lambda one: plain(one.mean("prefill_ratio"), 2)),
                beside(both, lambda one: plain(one.mean("decode_ratio"), 2)),
                beside(both, lambda one: plain(one.mean("compiled_decode_ratio"), 2)),
            )
        )
    kinds = {pair.is_by_kl for pair in found.pairs if pair.difference} or {False}
    titles = {True: f"KL divergence over that of {base}", False: CHANGE.format(base=base)}
    return Table(
        f"{' or '.join(titles[by_kl] for by_kl in titles if by_kl in kinds)}. Bytes are those on "
        "disk per parameter without the embedding, speeds are relative to bf16; each of the arm, "
        f"then of {base}",
        (
            *("arm", "configuration", "verdict"),
            *("ratio" if kinds == {True} else "difference", "interval", "document error ≤", "loss"),
            *("bytes", "prefill", "decoding", "compiled"),
        ),
        rows,
        n_words=3,
    ).without_empty_columns()


def pair_cells(pair: Pair) -> list[str]:
    """The ratio of KL divergences, its interval and error, and the difference of the changes of the
    loss; or that difference with its interval and error."""
    difference = pair.difference
    assert difference is not None
    if not pair.is_by_kl:
        change = number(difference.mean, LOSS, signed=True)
        error = number(pair.document_error, LOSS)
        return [change, interval_text(difference, LOSS), error, "–"]
    interval = f"{ratio_bounds(pair)} ({100 * difference.confidence:.4g} %)"
    return [
        apart(pair),
        interval if difference.interval else "–",
        percent_cell(pair.document_error),
        number(pair.loss_difference, LOSS, signed=True),
    ]


def quantized_tasks_table(found: Quantized) -> Table:
    """Task scores before and after quantizing; no rows where none was measured."""
    rows = []
    for task in found.tasks:
        change = f"{task.change.mean:+.4f}{bounds_text(task.change.interval, '+.4f')}"
        rows.append(
            (
                task.arm,
                task.name,
                f"{task.row['task']} {task.row['metric']}",
                of_total(task.row["n"], task.row["total"]),
                str(task.runs),
                f"{task.before:.4f}",
                f"{task.after:.4f}",
                change,
            )
        )
    return Table(
        "Tasks before and after quantizing: means over runs. Changes are over questions, for these "
        "checkpoints: they do not contain the noise of training",
        ("arm", "configuration", "metric", "questions", "runs", "bf16", "quantized", "change"),
        rows,
        n_words=3,
    )


def plain(value: float, digits: int) -> str:
    """A number with so many digits; `–` for NaN."""
    return "–" if math.isnan(value) else f"{value:.{digits}f}"


def megabytes(one: Configuration, column: str) -> str:
    """`88.2 (59.8)`, in millions of bytes, in brackets without the embedding."""
    whole, rest = (one.mean(name) / 1e6 for name in (column, f"{column}_without_embedding"))
    return "–" if math.isnan(whole) else f"{whole:,.1f} ({plain(rest, 1)})"


def over_runs(one: Configuration, column: str, *, signed: bool = False) -> str:
    """`+0.0123 ± 0.0004`, without a spread for one run; nothing for the model as trained."""
    values = one.values(column)
    if not values or one.name == BF16:
        return "–"
    mean, spread = mean_and_spread(values)
    return number(mean, LOSS, signed=signed) + ("" if spread is None else f" ± {spread:.4f}")


def own(one: Configuration, column: str) -> str:
    """The mean over runs; nothing for the model as trained."""
    return "–" if one.name == BF16 else number(one.mean(column), LOSS)


def sample_text(one: Configuration) -> str:
    """`16,384 (5)`: of the runs, when they differ, each."""
    found = zip(one.values("n"), one.values("clusters"), strict=True)
    texts = dict.fromkeys(f"{n:,.0f} ({documents:.0f})" for n, documents in found)
    return " and ".join(texts) or "–"


def ratio_text(one: Configuration, column: str) -> str:
    """`1.52 ×`, of several runs with the spread."""
    values = one.values(column)
    if not values:
        return "–"
    mean, spread = mean_and_spread(values)
    return f"{mean:.2f}" + ("" if spread is None else f" ± {spread:.2f}") + " ×"


def beside(both: tuple[Configuration, Configuration], text: Callable[[Configuration], str]) -> str:
    """`0.566, 0.574`."""
    return ", ".join(map(text, both))
