"""How it was measured, in a few lines."""

from collections.abc import Sequence

from smolctl.analysis.comparison import Comparison
from smolctl.report.document import Section, bullets, section
from smolctl.report.evidence import Evidence
from smolctl.report.sections.architecture import what_they_are
from smolctl.report.wording import described, grouped, listed, machine, once


def method_section(evidence: Evidence) -> Section | None:
    """Models, protocol, test and the role of each further study."""
    study = evidence.main
    return section(
        "How it was measured",
        [
            bullets(
                [
                    f"{what_they_are(evidence)}.",
                    *named_otherwise(study),
                    protocol_sentence(study),
                    *([unit_sentence(study)] if study.others else []),
                    *margins(evidence),
                    *further_sentences(evidence),
                    *machine_sentences(evidence),
                ]
            )
        ],
    )


def named_otherwise(study: Comparison) -> list[str]:
    """What the arms are that have the name of another model or a name of their own: `orig` may be
    an orig of other dimensions."""
    named = {arm.name: arm.protocol.variant for arm in study.arms}
    others = {arm: variant for arm, variant in named.items() if variant != arm}
    if not others:
        return []
    texts = [
        f"{listed(arms)} {'is' if len(arms) == 1 else 'are'} `{variant}`"
        for variant, arms in grouped(others).items()
    ]
    return [f"{'; '.join(texts)}."]


def unit_sentence(study: Comparison) -> str:
    """What is tested, and how."""
    paired = {found.paired for found in study.primary.values()}
    test = "Welch's test over seeds"
    if paired == {True}:
        test = "Student's t on the differences within seeds"
    elif True in paired:
        test = "Student's t on the differences within seeds where arms share them, else Welch's"
    return (
        f"The unit is the run. Verdicts on the final test loss: {test}, corrected for the number "
        "of arms (Bonferroni)."
    )


def protocol_sentence(study: Comparison) -> str:
    """Corpus, steps, optimizer and seeds."""
    protocol = study.base.protocol
    assert protocol.data is not None
    recipe, counts = protocol.recipe, sorted({len(arm.runs) for arm in study.arms})
    seeds = " or ".join(map(str, counts))
    return (
        f"{described(study)} of {protocol.data.source}; {recipe.optimizer}, {recipe.schedule} "
        f"schedule, {protocol.dtype}; {seeds} seed{'' if counts == [1] else 's'} per arm."
    )


def margins(evidence: Evidence) -> list[str]:
    """How small a difference does not matter, where studies say."""
    return once(
        f"A difference within {study.margin:g} nats/token does not matter: the margin of "
        f"`{study.study}`."
        for study in evidence.studies
        if study.margin is not None
    )


def further_sentences(evidence: Evidence) -> list[str]:
    """Which further study answers what."""
    roles: dict[str, Sequence[Comparison | None]] = {
        "verdicts on the loss": evidence.of_quality,
        "speed": [evidence.timed],
        "loss in equal time": evidence.in_time,
        "quantization": [evidence.quantized.comparison] if evidence.quantized.is_measured else [],
        "control": evidence.controls,
    }
    sentences = []
    for study in evidence.further:
        found = [role for role, studies in roles.items() if any(one is study for one in studies)]
        sentences.append(f"{described(study)}{f' ({listed(found)})' if found else ''}.")
    return sentences


def machine_sentences(evidence: Evidence) -> list[str]:
    """The machine that speeds were measured on."""
    timed = evidence.timed
    return [] if timed is None else [f"Speeds were measured on {machine(timed)}."]
