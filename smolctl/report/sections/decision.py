"""What would decide it: a next step for each thing that the inconclusive verdicts lack."""

from collections.abc import Callable, Sequence
from statistics import fmean

from smolctl.analysis.alike import differ_in_rate_only, is_control
from smolctl.analysis.arms import Arm
from smolctl.analysis.comparison import Comparison
from smolctl.analysis.kept_study import study_command
from smolctl.analysis.run_metrics import LOSS
from smolctl.analysis.study_verdicts import lost_results
from smolctl.analysis.verdicts import FEWEST_DOCUMENTS, Missing
from smolctl.command_line import command, results_of
from smolctl.report.document import Section, bullets, section
from smolctl.report.evidence import Evidence
from smolctl.report.verdict_words import awaited_look
from smolctl.report.wording import listed


def decision_section(evidence: Evidence) -> Section | None:
    """Of the first study. What another study needs comes first: more seeds do not mend it."""
    return section("What would decide it", [bullets(next_steps(evidence.main))])


def next_steps(study: Comparison) -> list[str]:
    """A sentence for each thing that is missing; none for controls and superseded studies."""
    if study.superseded is not None:
        return []
    arms = [arm for arm in study.others if not is_control(study.base, arm)]
    steps: dict[Missing, Callable[[Comparison, Sequence[Arm]], str]] = {
        Missing.REGIME: for_regime,
        Missing.TUNING: for_tuning,
        Missing.DOCUMENTS: for_documents,
        Missing.SEEDS: for_seeds,
    }
    found = []
    for missing, step in steps.items():
        if lacking := [arm for arm in arms if missing in study.primary[arm.name].missing]:
            found.append(f"{missing.capitalize()}: {step(study, lacking)}")
    return found


def for_regime(study: Comparison, lacking: Sequence[Arm]) -> str:
    arms = [study.base, *lacking]
    if any(arm.floor("trigram") is None for arm in arms):
        return "no floor was recorded for these runs. A new study records one for every run."
    behind = [
        f"{arm.name} ({fmean(arm.values(LOSS)):.3f})"
        for arm in arms
        if fmean(arm.values(LOSS)) >= (arm.floor("trigram") or 0)
    ]
    verb = "does" if len(behind) == 1 else "do"
    return (
        f"{listed(behind)} {verb} not reach the {study.base.floor('trigram'):.3f} of a trigram "
        "model counted on as many tokens. It takes a study with more steps or larger models; more "
        "seeds do not help."
    )


def for_tuning(study: Comparison, lacking: Sequence[Arm]) -> str:
    if any(differ_in_rate_only(study.base, arm) for arm in lacking):
        return "one model at two learning rates differs in tuning only; no study decides it."
    untuned = [arm.name for arm in (study.base, *lacking) if arm.name not in study.grids]
    if untuned:
        return (
            f"no learning rates were tried for {listed(untuned)}. A new study with [tune] chooses "
            "them, and bounds what others could gain."
        )
    return (
        "other learning rates could gain as much as the difference. A new study with more seeds "
        "below [tune], or a finer grid, bounds that more narrowly."
    )


def for_documents(study: Comparison, lacking: Sequence[Arm]) -> str:
    first = study.base.runs[0]
    if first.is_tested_whole:
        more = "a larger share of the text held out, such as held_out = 0.2 below [train]"
    else:
        more = "more test_tokens below [train], or a larger held_out"
    return (
        f"the test has {first.test_documents} of at least {FEWEST_DOCUMENTS}. It takes a study "
        f"with {more}."
    )


def for_seeds(study: Comparison, lacking: Sequence[Arm]) -> str:
    run = study.base.runs[0].run
    arms = (study.base, *lacking)
    if study.ledger and any(lost_results(arm, study.ledger) for arm in arms):
        return "results are missing from the folder of the study. Restore these runs."
    if any(awaited_look(study, arm) is not None for arm in lacking):
        return f"not all planned ones have run. Next: {study_command(run.study_path)}"
    if any(len(arm.runs) < 2 for arm in arms):
        return "one run shows no noise. It takes a study with at least three seeds."
    if any(arm.failed for arm in arms):
        return "runs failed, and the losses of the others may flatter their arm."
    words = ("compare", study.base.name, *(arm.name for arm in lacking), "--detect", "0.02")
    typed = command(*words, study=study.study, results=results_of(run))
    return (
        f"the intervals leave the sign open. {typed} says how many a difference of 0.02 takes. "
        "They belong in a new study: added here, they make the verdict exploratory."
    )
