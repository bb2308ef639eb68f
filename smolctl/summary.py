"""A card in one table: each arm beside the first, in everything that the studies tell of."""

from collections.abc import Callable, Mapping

from smolctl.comparison import Comparison
from smolctl.evidence import Evidence, is_like, is_same_model
from smolctl.facts import LOSS, TOKENS_PER_SECOND
from smolctl.quantization import Quantized
from smolctl.stats import Difference, Interval
from smolctl.tables import Table, mean_text, number
from smolctl.words import AXES, size_changes
from smollm2.quantize.dimensions import GROUP_SIZES, weights


def summary_table(evidence: Evidence) -> Table:
    """A column an arm of the first study, the first arm as it is and the others beside it; without
    the rows that tell of no other arm."""
    main = evidence.main
    rows = size_rows(main, main)
    if evidence.full_size not in (None, main):
        rows += size_rows(evidence.full_size, main)
    rows += [loss_row(study, main) for study in (*evidence.of_quality, *evidence.in_time)]
    if evidence.timed:
        rows.append(speed_row(evidence.timed, main))
    if evidence.quantized.is_judged:
        rows += quantization_rows(evidence.quantized, main)
    return Table(
        f"Every arm beside {main.base.name}, which is given as mean ± standard deviation over "
        "runs. In brackets are intervals: of losses those of the study's verdicts (Holm), of "
        "speeds 95 % each",
        ("", *(arm.name for arm in main.arms)),
        [row for row in rows if any(cell != "–" for cell in row[2:])],
    )


def row_of(
    label: str, study: Comparison, main: Comparison, first: str, cells: Mapping[str, str]
) -> tuple[str, ...]:
    """A row of the arms that the study has in common with the first one; `–` of the others, and of
    all where it has another first arm."""
    shown = {arm.name: cells[arm.name] for arm in study.others if arm.name in cells}
    if not is_like(study, main):
        return (label, *("–" for _ in main.arms))
    name = f"{label}, {study.scale} scale" + ("" if study is main else f" (`{study.study}`)")
    others = (shown.get(arm.name, "–") if is_same_model(arm, study) else "–" for arm in main.others)
    return (name, first, *others)


def size_rows(study: Comparison, main: Comparison) -> list[tuple[str, ...]]:
    """Parameters, active ones where they are fewer, and FLOPs."""
    base = study.base
    changes = {arm.name: size_changes(base, arm) for arm in study.others}
    total, active, flops = (
        {arm: percent_more(change[i]) for arm, change in changes.items()} for i in range(3)
    )
    counts = base.parameters
    rows = [row_of("parameters", study, main, f"{counts['total']:,}", total)]
    if active != total:
        rows.append(row_of("active parameters", study, main, f"{counts['active']:,}", active))
    return [*rows, row_of("FLOPs a token", study, main, f"{base.flops_per_token:.3g}", flops)]


def percent_more(share: float) -> str:
    """`+14 %`; `equal` where that would be none."""
    return f"{100 * share:+.0f} %" if abs(share) >= 0.005 else "equal"


def loss_row(study: Comparison, main: Comparison) -> tuple[str, ...]:
    """The verdicts of a study; seconds may come out otherwise than they were planned."""
    planned = "planned for " if study.equal == "seconds" else ""
    cells = {arm: verdict_cell(found) for arm, found in study.primary.items()}
    first = mean_text(study.base.values(LOSS), LOSS)
    return row_of(f"test loss, {planned}equal {AXES[study.equal]}", study, main, first, cells)


def verdict_cell(found: Difference) -> str:
    return f"{found.verdict}: {number(found.mean, LOSS, signed=True)}" + bounds_text(
        found.interval, lambda bound: number(bound, LOSS, signed=True)
    )


def speed_row(timed: Comparison, main: Comparison) -> tuple[str, ...]:
    cells = {arm: ratio_cell(found) for arm, found in timed.speed_ratios.items()}
    first = mean_text(timed.base.values(TOKENS_PER_SECOND), TOKENS_PER_SECOND)
    return row_of("training, tokens per second", timed, main, first, cells)


def ratio_cell(found: Interval) -> str:
    return f"{found.mean:.2f} ×" + bounds_text(found.interval, lambda bound: f"{bound:.2f}")


def bounds_text(bounds: tuple[float, float] | None, text: Callable[[float], str]) -> str:
    """` (-0.0200 to +0.0100)`, or nothing."""
    return f" ({' to '.join(map(text, bounds))})" if bounds else ""


def quantization_rows(found: Quantized, main: Comparison) -> list[tuple[str, ...]]:
    """Which groups fit the widths, and how small an arm becomes at 4 bits."""
    groups = {}
    for arm in found.comparison.arms:
        fitting = set(GROUP_SIZES).intersection(
            *(weight.dividing_groups() for weight in weights(arm.protocol.model))
        )
        groups[arm.name] = ", ".join(map(str, sorted(fitting))) or "none"
    smallest = {
        arm: f"{size:.3f} ({name})" for arm, (name, size) in found.smallest_at_4_bits.items()
    }
    labels = {
        "group sizes that divide all widths": groups,
        "fewest bytes a parameter at 4 bits, without the embedding": smallest,
    }
    return [
        row_of(label, found.comparison, main, cells.get(main.base.name, "–"), cells)
        for label, cells in labels.items()
    ]
