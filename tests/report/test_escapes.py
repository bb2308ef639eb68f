"""Text in a card or page is shown as it is: it is no markup but the sentences' own."""

import re
from html.parser import HTMLParser

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from smolctl.report.document import Code, Table, bullets, paragraph
from smolctl.report.render import html
from smolctl.report.render.front_matter import front_matter
from smolctl.report.render.markdown import block_text, comment, fenced, heading, notice
from smolctl.report.render.spans import Span, one_line, spans

NASTY = (
    "[click](http://evil.example/)",
    "![p](/etc/passwd)",
    "<img src=x onerror=alert(1)>",
    "<!-- a", "-->", "<http://evil.example>", "http://evil.example", "www.evil.example",
    "# heading", "- item", "+ item", "12. item", "1) item", "> quote", "---", "***", "___", "===",
    "```", "~~~", "~~struck~~", "a | b", "\\", "\\|", "`", "``", "`a", "*a", "**a", "_a_", "__a__",
    "&lt;", "$x$", "a\n\n# b", "a\r\nb", "\x1b]0;title\x07", "\u202eabc", "\ud800",
    "    code", "[a]: /b", "[^1]", "a\\\n", "\t# a", "{{ x }}", "'\"&",
)  # fmt: skip
TAGS = {"p", "ul", "li", "code", "strong", "em", "h1", "table", "thead", "tbody", "tr", "th", "td"}
TAGS |= {"blockquote", "pre"}
texts = st.lists(st.one_of(st.sampled_from(NASTY), st.text(max_size=8)), max_size=5).map(" ".join)
glued = st.lists(st.one_of(st.sampled_from(NASTY), st.text(max_size=3)), max_size=5).map("".join)
RENDERER = MarkdownIt("commonmark").enable(["table", "strikethrough"])


class Reader(HTMLParser):
    """Collects the tags and the text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.words = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)

    def handle_data(self, data):
        self.words += data


def visible(text: str) -> str:
    """What a reader sees of a sentence: its spans without their marks and spaces."""
    inner = (visible(part) if kind in (Span.STRONG, Span.EMPHASIS) else part
             for kind, part in spans(text))  # fmt: skip
    return "".join("".join(inner).split())


def read(page: str) -> str:
    """The text of a page without spaces; the page must have no tag but those of our own."""
    found = Reader(page)
    assert set(found.tags) <= TAGS, page
    return "".join(found.words.split())


@example("` `` `")
@given(st.one_of(texts, glued))
def test_prose_is_shown_as_it_is(text):
    for block in (bullets([text]), paragraph(text)):
        rendered = RENDERER.render(block_text(block, None))
        assert read(rendered) == visible(text)
        assert read(html.block_html(block, {})) == visible(text)
        tags = [tag for tag in Reader(rendered).tags if tag not in ("code", "strong", "em")]
        assert tags in (["ul", "li"], ["p"], [])
    assert read(RENDERER.render(heading(f"a {text} b", 1))) == visible(f"a {text} b")
    assert read(RENDERER.render(notice(f"a {text}"))) == visible(f"a {text}")


@given(st.one_of(texts, glued), st.one_of(texts, glued))
def test_cells_are_shown_as_they_are(one, other):
    table = Table("Title", ("a", "b"), [(one, other), (other, one)])
    rendered = RENDERER.render(block_text(table, None))
    tags = [tag for tag in Reader(rendered).tags if tag not in ("code", "strong", "em")]
    row = ["tr", "td", "td"]
    assert tags == ["p", "table", "thead", "tr", "th", "th", "tbody", *row, *row], rendered
    # Code with `|` is shown with its marks.
    shown = read(rendered).replace("`", "")
    wanted = "".join(map(visible, ["Title:", "a", "b", one, other, other, one]))
    assert shown == wanted.replace("`", "")
    assert read(html.block_html(table, {})) == wanted


@given(st.one_of(texts, glued))
def test_code_ends_where_it_ends(text):
    rendered = RENDERER.render(f"{fenced('sh', text)}\n\nafter")
    assert rendered.count("<pre>") == 1
    assert rendered.endswith("<p>after</p>\n")
    assert html.block_html(Code("sh", text), {}).count("<") == 4


@given(st.one_of(texts, glued))
def test_a_comment_ends_where_it_ends(text):
    made = comment(f"Made by `{text}`.")
    assert made.count("-->") == 1
    assert "\n" not in made


@pytest.mark.parametrize("text", NASTY)
def test_nothing_is_followed_that_cannot_be_printed(text):
    shown = [
        block_text(bullets([text, f"`{text}`"]), None),
        block_text(Table("a", ("b",), [(text,)]), None),
        fenced("", text),
        comment(text),
        html.page(text, [text], [], {}),
        front_matter([], license=text, model_name=text),
    ]
    for page in shown:
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\u202e\ud800]", page)


@pytest.mark.parametrize(
    "text", ["acc_norm of arc_easy", "p < 0.05 & n > 3", "~135 M, ~174 M", "5.1 ± 0.2 *", "-0.02"]
)
def test_plain_text_stays_as_it_is(text):
    assert block_text(bullets([text]), None) == f"- {text}"


def test_the_marks_of_a_sentence_are_kept():
    sentence = "**Type:** `d_model` of *one* arm"
    assert block_text(bullets([sentence]), None) == f"- {sentence}"
    shown = html.block_html(bullets([sentence]), {})
    assert "<strong>Type:</strong> <code>d_model</code> of <em>one</em> arm" in shown


def test_a_line_is_a_line():
    assert one_line(" a\n\nb\tc\u2028d \x1b[0m ") == r"a b c d \x1b[0m"
