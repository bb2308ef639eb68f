"""Prepared folders: written whole or not at all, found again, refused when damaged."""

import errno
import importlib
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from smollm2.data import (
    documents,
    find_prepared,
    open_prepared,
    prepare,
    splits,
    train_tokenizer,
)
from smollm2.errors import RunError, UserError

pytestmark = pytest.mark.usefixtures("fresh_cache")

# The package re-exports a function under the name of this module.
prepare_module = importlib.import_module("smollm2.data.prepare")


def test_prepared_folder_opens_as_it_was_written(story_file, tokenizer, tmp_path):
    written = prepare(story_file, tokenizer, out=tmp_path / "sub" / "out")
    moved = (tmp_path / "sub" / "out").rename(tmp_path / "elsewhere")
    for opened in (open_prepared(moved), prepare(str(moved), None), prepare(str(moved), tokenizer)):
        assert opened.fingerprint == written.fingerprint
        assert opened.documents == written.documents
        assert opened.train.tolist() == written.train.tolist()
    assert str(tmp_path) not in (moved / "data.json").read_text()
    assert not list((tmp_path / "sub").iterdir())


def test_a_folder_of_an_older_version_has_no_stored_ends_and_opens_with_them(
    story_file, tokenizer, tmp_path
):
    made = prepare(story_file, tokenizer, out=tmp_path / "out")
    ends = {split: made.ends[split].tolist() for split in ("validation", "test")}
    for split, found in ends.items():
        assert found == np.flatnonzero(getattr(made, split) == made.end_of_text).tolist()
        assert len(found) == made.documents[split]
        (made.path / f"{split}.ends").unlink()
    info = json.loads((made.path / "data.json").read_text())
    for split in ends:
        del info["splits"][split]["ends"]
    (made.path / "data.json").write_text(json.dumps(info))
    older = open_prepared(made.path)
    assert older.fingerprint == made.fingerprint
    assert {split: older.ends[split].tolist() for split in ends} == ends


def test_second_prepare_reads_nothing(story_file, tokenizer, monkeypatch):
    first = prepare(story_file, tokenizer)
    monkeypatch.setattr(splits, "documents", None)
    assert prepare(story_file, tokenizer).path == first.path


def test_small_source_is_read_once_and_gives_the_same(story_file, tmp_path, monkeypatch):
    def times_read(out: str) -> int:
        readings = []
        monkeypatch.setattr(
            splits, "documents", lambda source: readings.append(source) or documents(source)
        )
        prepare(story_file, "train:300", out=tmp_path / out)
        return len(readings)

    assert times_read("once") == 1
    monkeypatch.setattr(splits, "KEPT_BYTES", 100)
    assert times_read("again") == 3  # to split, to train the tokenizer, to encode
    for file in (tmp_path / "once").iterdir():
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes()


def test_changed_source_tokenizer_or_setting_prepares_again(story_file, tokenizer):
    paths = {prepare(story_file, spec).path for spec in (tokenizer, "train:300", "train:310")}
    paths.add(prepare(story_file, tokenizer, max_tokens=50).path)
    with Path(story_file).open("a") as file:
        file.write('{"text": "One more."}\n')
    paths.add(prepare(story_file, tokenizer).path)
    assert len(paths) == 5


def test_find_prepared_looks_in_the_cache(story_file, tokenizer, fresh_cache):
    assert find_prepared("0" * 16, "0" * 16) is None
    data = prepare(story_file, tokenizer)
    (fresh_cache / "data" / "a-damaged").mkdir()
    (fresh_cache / "data" / "a-damaged" / "data.json").write_text("{")
    assert find_prepared(data.fingerprint, data.tokenizer_fingerprint) == data.path
    assert find_prepared("0" * 16, data.tokenizer_fingerprint) is None


def test_equal_tokens_of_another_tokenizer_are_not_found(story_file, tokenizer, tmp_path):
    larger = Tokenizer.from_file(f"{tokenizer}/tokenizer.json")
    larger.add_tokens(["<unused>"])
    (tmp_path / "larger").mkdir()
    larger.save(str(tmp_path / "larger" / "tokenizer.json"))
    for out in (None, tmp_path / "out"):  # in the cache, and opened elsewhere
        both = [
            prepare(story_file, spec, out=out and out / str(number))
            for number, spec in enumerate((tokenizer, str(tmp_path / "larger")))
        ]
        assert both[0].fingerprint == both[1].fingerprint
        for data in both:
            found = find_prepared(data.fingerprint, data.tokenizer_fingerprint)
            assert open_prepared(found).vocab_size == data.vocab_size


def test_interrupted_prepare_leaves_nothing(story_file, tokenizer, tmp_path, fresh_cache):
    def interrupt(stage, done, total):
        if stage == "tokenize" and done:
            raise KeyboardInterrupt

    for out in (tmp_path / "out", None):
        with pytest.raises(KeyboardInterrupt):
            prepare(story_file, tokenizer, out=out, progress=interrupt)
    assert [path.name for path in tmp_path.iterdir()] == ["stories.jsonl"]
    assert all(path.is_file() for path in (fresh_cache / "data").iterdir())


def test_leftovers_of_a_killed_prepare_are_removed(story_file, tokenizer, fresh_cache):
    path = prepare(story_file, tokenizer).path
    (path / "train.bin").unlink()
    left = fresh_cache / "data" / f".{path.name}.9999999.tmp"  # of a process that is no more
    left.mkdir()
    assert len(prepare(story_file, tokenizer).train)
    assert not left.exists()


def test_two_preparing_the_same_do_it_once(story_file, tokenizer, monkeypatch):
    written = []
    write = prepare_module._write
    monkeypatch.setattr(
        prepare_module, "_write", lambda *args: written.append(args) or write(*args)
    )
    with ThreadPoolExecutor(2) as pool:
        one, two = pool.map(lambda _: prepare(story_file, tokenizer), range(2))
    assert one.path == two.path
    assert len(written) == 1


def test_out_must_be_new_or_empty(story_file, tokenizer, tmp_path):
    (tmp_path / "empty").mkdir()
    prepare(story_file, tokenizer, out=tmp_path / "empty")
    for taken in (tmp_path / "empty", Path(story_file)):
        with pytest.raises(UserError, match="exists already"):
            prepare(story_file, tokenizer, out=taken)


def test_out_that_cannot_be_written_is_refused(story_file, tokenizer):
    with pytest.raises(UserError, match=r"Cannot write to .*`out`"):
        prepare(story_file, tokenizer, out=Path(story_file) / "inside-a-file")


def test_full_disk_is_not_a_user_error(story_file, tokenizer, tmp_path, monkeypatch):
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full, a Linux device on which each write fails")
    open_file = Path.open
    monkeypatch.setattr(
        Path,
        "open",
        lambda self, *args, **options: open_file(
            Path("/dev/full") if self.name == "train.bin" else self, *args, **options
        ),
    )
    with pytest.raises(RunError, match="disk is full"):
        prepare(story_file, tokenizer, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def damage_json(folder):
    (folder / "data.json").write_text("{")


def damage_fields(folder):
    (folder / "data.json").write_text('{"format": 1}')


def damage_list(folder):
    (folder / "data.json").write_text("[]")


def damage_size(folder):
    with (folder / "train.bin").open("ab") as file:
        file.write(b"\0\0")


def damage_missing(folder):
    (folder / "test.bin").unlink()


def damage_tokenizer(folder):
    train_tokenizer(300, ["quite other words " * 9]).save(str(folder / "tokenizer.json"))


def damage_version(folder):
    info = json.loads((folder / "data.json").read_text())
    (folder / "data.json").write_text(json.dumps(info | {"format": 99}))


def changed(**fields):
    """A function that sets fields of data.json."""

    def damage(folder):
        info = json.loads((folder / "data.json").read_text())
        (folder / "data.json").write_text(json.dumps(info | fields))

    return damage


def damage_split(folder):
    info = json.loads((folder / "data.json").read_text())
    info["splits"]["test"]["documents"] = "many"
    (folder / "data.json").write_text(json.dumps(info))


def damage_ends(folder):
    content = bytearray((folder / "test.ends").read_bytes())
    content[0] ^= 1
    (folder / "test.ends").write_bytes(content)


def damage_depth(folder):
    (folder / "data.json").write_text('{"a":' * 100_000 + "1" + "}" * 100_000)


def damage_digits(folder):
    (folder / "data.json").write_text('{"format": ' + "1" * 5000 + "}")


def damage_tokens(folder):
    size = (folder / "train.bin").stat().st_size
    (folder / "train.bin").write_bytes(b"\xff" * size)  # token 65,535


@pytest.mark.parametrize(
    "damage",
    [
        changed(vocab_size="x"),
        changed(vocab_size=10**30),
        changed(end_of_text=-1),
        changed(end_of_text=5_000),
        changed(source=None),
        changed(fingerprint=1),
        changed(fingerprint="../../secrets"),
        changed(dtype="object"),
        changed(splits=[]),
        changed(splits={}),
        changed(notes="a word"),
        damage_split,
        damage_ends,
        damage_depth,
        damage_digits,
        damage_tokens,
        damage_json,
        damage_fields,
        damage_list,
        damage_size,
        damage_missing,
        damage_tokenizer,
        damage_version,
    ],
)
def test_damaged_folder_is_refused_and_in_the_cache_made_again(
    story_file, tokenizer, tmp_path, damage
):
    prepare(story_file, tokenizer, out=tmp_path / "out")
    damage(tmp_path / "out")
    with pytest.raises(UserError, match=r"'out'.*prepare it again"):
        prepare(str(tmp_path / "out"), None)
    cached = prepare(story_file, tokenizer)
    damage(cached.path)
    assert prepare(story_file, tokenizer).fingerprint == cached.fingerprint


def test_a_cache_that_refuses_every_write_is_enough(story_file, tokenizer, tmp_path, monkeypatch):
    made = prepare(story_file, tokenizer)
    moved = prepare(story_file, tokenizer, out=tmp_path / "out")

    def refuse(*args, **options):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", refuse)
    monkeypatch.setattr(prepare_module, "replace_file", refuse)
    monkeypatch.setattr(prepare_module, "FileLock", refuse)
    assert prepare(story_file, tokenizer).path == made.path
    assert prepare(str(tmp_path / "out"), None).fingerprint == moved.fingerprint


def test_folder_that_is_not_prepared_is_refused(tmp_path):
    with pytest.raises(UserError, match="prepare it again"):
        open_prepared(tmp_path)


def test_prepared_folder_keeps_its_tokenizer(story_file, tokenizer, tmp_path):
    prepare(story_file, tokenizer, out=tmp_path / "out")
    train_tokenizer(300, ["quite other words " * 9]).save(str(tmp_path / "tokenizer.json"))
    for other in (str(tmp_path / "tokenizer.json"), "train:300"):
        with pytest.raises(UserError, match="was prepared with tokenizer"):
            prepare(str(tmp_path / "out"), other)


def test_raw_source_needs_a_tokenizer(story_file):
    with pytest.raises(UserError, match="name a tokenizer"):
        prepare(story_file, None)


@pytest.mark.parametrize("max_tokens", [0, -1])
def test_max_tokens_must_be_positive(story_file, tokenizer, max_tokens):
    with pytest.raises(UserError, match="at least 1"):
        prepare(story_file, tokenizer, max_tokens=max_tokens)


def test_prepared_data_is_read_without_datasets_and_pyarrow(story_file, tokenizer, tmp_path):
    data = prepare(story_file, tokenizer, out=tmp_path / "out")
    script = (
        "import sys; sys.modules.update(datasets=None, pyarrow=None, torch=None)\n"
        "from smollm2.data import batch, open_prepared\n"
        "from pathlib import Path\n"
        "data = open_prepared(Path(sys.argv[1]))\n"
        "print(data.fingerprint, batch(data.train, data.fingerprint, 0, 0, 2, 8)[0].shape)"
    )
    output = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "out")],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert output == f"{data.fingerprint} (2, 8)\n"


def test_cache_follows_the_environment(monkeypatch, tmp_path):
    from smollm2.files import cache_dir

    assert cache_dir() == Path(os.environ["SMOLCTL_CACHE"])
    monkeypatch.delenv("SMOLCTL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_dir() == tmp_path / "smolctl"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert cache_dir() == tmp_path / ".cache" / "smolctl"
