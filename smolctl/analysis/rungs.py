"""The sizes of a ladder as they were measured: the study of each, and the line of each arm."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from smolctl.analysis.alike import differ_in_rate_only
from smolctl.analysis.arms import Arm
from smolctl.analysis.comparison import Comparison
from smolctl.analysis.ladder_notes import (
    TRANSFER,
    LadderNotes,
    parsed_size,
    read_ladder_notes,
    rung_name,
)
from smolctl.analysis.rate_transfer import (
    RateCheck,
    between,
    check_rate,
    transferred,
    transferred_gap,
)
from smolctl.analysis.selection import compare_arms
from smolctl.analysis.size_ladder import Bounded, Lack, Line, Rung, Trend, judged_trend
from smolctl.analysis.study_plan import LadderPlan, read_ledger
from smolctl.analysis.study_verdicts import lost_results
from smolctl.analysis.verdicts import Missing
from smollm2.runs.manifest import Role
from smollm2.runs.run import list_runs


@dataclass(frozen=True)
class ArmTrend:
    """What becomes of an arm's difference to the first one with size.

    Attributes:
        at, slope: the difference at the size asked about, and its change for a size e times as
            large, both with their intervals; None unless every size has an interval.
        lacking: why the trend is unknown, by the sizes that it is about; `""` for the line.
        exploratory: whether a size's verdict is, or the ladder is not the one that was planned.
    """

    arm: str
    trend: Trend
    line: Line | None
    at: Bounded | None
    slope: Bounded | None
    lacking: Mapping[str, tuple[Lack, ...]]
    exploratory: bool

    @property
    def missing(self) -> tuple[Lack, ...]:
        """Everything that is lacking, each once."""
        found = {lack for lacks in self.lacking.values() for lack in lacks}
        return tuple(lack for lack in Lack if lack in found)


@dataclass(frozen=True)
class SizeLadder:
    """The studies of a ladder.

    Args:
        main: one of them, whose arms are compared.
        studies: of the sizes that have finished runs of every arm, from the smallest.
    """

    notes: LadderNotes
    main: Comparison
    studies: dict[str, Comparison]

    @property
    def absent(self) -> tuple[str, ...]:
        """The sizes without finished runs of every arm."""
        return tuple(size for size in self.notes.sizes if size not in self.studies)

    @property
    def level(self) -> float:
        """1 - confidence of the intervals: half of an arm's share of alpha."""
        studies = self.studies.values()
        return min((1 - one.confidence) / 2 for study in studies for one in study.primary.values())

    @property
    def is_changed(self) -> bool:
        """Whether a size was planned for another ladder: other sizes, or a verdict on another one.
        Older ledgers plan nothing about it."""
        now = LadderPlan(self.notes.sizes, self.notes.at)
        plans = [study.ledger.binding.ladder for study in self.studies.values() if study.ledger]
        return any(plan not in (None, now) for plan in plans)

    @cached_property
    def checks(self) -> dict[str, RateCheck]:
        """By arm, the transferred rate at the size where it is checked; empty if no rate is
        transferred or that size is not tuned."""
        notes = self.notes
        first, second = (self.studies.get(size) for size in (notes.smallest, notes.check))
        if notes.rate != TRANSFER or first is None or second is None:
            return {}
        found = {}
        for one, two in zip(first.arms, second.arms, strict=True):
            if two.name in second.grids:
                widths = one.protocol.model.d_model, two.protocol.model.d_model
                rate = transferred(one.rates[0], *widths)
                found[two.name] = check_rate(second.grids[two.name], rate)
        return found

    @cached_property
    def trends(self) -> dict[str, ArmTrend]:
        """Of every arm but the first."""
        return {arm.name: self.trend_of(arm.name) for arm in self.main.others}

    def trend_of(self, arm: str) -> ArmTrend:
        """See `ArmTrend`."""
        lacking = dict[str, tuple[Lack, ...]]()
        lacking |= dict.fromkeys(self.absent, (Lack.SIZES,))
        for size, study in self.studies.items():
            if lacks := lacks_of(study, arm, self.gaps_at(size, arm)):
                lacking[size] = lacks
        exploratory = self.is_changed or any(
            study.primary[arm].exploratory for study in self.studies.values()
        )
        rungs = [self.rung_of(size, arm) for size in self.studies]
        kept = tuple(rung for rung in rungs if rung is not None)
        if len(kept) < len(rungs) or len(kept) < 2:
            return ArmTrend(arm, Trend.UNKNOWN, None, None, None, lacking, exploratory)
        line, where = Line(kept, self.level), parsed_size(self.notes.at)
        trend, open_ = judged_trend(line, where)
        if lacking:
            trend = Trend.UNKNOWN
        elif open_:
            lacking[""] = open_
        return ArmTrend(arm, trend, line, line.at(where), line.slope(), lacking, exploratory)

    def rung_of(self, size: str, arm: str) -> Rung | None:
        """What an arm's line has of a size; None without an interval. A gap without a bound widens
        nothing: it is lacking."""
        study, gaps = self.studies[size], self.gaps_at(size, arm)
        found = study.primary[arm]
        if found.standard_error is None or found.degrees_of_freedom is None:
            return None
        return Rung(
            parsed_size(size),
            found.mean,
            found.standard_error,
            found.degrees_of_freedom,
            seeds=min(len(one.runs) for one in both_of(study, arm)),
            gaps=(0.0, 0.0) if max(gaps) == math.inf else gaps,
        )

    def gaps_at(self, size: str, arm: str) -> tuple[float, float]:
        """The tuning gaps of the base and an arm at a size: what its verdict is widened by.

        Where rates are transferred they follow from those at the smallest size and those of the
        transferred rates at the size that checks the rule: see `transferred_gap`.
        """
        own = self.studies[size].primary[arm].gaps
        if own is not None and max(own) < math.inf:
            return own
        notes, both = self.notes, (self.main.base.name, arm)
        first = self.studies.get(notes.smallest)
        known = first.primary[arm].gaps if first else None
        checks = [self.checks[name].gap for name in both if name in self.checks]
        if not notes.is_transferred(size) or known is None or len(checks) < len(both):
            return math.inf, math.inf
        if not all(self.has_rate_by_rule(size, name) for name in both):
            return math.inf, math.inf
        reach = notes.reach(size)
        of_base, of_arm = (
            transferred_gap(*pair, reach) for pair in zip(known, checks, strict=True)
        )
        return of_base, of_arm

    def has_rate_by_rule(self, size: str, name: str) -> bool:
        """Whether the runs of an arm have the rate that is transferred to a size."""
        own, first = (
            next(arm.rates for arm in self.studies[one].arms if arm.name == name)
            for one in (size, self.notes.smallest)
        )
        by_rule = between(first[0], self.checks[name].rate, self.notes.reach(size))
        return len(own) == 1 and math.isclose(own[0], by_rule, rel_tol=1e-3)


def ladder_beside(main: Comparison) -> SizeLadder | None:
    """The ladder that a study is a rung of, with the arms of `main`; None if it is none.

    Raises:
        UserError: the study file of a rung cannot be read, or no run of an arm can be compared.
    """
    folder = main.base.runs[0].run.study_path
    notes = read_ladder_notes(folder)
    if notes is None or notes.name is None:
        return None
    studies = {}
    for size in notes.sizes:
        name = rung_name(notes.name, size)
        runs, _ = list_runs(folder.parent, name)
        final = [run for run in runs if run.is_finished and run.role is Role.FINAL]
        arms = {arm.name: [run for run in final if run.arm == arm.name] for arm in main.arms}
        if name == main.study:
            studies[size] = main
        elif all(arms.values()) and is_rung(folder.parent / name, notes.name, size):
            studies[size] = compare_arms(name, arms)
    return SizeLadder(notes, main, studies)


def is_rung(folder: Path, ladder: str, size: str) -> bool:
    """Whether the study in a folder is of that size of that ladder."""
    notes = read_ladder_notes(folder)
    return notes is not None and (notes.name, notes.rung) == (ladder, size)


def lacks_of(study: Comparison, arm: str, gaps: tuple[float, float]) -> tuple[Lack, ...]:
    """What keeps a size from counting, whatever its interval."""
    if study.superseded is not None:
        return (Lack.WITHDRAWN,)
    found, both = study.primary[arm], both_of(study, arm)
    ledger = read_ledger(study.base.runs[0].run.study_path)
    planned = ledger.binding.seeds if ledger else {}
    is_short = any(
        one.failed
        or not set(planned.get(one.name, ())) <= set(one.seeds)
        or (ledger is not None and lost_results(one, ledger))
        for one in both
    )
    reasons = {
        Lack.SEEDS: found.interval is None or is_short,
        Lack.TUNING: max(gaps) == math.inf or differ_in_rate_only(*both),
        Lack.DOCUMENTS: Missing.DOCUMENTS in found.missing,
        Lack.REGIME: Missing.REGIME in found.missing,
    }
    return tuple(lack for lack, holds in reasons.items() if holds)


def both_of(study: Comparison, arm: str) -> list[Arm]:
    """The first arm and that one."""
    return [one for one in study.arms if one.name in (study.base.name, arm)]


def ladder_dict(main: Comparison) -> dict[str, Any] | None:
    """The ladder of which `main` is a rung, for JSON; None if there is none."""
    ladder = ladder_beside(main)
    if ladder is None:
        return None
    return {
        "name": ladder.notes.name,
        "sizes": {size: parsed_size(size) for size in ladder.notes.sizes},
        "at": ladder.notes.at,
        "extrapolated": ladder.notes.is_extrapolated,
        "confidence": 1 - ladder.level,
        "checks": {
            arm: dataclasses.asdict(one)
            | {"holds": one.holds, "gap": one.gap if math.isfinite(one.gap) else None}
            for arm, one in ladder.checks.items()
        },
        "arms": {
            arm: {
                "trend": one.trend,
                "missing": list(one.missing),
                "lacking": {size: list(lacks) for size, lacks in one.lacking.items()},
                "exploratory": one.exploratory,
                "difference": one.at and dataclasses.asdict(one.at),
                "slope": one.slope and dataclasses.asdict(one.slope),
                "rungs": [dataclasses.asdict(rung) for rung in one.line.rungs] if one.line else [],
            }
            for arm, one in ladder.trends.items()
        },
    }
