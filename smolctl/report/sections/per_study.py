"""What the sections of several studies have in common."""

from collections.abc import Callable, Iterable, Mapping, Sequence

from smolctl.analysis.alike import has_same_base, is_same_model
from smolctl.analysis.comparison import Comparison
from smolctl.report.document import Block, Section, section
from smolctl.report.evidence import Evidence
from smolctl.report.wording import described, listed


def per_study(
    evidence: Evidence, title: str, blocks: Callable[[Comparison], Iterable[Block | None]]
) -> Section | None:
    """The blocks of the first study, then a part for each further study that has some."""
    parts = [section(described(study), blocks(study)) for study in evidence.further]
    return section(title, blocks(evidence.main), parts)


def figure_name(evidence: Evidence, study: Comparison, name: str) -> str:
    """`loss.png` of the first study, `also-STUDY/loss.png` of a further one."""
    return name if study is evidence.main else f"also-{study.study}/{name}"


def is_among(study: Comparison, studies: Iterable[Comparison]) -> bool:
    """Whether it is one of them: the object, not an equal one."""
    return any(study is one for one in studies)


def source(evidence: Evidence, study: Comparison) -> list[str]:
    """Names the study, if it is not the first one."""
    return [] if study is evidence.main else [f"{described(study)}."]


def withdrawn(studies: Sequence[Comparison]) -> str:
    """What stands in the place of superseded verdicts."""
    names = listed([f"`{study.study}`" for study in studies])
    return f"The verdicts of {names} are withdrawn."


def row_of(
    label: str, study: Comparison, main: Comparison, first: str, cells: Mapping[str, str]
) -> tuple[str, ...]:
    """A row of the arms that the study has in common with the first one; `–` of the others, and of
    all where it has another first arm."""
    shown = {arm.name: cells[arm.name] for arm in study.others if arm.name in cells}
    if not has_same_base(study, main):
        return (label, *("–" for _ in main.arms))
    name = f"{label}, {study.scale} scale" + ("" if study is main else f" (`{study.study}`)")
    others = (shown.get(arm.name, "–") if is_same_model(arm, study) else "–" for arm in main.others)
    return (name, first, *others)
