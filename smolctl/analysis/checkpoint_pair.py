"""Two checkpoints on the same text and the same questions: what one has gained and lost.

This is a statement about these two checkpoints on documents and questions like these. Another seed
of the training is another checkpoint, about which it says nothing; arms and their seeds are
compared by `selection.compare_arms`.

A text gives one verdict, on the change of the loss in nats/token: the ratio of two sums over its
documents, which are the sample. If the two read it as different tokens, the verdict is on bits per
byte. A task gives one, on the share of right answers, with the questions as the sample. All
verdicts of a pair are one family: each interval has the confidence 1 - 0.05 / (texts + tasks).
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import fmean
from typing import TYPE_CHECKING, Any, TypeVar

from smolctl.analysis.blocks import Numbers
from smolctl.analysis.document_interval import (
    LEAST_EFFECTIVE,
    effective_number,
    ratio_over_documents,
)
from smolctl.analysis.paired_scores import (
    PairedTask,
    PairedText,
    Row,
    ScoredModel,
    alike_tasks,
    alike_texts,
    read_task,
    read_text,
    task_records,
    text_rows,
)
from smolctl.analysis.stats import Estimate, over_items
from smolctl.analysis.study_plan import ALPHA
from smolctl.analysis.verdicts import (
    FEWEST_DOCUMENTS,
    Difference,
    Missing,
    Verdict,
    verdict_on,
    without_interval,
)
from smollm2.errors import UserError

if TYPE_CHECKING:
    from smollm2.runs.run import Run

ACC = "acc"  # the metric of a task that has a verdict
T = TypeVar("T")


class TextRole(StrEnum):
    """What a text is to the pair."""

    NEW = "new"  # the other was trained on it
    OLD = "old"  # the base was trained on it, here
    ELSE = "else"  # neither was trained on it here


@dataclass(frozen=True)
class TextChange:
    """How the score of a text has changed.

    Args:
        source: the text's name.
        row: of eval.csv, of the base: how it was scored.
        documents: that both have read; `effective_documents` as many as they would be of one size.
        n_tokens: of them.
        losses: in nats/token, of the base and of the other; None if they read different tokens.
        bits: bits per byte of both.
        loss_change: None as `losses`.
        bits_change: has no verdict where `loss_change` has.
    """

    source: str
    role: TextRole
    row: Row
    documents: int
    effective_documents: float
    n_tokens: int
    losses: tuple[float, float] | None
    bits: tuple[float, float]
    loss_change: Difference | None
    bits_change: Difference

    @property
    def judged(self) -> Difference:
        """The change that has the verdict."""
        return self.loss_change or self.bits_change


@dataclass(frozen=True)
class MetricChange:
    """How the score of a metric of a task has changed; `change` of any metric but `ACC` has no
    verdict."""

    metric: str
    scores: tuple[float, float]
    change: Difference


@dataclass(frozen=True)
class AnswerChange:
    """How the answers to a task have changed.

    Args:
        rows: of eval.csv, of the base and of the other: how it was scored.
        metrics: `ACC` first.
        newly_right, newly_wrong: questions that the other alone, and that the base alone answers
            right.
    """

    rows: tuple[Row, Row]
    metrics: tuple[MetricChange, ...]
    newly_right: int
    newly_wrong: int

    @property
    def judged(self) -> Difference:
        """The change that has the verdict."""
        return self.metrics[0].change


@dataclass(frozen=True)
class CheckpointPair:
    """Two checkpoints on all texts and tasks on which both were scored alike.

    Args:
        confidence: of every interval.
        margin: a change of the loss within it, in nats/token, does not matter; None: none is
            equivalent.
        problems: sentences on scores that cannot be read.
        unpaired_texts, unpaired_tasks: names of what was scored with one of them alone, or with
            both in different ways.
    """

    base: ScoredModel
    other: ScoredModel
    texts: tuple[TextChange, ...]
    tasks: tuple[AnswerChange, ...]
    confidence: float
    margin: float | None
    problems: tuple[str, ...]
    unpaired_texts: tuple[str, ...]
    unpaired_tasks: tuple[str, ...]

    @property
    def are_one_run(self) -> bool:
        """Whether they are one run in two precisions."""
        return self.base.run.path.resolve() == self.other.run.path.resolve()

    @property
    def began_as_base(self) -> bool:
        """Whether the other descends from the base: by training, here, or by quantizing it."""
        base, other = self.base.run, self.other.run
        is_descendant = base.is_imported and other.origin == base.origin
        return self.are_one_run or is_descendant or started_from(other, base)


def started_from(run: "Run", base: "Run") -> bool:
    """Whether a run started from the weights of `base` themselves, by the name in its manifest."""
    start = str(run.manifest["started_from"] or "")
    name = str(base.origin) if base.is_imported else base.name
    return name in (start, start.rpartition("@")[0])


def compare_checkpoints(
    base: ScoredModel, other: ScoredModel, margin: float | None = None
) -> CheckpointPair:
    """The second checkpoint against the first.

    Raises:
        UserError: an eval.csv is damaged.
    """
    problems: list[str] = []
    both_texts, both_tasks = alike_texts(base, other), alike_tasks(base, other)
    texts = readable_pairs(both_texts, lambda rows: read_text(base, other, rows), problems)
    tasks = readable_pairs(both_tasks, lambda pairs: read_task(base, other, pairs), problems)
    confidence = 1 - ALPHA / max(1, len(texts) + len(tasks))
    changes = [text_change(base, other, text, confidence, margin) for text in texts]
    order = list(TextRole)
    return CheckpointPair(
        base,
        other,
        tuple(sorted(changes, key=lambda one: (order.index(one.role), one.source))),
        tuple(answer_change(task, confidence) for task in tasks),
        confidence,
        margin,
        tuple(problems),
        unpaired_texts=tuple(unpaired_texts(base, other, both_texts)),
        unpaired_tasks=tuple(unpaired_tasks(base, other, both_tasks)),
    )


def unpaired_texts(
    base: ScoredModel, other: ScoredModel, paired: Sequence[tuple[Row, Row]]
) -> list[str]:
    """The names of the texts that were scored with either, and are not among the paired ones."""
    names = []
    for number, model in enumerate((base, other)):
        known = {pair[number]["fingerprint"] for pair in paired}
        found = [str(row["fingerprint"]) for row in text_rows(model.tables)]
        names += [model.text_name(text) for text in found if text not in known]
    return list(dict.fromkeys(names))


def unpaired_tasks(
    base: ScoredModel, other: ScoredModel, paired: Sequence[list[tuple[Row, Row]]]
) -> list[str]:
    """The tasks that were answered with either, and are not among the paired ones."""
    known = {pairs[0][0]["task"] for pairs in paired}
    names = [row["task"] for model in (base, other) for row in task_records(model.tables)]
    return list(dict.fromkeys(name for name in names if name not in known))


def readable_pairs(pairs: Sequence[Any], read: Callable[[Any], T], problems: list[str]) -> list[T]:
    """What can be read of the pairs; a sentence on each that cannot be goes to `problems`."""
    found = []
    for pair in pairs:
        try:
            found.append(read(pair))
        except UserError as error:
            problems.append(str(error))
    return found


def text_change(
    base: ScoredModel, other: ScoredModel, text: PairedText, confidence: float, margin: float | None
) -> TextChange:
    """How the score of a text has changed, with its verdict."""
    ours, theirs = (str(row["fingerprint"]) for row in text.rows)
    role = TextRole.NEW if theirs == other.own_text else TextRole.ELSE
    if role is TextRole.ELSE and ours == base.own_text:
        role = TextRole.OLD
    has_bytes = text.n_bytes > 0
    bits, n_bytes = text.text_nats[:, has_bytes] / math.log(2), text.n_bytes[has_bytes]
    losses = loss_change = None
    if text.has_one_tokenizer:
        losses = ratios(text.nats, text.n_tokens)
        loss_change = over_documents_of(text.nats, text.n_tokens, confidence, margin)
    bits_change = over_documents_of(bits, n_bytes, confidence, None)
    if loss_change is not None:  # which has the verdict
        bits_change = without_verdict(bits_change)
    return TextChange(
        base.text_name(ours) if theirs != other.own_text else other.text_name(theirs),
        role,
        text.rows[0],
        documents=len(text.n_tokens),
        effective_documents=effective_number(text.n_tokens),
        n_tokens=int(text.n_tokens.sum()),
        losses=losses,
        bits=ratios(bits, n_bytes),
        loss_change=loss_change,
        bits_change=bits_change,
    )


def ratios(sums: Numbers, sizes: Numbers) -> tuple[float, float]:
    """Of both models, their sums over all documents over the sizes."""
    first, second = sums.sum(axis=-1) / sizes.sum()
    return float(first), float(second)


def over_documents_of(
    sums: Numbers, sizes: Numbers, confidence: float, margin: float | None
) -> Difference:
    """The change of a ratio of sums, (2, documents) over (documents,); the smaller one is better.
    Below `FEWEST_DOCUMENTS` there is no interval, and below as many effective ones no verdict."""
    first, second = ratios(sums, sizes)
    missing, effective = (Missing.DOCUMENTS,), effective_number(sizes)
    if len(sizes) < FEWEST_DOCUMENTS or effective < LEAST_EFFECTIVE:
        return without_interval(second - first, confidence, missing=missing, paired=True)
    found = judged_change(
        ratio_over_documents(sums[1] - sums[0], sizes), confidence, margin, missing
    )
    if effective < FEWEST_DOCUMENTS:
        return dataclasses.replace(found, verdict=Verdict.INCONCLUSIVE, missing=missing)
    return found


def answer_change(task: PairedTask, confidence: float) -> AnswerChange:
    """How the answers to a task have changed, with the verdict on the share of right ones."""
    changes = []
    for metric, (first, second) in task.values.items():
        found = judged_change(over_items(first, second), confidence, None, (Missing.QUESTIONS,))
        if metric == ACC:  # the larger one is better
            verdict = OPPOSITE.get(found.verdict, found.verdict)
            found = dataclasses.replace(found, verdict=verdict)
        else:
            found = without_verdict(found)
        changes.append(MetricChange(metric, (fmean(first), fmean(second)), found))
    changes.sort(key=lambda one: one.metric != ACC)
    before, after = task.values[ACC]
    pairs = list(zip(before, after, strict=True))
    return AnswerChange(
        task.rows,
        tuple(changes),
        newly_right=sum(one < two for one, two in pairs),
        newly_wrong=sum(one > two for one, two in pairs),
    )


def without_verdict(change: Difference) -> Difference:
    """A change whose interval makes no verdict."""
    return dataclasses.replace(change, verdict=Verdict.INCONCLUSIVE, missing=())


OPPOSITE = {Verdict.BETTER: Verdict.WORSE, Verdict.WORSE: Verdict.BETTER}


def judged_change(
    found: Estimate, confidence: float, margin: float | None, missing: tuple[Missing, ...]
) -> Difference:
    """A change with its interval and verdict; `missing` is what an inconclusive one lacks. Without
    any spread there is no interval."""
    mean = float(found.mean)
    if not found.error > 0:  # nor is NaN
        return without_interval(mean, confidence, missing=missing, paired=True)
    low, high = (float(end) for end in found.interval(confidence))
    verdict = verdict_on((low, high), margin)
    return Difference(
        mean=mean,
        interval=(low, high),
        confidence=confidence,
        p=float(found.p),
        minimum_detectable_effect=None,
        verdict=verdict,
        paired=True,
        missing=missing if verdict is Verdict.INCONCLUSIVE else (),
        standard_error=float(found.error),
        degrees_of_freedom=float(found.df),
    )
