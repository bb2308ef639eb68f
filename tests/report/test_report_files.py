"""The paths of a report are checked before anything is written."""

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support.command import run_main

REFUSED = {
    "one file twice": ("--out c.md --appendix c.md", "--appendix and --out name the same file"),
    "one file by two names": ("--out c.md --appendix ./c.md", "name the same file"),
    "one file by a link": ("--out link.md --html old.md", "--html and --out name the same file"),
    "a study file": ("--appendix results/s/study.toml", "where a report writes only .md and .html"),
    "a new study file": ("--out results/t/study.toml", "choose another --out"),
    "a manifest": ("--html results/s/pow2-s0/run.json", "choose another --html"),
    "a table": ("--out results/s/../s/pow2-s0/val.csv", "choose another --out"),
    "a folder": ("--out folder", "Cannot write folder: Is a directory"),
    "no folder": ("--appendix none/a.md", "there is no folder none; make it first"),
    "a file as a folder": ("--html old.md/x.html", "there is no folder old.md"),
    "a long name": (f"--html {'x' * 300}", "File name too long"),
    "the figures": ("--figures figs --out figs", "figs is a folder for the figures"),
    "only the last": ("--html a.html --appendix a.md --out none/c.md", "Cannot write none/c.md"),
}


def contents() -> dict[Path, bytes | None]:
    return {path: path.read_bytes() if path.is_file() else None for path in Path().rglob("*")}


@pytest.mark.parametrize("case", REFUSED)
def test_a_bad_path_is_refused_and_nothing_is_written(capsys, study, case):
    Path("folder").mkdir()
    Path("old.md").write_text("old")
    Path("link.md").symlink_to("old.md")
    (study / "study.toml").write_text('license = "mit"\n')
    before = contents()
    options, sentence = REFUSED[case]
    code, out, err = run_main(capsys, "report", "--study", "s", *options.split())
    assert (code, out) == (2, "")
    assert sentence in err
    assert "Errno" not in err
    assert contents() == before


def test_pages_may_lie_in_the_study_and_replace_old_ones(capsys, study):
    options = "--out results/s/CARD.md --appendix README.md --html results/s/card.html"
    Path("README.md").write_text("old")
    for _ in range(2):
        assert run_main(capsys, "report", "--study", "s", *options.split())[0] == 0
    assert "Appendix to the model card" in Path("README.md").read_text()


def test_a_page_may_be_written_through_a_link(capsys, study):
    Path("card.md").symlink_to("elsewhere.md")
    assert run_main(capsys, "report", "--study", "s", "--out", "card.md")[0] == 0
    assert Path("card.md").is_symlink()
    assert "model card of study `s`" in Path("elsewhere.md").read_text()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
def test_a_pipe_gets_the_text_and_stays(capsys, study):
    os.mkfifo("pipe")
    with ThreadPoolExecutor(1) as other:
        text = other.submit(Path("pipe").read_text)
        assert run_main(capsys, "report", "--study", "s", "--out", "pipe")[0] == 0
        assert "model card of study `s`" in text.result(timeout=60)
    assert Path("pipe").is_fifo()


@pytest.mark.skipif(not os.path.exists("/dev/fd"), reason="open files have no names here")
@pytest.mark.parametrize("link", [False, True])
def test_an_open_file_stays_the_same_file(capsys, study, link):
    with Path("open.md").open("w") as file:
        name = f"/dev/fd/{file.fileno()}"
        if link:
            Path("link.md").symlink_to(name)
            name = "link.md"
        code, _, err = run_main(capsys, "report", "--study", "s", "--html", name)
        assert code == 0, err
        assert os.fstat(file.fileno()).st_ino == Path("open.md").stat().st_ino
    assert Path("open.md").read_text().endswith("</html>\n")


@pytest.mark.parametrize("option", ["--html", "--out", "--appendix", "--figures"])
def test_a_full_disk_leaves_the_old_page(capsys, monkeypatch, study, option):
    name = "pages" if option == "--figures" else "page.md"
    if option == "--figures":
        Path(name).mkdir()
    old = Path(name, "differences.png") if option == "--figures" else Path(name)
    old.write_text("an older page")
    real = Path.write_bytes

    def full(path: Path, content: bytes) -> int:
        if old.name not in path.name:
            return real(path, content)
        real(path, content[:10])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    code, _, err = run_main(capsys, "report", "--study", "s", option, name)
    assert code == 1
    assert f"Error: Cannot write {'figures to ' if option == '--figures' else ''}{name}" in err
    assert err.endswith(f"{os.strerror(errno.ENOSPC)}.\n")
    assert old.read_text() == "an older page"
    assert not list(Path().rglob(".*.tmp"))


def test_a_card_may_lie_in_a_new_folder_of_figures(capsys, study):
    options = "--figures new/figures --out new/card.md"
    assert run_main(capsys, "report", "--study", "s", *options.split())[0] == 0
    assert "](figures/differences.png)" in Path("new/card.md").read_text()
