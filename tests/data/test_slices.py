"""A source in slices: each document is in one of them, and a slice reads nothing before it."""

import gzip
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.stories import stories, write_jsonl

from smollm2.data import documents
from smollm2.data.corpora import document_slices
from smollm2.data.file_parts import FilePart, part_documents, sliced
from smollm2.errors import UserError


def in_slices(source: str, n: int) -> list[list[str]]:
    return [list(read()) for read in document_slices(source, n)]


@given(
    texts=st.lists(st.text("ab é猫\n", max_size=30), min_size=1, max_size=12),
    end=st.sampled_from(["\n", "\r\n", "\n\n"]),
    n=st.integers(1, 20),
    is_open=st.booleans(),
)
def test_each_line_is_in_the_slice_in_which_it_begins(tmp_path_factory, texts, end, n, is_open):
    path = tmp_path_factory.mktemp("slices") / "a.jsonl"
    content = "".join(json.dumps({"text": f"x{text}"}, ensure_ascii=False) + end for text in texts)
    path.write_bytes((content.rstrip() if is_open else content).encode())
    found = in_slices(str(path), n)
    assert len(found) == n
    assert [text for part in found for text in part] == [f"x{text}" for text in texts]


def test_a_folder_is_laid_end_to_end(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", stories(40))
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(b'{"text": "packed"}\n' * 3))
    (tmp_path / "c.txt").write_text("plain\n")
    write_jsonl(tmp_path / "d.jsonl", stories(60)[40:])
    whole = list(documents(str(tmp_path)))
    for n in (1, 2, 3, 7):
        found = in_slices(str(tmp_path), n)
        assert [text for part in found for text in part] == whole
    assert all(found)


def test_slices_of_plain_lines_have_about_equal_sizes(tmp_path):
    found = in_slices(write_jsonl(tmp_path / "a.jsonl", stories(800)), 8)
    sizes = [sum(map(len, part)) for part in found]
    assert max(sizes) < 1.1 * min(sizes)


def test_a_slice_reads_its_own_bytes(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", stories(800))
    last = sliced([(tmp_path / "a.jsonl", (tmp_path / "a.jsonl").stat().st_size)], 8)[-1]
    whole = list(part_documents(last))
    with (tmp_path / "a.jsonl").open("rb+") as file:
        file.write(b"\xff" * (last[0].start - 1))
    assert list(part_documents(last)) == whole


def test_an_error_in_a_slice_says_where_it_begins(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n' * 10 + "broken\n")
    with pytest.raises(UserError, match=r"'a.jsonl from byte 70', line 6: broken JSON"):
        list(part_documents([FilePart(path, 70, 1000)]))


def test_files_that_are_read_whole_are_not_cut(tmp_path):
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.txt").write_text(f"text of {name}\n")
    assert sorted(map(len, in_slices(str(tmp_path), 3))) == [1, 1, 1]
    with pytest.raises(UserError, match=r"3 files that can only be read whole.*`shards=4`"):
        document_slices(str(tmp_path), 4)


def test_a_source_that_is_read_from_its_start_has_no_slices():
    for source in ("builtin", "hub:roneneldan/TinyStories"):
        with pytest.raises(UserError, match="can only be read from its start"):
            document_slices(source, 2)
