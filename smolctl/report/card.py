"""The model card of a study and its appendix: the sections, between a head and a foot.

A pure function of the files of the studies: the same files give the same bytes. What was not
measured is named, with the command that measures it.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from smolctl.analysis.comparison import Comparison
from smolctl.command_line import command
from smolctl.report.document import Section, figures_of, without
from smolctl.report.evidence import Evidence
from smolctl.report.render.front_matter import front_matter, scores_of
from smolctl.report.render.html import page
from smolctl.report.render.markdown import Figures, comment, heading, line, link, markdown, notice
from smolctl.report.sections import APPENDIX, CARD, EXPORTED, names_in, sections
from smolctl.report.sections.reproduction import versions
from smolctl.report.style import save_figure
from smolctl.report.wording import listed
from smollm2.errors import RunError, UserError
from smollm2.files import FULL
from smollm2.runs.run import Run


@dataclass(frozen=True)
class Card:
    """A card, its appendix and their figures.

    Args:
        figures: the folder of the figures.
        folder: where the card lies.
        appendix: where the appendix lies; None if there is none.
    """

    evidence: Evidence
    figures: Path
    folder: Path = Path()
    appendix: Path | None = None

    @property
    def exported(self) -> Run | None:
        """See `Evidence`."""
        return self.evidence.exported

    @cached_property
    def sections(self) -> list[Section]:
        """Those of the card."""
        return sections(self.evidence, names_in(EXPORTED if self.exported else CARD))

    @cached_property
    def details(self) -> list[Section]:
        """Those of the appendix, without what the card shows."""
        return without(sections(self.evidence, names_in(APPENDIX)), self.sections)

    @property
    def markdown(self) -> str:
        body = markdown(self.sections, Figures(self.figures, self.folder))
        return f"---\n{self.front_matter}\n---\n\n{self.head}\n{body}\n{self.foot}"

    @property
    def appendix_markdown(self) -> str:
        """Without front matter: it is no card."""
        assert self.appendix is not None
        body = markdown(self.details, Figures(self.figures, self.appendix.parent))
        card = f"the model card of study `{self.evidence.main.study}`"
        made = comment(f"Appendix to {card}, made with it by `{self.command}`.")
        return f"{made}\n\n{heading(f'Appendix to {card}', 1)}\n\n{body}"

    def page(self, pictures: Mapping[str, Path]) -> str:
        """Card and appendix as one HTML page.

        Args:
            pictures: see `write_figures`.
        """
        return page(self.title, self.notices, [*self.sections, *self.details], pictures)

    @property
    def title(self) -> str:
        names = listed([arm.name for arm in self.evidence.main.arms])
        return f"{names}: model card of study `{self.evidence.main.study}`"

    @property
    def notices(self) -> list[str]:
        """Why verdicts are withdrawn."""
        return [f"**Superseded.** {why}" for why in self.evidence.superseded]

    @property
    def head(self) -> str:
        """What made it, the title, and the notices."""
        parts = [self.comment, heading(self.title, 1), *map(notice, self.notices)]
        if self.exported:
            weights = f"The weights in this folder are those of `{self.exported.name}`"
            parts.append(line(f"{weights}, one of the runs of this study."))
        return "\n\n".join(parts) + "\n"

    @property
    def command(self) -> str:
        """That makes the card."""
        if self.exported:
            return export_command(self.exported, self.evidence.given_license)
        return self.evidence.command

    @property
    def comment(self) -> str:
        made = f"Made by `{self.command}` from runs of smolctl {versions(self.evidence)}"
        if self.exported:
            return comment(f"{made}. The files of the study, from which it follows, are not here.")
        return comment(f"{made}; `smolctl report --check` verifies it.")

    @property
    def foot(self) -> str:
        """Where the details are."""
        if self.appendix is None:
            command = f"{self.evidence.command} --appendix FILE"
            return f"{line(f'Tables, runs and commands: `{command}`.')}\n"
        return f"Tables, runs and commands: {link('appendix', self.appendix, self.folder)}.\n"

    @property
    def front_matter(self) -> str:
        study, scores = self.evidence.main, None
        if self.exported:
            name, runs = self.exported.name, [self.exported]
            scores = scores_of(only_of(study, self.exported), name)
        else:
            name, runs = study.base.name, [finished.run for finished in study.runs]
            if not study.others:
                scores = scores_of(study, f"{name}, mean of {len(runs)}")
        return front_matter(
            runs,
            license=self.evidence.license,
            model_name=None if scores is None else name,
            scores=scores,
            is_for_transformers=self.exported is not None,
        )


def export_command(run: Run, license: str | None) -> str:
    """The command that writes a card beside the weights of a run."""
    chosen = () if license is None else ("--license", license)
    return command("export", run.name, "--to", "hf", *chosen)


def only_of(comparison: Comparison, run: Run) -> Comparison:
    """One of the runs of a comparison by itself."""
    arms = (
        dataclasses.replace(arm, runs=(finished,))
        for arm in comparison.arms
        for finished in arm.runs
        if finished.name == run.name
    )
    return dataclasses.replace(comparison, arms=tuple(arms))


def write_figures(shown: Iterable[Section], folder: Path) -> dict[str, Path]:
    """Draw every figure of the sections; returns their files by the names of the figures.

    Raises:
        UserError: the folder cannot be written to.
        RunError: the disk is full.
    """
    try:
        return {
            figure.name: save_figure(figure.draw(), folder / figure.name)
            for figure in figures_of(shown)
        }
    except OSError as error:
        if error.errno in FULL:
            raise RunError(f"Cannot write figures to {folder}: {error.strerror}.") from None
        raise UserError(
            f"Cannot write figures to {folder}: {error.strerror}; choose another --figures."
        ) from None
