"""The text that calibrates a quantization is not the text that judges it."""

from types import SimpleNamespace

import numpy as np
import pytest

from smolctl.studies.calibration_text import calibration_text, shares_text, tokens_from
from smollm2.data import encode_text, end_of_text_id, prepare, spread_windows, windows
from smollm2.errors import UserError

SEQ_LEN = 32


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Prepared tokens of 60 documents of random words, and their tokenizer."""
    rng = np.random.default_rng(0)
    words = np.array(["".join(rng.choice(list("abcdefgh"), 4)) for _ in range(200)])
    folder = tmp_path_factory.mktemp("calibration")
    for number in range(60):
        folder.joinpath(f"{number:02}.txt").write_text(" ".join(rng.choice(words, 300)))
    return prepare(str(folder), "train:320", out=folder / "prepared")


@pytest.fixture
def judged(data) -> np.ndarray:
    count = len(data.validation) // SEQ_LEN - 1
    return windows(data.validation, SEQ_LEN, spread_windows(count, min(count, 8)))[0]


def test_half_is_the_training_text_and_half_the_built_in_one(data, judged):
    found = calibration_text(data, data.tokenizer, judged, None)
    assert found.windows.shape[1] == SEQ_LEN
    assert found.sources == (data.source, "builtin")
    own = {window.tobytes() for window in data.train[: len(data.train) // 32 * 32].reshape(-1, 32)}
    n_own = sum(w.astype(data.train.dtype).tobytes() in own for w in found.windows.numpy())
    assert 0 < n_own < len(found.windows)
    assert not shares_text(found.windows.flatten().numpy(), judged)


def test_a_text_of_its_own_is_read_from_the_beginnings_of_its_documents(data, judged, tmp_path):
    for number, word in enumerate(("red", "green")):
        (tmp_path / f"{number}.txt").write_text(f"{word} " * 4000)
    found = calibration_text(data, data.tokenizer, judged, str(tmp_path))
    end = end_of_text_id(data.tokenizer)
    assert found.sources == (tmp_path.name,)
    assert int((found.windows == end).sum()) >= 1  # both documents are in it
    first = encode_text(data.tokenizer, "red " * 4000)[:SEQ_LEN]
    assert found.windows[0].tolist() == first


def test_the_text_that_judges_is_refused(data, judged, tmp_path):
    spelled = data.tokenizer.decode(data.validation[:2000].tolist())
    (tmp_path / "judge.txt").write_text(spelled)
    same = encode_text(data.tokenizer, spelled)[:500]
    assert shares_text(np.array(same), judged)
    with pytest.raises(UserError, match=r"has a part of the text on which .* is judged"):
        calibration_text(data, data.tokenizer, judged, str(tmp_path))


def test_a_text_that_is_too_short_is_refused(data, judged, tmp_path):
    (tmp_path / "short.txt").write_text("red green blue")
    with pytest.raises(UserError, match=r"has 0 windows of 32 tokens, and 4 are needed"):
        calibration_text(data, data.tokenizer, judged, str(tmp_path / "short.txt"))


def test_only_runs_of_equal_tokens_are_shared_text():
    rng = np.random.default_rng(1)
    tokens, judged = rng.integers(0, 50, 5000), rng.integers(0, 50, (4, 128))
    assert not shares_text(tokens, judged)
    for start in (0, 11, 48):
        mixed = tokens.copy()
        mixed[700:780] = judged[2, start : start + 80]
        assert shares_text(mixed, judged)
        mixed[720] += 1
        mixed[750] += 1
        assert not shares_text(mixed, judged)
    assert not shares_text(tokens[:10], judged)


def test_a_long_document_does_not_decide_alone(data, tmp_path):
    (tmp_path / "a.txt").write_text("red " * 100_000)
    (tmp_path / "b.txt").write_text("blue " * 100_000)
    found = tokens_from(str(tmp_path), data.tokenizer, 0, 2000)
    assert len(found) == 2000
    blue = encode_text(data.tokenizer, "blue blue")[0]
    assert np.isin(blue, found)


def test_a_built_in_text_that_judges_is_left_out(data, monkeypatch, judged):
    builtin = data.tokenizer.decode(data.validation.tolist())
    monkeypatch.setattr(
        "smolctl.studies.calibration_text.documents", lambda source: iter([builtin])
    )
    found = calibration_text(data, data.tokenizer, judged, None)
    assert found.sources == (data.source,)
    assert not shares_text(found.windows.flatten().numpy(), judged)


def test_the_built_in_text_is_not_taken_twice(data, judged):
    named = SimpleNamespace(**vars(data) | {"source": "builtin"})
    assert calibration_text(named, data.tokenizer, judged, None).sources == ("builtin",)


def test_training_text_that_repeats_judged_text_is_left_out(data, judged):
    repeated = np.concatenate([judged.flatten().astype(data.train.dtype), data.train])
    named = SimpleNamespace(**vars(data) | {"train": repeated})
    found = calibration_text(named, data.tokenizer, judged, None)
    assert found.sources == (data.source, "builtin")
    assert not shares_text(found.windows.flatten().numpy(), judged)
    named.train = np.tile(judged.flatten().astype(data.train.dtype), 20)
    assert calibration_text(named, data.tokenizer, judged, None).sources == ("builtin",)
