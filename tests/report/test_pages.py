"""Pictures, links and the HTML page of a card."""

import base64
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from support.carded import card, card_alone
from support.command import run_main

from smolctl.report.document import Figure, Section
from smolctl.report.render.html import page as html_page
from smollm2.errors import UserError
from smollm2.files import write_json


@pytest.mark.parametrize("name", ["my figs", "a(b)c", "é%20", "x'y&z"])
def test_links_to_figures_with_odd_names_hold(capsys, study, name):
    files = ["--figures", name, "--appendix", "appendix.md", "--html", "card.html"]
    text = card_alone(capsys, *files)
    Path("MODEL_CARD.md").write_text(text)
    text += Path("appendix.md").read_text()
    rendered = MarkdownIt("commonmark").render(text)
    shown = rendered.count("<img")
    page = Path("card.html").read_text()
    assert shown == page.count("data:image/png;base64,") >= 4
    assert run_main(capsys, "report", "--check", "MODEL_CARD.md")[0] == 0


def test_figures_that_cannot_be_written_are_a_sentence(capsys, study):
    Path("file").write_text("")
    code, out, err = run_main(capsys, "report", "--study", "s", "--figures", "file/x")
    assert (code, out) == (2, "")
    assert "Cannot write figures to file" in err


def test_a_page_lacks_no_picture(workdir):
    figure = Figure("loss.png", "a [caption]", draw=lambda: None)
    shown = [Section("Loss", (figure,))]
    with pytest.raises(UserError, match=r"x/loss\.png cannot be read"):
        html_page("title", [], shown, {"loss.png": Path("x/loss.png")})
    Path("loss.png").write_bytes(b"picture")
    text = html_page("title", [], shown, {"loss.png": Path("loss.png")})
    data = base64.b64encode(b"picture").decode()
    assert f'<img src="data:image/png;base64,{data}" alt="a [caption]">' in text


def test_a_card_links_from_where_it_lies(capsys, study):
    Path("cards").mkdir()
    files = ["--out", "cards/s.md", "--appendix", "more/a.md", "--html", "s.html"]
    Path("more").mkdir()
    out = card_alone(capsys, *files)
    assert out == ""
    text = Path("cards/s.md").read_text()
    assert "[appendix](../more/a.md)" in text
    text += Path("more/a.md").read_text()
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text)
    assert all(picture.startswith("../results/s/figures/") for picture in pictures)
    assert Path("s.html").read_text().count("data:image/png") == len(pictures)
    assert run_main(capsys, "report", "--check", "cards/s.md")[0] == 0


def test_no_path_of_the_machine_is_in_the_card(capsys, study, workdir, tmp_path_factory):
    options = ["--results", str(workdir / "results"), "--figures", str(workdir / "figs")]
    text = card(capsys, *options)
    assert str(workdir) not in text
    assert "](figs/loss.png)" in text
    code, _, err = run_main(capsys, "report", "--study", "s", "--figures", "/nowhere/figs")
    assert code == 2
    assert "folders of this machine" in err


def test_a_page_is_one_file_with_its_pictures(capsys, study):
    text = card(capsys, "--html", "card.html")
    page = Path("card.html").read_text()
    assert page.count("data:image/png;base64,") == len(re.findall(r"\.png\)", text))
    assert not re.search(r'src="(?!data:)', page)
    assert "model-index" not in page
    for cell in ("5.0050 ± 0.0071", "SHA-256", "pow2-s1"):
        assert cell in page


def test_text_from_a_manifest_is_no_markup_of_the_page(capsys, study):
    Path("secret").write_text("a file of this machine")
    secret = base64.b64encode(Path("secret").read_bytes()).decode()
    for seed in range(2):
        path = study / f"pow2-s{seed}" / "run.json"
        manifest = json.loads(path.read_text())
        manifest["environment"]["device_name"] = "<script>alert(1)</script> | x"
        manifest["environment"]["platform"] = f"![p]({Path('secret').resolve()}) ![q](secret)"
        manifest["arm"] = (
            "b [c](http://evil.example/)\n\n# Injected\n\n<img src=x> \x1b[31m --> $x$"
        )
        write_json(path, manifest)
    text = card(capsys, "--html", "card.html", "--out", "card.md")
    text = Path("card.md").read_text() + text
    page = Path("card.html").read_text()
    assert "\\| x" in text
    rendered = MarkdownIt("commonmark").enable("table").render(text)
    assert not re.search(r"<h\d>(Injected|b )|href=.http|^<img src=x", rendered, re.MULTILINE)
    assert re.findall(r'<img src="[^"]*', rendered) == re.findall(
        r'<img src="results[^"]*', rendered
    )
    assert "\x1b" not in text
    assert text.startswith("---\n")
    assert not re.search(r"<script|<h1>Injected|href=.http|<img src=x|\x1b", page)
    assert secret not in page
    assert "b [c](http://evil.example/) # Injected &lt;img src=x&gt; \\x1b[31m" in page
    assert run_main(capsys, "report", "--check", "card.md")[0] == 0


@pytest.mark.slow
def test_the_page_loads_in_a_browser(capsys, study):
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("needs Chromium or Chrome on the path")
    card(capsys, "--html", "card.html")
    page = Path("card.html").read_text()
    probe = (
        "<script>window.addEventListener('load', () => { const images = [...document.images];"
        "document.title = images.length + ' ' + images.filter(i => i.naturalWidth > 0).length;"
        "});</script></body>"
    )
    Path("probe.html").write_text(page.replace("</body>", probe))
    command = [
        *(browser, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
        *("--user-data-dir=profile", "--enable-logging=stderr", "--dump-dom"),
        *("--virtual-time-budget=5000", Path("probe.html").resolve().as_uri()),
    ]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    wanted = page.count("<img")
    assert f"<title>{wanted} {wanted}</title>" in result.stdout
    assert "CONSOLE" not in result.stderr
