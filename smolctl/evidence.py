"""What a card stands on: the study that it is of, and others for what that one cannot tell.

A small study with many seeds tells of the loss, a short one at full size of speed and of
quantizing, a control of the method. Each question is answered by the studies that can.
"""

from dataclasses import dataclass
from functools import cached_property

from smolctl.comparison import Arm, Comparison
from smolctl.quantization import Quantized, quantized
from smolctl.quantization_words import quantization_conclusion
from smolctl.words import described, is_control, on_quality, on_speed


@dataclass(frozen=True)
class Answer:
    """What one study says of a question.

    source: names the study, if it is not the one that the card is of.
    """

    source: str
    sentences: list[str]


@dataclass(frozen=True)
class Evidence:
    """The study that a card is of, and further ones in the order in which they were given."""

    main: Comparison
    further: tuple[Comparison, ...] = ()

    @property
    def studies(self) -> tuple[Comparison, ...]:
        return (self.main, *self.further)

    @cached_property
    def timed(self) -> Comparison | None:
        """The first study whose runs can tell of speed and are long enough to be timed."""
        return next((study for study in self.studies if study.is_timed), None)

    @cached_property
    def quantized(self) -> Quantized:
        """Of the first study at full size that was quantized, else of the first quantized one, else
        of the main one."""
        found = [quantized(study) for study in self.studies]
        measured = [one for one in found if one.is_measured]
        judged = [one for one in measured if one.is_judged]
        return next(iter([*judged, *measured, *found]))

    @property
    def notes(self) -> list[str]:
        """What is said of every run that is left out, and of the tasks."""
        return [sentence for study in self.studies for sentence in study.notes]

    def answers(self) -> dict[str, list[Answer]]:
        """By question: what each study that can tell says of it."""
        comparing = [study for study in self.studies if study.others]
        controls = [study for study in comparing if is_of_controls(study)]
        same_scale = [study for study in comparing if study.scale == self.main.scale]
        timed, quantizing = self.timed or self.main, self.quantized.comparison
        return {
            "Is it better?": [
                self.answer(study, on_quality(study))
                for study in same_scale
                if study is self.main or study not in controls
            ],
            "Is it faster?": [self.answer(timed, [*on_speed(timed), *self.in_equal_time()])],
            "Does it quantize better?": [
                self.answer(quantizing, quantization_conclusion(self.quantized) or [NOT_QUANTIZED])
            ],
            "Is a difference found where there is none?": [
                self.answer(study, on_quality(study))
                for study in controls
                if study is not self.main
            ],
        }

    def in_equal_time(self) -> list[str]:
        """That nothing is known of it, unless a study tells."""
        views = [view for study in self.studies for view in study.views]
        if self.timed is None or any(view.axis == "seconds" and view.is_fair for view in views):
            return []
        return [NO_EQUAL_TIME]

    def answer(self, study: Comparison, sentences: list[str]) -> Answer:
        return Answer("" if study is self.main else described(study), sentences)


NO_EQUAL_TIME = (
    "What the arms reach in equal time was not measured: a study at full size with "
    'equal = "seconds", long enough for losses to be compared, tells.'
)
NOT_QUANTIZED = "Not measured: see Quantization."


def is_of_controls(study: Comparison) -> bool:
    """Whether every arm is the first one under another name."""
    return bool(study.others) and all(is_control(study.base, arm) for arm in study.others)


def of_variant(comparison: Comparison, *variants: str) -> Arm | None:
    """The first arm that is one of these variants."""
    return next((arm for arm in comparison.arms if arm.protocol.variant in variants), None)
