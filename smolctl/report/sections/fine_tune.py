"""A checkpoint against another one, such as a fine-tune against its base model: what it has gained
on the new text and forgotten of the old."""

from collections.abc import Iterable, Sequence

from smolctl.analysis.checkpoint_pair import (
    AnswerChange,
    CheckpointPair,
    TextChange,
    TextRole,
    compare_checkpoints,
    started_from,
)
from smolctl.analysis.paired_scores import ScoredModel
from smolctl.analysis.run_metrics import siblings
from smolctl.analysis.verdicts import FEWEST_DOCUMENTS, Difference, Verdict
from smolctl.command_line import command, results_of
from smolctl.report.document import Figure, Section, Table, bullets, paragraph, section
from smolctl.report.evidence import Evidence
from smolctl.report.figures.paired_changes import paired_changes_of
from smolctl.report.verdict_words import ends_text, verdict_text
from smolctl.report.wording import interval_words, listed
from smolctl.units import of_total
from smollm2.errors import UserError
from smollm2.protocol.run_config import plain_name
from smollm2.runs.conditions import describe, describe_setting
from smollm2.runs.run import Run

AGAINST_BASE, TWO = "Against the base model", "Two checkpoints"


def fine_tune_section(evidence: Evidence) -> Section | None:
    """Each run of the first study that began as an imported model, against that model; a run that
    began as another one against that, where no arms are compared; of exported weights that run
    alone."""
    if evidence.exported:
        return against_base([evidence.exported])
    runs = [finished.run for finished in evidence.main.runs]
    return against_base(run for run in runs if run.origin or not evidence.main.others)


def against_base(runs: Iterable[Run]) -> Section | None:
    """Those of the runs that began as an imported model or another run, against it."""
    started = (run for run in runs if not run.is_imported)
    found = [against_base_of(run) for run in started if run.origin or run.manifest["started_from"]]
    if len(found) < 2:
        return found[0] if found else None
    return section(AGAINST_BASE, [], found)


def against_base_of(run: Run) -> Section:
    """A run against the model that it began as, or how to compare the two."""
    found = (one for one in siblings(run) if is_base_of(one, run))
    base, why = next(found, None), "They were not scored on the same text or tasks yet."
    if base is not None:
        first, second = (ScoredModel(one.name, one, one) for one in (base, run))
        try:
            pair = compare_checkpoints(first, second)
        except UserError as error:
            why = str(error)
        else:
            if pair.texts or pair.tasks:
                return pair_section(pair)
    start = str(run.origin or run.manifest["started_from"])
    words = ("compare", base.name if base else start, run.name)
    typed = command(*words, study=run.study, results=results_of(run))
    return Section(
        AGAINST_BASE,
        (
            paragraph(
                f"{run.name} began as `{start}`. {why} `{typed}` scores both, and says what "
                "was gained on the new text and forgotten of the old."
            ),
        ),
    )


def is_base_of(one: Run, run: Run) -> bool:
    """Whether a run began as this imported model, or as the final weights of this run."""
    if run.origin:
        return one.is_imported and one.origin == run.origin
    return started_from(run, one)


def pair_section(pair: CheckpointPair) -> Section:
    """Two checkpoints on all that they have in common."""
    shown = section(
        AGAINST_BASE if is_fine_tune(pair) else TWO,
        [
            bullets(
                [
                    who_they_are(pair),
                    *(text_sentence(pair, text) for text in pair.texts),
                    *(task_sentence(task) for task in pair.tasks),
                    what_it_is_about(pair),
                    *held_out_sentences(pair),
                    *not_compared(pair),
                    *pair.problems,
                ]
            ),
            texts_table(pair),
            answers_table(pair),
            Figure(
                f"change-of-{plain_name(pair.other.name)}.png",
                f"{pair.other.name} beside {pair.base.name}",
                lambda: paired_changes_of(pair),
            ),
        ],
    )
    assert shown is not None
    return shown


# Sentences


def who_they_are(pair: CheckpointPair) -> str:
    """Where the two come from."""
    base, other = pair.base, pair.other
    names = f"{other.name} against {base.name}"
    if base.run.is_imported:
        names += f", imported from `{base.run.origin}`"
    if pair.are_one_run:
        return f"{names}: the weights are those of one run, {base.run.name}, in two precisions."
    if pair.began_as_base:
        return f"{names}, whose weights it started from."
    return f"{names}: neither is known to have started from the other."


def text_sentence(pair: CheckpointPair, text: TextChange) -> str:
    """The change of a text with its interval and verdict."""
    whose = {TextRole.NEW: pair.other.name, TextRole.OLD: pair.base.name}
    name = text.source
    if text.role in whose:
        name += f" (test documents of the text that {whose[text.role]} was trained on)"
    before, after = text.losses or text.bits
    unit = "nats/token" if text.losses else "bits per byte"
    found = text.judged
    ends = f"{interval_words(found)}, " if found.interval else ""
    return (
        f"{name}: {before:.4f} to {after:.4f} {unit}, {found.mean:+.4f} ({ends}"
        f"{text.documents:,} documents): {verdict_text(found)}{effect(pair, text)}."
    )


def effect(pair: CheckpointPair, text: TextChange) -> str:
    """What a verdict means for a checkpoint that began as the base."""
    if not is_fine_tune(pair):
        return ""
    if text.role is TextRole.NEW and text.judged.verdict is Verdict.BETTER:
        return ", so this was gained"
    if text.role is not TextRole.NEW and text.judged.verdict is Verdict.WORSE:
        return ", so some of this was forgotten"
    return ""


def is_fine_tune(pair: CheckpointPair) -> bool:
    """Whether the other was trained on from the base; what quantizing either of them does is no
    matter of training."""
    is_quantized = pair.base.is_quantized or pair.other.is_quantized
    return pair.began_as_base and not pair.are_one_run and not is_quantized


def task_sentence(task: AnswerChange) -> str:
    """The change of a task with its interval and verdict."""
    acc, row = task.metrics[0], task.rows[0]
    ends = f"{interval_words(acc.change)}, " if acc.change.interval else ""
    return (
        f"{row['task']}: {acc.scores[0]:.4f} to {acc.scores[1]:.4f} of the answers are right, "
        f"{acc.change.mean:+.4f} ({ends}{row['n']:,} questions; {task.newly_right:,} newly right, "
        f"{task.newly_wrong:,} newly wrong): {verdict_text(acc.change)}."
    )


def what_it_is_about(pair: CheckpointPair) -> str:
    """What the verdicts are about, and what not."""
    count = len(pair.texts) + len(pair.tasks)
    family = f"; the {count} verdicts are one family (Bonferroni)" if count > 1 else ""
    return (
        "This is a statement about these two checkpoints, on documents and questions like these"
        f"{family}. It says nothing about another seed or another training: `smolctl study` "
        "compares arms with several seeds each."
    )


def held_out_sentences(pair: CheckpointPair) -> list[str]:
    """From which training the text was held out, as far as that is known."""
    if not pair.texts:
        return []
    runs = {one.run.name: one.run for one in (pair.base, pair.other)}
    trained = [name for name, run in runs.items() if not run.is_imported]
    unknown = [f"`{run.origin}`" for run in runs.values() if run.origin]
    sentences = []
    if trained:
        sentences.append(f"The text was held out from the training of {listed(trained)}.")
    if unknown:
        names = listed(list(dict.fromkeys(unknown)))
        sentences.append(f"What {names} was trained on is unknown: it may have read the text.")
    if any(text.losses is None for text in pair.texts):
        margin = "" if pair.margin is None else ", to which the margin does not apply"
        sentences.append(
            "The two have different tokenizers, so texts are compared by bits per byte, on the "
            f"documents that both read whole{margin}."
        )
    if any(text.documents < FEWEST_DOCUMENTS for text in pair.texts):
        sentences.append(f"Fewer than {FEWEST_DOCUMENTS} documents give no interval.")
    return sentences


def not_compared(pair: CheckpointPair) -> list[str]:
    """What measures what is missing."""
    roles = {text.role for text in pair.texts}
    sentences = [
        f"{name} was not scored with both alike: `{compare_command(pair, '--data', name)}`."
        for name in pair.unpaired_texts
    ]
    sentences += [
        f"{name} was not answered by both: `{compare_command(pair, '--tasks', name)}`."
        for name in pair.unpaired_tasks
    ]
    if is_fine_tune(pair) and TextRole.NEW not in roles:
        typed = compare_command(pair)
        sentences.append(f"What was gained on the new text was not measured: `{typed}`.")
    if is_fine_tune(pair) and roles <= {TextRole.NEW} and not pair.unpaired_texts:
        typed = compare_command(pair, "--data", "TEXT")
        sentences.append(f"What was forgotten of other text was not measured: `{typed}`.")
    if not pair.tasks and not pair.unpaired_tasks:
        typed = compare_command(pair, "--tasks", "arc_easy,hellaswag")
        sentences.append(f"No task was compared: `{typed}`.")
    return sentences


def compare_command(pair: CheckpointPair, *options: str) -> str:
    """The command that compares the two, with more options."""
    run = pair.other.run
    words = ("compare", pair.base.name, pair.other.name, *options)
    return command(*words, study=run.study, results=results_of(run))


# Tables


def texts_table(pair: CheckpointPair) -> Table:
    """A row per text."""
    unit = "nats/token" if all(text.losses for text in pair.texts) else "bits/byte"
    ways = [describe(text.row) for text in pair.texts]
    return scores_beside(
        pair,
        f"Held-out text, {unit}",
        ("text", "verdict", "how", "documents", "tokens"),
        [text_cells(text, way) for text, way in zip(pair.texts, ways, strict=True)],
        further=("change, bits/byte",),
    )


def text_cells(text: TextChange, how: str) -> tuple[str, ...]:
    """A row of `texts_table`."""
    extent = of_total(int(text.row["n"]), int(text.row["total"]))
    return (
        *(text.source, verdict_text(text.judged), how, f"{text.documents:,}", extent),
        *change_cells(text.losses or text.bits, text.judged),
        f"{text.bits_change.mean:+.4f}",
    )


def answers_table(pair: CheckpointPair) -> Table:
    """A row per metric of each task; accuracies have the verdicts."""
    return scores_beside(
        pair,
        "Tasks",
        ("metric", "verdict", "how", "questions"),
        [cells for task in pair.tasks for cells in answer_cells(task)],
    )


def answer_cells(task: AnswerChange) -> list[tuple[str, ...]]:
    """The rows of a task in `answers_table`."""
    row = task.rows[0]
    extent, way = of_total(int(row["n"]), int(row["total"])), describe_setting(row)
    return [
        (
            f"{row['task']} {one.metric}",
            verdict_text(one.change) if one.change is task.judged else "–",
            *(way, extent),
            *change_cells(one.scores, one.change),
        )
        for one in task.metrics
    ]


def change_cells(scores: tuple[float, float], change: Difference) -> tuple[str, ...]:
    """Both scores, the change and its interval."""
    ends = ends_text(change.interval) if change.interval else "–"
    return (*(f"{score:.4f}" for score in scores), f"{change.mean:+.4f}", ends)


def scores_beside(
    pair: CheckpointPair,
    title: str,
    header: tuple[str, ...],
    rows: Sequence[tuple[str, ...]],
    further: tuple[str, ...] = (),
) -> Table:
    """The scores of both side by side. How they were made, the third column, stands in the title
    where it is the same for all."""
    header = (*header, pair.base.name, pair.other.name, "change", "interval", *further)
    intervals = f"intervals of {100 * pair.confidence:.4g} %"
    ways = {row[2] for row in rows}
    if len(ways) > 1:
        return Table(f"{title}; {intervals}", header, rows, n_words=3)
    return Table(
        f"{title} ({''.join(ways)}); {intervals}",
        (*header[:2], *header[3:]),
        [(*row[:2], *row[3:]) for row in rows],
        n_words=2,
    )
