"""What a verdict on quantized arms takes beside its interval, as one on their losses does: the
planned runs at a planned look, enough documents, and models that have learned something."""

import dataclasses
from collections.abc import Collection

from smolctl.analysis.comparison import Comparison
from smolctl.analysis.quantized_configuration import Configuration
from smolctl.analysis.run_metrics import LOSS
from smolctl.analysis.study_plan import StudyPlan
from smolctl.analysis.study_verdicts import is_of_first_results, lost_results
from smolctl.analysis.verdicts import (
    FEWEST_DOCUMENTS,
    Difference,
    Missing,
    Verdict,
    is_at_a_look,
    missing_in_order,
    withdrawn_difference,
)


def binding_plan(comparison: Comparison) -> StudyPlan | None:
    """The plan that verdicts go by; None for a study without a ledger."""
    return comparison.ledger.binding if comparison.ledger else None


def family(comparison: Comparison, names: Collection[str]) -> tuple[int, int]:
    """How many verdicts share the chance of a false one, and how often they are looked at: that of
    every planned arm in every configuration, however few are compared now."""
    plan, n_others = binding_plan(comparison), len(comparison.others)
    if plan is None:
        return n_others * len(names), 1
    arms = {*plan.seeds, *(arm.name for arm in comparison.arms)}
    return (len(arms) - 1) * len(names), len(plan.looks)


def planned_only(one: Configuration, plan: StudyPlan | None) -> Configuration:
    """The rows of planned runs: others could be trained until a verdict comes out."""
    if plan is None or one.rows.empty:
        return one
    seeds = plan.seeds.get(one.arm, ())
    return dataclasses.replace(one, rows=one.rows[one.rows["seed"].isin(seeds)])


def with_conditions(
    comparison: Comparison, first: Configuration, second: Configuration, found: Difference
) -> Difference:
    """The difference without a verdict where one is missing something or the study is
    superseded."""
    if comparison.superseded is not None:
        return withdrawn_difference(found)
    found = dataclasses.replace(found, exploratory=departs(comparison, first, second))
    missing = missing_conditions_of(comparison, first, second)
    if not missing:
        return found
    return dataclasses.replace(found, verdict=Verdict.INCONCLUSIVE, missing=missing)


def departs(comparison: Comparison, first: Configuration, second: Configuration) -> bool:
    """Whether there is no plan, or the runs of an arm are not its first results."""
    ledger, base = comparison.ledger, comparison.base.name
    if ledger is None or next(iter(ledger.binding.seeds), None) != base:
        return True
    both = (arm for arm in comparison.arms if arm.name in (first.arm, second.arm))
    return not all(is_of_first_results(arm, ledger) for arm in both)


def missing_conditions_of(
    comparison: Comparison, first: Configuration, second: Configuration
) -> tuple[Missing, ...]:
    """What a verdict on a configuration of two arms lacks, whatever its interval."""
    arms = {arm.name: arm for arm in comparison.arms}
    both = [(arms[one.arm], one) for one in (first, second)]
    ledger, plan = comparison.ledger, binding_plan(comparison)
    missing = []
    if ledger is not None and plan is not None:
        counts, are_all = [], True
        for arm, one in both:
            planned, seen = set(plan.seeds.get(arm.name, ())), {*one.seeds, *arm.diverged}
            counts.append((len(planned & seen), len(planned)))
            # Else the runs that are quantized could be chosen by what comes out.
            are_all = are_all and planned & set(arm.seeds) <= seen and not lost_results(arm, ledger)
        if not (are_all and is_at_a_look(counts, plan.looks)):
            missing.append(Missing.SEEDS)
    if any(arm.diverged for arm, _ in both):  # survivors alone are compared
        missing.append(Missing.SEEDS)
    if not all((one.measured["clusters"] >= FEWEST_DOCUMENTS).all() for _, one in both):
        missing.append(Missing.DOCUMENTS)
    for arm, _ in both:
        trigram = arm.floor("trigram")
        if trigram is None or not sum(arm.values(LOSS)) < trigram * len(arm.runs):
            missing.append(Missing.REGIME)
    return missing_in_order(missing)
