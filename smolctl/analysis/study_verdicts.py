"""The verdicts of a comparison: what its runs, its tuning and its ledger bring to `judge`."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from smolctl.analysis.arms import Arm
from smolctl.analysis.learning_rates import GridLosses
from smolctl.analysis.run_metrics import LOSS, Metric
from smolctl.analysis.study_plan import Ledger, StudyPlan, is_loss_of
from smolctl.analysis.tuning_gap import tuning_gap
from smolctl.analysis.verdicts import ArmResult, Design, Difference, judge


def family_verdicts(
    arms: Sequence[Arm],
    tuning: Mapping[str, GridLosses],
    ledger: Ledger | None,
    margin: float | None = None,
) -> dict[str, Difference]:
    """The verdict on each arm against the first one.

    Args:
        tuning: of each arm that was tuned.
        ledger: of the study; None if it has none. Then arms are compared within seeds where they
            share data, and verdicts are exploratory.
        margin: of the study file; that of the plan counts before it.
    """
    plan = ledger.binding if ledger else None
    is_planned_base = plan is not None and next(iter(plan.seeds), None) == arms[0].name
    results = {}
    for arm in arms:
        result = result_of_arm(arm, tuning.get(arm.name), plan)
        if ledger is not None:
            follows = is_planned_base and follows_plan(arm, tuning.get(arm.name), ledger)
            lost = bool(lost_results(arm, ledger))
            result = dataclasses.replace(result, departs=not follows, lost=lost)
        results[arm.name] = result
    return judge(results, design_of(arms, plan, margin))


def follows_plan(arm: Arm, grid: GridLosses | None, ledger: Ledger) -> bool:
    """Whether the results and the tuning of an arm are those of the plan."""
    return is_of_first_results(arm, ledger) and is_tuned_as_planned(grid, ledger)


def is_of_first_results(arm: Arm, ledger: Ledger) -> bool:
    """Whether every run of an arm is the first result of its seed, and later than the plan."""
    return all(
        ledger.is_first(arm.name, run.protocol.seed, str(run.run.manifest["finished_at"]))
        for run in arm.runs
    )


def is_tuned_as_planned(grid: GridLosses | None, ledger: Ledger) -> bool:
    """Whether the tuning of an arm, if it has one, is that of the plan, and the study file has not
    changed it later: more rates or seeds could be added until the gap permits a verdict."""
    planned = ledger.binding.tuning
    if grid is None or planned is None:
        return True
    later = [change.plan.tuning for change in ledger.changes if change.results]
    return all(plan == planned for plan in later) and planned.has_led_to(grid)


def lost_results(arm: Arm, ledger: Ledger) -> list[str]:
    """The runs of an arm whose results the ledger has and that are not among those that are judged:
    removed, damaged, changed, trained again or no longer of one protocol. Without them the rest may
    be a choice by result, and look like an earlier look."""
    judged = {
        (run.protocol.seed, str(run.run.manifest["finished_at"])): run.values[LOSS.name]
        for run in arm.runs
    }
    return [
        name
        for name, result in ledger.first_results(arm.name).items()
        if (
            result.seed not in arm.diverged
            if result.diverged
            else (key := (result.seed, result.finished_at)) not in judged
            or not is_loss_of(result, judged[key])
        )
    ]


def design_of(arms: Sequence[Arm], plan: StudyPlan | None, margin: float | None) -> Design:
    """The design of the plan, however few of its arms are compared: a subset may have been picked
    by its results. One that follows from the arms where there is no plan."""
    if plan is None:
        return Design(share_data(arms), margin, comparisons=len(arms) - 1)
    return Design(
        blocked=plan.blocked,
        margin=plan.margin,
        looks=plan.looks,
        alpha=plan.alpha,
        comparisons=len({*plan.seeds, *(arm.name for arm in arms)}) - 1,
    )


def share_data(arms: Sequence[Arm]) -> bool:
    """Whether every arm takes equal steps, with the data of at least two of the first one's runs
    in their order."""
    base, *others = arms
    orders = {run.protocol.data_seed for run in base.runs}
    return all(
        arm.protocol.steps == base.protocol.steps
        and len(orders & {run.protocol.data_seed for run in arm.runs}) > 1
        for arm in others
    )


def result_of_arm(arm: Arm, grid: GridLosses | None, plan: StudyPlan | None) -> ArmResult:
    """What the runs of an arm bring to its verdict."""
    block = blocks_by_seed(arm)
    planned = None if plan is None else plan.seeds.get(arm.name, ())
    return ArmResult(
        losses=values_by_block(arm, LOSS),
        model=arm.protocol.model,
        rate=arm.rates,
        diverged=blocks_with(arm.diverged, block),
        planned=None if planned is None else blocks_with(planned, block),
        tuning_gap=tuning_gap(grid, arm.rates[0]) if grid else None,
        documents=min(run.effective_documents for run in arm.runs),
        trigram=arm.floor("trigram"),
    )


def values_by_block(arm: Arm, metric: Metric) -> dict[int, float]:
    """A number of each run of an arm, by its block."""
    block = blocks_by_seed(arm)
    return {block[run.protocol.seed]: run.values[metric.name] for run in arm.runs}


def blocks_by_seed(arm: Arm) -> dict[int, int]:
    """The block of each seed of an arm with a run: the seed of its data, which is what the arms of
    a block share; the seed itself where two runs have one order of the data."""
    orders = {run.protocol.seed: run.protocol.data_seed for run in arm.runs}
    return orders if len(set(orders.values())) == len(orders) else {seed: seed for seed in orders}


def blocks_with(seeds: Iterable[int], block: Mapping[int, int]) -> frozenset[int]:
    """The blocks of seeds. A seed without a run is a block of its own: a negative number, which no
    block of a run is."""
    return frozenset(block.get(seed, -1 - seed) for seed in seeds)
