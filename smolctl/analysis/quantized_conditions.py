"""What a verdict on quantized arms takes beside its interval, as one on their losses does: the
planned runs at a planned look, enough documents, and models that have learned something."""

import dataclasses
from collections.abc import Collection

from smolctl.analysis.comparison import Comparison
from smolctl.analysis.quantized_configuration import Configuration
from smolctl.analysis.run_metrics import LOSS
from smolctl.analysis.study_plan import StudyPlan
from smolctl.analysis.study_verdicts import lost_results
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
    found = dataclasses.replace(found, exploratory=binding_plan(comparison) is None)
    missing = missing_conditions_of(comparison, first, second)
    if not missing:
        return found
    return dataclasses.replace(found, verdict=Verdict.INCONCLUSIVE, missing=missing)


def missing_conditions_of(
    comparison: Comparison, first: Configuration, second: Configuration
) -> tuple[Missing, ...]:
    """What a verdict on a configuration of two arms lacks, whatever its interval."""
    arms = {arm.name: arm for arm in comparison.arms}
    both = [(arms[one.arm], one) for one in (first, second)]
    ledger, plan = comparison.ledger, binding_plan(comparison)
    missing = []
    if ledger is not None and plan is not None:
        counts = []
        for arm, one in both:
            planned = set(plan.seeds.get(arm.name, ()))
            counts.append((len(planned & {*one.seeds, *arm.diverged}), len(planned)))
        is_lost = any(lost_results(arm, ledger) for arm, _ in both)
        if is_lost or not is_at_a_look(counts, plan.looks):
            missing.append(Missing.SEEDS)
    if any(arm.diverged for arm, _ in both):  # survivors alone are compared
        missing.append(Missing.SEEDS)
    if any(count < FEWEST_DOCUMENTS for _, one in both for count in one.values("clusters")):
        missing.append(Missing.DOCUMENTS)
    for arm, _ in both:
        trigram = arm.floor("trigram")
        if trigram is None or not sum(arm.values(LOSS)) < trigram * len(arm.runs):
            missing.append(Missing.REGIME)
    return missing_in_order(missing)
