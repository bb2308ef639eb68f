"""Shards: the same tokens whatever was interrupted, and whoever made them."""

import json
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from support.command import run_main
from support.stories import stories, text_of, write_jsonl
from support.tiny import without

from smollm2.data import open_prepared, prepare, shards
from smollm2.data.shards import ShardFolder, whole_shards
from smollm2.errors import UserError
from smollm2.runs.run import Run

pytestmark = pytest.mark.usefixtures("fresh_cache")

SPLITS = ("train", "validation", "test")
# Prepares sys.argv[1] with the tokenizer sys.argv[2] into sys.argv[3]; killed in its shard
# number sys.argv[4].
KILLED = """
import os, signal, sys
from pathlib import Path
from smollm2.data import prepare

def progress(stage, done, total):
    if stage == f"shard {sys.argv[4]} of 4" and done:
        os.kill(os.getpid(), signal.SIGKILL)

prepare(sys.argv[1], sys.argv[2], out=Path(sys.argv[3]), shards=4, progress=progress)
"""


@pytest.fixture
def source(tmp_path) -> str:
    return write_jsonl(tmp_path / "stories.jsonl", stories(200))


def made_of(out: Path, shard: int) -> dict[str, tuple[bytes, int]]:
    """The content and time of each file of a shard."""
    folder = out / f"shard-{shard:05}"
    return {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in folder.iterdir()}


def test_shards_have_the_documents_of_the_source(source, tokenizer, tmp_path):
    data = prepare(source, tokenizer, out=tmp_path / "out", shards=4)
    whole = prepare(source, tokenizer, out=tmp_path / "whole")
    for split in SPLITS:
        assert text_of(data, split) == text_of(whole, split)
    assert (data.documents, data.n_bytes) == (whole.documents, whole.n_bytes)
    assert data.recorded_floors is None
    assert data.floors == whole.floors
    for split in SPLITS[1:]:
        assert data.ends[split].tolist() == whole.ends[split].tolist()
    assert data.fingerprint != whole.fingerprint
    assert str(tmp_path) not in (data.path / "data.json").read_text()
    assert sorted(path.name for path in data.path.iterdir()) == [
        *("data.json", "plan.json"),
        *(f"shard-0000{number}" for number in range(4)),
        *("test.bin", "test.ends", "tokenizer.json", "validation.bin", "validation.ends"),
    ]


def test_a_trained_tokenizer_is_that_of_all_training_documents(source, tmp_path):
    data = prepare(source, "train:300", out=tmp_path / "out", shards=3)
    assert (
        data.tokenizer_fingerprint
        == prepare(source, "train:300", out=tmp_path / "whole").tokenizer_fingerprint
    )


def test_killed_in_any_shard_it_goes_on_to_the_same_fingerprint(source, tokenizer, tmp_path):
    undisturbed = prepare(source, tokenizer, out=tmp_path / "undisturbed", shards=4)
    out, seen = tmp_path / "out", {}
    for number in range(4):
        command = [sys.executable, "-c", KILLED, source, tokenizer, str(out), str(number + 1)]
        assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
        assert whole_shards(out) == number
        made = {shard: made_of(out, shard) for shard in range(number)}
        assert made.items() >= seen.items()
        seen = made
        with pytest.raises(UserError, match="Not all shards of 'out' are made"):
            prepare(str(out), None)
    data = prepare(source, tokenizer, out=out, shards=4)
    assert data.fingerprint == undisturbed.fingerprint
    assert {shard: made_of(out, shard) for shard in range(3)} == seen
    assert not list(out.glob(".*"))


def test_two_that_make_the_same_share_the_shards(source, tokenizer, tmp_path, monkeypatch):
    alone = prepare(source, tokenizer, out=tmp_path / "alone", shards=6)
    write, made = ShardFolder._write, []

    def note(folder, path, number, read):
        made.append(number)
        write(folder, path, number, read)

    monkeypatch.setattr(ShardFolder, "_write", note)
    with ThreadPoolExecutor(3) as pool:
        found = list(
            pool.map(lambda _: prepare(source, tokenizer, out=tmp_path / "out", shards=6), range(3))
        )
    assert {data.fingerprint for data in found} == {alone.fingerprint}
    assert sorted(made) == list(range(6))


def test_a_finished_folder_is_opened_and_nothing_else_is_made_in_it(source, tokenizer, tmp_path):
    out = tmp_path / "out"
    made = prepare(source, tokenizer, out=out, shards=2)
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert prepare(source, tokenizer, out=out, shards=2).fingerprint == made.fingerprint
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == times
    for changes, what in (
        ({"shards": 3}, "shards"),
        ({"max_tokens": 100}, "max_tokens"),
        ({"held_out": 0.1}, "held_out"),
    ):
        with pytest.raises(UserError, match=rf"begun with other settings \({what}: .* there"):
            prepare(source, tokenizer, **({"out": out, "shards": 2} | changes))
    with Path(source).open("a") as file:
        file.write('{"text": "One more."}\n')
    with pytest.raises(UserError, match=r"begun with other settings \(content:"):
        prepare(source, tokenizer, out=out, shards=2)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="exists already"):
        prepare(source, tokenizer, out=tmp_path / "other", shards=2)


@pytest.mark.parametrize("changes", [{"shards": 0}, {"shards": 10**6}, {"out": None}])
def test_shards_need_a_number_and_a_folder(source, tokenizer, tmp_path, changes):
    with pytest.raises(UserError, match="`shards` takes 1 to 100,000, and needs `out`"):
        prepare(source, tokenizer, **({"out": tmp_path / "out", "shards": 2} | changes))


def test_what_is_held_out_is_capped_in_whole_documents(source, tokenizer, tmp_path, monkeypatch):
    whole = prepare(source, tokenizer, out=tmp_path / "whole", shards=4, held_out=0.2)
    assert not whole.notes
    monkeypatch.setattr(shards, "HELD_OUT_TOKENS", 200)
    data = prepare(source, tokenizer, out=tmp_path / "out", shards=4, held_out=0.2)
    longest = max(len(data.tokenizer.encode(text).ids) + 1 for text in stories(200))
    for split in SPLITS[1:]:
        assert 200 <= len(getattr(data, split)) < 200 + 4 * longest < len(getattr(whole, split))
        assert getattr(data, split)[-1] == data.end_of_text
        assert set(text_of(data, split)) < set(text_of(whole, split))
        assert data.documents[split] == len(data.ends[split]) == len(text_of(data, split))
    assert text_of(data, "train") == text_of(whole, "train")
    (note,) = data.notes
    assert "capped at 200 tokens each, in equal shares: in 4 of 4 shards" in note
    assert json.loads((data.path / "data.json").read_text())["held_out_tokens"] == 200


def test_training_tokens_are_limited_in_equal_shares(source, tokenizer, tmp_path):
    whole = prepare(source, tokenizer, out=tmp_path / "whole", shards=4)
    data = prepare(source, tokenizer, out=tmp_path / "out", shards=4, max_tokens=1000)
    longest = int(np.diff(np.flatnonzero(whole.train[:] == whole.end_of_text)).max())
    assert 1000 <= len(data.train) < 1000 + 4 * longest
    assert data.train[:][-1] == data.end_of_text
    assert set(text_of(data, "train")) < set(text_of(whole, "train"))


def test_too_little_text_is_refused_as_without_shards(tokenizer, tmp_path):
    one = write_jsonl(tmp_path / "one.jsonl", ["a"])
    with pytest.raises(UserError, match=r"'one\.jsonl' is too small"):
        prepare(one, tokenizer, out=tmp_path / "out", shards=2)
    few = write_jsonl(tmp_path / "few.jsonl", stories(30))
    with pytest.raises(UserError, match=r"`held_out=0\.01` leaves too few documents"):
        prepare(few, tokenizer, out=tmp_path / "few", shards=2, held_out=0.01)


@pytest.mark.parametrize("field", ["tokens", "sha256"])
def test_a_damaged_list_of_shards_is_refused(source, tokenizer, tmp_path, field):
    data = prepare(source, tokenizer, out=tmp_path / "out", shards=2)
    info = json.loads((data.path / "data.json").read_text())
    for value in (None, -1, "x", 5):
        info["shards"][1][field] = value
        (data.path / "data.json").write_text(json.dumps(info))
        with pytest.raises(UserError, match="prepare it again"):
            open_prepared(data.path)


def test_a_run_is_trained_and_scored_on_shards(capsys, workdir, corpus, tiny):
    options = ("--tokenizer", "train:512", "--out", "tokens")
    prepare_them = ("prepare", "--data", str(corpus), *options, "--shards", "3", "--json")
    code, out, err = run_main(capsys, *prepare_them)
    assert code == 0, err
    made = json.loads(out)
    tokens = [*without(tiny, "--data", "--tokenizer"), "--data", "tokens"]
    code, _, err = run_main(capsys, *tokens, "--steps", "6", "--name", "first")
    assert code == 0, err
    protocol = Run(workdir / "results/runs/first").protocol
    assert protocol.data.fingerprint == made["fingerprint"]
    assert protocol.data.train_tokens == made["tokens"]["train"]
    code, _, err = run_main(capsys, "eval", "first", "--tasks", "test")
    assert code == 0, err


def test_stopped_in_the_middle_it_says_how_far_it_came(capsys, workdir, source, monkeypatch):
    write = ShardFolder._write

    def interrupt(folder, path, number, read):
        if number == 2:
            raise KeyboardInterrupt
        write(folder, path, number, read)

    monkeypatch.setattr(ShardFolder, "_write", interrupt)
    command = ("prepare", "--data", source, "--tokenizer", "train:300", "--out", "tokens")
    code, _, err = run_main(capsys, *command, "--shards", "4")
    assert code == 130
    assert "Stopped with 2 of 4 shards. Repeat the command to make the others." in err
    monkeypatch.setattr(ShardFolder, "_write", write)
    code, _, err = run_main(capsys, *command, "--shards", "4")
    assert code == 0, err
    code, _, err = run_main(capsys, *command, "--shards", "5")
    assert code == 2
    assert "begun with other settings (shards: 4 there, 5 requested)" in err
