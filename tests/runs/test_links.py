"""Links in a received run or study: nothing is written or deleted behind one that leads out."""

import errno
import shutil
from pathlib import Path

import pytest
from support.command import run_main
from support.planted import planted

from smollm2.errors import UserError
from smollm2.runs.links import require_own
from smollm2.runs.run import Run


@pytest.fixture
def outside(tmp_path_factory) -> Path:
    """A folder of the user's, with files that look like a run's."""
    folder = tmp_path_factory.mktemp("outside")
    for name in ("step-1.safetensors", "step-1.json", ".keep.tmp", "train.csv", "run.lock"):
        (folder / name).write_text("mine")
    return folder


def files_in(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def replace_by_link(path: Path, target: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.symlink_to(target)


@pytest.mark.parametrize(
    ("entry", "target"),
    [
        ("items", "."),
        ("quantized", "."),
        ("checkpoints", "."),
        ("checkpoints/step-1.safetensors", "step-1.safetensors"),
        ("train.csv", "train.csv"),
        ("val.csv", "dangling.csv"),
        ("run.lock", "run.lock"),
        ("run.json.old", "../.."),
    ],
)
def test_a_run_is_not_written_through_a_link(template, workdir, outside, entry, target):
    run, before = planted(template, "a", 0, 5.0), files_in(outside)
    replace_by_link(run.path / entry, outside / target)
    message = f"a-s0/{entry} is a link that leads out of a-s0"
    with pytest.raises(UserError, match=message), run.writing():
        pass
    assert not run.is_being_written
    assert files_in(outside) == before


def test_commands_refuse_a_link_in_a_run(capsys, template, workdir, outside, corpus):
    run, before = planted(template, "a", 0, 5.0), files_in(outside)
    run.update(state="stopped")
    replace_by_link(run.path / "checkpoints", outside)
    options = ["--study", "s", "--data", str(corpus)]
    code, _, err = run_main(capsys, "train", "--resume", "a-s0", *options)
    assert (code, files_in(outside)) == (2, before)
    assert "a-s0/checkpoints is a link that leads out of a-s0" in err
    code, _, err = run_main(capsys, "runs", "show", "a-s0", "--study", "s")
    assert code == 0


def test_a_finished_run_with_a_link_is_not_tidied_and_no_error(template, workdir, outside):
    run, before = planted(template, "a", 0, 5.0), files_in(outside)
    replace_by_link(run.path / "checkpoints", outside)
    run.tidy()
    assert files_in(outside) == before


def test_a_link_that_stays_in_the_run_is_followed(template, workdir):
    run = planted(template, "a", 0, 5.0)
    (run.path / "more").mkdir()
    (run.path / "items").symlink_to("more")
    with run.writing():
        pass


def test_links_that_a_tracker_made_are_left_to_it(template, workdir, outside):
    run = planted(template, "a", 0, 5.0)
    (run.path / "wandb").mkdir()
    (run.path / "wandb/debug.log").symlink_to(outside / "train.csv")
    with run.writing():
        run.update(error=None)
    replace_by_link(run.path / "wandb", outside)
    with pytest.raises(UserError, match="wandb is a link that leads out"), run.writing():
        pass


def test_a_run_behind_a_link_is_written(template, workdir, tmp_path_factory):
    run = planted(template, "a", 0, 5.0)
    elsewhere = tmp_path_factory.mktemp("disk") / "a-s0"
    shutil.move(run.path, elsewhere)
    run.path.symlink_to(elsewhere)
    with Run(run.path).writing():
        pass
    assert (elsewhere / "run.lock").exists()


def test_a_run_with_a_link_is_removed_without_what_it_leads_to(template, workdir, outside):
    run, before = planted(template, "a", 0, 5.0), files_in(outside)
    replace_by_link(run.path / "items", outside)
    run.remove()
    assert not run.path.exists()
    assert files_in(outside) == before


@pytest.mark.parametrize("entry", ["figures", "figures/a-vs-b"])
def test_figures_are_not_written_through_a_link(capsys, template, workdir, outside, entry):
    for arm in "ab":
        planted(template, arm, 0, 5.0)
    before = files_in(outside)
    (workdir / "results/s" / entry).parent.mkdir(exist_ok=True)
    (workdir / "results/s" / entry).symlink_to(outside)
    for command in (["compare", "a", "b"], ["report"]):
        code, _, err = run_main(capsys, *command, "--study", "s")
        assert (code, files_in(outside)) == (2, before)
        assert f"{entry} is a link that leads out of s" in err


def test_a_page_is_not_written_through_a_link_in_a_study(capsys, template, workdir, outside):
    planted(template, "a", 0, 5.0)
    before = files_in(outside)
    (workdir / "results/s/CARD.md").symlink_to(outside / "train.csv")
    options = ["--study", "s", "--out", "results/s/CARD.md"]
    code, _, err = run_main(capsys, "report", *options)
    assert (code, files_in(outside)) == (2, before)
    assert "CARD.md is a link that leads out of s" in err


def test_the_lock_of_a_study_is_no_link(workdir, outside):
    (workdir / "s").mkdir()
    (workdir / "s/study.lock").symlink_to(outside / "run.lock")
    with pytest.raises(UserError, match=r"study.lock is a link that leads out of s"):
        require_own(workdir / "s", "study.lock")


def test_an_entry_that_is_not_there_is_no_link(workdir):
    require_own(workdir, "nothing")
    require_own(workdir)


def test_a_run_on_a_disk_that_is_read_only_is_a_sentence(capsys, template, workdir, monkeypatch):
    run = planted(template, "a", 0, 5.0)

    def refuse(self, *args, **options):
        raise OSError(errno.EROFS, "Read-only file system", self.lock_file)

    monkeypatch.setattr("filelock.FileLock.acquire", refuse)
    code, _, err = run_main(capsys, "runs", "remove", "a-s0", "--study", "s", "--yes")
    assert (code, err) == (1, "Error: Run 'a-s0' cannot be written: Read-only file system.\n")
    assert run.path.exists()
