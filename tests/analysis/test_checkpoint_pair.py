"""Two checkpoints on planted scores: what changed, how sure that is, and what it is called."""

import math

import numpy as np
import pytest
from scipy import stats
from support.paired import CONTEXT, plant_answers, plant_text
from support.planted import planted

from smolctl.analysis.checkpoint_pair import (
    TextRole,
    compare_checkpoints,
    over_documents_of,
    started_from,
)
from smolctl.analysis.paired_scores import ScoredModel
from smolctl.analysis.verdicts import Missing, Verdict
from smolctl.report.sections.fine_tune import against_base
from smolctl.studies.targets import comparison_command
from smollm2.runs.run import Run

BEFORE = [3.0, 3.2, 2.9, 3.5, 3.1, 3.3, 2.8, 3.4]
CHANGE = [-0.1, -0.2, -0.15, -0.05, -0.12, -0.18, -0.22, -0.08]
AFTER = [before + change for before, change in zip(BEFORE, CHANGE, strict=True)]


@pytest.fixture
def runs(workdir, template) -> tuple[Run, Run]:
    """A run, and one that started from it, on another text."""
    base = planted(template, "base", 0, 5.0)
    tuned = planted(template, "tuned", 0, 5.0, manifest={"started_from": "base-s0"})
    fields = tuned.manifest["protocol"]
    data = fields["data"] | {"fingerprint": "a" * 16, "source": "manuals.jsonl"}
    tuned.update(protocol=fields | {"data": data})
    return base, tuned


def compared(runs, margin=None):
    return compare_checkpoints(*(ScoredModel(run.name, run, run) for run in runs), margin)


def test_a_change_has_the_error_of_its_documents(runs):
    """Of one size: the jackknife's standard error is s / sqrt(n - 1)."""
    for run, losses in zip(runs, (BEFORE, AFTER), strict=True):
        plant_text(run, losses)
    pair = compared(runs)
    (text,) = pair.texts
    n, mean = len(CHANGE), np.mean(CHANGE)
    error = np.std(CHANGE, ddof=1) / math.sqrt(n - 1)
    half = stats.t.isf(0.025, n - 1) * error
    found = text.loss_change
    assert (text.source, text.documents, text.n_tokens) == ("novels.jsonl.gz", n, n * CONTEXT)
    assert text.losses == pytest.approx((np.mean(BEFORE), np.mean(AFTER)))
    assert found.mean == pytest.approx(mean)
    assert found.standard_error == pytest.approx(error)
    assert found.interval == pytest.approx((mean - half, mean + half))
    assert found.verdict is Verdict.BETTER
    # Four bytes a token, so a change in nats/token is a quarter of it in bits/byte over ln 2.
    assert text.bits_change.mean == pytest.approx(mean / 4 / math.log(2))
    assert text.bits_change.verdict is Verdict.INCONCLUSIVE
    assert pair.began_as_base
    assert compared(runs[::-1]).texts[0].judged.verdict is Verdict.WORSE


def test_a_longer_document_counts_for_its_tokens(runs):
    windows = [1, 1, 1, 1, 1, 1, 1, 3]
    for run, losses in zip(runs, (BEFORE, AFTER), strict=True):
        plant_text(run, losses, windows)
    (text,) = compared(runs).texts
    assert text.loss_change.mean == pytest.approx(np.average(CHANGE, weights=windows))
    assert text.effective_documents == pytest.approx(100 / 16)
    assert text.loss_change.degrees_of_freedom == pytest.approx(100 / 16 - 1)


def test_intervals_cover_the_change_of_unequal_documents():
    """95 % intervals over samples of 12 documents of unequal lengths, whose changes depend on
    them."""
    rng, hits, repeats = np.random.default_rng(0), 0, 2000
    sizes = rng.lognormal(6, 0.7, (repeats, 12))
    changes = 0.02 + 0.03 * rng.standard_normal((repeats, 12))
    for size, change in zip(sizes, changes, strict=True):
        sums = np.array([np.zeros(12), size * change])
        low, high = over_documents_of(sums, size, 0.95, None).interval
        hits += low <= 0.02 <= high
    assert hits / repeats >= 0.94


def test_few_documents_give_no_verdict(runs):
    for run, losses in zip(runs, (BEFORE, AFTER), strict=True):
        plant_text(run, losses[:4])
    (text,) = compared(runs).texts
    assert (text.judged.interval, text.judged.standard_error) == (None, None)
    assert (text.judged.verdict, text.judged.missing) == ("inconclusive", (Missing.DOCUMENTS,))


def test_documents_of_which_one_is_most_of_the_text_give_no_verdict(runs):
    for run, less in zip(runs, (0, 1), strict=True):
        losses = [loss - less for loss in (AFTER if less else BEFORE)]
        plant_text(run, losses, [1, 1, 1, 1, 1, 1, 1, 9])
    (text,) = compared(runs).texts
    assert text.effective_documents < 5
    assert text.judged.interval[1] < 0
    assert (text.judged.verdict, text.judged.missing) == ("inconclusive", (Missing.DOCUMENTS,))


def test_a_change_within_the_margin_is_equivalent(runs):
    for run, losses in zip(runs, (BEFORE, AFTER), strict=True):
        plant_text(run, losses)
    assert compared(runs, margin=0.5).texts[0].judged.verdict is Verdict.EQUIVALENT
    assert compared(runs, margin=0.15).texts[0].judged.verdict is Verdict.BETTER


def test_all_texts_and_tasks_are_one_family(runs):
    for run, losses in zip(runs, (BEFORE, AFTER), strict=True):
        for number in range(3):
            plant_text(run, losses, fingerprint=str(number) * 16)
        plant_answers(run, [True, False] * 5)
    pair = compared(runs)
    assert pair.confidence == pytest.approx(1 - 0.05 / 4)
    judged = [one.judged for one in (*pair.texts, *pair.tasks)]
    assert {one.confidence for one in judged} == {pair.confidence}
    n, error = len(CHANGE), np.std(CHANGE, ddof=1) / math.sqrt(len(CHANGE) - 1)
    width = 2 * stats.t.isf(0.05 / 4 / 2, n - 1) * error
    low, high = pair.texts[0].judged.interval
    assert high - low == pytest.approx(width)


def test_the_text_of_either_has_its_role_and_comes_first(runs):
    base, _ = runs
    texts = {
        base.protocol.data.fingerprint: TextRole.OLD,
        "b" * 16: TextRole.ELSE,
        "a" * 16: TextRole.NEW,
    }
    for run in runs:
        for fingerprint in texts:
            plant_text(run, BEFORE, fingerprint=fingerprint, source="else.jsonl")
    found = compared(runs).texts
    assert [text.role for text in found] == list(TextRole)
    names = [text.source for text in found]
    assert names == ["manuals.jsonl", base.protocol.data.source, "else.jsonl"]


def test_scores_that_were_made_in_another_way_are_not_paired(runs):
    base, tuned = runs
    plant_text(base, BEFORE, dtype="bfloat16")
    plant_text(tuned, AFTER)
    pair = compared(runs)
    assert (pair.texts, pair.unpaired_texts) == ((), ("novels.jsonl.gz",))
    plant_text(base, BEFORE)
    pair = compared(runs)
    assert (len(pair.texts), pair.unpaired_texts) == (1, ())


def test_of_several_scores_of_a_text_the_largest_counts(runs):
    for run, losses in zip(runs, (BEFORE, AFTER), strict=True):
        plant_text(run, losses, dtype="bfloat16", of=20)
        plant_text(run, losses, of=20)
        plant_text(run, losses[:5], of=20)
    (text,) = compared(runs).texts
    assert (text.documents, text.row["dtype"]) == (8, "float32")
    assert (text.row["n"], text.row["total"]) == (80, 200)


@pytest.mark.parametrize("harm", ["gone", "another value"])
def test_scores_that_their_items_do_not_give_are_named(runs, harm):
    for run, losses in zip(runs, (BEFORE, AFTER), strict=True):
        name = plant_text(run, losses)
        plant_answers(run, [True, False] * 5)
    base, _ = runs
    if harm == "gone":
        (base.path / "items" / name).unlink()
        (base.path / "items" / "piqa-10.csv.gz").unlink()
    else:
        rows = [row | {"value": float(row["value"]) + 0.1} for row in base.rows("eval")]
        base.replace("eval", rows)
    pair = compared(runs)
    assert (pair.texts, pair.tasks) == ((), ())
    assert len(pair.problems) == 2
    assert "does not add up to the loss in eval.csv" in pair.problems[0]
    reason = "lacks the 10 questions" if harm == "gone" else "one of the two was changed"
    assert reason in pair.problems[1]


def test_answers_are_paired_by_question(runs):
    before = [True] * 30 + [False] * 30
    after = [True] * 28 + [False] * 2 + [True] * 12 + [False] * 18
    plant_answers(runs[0], before)
    plant_answers(runs[1], after)
    (task,) = compared(runs).tasks
    change = np.array(after, float) - np.array(before, float)
    expected = stats.ttest_1samp(change, 0)
    low, high = expected.confidence_interval(0.95)
    assert (task.newly_right, task.newly_wrong) == (12, 2)
    assert [one.metric for one in task.metrics] == ["acc", "acc_norm", "bits_per_byte"]
    acc = task.metrics[0]
    assert acc.scores == pytest.approx((0.5, 40 / 60))
    assert acc.change.interval == pytest.approx((low, high))
    assert acc.change.p == pytest.approx(expected.pvalue)
    assert acc.change.verdict is Verdict.BETTER
    assert {one.change.verdict for one in task.metrics[1:]} == {Verdict.INCONCLUSIVE}
    assert compared(runs[::-1]).tasks[0].judged.verdict is Verdict.WORSE


def test_answers_that_may_be_chance_are_inconclusive(runs):
    plant_answers(runs[0], [True] * 10 + [False] * 10)
    plant_answers(runs[1], [True] * 11 + [False] * 9)
    (task,) = compared(runs).tasks
    assert (task.judged.verdict, task.judged.missing) == ("inconclusive", (Missing.QUESTIONS,))


def test_different_questions_are_not_paired(runs):
    plant_answers(runs[0], [True] * 10, of=20)
    plant_answers(runs[1], [True] * 11, of=20)
    pair = compared(runs)
    assert (pair.tasks, pair.unpaired_tasks) == ((), ("piqa",))
    plant_answers(runs[1], [True, False] * 5, task="openbookqa")
    assert compared(runs).unpaired_tasks == ("piqa", "openbookqa")


def test_another_tokenizer_leaves_bits_per_byte(runs):
    base, tuned = runs
    fields = tuned.manifest["protocol"]
    data = fields["data"] | {"tokenizer_fingerprint": "c" * 16}
    tuned.update(protocol=fields | {"data": data})
    # The same bytes in half as many tokens; the last document is not whole in the second.
    plant_text(base, BEFORE, [2] * 8)
    plant_text(tuned, [2 * loss for loss in AFTER[:7]], fingerprint="e" * 16, bytes_per_token=8)
    texts = tuned.manifest["texts"]
    tuned.update(texts={"e" * 16: texts["e" * 16] | {"documents": {"test": 8}}})
    (text,) = compared(runs, margin=0.5).texts
    assert (text.losses, text.loss_change, text.documents) == (None, None, 7)
    per_byte = 1 / 4 / math.log(2)
    assert text.bits == pytest.approx(
        (np.mean(BEFORE[:7]) * per_byte, np.mean(AFTER[:7]) * per_byte)
    )
    assert text.judged is text.bits_change
    assert text.judged.mean == pytest.approx(np.mean(CHANGE[:7]) * per_byte)
    assert text.judged.verdict is Verdict.BETTER  # the margin is in nats/token


def test_a_run_started_from_the_run_or_the_model_that_its_manifest_names(runs):
    base, tuned = runs
    for start, is_start in (("base-s0", True), ("base-s0@5", True), ("base", False), (None, False)):
        tuned.update(started_from=start)
        assert started_from(tuned, base) is is_start


def test_a_run_that_began_as_another_is_shown_against_it(runs):
    base, tuned = runs
    command = "smolctl compare base-s0 tuned-s0 --study s"
    assert comparison_command(tuned) == command
    assert f"`{command}` scores both" in repr(against_base([tuned]))
    for run, losses in zip(runs, (BEFORE, AFTER), strict=True):
        plant_text(run, losses)
    shown = repr(against_base([base, tuned]))
    assert "tuned-s0 against base-s0, whose weights it started from" in shown
    assert against_base([base]) is None
