"""Many files of tokens read as one array, and compared with their hashes once on a machine."""

import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.stories import stories, write_jsonl

from smollm2.data import batch, open_prepared, prepare, sharded_tokens, windows
from smollm2.data.overlap import documents_also_in
from smollm2.data.sharded_tokens import ShardedTokens
from smollm2.errors import RunError, UserError

pytestmark = pytest.mark.usefixtures("fresh_cache")


def written(folder, lengths) -> tuple[ShardedTokens, np.ndarray]:
    """Shards of these lengths, and the same tokens as one array."""
    whole = np.arange(sum(lengths), dtype=np.uint16)
    files = []
    for number, part in enumerate(np.split(whole, np.cumsum(lengths)[:-1])):
        path = folder / f"shard-{number}" / "train.bin"
        path.parent.mkdir(exist_ok=True)
        part.tofile(path)
        files.append((path, len(part)))
    return ShardedTokens(files, whole.dtype), whole


@given(lengths=st.lists(st.integers(0, 9), min_size=1, max_size=6).filter(sum), data=st.data())
def test_they_are_read_as_one_array(tmp_path_factory, lengths, data):
    tokens, whole = written(tmp_path_factory.mktemp("tokens"), lengths)
    assert len(tokens) == len(whole)
    places = data.draw(st.lists(st.integers(0, len(whole) - 1), max_size=12))
    start, stop = data.draw(st.integers(-9, 60)), data.draw(st.integers(-9, 60))
    for key in (np.array([places, places], dtype=np.int64), slice(start, stop), slice(None)):
        found = tokens[key]
        assert found.dtype == whole.dtype
        np.testing.assert_array_equal(found, whole[key])
    with pytest.raises(IndexError):
        tokens[np.array([len(whole)])]


def test_batches_and_windows_are_those_of_one_array(tmp_path):
    tokens, whole = written(tmp_path, [70, 0, 500, 430])
    for step in range(20):
        arguments = ("f", 0, step, 4, 16)
        np.testing.assert_array_equal(batch(tokens, *arguments), batch(whole, *arguments))
    numbers = [0, 4, 30, 61]
    np.testing.assert_array_equal(windows(tokens, 16, numbers), windows(whole, 16, numbers))


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_shard_that_is_cut_or_gone_while_it_is_used_is_a_sentence(tmp_path, damage):
    tokens, _ = written(tmp_path, [500, 500])
    path = tmp_path / "shard-1" / "train.bin"
    if damage == "cut":
        with path.open("rb+") as file:
            file.truncate(10)
    else:
        path.unlink()
    tokens[np.arange(500)]
    with pytest.raises(RunError, match=r"tokens of shard-1 in .* cannot be read any more"):
        tokens[np.arange(600)]


@pytest.fixture
def made(tmp_path, tokenizer):
    """A folder of four shards."""
    source = write_jsonl(tmp_path / "a.jsonl", stories(200))
    return prepare(source, tokenizer, out=tmp_path / "out", shards=4)


@pytest.fixture
def compared(monkeypatch) -> list[str]:
    """The shards whose hashes are compared from now on."""
    found = []
    checksum = sharded_tokens.checksum
    monkeypatch.setattr(
        sharded_tokens, "checksum", lambda path: found.append(path.parent.name) or checksum(path)
    )
    return found


def test_hashes_are_compared_once_on_a_machine(made, compared, tmp_path):
    assert open_prepared(made.path).fingerprint == made.fingerprint
    assert compared == []  # making it did
    shutil.copytree(made.path, tmp_path / "copy")
    for _ in range(2):
        assert open_prepared(tmp_path / "copy").fingerprint == made.fingerprint
    assert compared == [f"shard-0000{number}" for number in range(4)]


def test_a_cache_that_cannot_be_written_has_them_compared_each_time(made, compared, monkeypatch):
    monkeypatch.setenv("SMOLCTL_CACHE", "/dev/null/cache")
    for _ in range(2):
        open_prepared(made.path)
    assert len(compared) == 8


def test_a_shard_that_has_changed_is_refused(made):
    path = made.path / "shard-00002" / "train.bin"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"damaged \(shard-00002/train.bin differs"):
        open_prepared(made.path)
    path.write_bytes(content[:-2])
    with pytest.raises(UserError, match=r"damaged \(shard-00002/train.bin has"):
        open_prepared(made.path)
    path.unlink()
    with pytest.raises(UserError, match="damaged"):
        open_prepared(made.path)


def test_held_out_documents_are_looked_for_in_shards(made, monkeypatch):
    monkeypatch.setattr("smollm2.data.overlap.AT_A_TIME", 7)
    assert documents_also_in(made.test, made.train, made.end_of_text) == 0
    both = np.concatenate([made.test, made.train[:]])
    assert documents_also_in(made.test, both, made.end_of_text) == made.documents["test"]
