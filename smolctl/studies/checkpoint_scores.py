"""Finds two checkpoints, and scores both on the same text and the same questions in the same way.

    smolctl compare ./base tuned                            the text that `tuned` was trained on
    smolctl compare ./base tuned --data novels.jsonl.gz     and another text
    smolctl compare ./base tuned --tasks arc_easy           and a task

Each text is the test split, in the same windows of both models' tokens: of the length that both
were trained with, or the shorter one. What is recorded already is not computed again, so the
commands add up. `analysis.checkpoint_pair` compares what was scored.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smolctl.analysis.paired_scores import (
    SPLIT,
    ScoredModel,
    alike_texts,
    has_one_tokenizer,
    task_records,
    text_rows,
)
from smolctl.command_line import command, results_of
from smolctl.studies.machine import machine_for
from smolctl.studies.models import Model, one_model
from smolctl.studies.scorer import Scorer, questions
from smolctl.studies.tokens import held_out_share, require_unseen, tokens_for, tokens_of
from smolctl.talk import say
from smollm2.data import TokenData, window_count
from smollm2.errors import UserError
from smollm2.evaluation.records import window_length
from smollm2.evaluation.tasks import TaskItems
from smollm2.runs.conditions import SPREAD_TEXT, TEXT
from smollm2.runs.run import Run
from smollm2.runs.scored_texts import note_scored_text
from smollm2.runs.tables import TableFolder


@dataclass(frozen=True)
class Asked:
    """What two checkpoints are to be scored on, beside the texts they were trained on.

    Args:
        texts: corpora, as `train --data` names them.
        tasks, data_dir, limit: as `questions` takes them; no tasks where None.
        tokens: of each text, spread over it; None: as many as the final test of the trained one, or
            the whole split of a text that two imported models are scored on.
        device, dtype: None: the second one's device, and fp32 unless both are bf16.
    """

    texts: tuple[str, ...] = ()
    tasks: str | None = None
    data_dir: Path | None = None
    limit: int | None = None
    tokens: int | None = None
    device: str | None = None
    dtype: str | None = None


@dataclass(frozen=True)
class WantedText:
    """A text to score a model on: `n_tokens` of it, None for the whole split, in windows of
    `seq_len`."""

    data: TokenData
    n_tokens: int | None
    seq_len: int


def two_checkpoints(targets: Sequence[str], results: Path, study: str) -> tuple[Model, Model]:
    """The two models that the targets name.

    Raises:
        UserError: they are not two, or as `one_model`.
        RunError: as `one_model`.
    """
    if len(targets) != 2:
        example = command("compare", "./base", "RUN", study=study, results=results)
        raise UserError(
            f"A comparison of checkpoints takes two, the base first: {example}. Arms of a study "
            "are compared without --data and --tasks."
        )
    base, other = (one_model(target, results, study) for target in targets)
    if base.label == other.label and base.tables.path.resolve() == other.tables.path.resolve():
        raise UserError(f"{targets[0]} and {targets[1]} are one model, {base.label}: name another.")
    return base, other


def scored_model(model: Model) -> ScoredModel:
    """The model with its recorded scores."""
    return ScoredModel(model.label, model.run, model.tables)


# Scoring


def score_alike(base: Model, other: Model, asked: Asked) -> None:
    """Score both on what was asked and on the texts that they were trained on, as far as that is
    not recorded.

    Raises:
        UserError: a text or task cannot be read or scored, or a model was trained on it.
        RunError: a score is not finite, or cannot be written.
    """
    device = machine_for(other.run, asked.device, asked.dtype)[0]
    dtype = asked.dtype or common_dtype(base, other)
    items = questions(asked.tasks, asked.data_dir, asked.limit) if asked.tasks else []
    texts = texts_to_score(base, other, asked)
    for number, model in enumerate((base, other)):
        scorer = Scorer(model, device=device, dtype=dtype)
        own = [pair[number] for pair in texts]
        todo = [text for text in own if not is_text_scored(model, text, scorer.machine)]
        left = [task for task in items if not is_task_scored(model, task, scorer.machine)]
        if not todo and not left:
            continue
        names = [text.data.source for text in todo] + [task.task.name for task in left]
        say(f"Scoring {model.label} on {', '.join(names)} ...")
        target = scorer.load()
        for text in todo:
            is_part = text.n_tokens is not None
            scorer.score_split(target, text.data, SPLIT, text.n_tokens, is_part, text.seq_len)
        for _ in scorer.score(target, [], left):
            pass


def common_dtype(base: Model, other: Model) -> str:
    """That of a quantized model, which its kernels are made for; else bf16 if both are, or fp32,
    in which the weights of both are exact."""
    for model in (other, base):
        if model.quantized is not None:
            return machine_for(model.run, None, None, is_quantized=True)[1]
    dtypes = {base.run.protocol.dtype, other.run.protocol.dtype}
    return dtypes.pop() if len(dtypes) == 1 else "float32"


def texts_to_score(base: Model, other: Model, asked: Asked) -> list[tuple[WantedText, WantedText]]:
    """The texts that are asked for, then those that the models were trained on, as tokens of
    either.

    Raises:
        UserError: as `score_alike`.
    """
    models = (base, other)
    share = held_out_share(other.run) or held_out_share(base.run)
    is_one = has_one_tokenizer(scored_model(base), scored_model(other))
    found: list[tuple[TokenData, TokenData]] = []
    for source in asked.texts:
        first = tokens_for(base.run, source, share)
        found.append((first, first if is_one else tokens_for(other.run, source, share)))
    for model in (other, base):
        own = model.run.protocol.data
        known = {data.fingerprint for pair in found for data in pair}
        if own is None or own.fingerprint in known:
            continue
        if not is_one:
            say_apart(base, other, own.source)
        elif asked.tokens or not is_recorded(base, other, own.fingerprint):
            try:
                data = tokens_of(model.run, None, None)
                for each in models:
                    require_unseen(each.run, data)
            except UserError as error:  # nobody asked for it, and others may do
                say(f"Not scored on {own.source}: {error}")
                continue
            found.append((data, data))
    for pair in found:
        for model, data in zip(models, pair, strict=True):
            require_unseen(model.run, data)
            if not is_one:  # by the documents and bytes of what the two have read it is one text
                with model.run.writing():
                    note_scored_text(model.run, data)
    if not is_one and asked.tokens:
        raise UserError(
            f"{base.label} and {other.label} have different tokenizers, so only whole texts are "
            "comparable: omit --tokens."
        )
    return [text_scores(base.run, other.run, pair, asked.tokens, is_one) for pair in found]


def say_apart(base: Model, other: Model, source: str) -> None:
    """Say how to score two models of different tokenizers on the text that one was trained on."""
    words = ("compare", base.label, other.label, "--data", source)
    study, results = base.run.study, results_of(base.run)
    say(
        f"{base.label} and {other.label} have different tokenizers, so {source} has to be "
        f"tokenized again: {command(*words, study=study, results=results)}"
    )


def text_scores(
    base: Run, other: Run, pair: tuple[TokenData, TokenData], asked: int | None, is_one: bool
) -> tuple[WantedText, WantedText]:
    """How both are scored on a text: in windows of one length, on as many tokens as were asked for
    or as the final test of the trained one has."""
    longest = [window_length(run, data.test) for run, data in zip((base, other), pair, strict=True)]
    seq_len = min(*longest, *(max(1, len(data.test) - 1) for data in pair))
    n_tokens = asked or other.protocol.test_tokens or base.protocol.test_tokens or None
    whole = window_count(pair[0].test, seq_len)
    if not is_one or window_count(pair[0].test, seq_len, n_tokens) == whole:
        n_tokens = None
    first, second = (WantedText(data, n_tokens, seq_len) for data in pair)
    return first, second


def is_recorded(base: Model, other: Model, fingerprint: str) -> bool:
    """Whether both were scored alike on a text."""
    pairs = alike_texts(scored_model(base), scored_model(other))
    return any(
        first["fingerprint"] == fingerprint
        and has_items(base.tables, first)
        and has_items(other.tables, second)
        for first, second in pairs
    )


def is_text_scored(model: Model, text: WantedText, machine: tuple[str, str]) -> bool:
    """Whether eval.csv of the model has the score."""
    tokens = text.data.test
    n = window_count(tokens, text.seq_len, text.n_tokens) * text.seq_len
    device, dtype = machine
    wanted = {
        "suite": TEXT if text.n_tokens is None else SPREAD_TEXT,
        "context": text.seq_len,
        "n": n,
        "fingerprint": text.data.fingerprint,
        "device": device,
        "dtype": dtype,
    }
    return has_row(model.tables, text_rows(model.tables), wanted)


def is_task_scored(model: Model, asked: TaskItems, machine: tuple[str, str]) -> bool:
    """Whether eval.csv of the model has the score."""
    device, dtype = machine
    wanted = {
        "task": asked.task.name,
        "split": asked.split,
        "n": len(asked.items),
        "fingerprint": asked.fingerprint,
        "device": device,
        "dtype": dtype,
    }
    return has_row(model.tables, task_records(model.tables), wanted)


def has_row(
    tables: TableFolder, rows: Iterable[Mapping[str, Any]], wanted: Mapping[str, Any]
) -> bool:
    """Whether a row has the wanted cells, and what lies behind it is still there."""
    return any(
        all(row[name] == cell for name, cell in wanted.items()) and has_items(tables, row)
        for row in rows
    )


def has_items(tables: TableFolder, row: Mapping[str, Any]) -> bool:
    """Whether the scores one by one behind a row of eval.csv are there."""
    return (tables.path / "items" / str(row["items"])).is_file()
