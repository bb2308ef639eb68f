"""Recorded answers read back as arrays, beside the scores one by one."""

import gzip

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smollm2.errors import UserError
from smollm2.evaluation.answer_file import recorded_answers
from smollm2.evaluation.answers import ItemScore
from smollm2.evaluation.score_file import ScoreFile
from smollm2.evaluation.tasks import items_fingerprint
from smollm2.runs.tables import TableFolder

METRICS = ("acc", "acc_norm", "bits_per_byte")
HEADER = "item,question,gold,log_likelihoods,greedy,characters,n_bytes,choice,choice_norm\n"


@st.composite
def item_scores(draw) -> ItemScore:
    """Of two to five choices, with ties and empty continuations."""
    n = draw(st.integers(2, 5))

    def of_choices(numbers):
        return tuple(draw(st.lists(numbers, min_size=n, max_size=n)))

    return ItemScore(
        item=draw(st.integers(0, 10**6)),
        question=draw(st.text("0123456789abcdef", min_size=8, max_size=8)),
        gold=draw(st.integers(0, n - 1)),
        log_likelihoods=of_choices(st.sampled_from([-1.0, -2.0]) | st.floats(-1e4, 0)),
        greedy=of_choices(st.booleans()),
        characters=of_choices(st.integers(0, 9)),
        n_bytes=of_choices(st.integers(1, 9)),
    )


def fingerprint(scores: list[ItemScore]) -> str:
    return items_fingerprint(score.question for score in scores)


@given(st.lists(item_scores(), min_size=1, unique_by=lambda score: score.item), st.data())
def test_answers_have_the_values_of_the_scores(tmp_path_factory, scores, data):
    folder = tmp_path_factory.mktemp("run")
    file = ScoreFile(folder / "items" / "piqa.csv.gz", ItemScore)
    file.extend([], [scores], lambda found: None)
    n = data.draw(st.sampled_from([score.item for score in scores])) + 1
    wanted = [score for score in file.read() if score.item < n]
    found = recorded_answers(TableFolder(folder), "piqa.csv.gz", n, fingerprint(wanted))
    for metric in METRICS:
        assert found.values(metric) == [score.value(metric) for score in wanted]


def test_a_growing_file_goes_before_the_finished_one(tmp_path):
    folder = tmp_path / "items"
    folder.mkdir()
    rows = [f"{i},q{i},0,-1.0 -2.0,0 0,1 1,2 2,0,0\n" for i in range(3)]
    (folder / "piqa.csv.gz").write_bytes(gzip.compress((HEADER + "".join(rows)).encode()))
    again = "1,q1,1,-1.0 -2.0,0 0,1 1,2 2,0,0\n"
    (folder / "piqa.csv").write_text(HEADER + again + "2,q2,1,-1.0 -2.")
    read = ScoreFile(folder / "piqa.csv.gz", ItemScore).read()
    found = recorded_answers(TableFolder(tmp_path), "piqa.csv.gz", 3, fingerprint(read))
    assert found.values("acc") == [1.0, 0.0, 1.0]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("0,q,0,-1.0 x,0 0,1 1,2 2,0,0\n", "x"),
        ("0,q,0,-1.0 -2.0,0 0,1 1\n", "columns"),
        ("0,q,0,-1.0 -2.0,0 0,1 1 1,2 2,0,0\n", "different numbers of choices"),
        ("0,q,2,-1.0 -2.0,0 0,1 1,2 2,0,0\n", "none of the choices"),
        ("0,q,0,-1.0 -2.0,0 0,1 1,0 2,0,0\n", "no bytes"),
        ("one,q,0,-1.0 -2.0,0 0,1 1,2 2,0,0\n", "one"),
    ],
)
def test_a_row_that_no_evaluation_writes_is_reported(tmp_path, row, reason):
    (tmp_path / "items").mkdir()
    (tmp_path / "items" / "piqa.csv.gz").write_bytes(gzip.compress((HEADER + row).encode()))
    with pytest.raises(UserError, match="is damaged") as caught:
        recorded_answers(TableFolder(tmp_path), "piqa.csv.gz", 1, items_fingerprint(["q"]))
    assert reason in str(caught.value)


def test_answers_that_are_gone_are_reported(tmp_path):
    with pytest.raises(UserError, match="lacks the 1 questions"):
        recorded_answers(TableFolder(tmp_path), "piqa.csv.gz", 1, items_fingerprint(["q"]))
