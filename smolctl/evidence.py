"""What a card stands on: the study that it is of, and others for what that one cannot tell.

A small study with many seeds tells of the loss, a short one at full size of speed and of
quantizing, a control of the method. Each question is answered by the studies that can.
"""

from dataclasses import dataclass
from functools import cached_property

from smolctl.comparison import Arm, Comparison
from smolctl.quantization import Quantized, quantized
from smolctl.quantization_words import quantization_conclusion
from smolctl.words import described, is_of_controls, on_quality, on_speed


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
    def comparing(self) -> tuple[Comparison, ...]:
        """The studies that compare models: those of one arm and controls aside."""
        return tuple(one for one in self.studies if one.others and not is_of_controls(one))

    @cached_property
    def full_size(self) -> Comparison | None:
        """The study whose widths are those that models are quantized at: that which was quantized
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
        """The first study that compares models and tells of their speed."""
        return next((study for study in self.comparing if study.is_timed), None)

    @property
    def of_quality(self) -> list[Comparison]:
        """The studies that tell whether an arm is better: those that compare models at the scale of
        the first one, and that itself if it is a control."""
        comparing = [one for one in self.comparing if one.scale == self.main.scale]
        return [self.main, *comparing] if is_of_controls(self.main) else comparing

    @property
    def of_equal_time(self) -> list[Comparison]:
        """The studies that tell what arms reach in equal time."""
        return [one for one in self.comparing if one.equal == "seconds" and one.has_speed]

    @property
    def in_time(self) -> list[Comparison]:
        """Of these the ones beside `of_quality`."""
        return [one for one in self.of_equal_time if one.scale != self.main.scale]

    @property
    def timed_further(self) -> Comparison | None:
        """The further study whose speeds stand beside the losses of the first, if that compares
        models and does not tell of their speed itself."""
        is_comparing = any(one is self.main for one in self.comparing)
        return self.timed if is_comparing and self.timed is not self.main else None

    @cached_property
    def quantized_of(self) -> dict[str, Quantized]:
        """What the runs of each study became, by its name; read once."""
        return {study.study: quantized(study) for study in self.studies}

    @cached_property
    def quantized(self) -> Quantized:
        """Of the first study that compares models at full size and was quantized; else of the first
        that was quantized, or that could be."""
        comparing = [self.quantized_of[study.study] for study in self.comparing]
        found = [*comparing, *self.quantized_of.values()]
        measured = [one for one in found if one.is_measured]
        judged = [one for one in measured if one.is_judged and one.comparison.others]
        return next(iter([*judged, *measured, *found]))

    @property
    def notes(self) -> list[str]:
        """What is said of every run that is left out, and of the tasks."""
        further = (f"Study {one.study}: {note}" for one in self.further for note in one.notes)
        return [*self.main.notes, *further]

    def answers(self) -> dict[str, list[Answer]]:
        """By question: what each study that can tell says of it."""
        return {
            "Is it better?": self.on_quality(),
            "Is it faster?": self.on_speed(),
            "Does it quantize better?": self.on_quantizing(),
            "Is a difference found where there is none?": [
                self.answer(study, on_quality(study)) for study in self.controls
            ],
        }

    def on_quality(self) -> list[Answer]:
        """The verdicts of each study, which are a family by themselves."""
        answers = []
        for study in self.of_quality:
            others = [one for one in self.comparing if one is not study and is_like(one, study)]
            answered = {
                (arm.name, one.equal)
                for one in others
                for arm in one.others
                if is_same_model(arm, study)
            }
            answers.append(self.answer(study, on_quality(study, answered)))
        if len(answers) > 1:
            answers[-1].sentences.append(
                "The verdicts of each study are a family by themselves: that none of all studies "
                "is a false one is less sure."
            )
        return answers

    def on_speed(self) -> list[Answer]:
        """Tokens a second, and what came of equal time."""
        timed = self.timed or self.main
        if not timed.others:
            return []
        answers = [self.answer(timed, on_speed(timed))]
        answers += [self.answer(study, on_quality(study)) for study in self.in_time]
        if self.timed and not self.of_equal_time:
            answers[0].sentences.append(NO_EQUAL_TIME)
        return answers

    def on_quantizing(self) -> list[Answer]:
        """What quantizing changes; nothing where there is but one arm."""
        study = self.quantized.comparison
        if not study.others:
            return []
        return [self.answer(study, quantization_conclusion(self.quantized) or [NOT_QUANTIZED])]

    def answer(self, study: Comparison, sentences: list[str]) -> Answer:
        return Answer("" if study is self.main else described(study), sentences)


def is_like(one: Comparison, other: Comparison) -> bool:
    """Whether two studies compare with the same model, under the same name."""
    return one.base.name == other.base.name and is_same_model(one.base, other)


def is_same_model(arm: Arm, study: Comparison) -> bool:
    """Whether the study has this arm too: by name the same model, or at another scale the same
    variant."""
    other = next((other.protocol for other in study.arms if other.name == arm.name), None)
    if other is None:
        return False
    if other.scale != arm.protocol.scale:
        return other.variant == arm.protocol.variant
    return other.model == arm.protocol.model


NO_EQUAL_TIME = (
    "What the arms reach in equal time was not measured: a study at full size with "
    'equal = "seconds", long enough for losses to be compared, tells.'
)
NOT_QUANTIZED = "Not measured: see Quantization."
