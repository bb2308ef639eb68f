"""A card in one table: each arm beside the first, in everything that the studies tell of."""

import math
from collections.abc import Callable

from smolctl.comparison import Comparison
from smolctl.evidence import Evidence
from smolctl.facts import LOSS, TOKENS_PER_SECOND
from smolctl.quantization import Quantized
from smolctl.stats import Difference, Interval
from smolctl.tables import Table, mean_text, number
from smolctl.words import AXES, size_changes
from smollm2.quantize.dimensions import GROUP_SIZES, weights


def summary_table(evidence: Evidence) -> Table:
    """A column an arm of the first study, the first arm as it is and the others beside it; no rows
    where there is but one arm."""
    main = evidence.main
    rows = size_rows(main)
    rows += [row for study in evidence.of_quality if (row := loss_row(study, main))]
    if evidence.timed and (row := speed_row(evidence.timed, main)):
        rows.append(row)
    if evidence.quantized.is_judged:
        rows += quantization_rows(evidence.quantized, main)
    return Table(
        "Beside the first arm",
        ("", *(arm.name for arm in main.arms)),
        rows if main.others else [],
    )


def row_of(label: str, main: Comparison, first: str, cells: dict[str, str]) -> tuple[str, ...]:
    return (label, first, *(cells.get(arm.name, "–") for arm in main.others))


def size_rows(main: Comparison) -> list[tuple[str, ...]]:
    """Parameters, active ones where they are fewer, and FLOPs."""
    base = main.base
    changes = {arm.name: size_changes(base, arm) for arm in main.others}

    def cells(number: int) -> dict[str, str]:
        return {arm: f"{100 * change[number]:+.0f} %" for arm, change in changes.items()}

    counts = base.parameters
    rows = [row_of("parameters", main, f"{counts['total']:,}", cells(0))]
    if cells(1) != cells(0):
        rows.append(row_of("active parameters", main, f"{counts['active']:,}", cells(1)))
    return [*rows, row_of("FLOPs a token", main, f"{base.flops_per_token:.3g}", cells(2))]


def loss_row(study: Comparison, main: Comparison) -> tuple[str, ...] | None:
    """The verdicts of a study on arms of the first one, if its first arm is the same."""
    if study.base.name != main.base.name:
        return None
    label = f"test loss, equal {AXES[study.equal]}, {study.scale} scale{study_of(study, main)}"
    cells = {arm: verdict_cell(found) for arm, found in study.primary.items()}
    return row_of(label, main, mean_text(study.base.values(LOSS), LOSS), cells)


def verdict_cell(found: Difference) -> str:
    return f"{found.verdict}: {number(found.mean, LOSS, signed=True)}" + bounds_text(
        found.interval, lambda bound: number(bound, LOSS, signed=True)
    )


def speed_row(timed: Comparison, main: Comparison) -> tuple[str, ...] | None:
    """As `loss_row`, of the tokens a second."""
    if timed.base.name != main.base.name:
        return None
    label = f"training, tokens per second, {timed.scale} scale{study_of(timed, main)}"
    cells = {arm: ratio_cell(found) for arm, found in timed.speed_ratios.items()}
    speeds = mean_text(timed.base.values(TOKENS_PER_SECOND), TOKENS_PER_SECOND)
    return row_of(label, main, speeds, cells)


def ratio_cell(found: Interval) -> str:
    return f"{found.mean:.2f} ×" + bounds_text(found.interval, lambda bound: f"{bound:.2f}")


def bounds_text(bounds: tuple[float, float] | None, text: Callable[[float], str]) -> str:
    """` (-0.0200 to +0.0100)`, or nothing."""
    return f" ({' to '.join(map(text, bounds))})" if bounds else ""


def quantization_rows(found: Quantized, main: Comparison) -> list[tuple[str, ...]]:
    """Which groups fit the widths, and how small an arm becomes at 4 bits."""
    study = found.comparison
    groups = {
        arm.name: ", ".join(
            str(size)
            for size in GROUP_SIZES
            if all(weight.n_in % size == 0 for weight in weights(arm.protocol.model))
        )
        for arm in study.arms
    }
    rows = [("group sizes that divide all widths, full scale", groups)]
    smallest = {}
    for arm, configurations in found.arms.items():
        sizes = {
            name: round(one.bytes_a_parameter, 3)
            for name, one in configurations.items()
            if one.mean("bits") == 4 and not math.isnan(one.bytes_a_parameter)
        }
        if sizes:
            name = min(sizes, key=sizes.__getitem__)
            smallest[arm] = f"{sizes[name]:.3f} ({name})"
    if smallest:
        rows.append(("fewest bytes a parameter at 4 bits, embedding aside", smallest))
    first = main.base.name
    return [
        row_of(label + study_of(study, main), main, cells.get(first, "–"), cells)
        for label, cells in rows
    ]


def study_of(study: Comparison, main: Comparison) -> str:
    return "" if study is main else f" (`{study.study}`)"
