"""What is held out: a fixed share, each text on one side, whatever the order of the documents."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.stories import STORY, stories, text_of, write_jsonl

from smollm2.data import prepare, splits
from smollm2.errors import UserError

pytestmark = pytest.mark.usefixtures("fresh_cache")


def held_out(data) -> set[str]:
    return set(text_of(data, "validation")) | set(text_of(data, "test"))


def test_many_documents_are_split_by_their_hash(tmp_path, tokenizer):
    texts = stories(3000)
    data = prepare(write_jsonl(tmp_path / "a.jsonl", texts), tokenizer)
    assert sum(data.documents.values()) == 3000
    for split in ("validation", "test"):
        assert 100 < data.documents[split] < 200
    more = prepare(write_jsonl(tmp_path / "b.jsonl", [*texts[::-1], "new"]), tokenizer)
    assert held_out(data) <= held_out(more) <= held_out(data) | {"new"}
    every = [text for split in ("train", "validation", "test") for text in text_of(data, split)]
    assert sorted(every) == sorted(texts)


@pytest.mark.parametrize(("count", "expected"), [(20, 1), (100, 5), (999, 50)])
def test_some_documents_are_split_by_rank(tmp_path, tokenizer, count, expected):
    data = prepare(write_jsonl(tmp_path / "a.jsonl", stories(count)), tokenizer)
    assert data.documents["validation"] == data.documents["test"] == expected
    assert data.documents["train"] == count - 2 * expected


def test_duplicates_fall_on_one_side(tmp_path, tokenizer):
    for count in (30, 1200):
        source = write_jsonl(tmp_path / f"{count}.jsonl", stories(count) * 2)
        data = prepare(source, tokenizer)
        splits = [set(text_of(data, split)) for split in ("train", "validation", "test")]
        assert sum(map(len, splits)) == len(set.union(*splits)) == count


def test_few_documents_are_held_out_in_stretches(tmp_path, tokenizer):
    texts = [f"{name} " + STORY * 40 for name in ("Ann", "Bob", "Cid")]
    data = prepare(write_jsonl(tmp_path / "a.jsonl", texts * 2), tokenizer)
    parts = zip(*(text_of(data, split) for split in ("train", "validation", "test")), strict=True)
    assert ["".join(part) for part in parts] == texts * 2
    total = sum(data.n_bytes.values())
    assert data.n_bytes["train"] / total == pytest.approx(0.9, abs=0.01)
    assert data.n_bytes["validation"] / total == pytest.approx(0.05, abs=0.01)
    for split in ("validation", "test"):
        assert all(text.startswith(" ") for text in text_of(data, split))


@given(text=st.text(min_size=1))
def test_stretches_are_the_text_in_order(text):
    parts = splits._stretches(0.05, text)
    assert "".join(part for _, part in parts) == text
    assert [split for split, _ in parts] == sorted(
        (split for split, _ in parts), key=splits.SPLITS.index
    )


def test_corpus_too_small_to_hold_anything_out_is_refused(tmp_path, tokenizer):
    (tmp_path / "a.txt").write_text("word")
    with pytest.raises(UserError, match=r"'a.txt' is too small: nothing is left for"):
        prepare(str(tmp_path / "a.txt"), tokenizer)
