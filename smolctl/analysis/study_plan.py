"""What a study planned before its first result, and what became of it: `ledger.json` next to its
runs, which `smolctl study` writes and verdicts are judged by.

    {
      "format": 1,
      "planned_at": "2026-01-01T10:00:00.000+00:00",
      "first_result_at": null,
      "plan": {"seeds": {"orig": [0, 1, 2], "pow2": [0, 1, 2]}, "looks": [3], "margin": 0.01,
               "blocked": true, "alpha": 0.05,
               "tuning": {"rates": [0.001, 0.00141], "seeds": [100, 101, 102], "grows": true}},
      "results": {"orig-s0": {"arm": "orig", "seed": 0, "finished_at": "...", "test_loss": 4.6,
                              "diverged": false}},
      "changes": [{"at": "...", "results": 6, "plan": {...}}],
      "checksum": "..."
    }

The checksum detects edits by hand; it keeps nobody from making a new ledger.
"""

import hashlib
import json
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smolctl.analysis.learning_rates import MOST_ADDED, GridLosses, stepped
from smolctl.command_line import short_path
from smollm2.errors import UserError, first_few
from smollm2.parse import MissingFile, Unreadable, read_json
from smollm2.runs.manifest_types import (
    Check,
    is_count,
    is_list,
    is_positive,
    is_steps,
    is_text,
    is_truth,
    optional,
)

if TYPE_CHECKING:
    from smollm2.runs.run import Run

LEDGER = "ledger.json"
KEPT = "study.toml"  # the study file next to the runs that follow from it
FORMAT = 1
ALPHA = 0.05  # of all verdicts of a study together


@dataclass(frozen=True)
class TuningPlan:
    """How the learning rates are to be chosen.

    Args:
        rates: of the grid as it begins; empty if no rate is tuned.
        seeds: of every rate.
        grows: whether the grid grows at its edges.
    """

    rates: tuple[float, ...] = ()
    seeds: tuple[int, ...] = ()
    grows: bool = False

    def has_led_to(self, grid: GridLosses) -> bool:
        """Whether the tuning of an arm is as planned: every planned run is there, and besides them
        only runs at rates that the grid can have grown by."""
        found = {(rate, seed) for rate, losses in grid.items() for seed in losses}
        least = {(rate, seed) for rate in self.rates for seed in self.seeds}
        is_of_seeds = {seed for _, seed in found} <= {*self.seeds}
        return least <= found and is_of_seeds and self.can_grow_by(grid.keys() - {*self.rates})

    def can_grow_by(self, added: Collection[float]) -> bool:
        """Whether the added rates are the next ones beyond the edges, with none left out."""
        if not added:
            return True
        if not self.grows:
            return False
        lowest, highest = min(self.rates), max(self.rates)
        below = sum(rate < lowest for rate in added)
        above = sum(rate > highest for rate in added)
        grown = [stepped(lowest, -step) for step in range(1, below + 1)]
        grown += [stepped(highest, step) for step in range(1, above + 1)]
        return max(below, above) <= MOST_ADDED and sorted(added) == sorted(grown)


@dataclass(frozen=True)
class LadderPlan:
    """The sizes of the ladder that a study is one of, and the size that the verdict is about."""

    sizes: tuple[str, ...]
    at: str


@dataclass(frozen=True)
class StudyPlan:
    """What is fixed before the first result.

    Args:
        seeds: of the final runs of each arm.
        looks: the numbers of seeds of every arm at which the study is judged, ascending; the last
            is the planned number.
        margin: a difference of the loss within it, in nats/token, does not matter; None if the
            study names none.
        blocked: whether arms are compared within seeds.
        alpha: the chance of any false verdict.
        tuning: None in older ledgers, which plan nothing about it.
        ladder: None in these too, and for a study that is in none.
    """

    seeds: dict[str, tuple[int, ...]]
    looks: tuple[int, ...]
    margin: float | None
    blocked: bool
    alpha: float = ALPHA
    tuning: TuningPlan | None = None
    ladder: LadderPlan | None = None

    def next_look(self, finished: int) -> int:
        """The first look at `finished` seeds or more; the last if there is none."""
        return next((look for look in self.looks if look >= finished), self.looks[-1])


@dataclass(frozen=True)
class PlannedResult:
    """A final run that has finished or diverged.

    Args:
        finished_at: of one that diverged, when that was recorded.
        test_loss: None if its table could not be read, or the run diverged.
        diverged: whether its loss did not stay finite. Older ledgers do not have such runs.
    """

    arm: str
    seed: int
    finished_at: str
    test_loss: float | None
    diverged: bool = False


@dataclass(frozen=True)
class PlanChange:
    """A later plan: when the study file had changed, and how many results there were by then."""

    at: str
    results: int
    plan: StudyPlan


@dataclass(frozen=True)
class Ledger:
    """The content of a ledger.

    Args:
        plan: the first one.
        first_result_at: when the first final run finished or diverged; None if none has.
        results: by run. A run that failed otherwise is not among them.
    """

    planned_at: str
    first_result_at: str | None
    plan: StudyPlan
    results: dict[str, PlannedResult]
    changes: tuple[PlanChange, ...]

    @property
    def binding(self) -> StudyPlan:
        """The last plan before the first result: verdicts are judged by it."""
        return [self.plan, *(c.plan for c in self.changes if c.results == 0)][-1]

    @property
    def current(self) -> StudyPlan:
        """The last plan."""
        return [self.plan, *(change.plan for change in self.changes)][-1]

    @property
    def bound_at(self) -> str:
        """When the binding plan was written."""
        return [self.planned_at, *(c.at for c in self.changes if c.results == 0)][-1]

    def first_results(self, arm: str) -> dict[str, PlannedResult]:
        """The first result of each seed that a plan has of an arm, by run. What was trained by hand
        in the study's folder is in no plan."""
        plans = [self.plan, *(change.plan for change in self.changes)]
        planned = {seed for plan in plans for seed in plan.seeds.get(arm, ())}
        found: dict[int, tuple[str, PlannedResult]] = {}
        for run, result in sorted(self.results.items(), key=lambda item: item[1].finished_at):
            if result.arm == arm and result.seed in planned:
                found.setdefault(result.seed, (run, result))
        return dict(found.values())

    def is_first(self, arm: str, seed: int, finished_at: str) -> bool:
        """Whether a result is later than the plan, and no other one of this arm and seed was seen
        before. Times are text of one form (`manifest.now`), which sorts as they do."""
        return finished_at >= self.bound_at and all(
            result.finished_at == finished_at
            for result in self.results.values()
            if (result.arm, result.seed) == (arm, seed)
        )


def read_ledger(study: Path) -> Ledger | None:
    """The ledger of the study in a folder; None if it has none, as older studies.

    Raises:
        UserError: it cannot be read, was edited by hand, or is of a later version.
    """
    path = study / LEDGER
    where = short_path(path)
    remedy = "Restore it from a copy, or give the study file another name."
    try:
        return ledger_of(read_json(path))
    except MissingFile:
        return None
    except Unreadable as error:
        raise UserError(f"{where} cannot be read: {error.reason}. {remedy}") from None
    except UserError as error:
        raise UserError(f"{where} {error}. {remedy}") from None


def ledger_of(content: Mapping[str, Any]) -> Ledger:
    """The ledger in the content of a file.

    Raises:
        UserError: it is none; the message follows the file's name.
    """
    version = content.get("format")
    if type(version) is int and version > FORMAT:
        raise UserError(f"has format {version}, and this version reads up to {FORMAT}")
    if version != FORMAT:
        raise UserError("is not the ledger of a study")
    if content.get("checksum") != ledger_checksum(content):
        raise UserError("was changed by hand or damaged: its checksum is wrong")
    try:
        return Ledger(
            planned_at=of_kind(content["planned_at"], is_text),
            first_result_at=of_kind(content["first_result_at"], optional(is_text)),
            plan=study_plan_of(content["plan"]),
            results={run: result_of(each) for run, each in content["results"].items()},
            changes=tuple(map(change_of, content["changes"])),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"is not a ledger of this version ({type(error).__name__})") from None


def ledger_checksum(content: Mapping[str, Any]) -> str:
    """SHA-256 of everything else in a ledger, in hexadecimal."""
    rest = {key: value for key, value in content.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def study_plan_of(values: Mapping[str, Any]) -> StudyPlan:
    """A plan as a ledger keeps it; raises `ValueError`, `KeyError` or `TypeError` if it is none."""
    return StudyPlan(
        seeds={arm: tuple(of_kind(seeds, is_seed_list)) for arm, seeds in values["seeds"].items()},
        looks=tuple(of_kind(values["looks"], lambda looks: bool(looks) and is_steps(looks))),
        margin=of_kind(values["margin"], optional(is_positive)),
        blocked=of_kind(values["blocked"], is_truth),
        alpha=of_kind(values["alpha"], lambda value: is_positive(value) and value < 1),
        tuning=None if values.get("tuning") is None else tuning_plan_of(values["tuning"]),
        ladder=None if values.get("ladder") is None else ladder_plan_of(values["ladder"]),
    )


def tuning_plan_of(values: Mapping[str, Any]) -> TuningPlan:
    """What a ledger plans about the tuning; raises as `study_plan_of`."""
    return TuningPlan(
        rates=tuple(of_kind(values["rates"], is_rate_list)),
        seeds=tuple(of_kind(values["seeds"], is_seed_list)),
        grows=of_kind(values["grows"], is_truth),
    )


def ladder_plan_of(values: Mapping[str, Any]) -> LadderPlan:
    """What a ledger plans about a ladder; raises as `study_plan_of`."""
    sizes = of_kind(values["sizes"], lambda value: is_list(value) and all(map(is_text, value)))
    return LadderPlan(tuple(sizes), of_kind(values["at"], is_text))


def result_of(values: Mapping[str, Any]) -> PlannedResult:
    """A result as a ledger keeps it; raises as `study_plan_of`."""
    return PlannedResult(
        of_kind(values["arm"], is_text),
        of_kind(values["seed"], is_seed),
        of_kind(values["finished_at"], is_text),
        of_kind(values["test_loss"], optional(is_positive)),
        of_kind(values.get("diverged", False), is_truth),
    )


def change_of(values: Mapping[str, Any]) -> PlanChange:
    """A change of the plan as a ledger keeps it; raises as `study_plan_of`."""
    at, results = of_kind(values["at"], is_text), of_kind(values["results"], is_count)
    return PlanChange(at, results, study_plan_of(values["plan"]))


def is_seed(value: Any) -> bool:
    """A whole number from 0, which may be larger than a count."""
    return type(value) is int and 0 <= value < 2**63


def is_seed_list(value: Any) -> bool:
    """A list of seeds."""
    return isinstance(value, list) and all(map(is_seed, value))


def is_rate_list(value: Any) -> bool:
    """A list of learning rates."""
    return isinstance(value, list) and all(map(is_positive, value))


def of_kind(value: Any, check: Check) -> Any:
    """`value`; raises `ValueError` if `check` does not accept it."""
    if not check(value):
        raise ValueError("a value of another type")
    return value


def gone_or_replaced(ledger: Ledger, runs: "Iterable[Run]") -> tuple[list[str], list[str]]:
    """The runs with a result in the ledger whose folder is gone, and those whose folder has another
    result or none.

    Args:
        runs: of the study.
    """
    there = {run.name: run for run in runs}
    gone = [name for name in ledger.results if name not in there]
    replaced = [
        name
        for name, result in ledger.results.items()
        if name in there and not is_outcome_of(there[name], result)
    ]
    return gone, replaced


def is_loss_of(result: PlannedResult, loss: float) -> bool:
    """Whether a test loss is that of a result, as far as the ledger knows it."""
    return result.test_loss is None or math.isclose(loss, result.test_loss, rel_tol=1e-9)


def is_outcome_of(run: "Run", result: PlannedResult) -> bool:
    """Whether a run ended with this result."""
    if result.diverged:
        return run.has_diverged
    return bool(run.manifest["finished_at"] == result.finished_at)


def ledger_problems(ledger: Ledger, runs: "Iterable[Run]") -> list[str]:
    """A sentence on each way in which the study departs from its ledger's plan and results."""
    gone, replaced = gone_or_replaced(ledger, runs)
    found = []
    if late := [change for change in ledger.changes if change.results]:
        found.append(
            f"The study's plan was changed after {late[0].results} results; verdicts go by the one "
            "before."
        )
    if gone:
        found.append(f"The ledger has results of runs that were removed: {first_few(gone)}.")
    if replaced:
        found.append(
            f"The ledger has other results than these runs, which were trained again: "
            f"{first_few(replaced)}."
        )
    return found
