"""A verdict in words, and what is missing for one."""

import math
from statistics import fmean

from smolctl.analysis.alike import differ_in_rate_only
from smolctl.analysis.arms import Arm
from smolctl.analysis.comparison import Comparison
from smolctl.analysis.run_metrics import LOSS
from smolctl.analysis.study_plan import LEDGER
from smolctl.analysis.study_verdicts import lost_results
from smolctl.analysis.verdicts import (
    FEWEST_DOCUMENTS,
    Difference,
    Missing,
    Verdict,
    is_at_a_look,
)
from smolctl.report.wording import interval_words, listed, names_text, number, runs_text
from smollm2.errors import first_few


def verdict_text(found: Difference) -> str:
    """`better`, `inconclusive: tuning, regime`, `equivalent (exploratory)`."""
    if found.verdict is Verdict.INCONCLUSIVE and found.missing:
        return f"{found.verdict}: {', '.join(found.missing)}"
    is_marked = found.exploratory and found.verdict is not Verdict.WITHDRAWN
    return f"{found.verdict} (exploratory)" if is_marked else str(found.verdict)


def intervals_words(found: Difference) -> str:
    """The interval that makes a verdict, and where tuning widens it the one over seeds alone."""
    assert found.interval is not None
    if found.widened == found.interval:
        return interval_words(found)
    start, seeds = f"{100 * found.confidence:.4g} % interval", ends_text(found.interval)
    if found.widened is None:
        return f"{start} over seeds alone {seeds}, without a bound at best rates"
    return f"{start} at best rates {ends_text(found.widened)}, over seeds alone {seeds}"


def ends_text(interval: tuple[float, float]) -> str:
    """`-0.0200 to +0.0100`."""
    return " to ".join(f"{end:+.4f}" for end in interval)


def gap_text(found: Difference, which: int) -> str:
    """What tuning could still gain in the base (0) or the arm (1); `–` where both are one model at
    one rate."""
    if found.gaps is None or max(found.gaps) == 0:
        return "–"
    return number(found.gaps[which], LOSS) if found.gaps[which] < math.inf else "no bound"


def finds_nothing(found: Difference) -> bool:
    """Whether zero is among the differences that the runs allow, as it has to be in a control."""
    low, high = found.interval or (0.0, 0.0)
    return low <= 0 <= high


def false_share(found: Difference) -> str:
    """How many controls have an interval without zero."""
    return f"{100 * (1 - found.confidence):.3g} % of controls"


def what_is_missing(study: Comparison, arm: Arm) -> list[str]:
    """A clause on each thing that the verdict on an arm lacks."""
    found = study.primary[arm.name]
    words = {
        Missing.SEEDS: missing_seeds,
        Missing.TUNING: missing_tuning,
        Missing.DOCUMENTS: missing_documents,
        Missing.REGIME: missing_regime,
    }
    return [words[one](study, arm, found) for one in found.missing]


def missing_seeds(study: Comparison, arm: Arm, found: Difference) -> str:
    """Results that are lost, seeds that failed, that the plan still waits for, or too few."""
    ledger = study.ledger
    if ledger and (lost := [run for one in (study.base, arm) for run in lost_results(one, ledger)]):
        return (
            f"{LEDGER} has results of {first_few(lost)} that are not among the judged runs: "
            "restore these runs, or start the study over under another name"
        )
    for one in (study.base, arm):
        if one.failed:
            return f"{names_text(one.failed)} failed"
    if (look := awaited_look(study, arm)) is not None:
        done = [str(finished) for finished, _ in planned_counts(study, arm)]
        return f"the next look is at {look} seeds, and there are {listed(done)}"
    fewest = min(len(study.base.runs), len(arm.runs))
    if fewest < 2:
        return f"{runs_text(fewest)} of an arm shows no noise"
    return "the interval leaves the sign open"


def awaited_look(study: Comparison, arm: Arm) -> int | None:
    """The number of seeds at which the arm is judged next; None at a look, or without a plan."""
    plan = study.ledger.binding if study.ledger else None
    counts = planned_counts(study, arm)
    if plan is None or is_at_a_look(counts, plan.looks):
        return None
    return plan.next_look(min(finished for finished, _ in counts) + 1)


def planned_counts(study: Comparison, arm: Arm) -> list[tuple[int, int]]:
    """How many seeds of the plan have ended and how many there are, of the base and the arm."""
    plan = study.ledger.binding if study.ledger else None
    if plan is None:
        return []
    counts = []
    for one in (study.base, arm):
        planned = set(plan.seeds.get(one.name, ()))
        counts.append((len(planned & {*one.seeds, *one.diverged}), len(planned)))
    return counts


def missing_tuning(study: Comparison, arm: Arm, found: Difference) -> str:
    """Rates that were not tried, or a gap that could turn the verdict."""
    if differ_in_rate_only(study.base, arm):
        return "one model at two learning rates differs in tuning only"
    untried = [one.name for one in (study.base, arm) if one.name not in study.grids]
    if untried:
        return f"no study of learning rates for {listed(untried)}"
    if found.widened is None:
        return "the tried learning rates do not bound what another could gain"
    gains = (gap_text(found, which) for which in (0, 1))
    texts = (f"{gain} in {one.name}" for gain, one in zip(gains, (study.base, arm), strict=True))
    return f"better learning rates could still gain up to {' and '.join(texts)}"


def missing_documents(study: Comparison, arm: Arm, found: Difference) -> str:
    """How many documents there are."""
    documents = min(run.test_documents for run in study.runs)
    text = f"{documents} of at least {FEWEST_DOCUMENTS} test documents"
    if documents < FEWEST_DOCUMENTS:
        return text
    effective = min(run.effective_documents for run in study.runs)
    return f"{text}, which are worth {effective:.1f} of one length"


def missing_regime(study: Comparison, arm: Arm, found: Difference) -> str:
    """Which arm has not learned what a trigram knows."""
    for one in (study.base, arm):
        floor = one.floor("trigram")
        if floor is None and any(run.has_other_floors for run in one.runs):
            return (
                "the trigram of these runs was counted on the whole test split, and they were "
                "scored on a part of it: the study command counts it again"
            )
        if floor is None:
            return "no trigram was counted on the text of these runs"
        if not fmean(one.values(LOSS)) < floor:
            return (
                f"{one.name} does not reach the {floor:.4f} of a trigram counted on as many tokens"
            )
    raise AssertionError("Both arms are below the trigram.")


def floors_text(study: Comparison) -> str:
    """`; a trigram counted on as many tokens has a test loss of 4.58, a unigram 6.57`."""
    trigram, unigram = study.base.floor("trigram"), study.base.floor("unigram")
    if trigram is None or unigram is None:
        return ""
    return (
        f"; counted on as many tokens, a trigram has the test loss {trigram:.3f} and a unigram "
        f"{unigram:.3f}"
    )
