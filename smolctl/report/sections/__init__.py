"""The sections of a report, one file per topic, and which report shows which.

To add one, write a file with a function NAME_section and add an entry to `SECTIONS`.
"""

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from smolctl.report.document import Section
from smolctl.report.evidence import Evidence
from smolctl.report.sections.answer import answer_section
from smolctl.report.sections.architecture import architecture_section
from smolctl.report.sections.claims import claims_in_detail_section, claims_section
from smolctl.report.sections.decision import decision_section
from smolctl.report.sections.experts import experts_section
from smolctl.report.sections.fine_tune import fine_tune_section
from smolctl.report.sections.ladder_section import ladder_in_detail_section, ladder_section
from smolctl.report.sections.limits import limits_section
from smolctl.report.sections.method import method_section
from smolctl.report.sections.quality import quality_section
from smolctl.report.sections.quantization import quantization_section
from smolctl.report.sections.reproduction import reproduction_section
from smolctl.report.sections.runs import runs_section
from smolctl.report.sections.speed import speed_section
from smolctl.report.sections.tasks import tasks_section
from smolctl.report.sections.training import training_section
from smolctl.report.sections.tuning import tuning_section
from smolctl.report.sections.usage import transformers_usage_section, usage_section
from smolctl.report.sections.widths import widths_section
from smollm2.errors import unknown

Maker = Callable[[Evidence], Section | None]
CARD, EXPORTED, APPENDIX, COMPARE = "card", "exported", "appendix", "compare"


@dataclass(frozen=True)
class Entry:
    """A section and the reports that show it.

    Args:
        make: returns None if the section has nothing to say; it is then shown nowhere.
        reports: `CARD`, `EXPORTED` (the card beside exported weights), `APPENDIX`, `COMPARE`.
    """

    make: Maker
    reports: tuple[str, ...]


# In the order in which every report shows them.
SECTIONS = {
    "fine-tune": Entry(fine_tune_section, (CARD, EXPORTED)),
    "answer": Entry(answer_section, (CARD, EXPORTED)),
    "claims": Entry(claims_section, (CARD, EXPORTED)),
    "method": Entry(method_section, (CARD, EXPORTED)),
    "ladder": Entry(ladder_section, (CARD,)),
    "limits": Entry(limits_section, (CARD, EXPORTED)),
    "usage": Entry(usage_section, (CARD,)),
    "transformers-usage": Entry(transformers_usage_section, (EXPORTED,)),
    "quality": Entry(quality_section, (APPENDIX, COMPARE)),
    "decision": Entry(decision_section, (APPENDIX, COMPARE)),
    "speed": Entry(speed_section, (APPENDIX, COMPARE)),
    "experts": Entry(experts_section, (APPENDIX, COMPARE)),
    "quantization": Entry(quantization_section, (APPENDIX,)),
    "widths": Entry(widths_section, (APPENDIX,)),
    "tasks": Entry(tasks_section, (APPENDIX, COMPARE)),
    "tuning": Entry(tuning_section, (APPENDIX, COMPARE)),
    "claims-in-detail": Entry(claims_in_detail_section, (APPENDIX,)),
    "ladder-in-detail": Entry(ladder_in_detail_section, (APPENDIX,)),
    "architecture": Entry(architecture_section, (APPENDIX,)),
    "training": Entry(training_section, (APPENDIX,)),
    "runs": Entry(runs_section, (APPENDIX,)),
    "reproduction": Entry(reproduction_section, (APPENDIX,)),
}


def names_in(report: str) -> list[str]:
    """The names of the sections of a report, in order."""
    return [name for name, entry in SECTIONS.items() if report in entry.reports]


def sections(evidence: Evidence, names: Iterable[str]) -> list[Section]:
    """The sections of these names that have something to say, in this order.

    Raises:
        UserError: there is no section of a name; or a file that a section reads is damaged.
    """
    return [
        dataclasses.replace(found, name=name)
        for name in names
        if (found := maker(name)(evidence)) is not None
    ]


def maker(name: str) -> Maker:
    """The function that makes the section of that name.

    Raises:
        UserError: there is none; the message lists the names.
    """
    if name not in SECTIONS:
        raise unknown("section", name, list(SECTIONS))
    return SECTIONS[name].make
