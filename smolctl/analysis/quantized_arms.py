"""What quantizing does to the arms of a comparison, and whether it harms an arm more or less than
the first one.

Harm is the logarithm of the KL divergence to the model as trained; where a version that measured
none has quantized a run, the change of the loss on the same text. Arms are compared at equal bytes
per parameter. The unit is the run. The verdicts on all configurations of all arms are one family.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from smolctl.analysis.comparison import Comparison
from smolctl.analysis.quantization_rows import read_rows
from smolctl.analysis.quantization_tasks import TaskChange, task_changes
from smolctl.analysis.quantized_conditions import (
    binding_plan,
    family,
    planned_only,
    with_conditions,
)
from smolctl.analysis.quantized_configuration import KL, LOSS_DELTA, Configuration
from smolctl.analysis.stats import Interval
from smolctl.analysis.verdicts import Difference, differences_of_pairs
from smollm2.errors import UserError
from smollm2.quantize.quant_config import BF16
from smollm2.quantize.registry import backend_order
from smollm2.runs.tables import TABLES

if TYPE_CHECKING:
    from smollm2.runs.run import Run

# What the harm and the speed depend on.
SAME_TEXT = ("n", "context", "fingerprint", "dtype", "device")
SAME_SPEED = ("dtype", "device_name", "threads")
# Two arms are quantized alike if their quantized shares differ by at most this.
SAME_SHARE = 0.01
SAME_BYTES = 0.01  # of bytes per parameter, the relative difference that counts as none
KL_MARGIN = 0.1  # KL divergences that differ by less than this share are equivalent
UNTESTED = "untested (one run per arm)"


@dataclass(frozen=True)
class Pair:
    """A configuration of an arm and the same one of the first arm.

    Args:
        first, second: of the first arm and of `arm`; without rows if not tried.
        problem: why they cannot be compared, as the end of a sentence; else empty.
        difference: of their harm, second minus first; None if there is a problem.
    """

    arm: str
    name: str
    first: Configuration
    second: Configuration
    problem: str = ""
    difference: Difference | None = None

    @property
    def is_by_kl(self) -> bool:
        """Whether harm is the logarithm of the KL divergence; else it is the change of the loss."""
        return self.first.has_kl and self.second.has_kl

    @property
    def kl_ratio(self) -> Interval:
        """The geometric mean of the KL divergences over that of the first arm's, where `is_by_kl`
        and there is a difference."""
        assert self.difference is not None
        interval = self.difference.interval
        bounds = interval and (math.exp(interval[0]), math.exp(interval[1]))
        return Interval(math.exp(self.difference.mean), bounds)

    @property
    def loss_difference(self) -> float:
        """The change of the loss minus that of the first arm's."""
        return self.second.mean(LOSS_DELTA) - self.first.mean(LOSS_DELTA)

    @property
    def has_unequal_shares(self) -> bool:
        """Whether both shares are known and differ."""
        both = (self.first, self.second)
        is_known = all(one.values(LOSS_DELTA) and one.matrix_share >= 0 for one in both)
        return is_known and not have_equal_shares(*both)

    @property
    def has_single_run(self) -> bool:
        """Whether an arm has only one run."""
        return min(len(one.values(LOSS_DELTA)) for one in (self.first, self.second)) == 1

    @property
    def outcome(self) -> str:
        """The verdict, or that a single run allows none; empty without a difference."""
        if self.difference is None:
            return ""
        return UNTESTED if self.has_single_run else self.difference.verdict

    @property
    def document_error(self) -> float:
        """Upper bound of the difference's standard error over documents. The errors of the two
        arms, and of an arm's runs, are correlated, as the documents are the same."""
        both = (self.first, self.second)
        if self.is_by_kl:  # of a logarithm: the relative error
            return sum(one.mean("kl_mean_stderr") / one.mean(KL) for one in both)
        return sum(one.mean("loss_delta_stderr") for one in both)


@dataclass(frozen=True)
class Quantized:
    """Every configuration of every arm of a comparison.

    Args:
        arms: by name of the arm, its configurations by name, bf16 first; none if not quantized.
        excluded: a sentence per quantize.csv that cannot be read.
    """

    comparison: Comparison
    arms: dict[str, dict[str, Configuration]]
    excluded: tuple[str, ...]

    @property
    def tasks(self) -> list[TaskChange]:
        """The changes of task scores, where they were scored."""
        return self.tasks_and_notes[0]

    @property
    def task_notes(self) -> list[str]:
        """A sentence per model whose scores cannot be read."""
        return self.tasks_and_notes[1]

    @cached_property
    def tasks_and_notes(self) -> tuple[list[TaskChange], list[str]]:
        notes: list[str] = []
        return [task for arm in self.comparison.arms for task in task_changes(arm, notes)], notes

    @property
    def is_measured(self) -> bool:
        return any(self.names)

    @property
    def has_kl(self) -> bool:
        """Whether a KL divergence was measured."""
        return any(one.values(KL) for by_name in self.arms.values() for one in by_name.values())

    @property
    def names(self) -> list[str]:
        """The configurations that any arm has, without bf16."""
        found = (c for by_name in self.arms.values() for c in by_name.values() if c.name != BF16)
        return list(dict.fromkeys(c.name for c in sorted(found, key=in_order)))

    @property
    def smallest_at_4_bits(self) -> dict[str, tuple[str, float]]:
        """For each arm quantized to 4 bits, the configuration with the fewest bytes per parameter
        and that number; the first of those that agree to three decimals."""
        smallest = {}
        for arm, by_name in self.arms.items():
            sizes = {
                name: round(one.bytes_per_parameter, 3)
                for name, one in by_name.items()
                if one.mean("bits") == 4 and not math.isnan(one.bytes_per_parameter)
            }
            if sizes:
                name = min(sizes, key=sizes.__getitem__)
                smallest[arm] = (name, sizes[name])
        return smallest

    @property
    def is_judged(self) -> bool:
        """Whether arms can be compared: by their KL divergence at any scale, as models of that
        scale, and by the change of the loss at full size only."""
        return self.is_full_size or self.has_kl

    @property
    def is_full_size(self) -> bool:
        """Whether the scale is full: speeds and bytes do not carry over from a smaller one."""
        return self.comparison.scale == "full"

    @cached_property
    def pairs(self) -> tuple[Pair, ...]:
        """Every arm against the first in each configuration that either has, by its planned
        runs."""
        base, plan = self.comparison.base.name, binding_plan(self.comparison)
        pairs = [
            self.pair(*(planned_only(self.configuration(arm, name), plan) for arm in (base, other)))
            for other in (arm.name for arm in self.comparison.others)
            for name in self.names
            if self.arms[base] and self.arms[other]
            if name in self.arms[base] or name in self.arms[other]
        ]
        compared = {(pair.arm, pair.name): pair for pair in pairs if not pair.problem}
        comparisons, looks = family(self.comparison, self.names)
        found = differences_of_pairs(
            {
                key: (pair.first.harm(pair.is_by_kl), pair.second.harm(pair.is_by_kl))
                for key, pair in compared.items()
            },
            {key: math.log1p(KL_MARGIN) for key, pair in compared.items() if pair.is_by_kl},
            comparisons=comparisons,
            looks=looks,
        )
        judged = {
            key: with_conditions(self.comparison, pair.first, pair.second, found[key])
            for key, pair in compared.items()
        }
        return tuple(
            dataclasses.replace(pair, difference=judged.get((pair.arm, pair.name)))
            for pair in pairs
        )

    def configuration(self, arm: str, name: str) -> Configuration:
        """A configuration of an arm, without rows if not tried."""
        if found := self.arms[arm].get(name):
            return found
        import pandas as pd

        columns = [*TABLES["quantize"], "run", "seed", "total", "embedding"]
        return Configuration(arm, name, pd.DataFrame(columns=columns))

    def pair(self, first: Configuration, second: Configuration) -> Pair:
        """The two as a pair, without its difference."""
        pair = Pair(second.arm, second.name, first, second, not_comparable(first, second))
        if not pair.problem and not (self.is_full_size or pair.is_by_kl):
            why = f"a change of the loss at {self.comparison.scale} scale does not carry over"
            return dataclasses.replace(pair, problem=why)
        return pair


def not_comparable(first: Configuration, second: Configuration) -> str:
    """See `Pair.problem`."""
    for one in (first, second):
        if one.rows.empty:
            return f"no planned run of {one.arm} was quantized this way"
        if not one.values(LOSS_DELTA):
            why = "; ".join(one.texts("reason"))
            return f"the loss of {one.arm} was not measured" + (f" ({why})" if why else "")
    if not have_equal_shares(first, second):
        return (
            f"without the embedding {percent(first.matrix_share)} of the parameters of {first.arm} "
            f"are quantized and {percent(second.matrix_share)} of those of {second.arm}"
        )
    if first.has_small_embedding != second.has_small_embedding:
        return "only one of them has a quantized embedding"
    if not have_equal_bytes(first, second):
        ours, theirs = (one.bytes_per_parameter for one in (second, first))
        return (
            f"without the embedding a parameter of {second.arm} takes {ours:.3f} bytes, "
            f"{'more' if ours > theirs else 'fewer'} than the {theirs:.3f} of {first.arm}"
        )
    texts = {text for one in (first, second) for text in one.texts("calibration")}
    if len(texts) > 1:  # unknown of older versions
        return f"they were calibrated on different text ({'; '.join(sorted(texts))})"
    conditions = {c for one in (first, second) for c in one.conditions(SAME_TEXT, LOSS_DELTA)}
    if len(conditions) > 1:
        return "they were measured on different text, windows, dtypes or devices"
    return ""


def have_equal_bytes(first: Configuration, second: Configuration) -> bool:
    """Whether bytes per parameter of both are equal up to `SAME_BYTES`, or one is not known."""
    ours, theirs = first.bytes_per_parameter, second.bytes_per_parameter
    return not abs(ours - theirs) > SAME_BYTES * max(ours, theirs)  # True of NaN


def have_equal_shares(first: Configuration, second: Configuration) -> bool:
    """Whether the quantized shares of both are known and equal up to `SAME_SHARE`."""
    return abs(first.matrix_share - second.matrix_share) <= SAME_SHARE  # False of NaN


def percent(share: float) -> str:
    """`99.9 %`; `an unknown share` for NaN."""
    return "an unknown share" if math.isnan(share) else f"{100 * share:.1f} %"


def quantized(comparison: Comparison) -> Quantized:
    """The quantized models of a comparison's runs."""
    excluded: list[str] = []
    arms = {
        arm.name: configurations(arm.name, [finished.run for finished in arm.runs], excluded)
        for arm in comparison.arms
    }
    return Quantized(comparison, arms, tuple(excluded))


def configurations(
    arm: str, runs: "Sequence[Run]", excluded: list[str]
) -> dict[str, Configuration]:
    """The configurations of an arm by name, in the order of `in_order`; a run without a
    quantize.csv has none.

    Args:
        excluded: receives a sentence per file that cannot be read.
    """
    frames = []
    for run in runs:
        try:
            frame = read_rows(run)
        except UserError as error:
            excluded.append(f"The quantization of {run.name} is excluded: {error}")
            continue
        if frame is not None and not frame.empty:
            counts = run.manifest["parameters"]
            frames.append(
                frame.assign(
                    run=run.name,
                    seed=run.protocol.seed,
                    total=counts["total"],
                    embedding=counts["embedding"],
                )
            )
    if not frames:
        return {}
    import pandas as pd

    groups = pd.concat(frames, ignore_index=True).groupby("name", sort=False)
    found = [Configuration(arm, str(name), rows) for name, rows in groups]
    return {one.name: one for one in sorted(found, key=in_order)}


def in_order(configuration: Configuration) -> tuple[float, int, float, str]:
    """Sort key: more bits first, then by backend, then smaller groups."""
    row = configuration.rows.iloc[0]
    size = 0.0 if math.isnan(row["group_size"]) else row["group_size"]
    return (-row["bits"], backend_order(row["backend"]), size, configuration.name)
