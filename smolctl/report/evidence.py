"""Selects which study answers which question; it writes no sentences.

A small study with many seeds answers for the loss, a short one at full size for speed and
quantization, a control for the method.
"""

from dataclasses import dataclass
from functools import cached_property

from smolctl.analysis.alike import has_same_base, is_of_controls, is_same_model
from smolctl.analysis.comparison import Comparison
from smolctl.analysis.quantized_arms import Quantized, quantized
from smolctl.analysis.study_notes import StudyNotes, read_notes
from smollm2.model.config import ModelConfig
from smollm2.runs.run import Run


@dataclass(frozen=True)
class Evidence:
    """The study that a report is about, and further ones in the order in which they were given.

    command: the `smolctl report` command that makes the report; empty where none does.
    exported: the run whose weights lie beside the report in the layout of transformers.
    given_license: of the weights, before that in the file of the study.
    """

    main: Comparison
    further: tuple[Comparison, ...] = ()
    command: str = ""
    exported: Run | None = None
    given_license: str | None = None

    @property
    def studies(self) -> tuple[Comparison, ...]:
        return (self.main, *self.further)

    @cached_property
    def comparing(self) -> tuple[Comparison, ...]:
        """The studies that compare models: not those of one arm, nor controls."""
        return tuple(one for one in self.studies if one.others and not is_of_controls(one))

    @cached_property
    def full_size(self) -> Comparison | None:
        """The study whose widths are those that models are quantized at: the one that was quantized
        at full size, else the first at full size that compares models, or the only one."""
        studies = [*self.comparing, *self.studies]
        if self.quantized.is_judged:
            studies.insert(0, self.quantized.comparison)
        return next((study for study in studies if study.scale == "full"), None)

    @cached_property
    def controls(self) -> tuple[Comparison, ...]:
        """The further studies of one model under several names."""
        return tuple(one for one in self.further if is_of_controls(one))

    @cached_property
    def timed(self) -> Comparison | None:
        """The first study that compares models and whose speeds can be compared: one at full size,
        if there is any."""
        found = [study for study in self.comparing if study.is_timed]
        return next(iter([*(one for one in found if one.scale == "full"), *found]), None)

    @property
    def of_quality(self) -> list[Comparison]:
        """The studies that say whether an arm is better: those that compare models at the scale of
        the first study, and that study itself if it is a control."""
        comparing = [one for one in self.comparing if one.scale == self.main.scale]
        return [self.main, *comparing] if is_of_controls(self.main) else comparing

    @property
    def of_equal_time(self) -> list[Comparison]:
        """The studies that say what arms reach in equal time."""
        return [one for one in self.comparing if one.equal == "seconds" and one.has_speed]

    @property
    def in_time(self) -> list[Comparison]:
        """Those of `of_equal_time` at another scale than the first study."""
        return [one for one in self.of_equal_time if one.scale != self.main.scale]

    @property
    def judged(self) -> list[Comparison]:
        """The studies whose verdicts on the loss are part of the answer."""
        return [*self.of_quality, *self.in_time, *self.controls]

    @property
    def timed_further(self) -> Comparison | None:
        """The further study whose speeds stand beside the losses of the first, if that compares
        models and was not timed itself."""
        is_comparing = any(one is self.main for one in self.comparing)
        return self.timed if is_comparing and self.timed is not self.main else None

    @property
    def controls_beside(self) -> list[Comparison]:
        """The controls at the scale of the first study."""
        return [one for one in self.controls if one.scale == self.main.scale]

    @cached_property
    def quantized_of(self) -> dict[str, Quantized]:
        """What the runs of each study became, by its name; read once."""
        return {study.study: quantized(study) for study in self.studies}

    @cached_property
    def quantized(self) -> Quantized:
        """Of the first study that compares quantized models, at full size if there is one; else of
        the first that was quantized, or that could be."""
        comparing = [self.quantized_of[study.study] for study in self.comparing]
        found = [*comparing, *self.quantized_of.values()]
        measured = [one for one in found if one.is_measured]
        judged = [one for one in measured if one.is_judged and one.comparison.others]
        full = [one for one in judged if one.is_full_size]
        return next(iter([*full, *judged, *measured, *found]))

    @property
    def superseded(self) -> list[str]:
        """Why the verdicts of studies are withdrawn, each reason once."""
        reasons = (one.superseded for one in self.studies if one.superseded is not None)
        return list(dict.fromkeys(reasons))

    @property
    def notes(self) -> list[str]:
        """Sentences on excluded runs and on tasks."""
        further = (f"Study {one.study}: {note}" for one in self.further for note in one.notes)
        return [*self.main.notes, *further]

    @property
    def origin(self) -> str | None:
        """The model from elsewhere that the weights began as; its license is its own."""
        origins = (finished.run.origin for finished in self.main.runs)
        return next((origin for origin in origins if origin), None)

    @property
    def license(self) -> str | None:
        """The license of the weights, if somebody chose one."""
        return self.given_license or self.study_notes.license

    def answered_elsewhere(self, study: Comparison) -> set[tuple[str, str]]:
        """Arms of `study`, each with what of `tokens`, `flops` and `seconds` another study made
        equal for it: there that study's verdict holds."""
        others = [one for one in self.comparing if one is not study and has_same_base(one, study)]
        return {
            (arm.name, one.equal)
            for one in others
            for arm in one.others
            if is_same_model(arm, study)
        }

    @cached_property
    def study_notes(self) -> StudyNotes:
        """What the file of the first study says; nothing where its runs were trained one by one."""
        return read_notes(self.main.base.runs[0].run.study_path)


def model_configs(comparison: Comparison) -> dict[str, ModelConfig]:
    """The model of each arm."""
    return {arm.name: arm.protocol.model for arm in comparison.arms}
