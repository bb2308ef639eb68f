"""The documents: what they show exists, and what exists is in the reference."""

import contextlib
import dataclasses
import re

import pytest
import typer
from support.command import run_main
from support.documents import (
    DOCUMENTS,
    GUIDES,
    README,
    ROOT,
    SHELL,
    Block,
    anchors,
    blocks,
    links,
    prose,
)

from smolctl.analysis.ladder_notes import LadderNotes
from smolctl.cli.root import app
from smolctl.studies.rate_grid import Tuning
from smolctl.studies.speed_plan import SpeedPlan
from smolctl.studies.study_file import OPTIONS, Evaluation, Quantization, study_of
from smollm2 import VARIANTS, ModelConfig
from smollm2.errors import UserError
from smollm2.evaluation.tasks import TASKS
from smollm2.model.cost import parameters
from smollm2.protocol.recipe import Recipe
from smollm2.runs.tables import TABLES

REFERENCE = ROOT / "docs" / "reference.md"
README_BYTES = 10_240
LANGUAGES = (*SHELL, "toml", "python", "")
OTHER_COMMANDS = ("git ", "make ", "torchrun ", "source ", "pip ", "python ", ".ci/run")


def name_of(path):
    return str(path.relative_to(ROOT))


documents = pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
guides = pytest.mark.parametrize("document", GUIDES, ids=name_of)


def code_words(text: str) -> set[str]:
    """Every name in code, `a`, `b = 3` or in a table's cell."""
    return set(re.findall(r"[\w.-]+", " ".join(re.findall(r"`([^`\n]+)`", text))))


def parse(words: list[str]) -> None:
    """Parse a smolctl command without running it; usage errors are raised."""
    words = words[: next((i for i, word in enumerate(words) if word in "<>"), None)]
    command = typer.main.get_command(app)
    context = command.make_context("smolctl", list(words))
    while rest := [*context._protected_args, *context.args]:
        name, command, rest = command.resolve_command(context, rest)
        context = command.make_context(name, rest, parent=context)


def options() -> dict[str, set[str]]:
    """The options of every command by its name, `runs show` for example."""
    found: dict[str, set[str]] = {}

    def collect(name: str, command) -> None:
        found[name] = {
            option
            for parameter in command.get_params(
                command.make_context("", [], resilient_parsing=True)
            )
            for option in (*parameter.opts, *parameter.secondary_opts)
        }
        if hasattr(command, "list_commands"):
            context = command.make_context("", [], resilient_parsing=True)
            for inner in command.list_commands(context):
                collect(f"{name} {inner}".strip(), command.get_command(context, inner))

    collect("", typer.main.get_command(app))
    return found


def test_the_readme_is_at_most_ten_kilobytes():
    assert len(README.read_bytes()) <= README_BYTES


@documents
def test_links_lead_somewhere(document):
    for link in links(document):
        path, _, anchor = link.partition("#")
        target = (document.parent / path).resolve() if path else document
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@documents
def test_blocks_have_a_known_language(document):
    assert {block.language for block in blocks(document)} <= set(LANGUAGES)


@documents
def test_every_line_of_a_shell_block_is_a_known_command(document):
    for block in blocks(document):
        if block.language in SHELL:
            bare = [re.sub(r"^[A-Z_]+=\S+ ", "", line) for line in block.lines]
            assert all(line.startswith(("smolctl ", *OTHER_COMMANDS)) for line in bare), block.text


@guides
def test_every_command_is_where_it_is_tested(document):
    """In an indented block, or in a fenced one of another language."""
    assert not re.findall(r"^ {4}(?:\$ )?smolctl .*$", prose(document), re.MULTILINE)
    shell = "".join(block.text for block in blocks(document) if block.language not in SHELL)
    assert not re.findall(r"^(?:\$ )?smolctl .*$", shell, re.MULTILINE)


def shell_blocks() -> list[Block]:
    found = [block for document in DOCUMENTS for block in blocks(document)]
    return [block for block in found if block.language in SHELL and block.commands]


@pytest.mark.parametrize(
    "block", shell_blocks(), ids=lambda block: f"{block.document.name}:{block.section}"
)
def test_commands_have_known_options_and_all_arguments(block):
    for words in block.commands:
        with contextlib.suppress(typer.Exit):  # of --help
            parse(words)


@documents
def test_options_in_the_text_exist(document):
    known = options()
    every = set().union(*known.values())
    for code in re.findall(r"`([^`]+)`", prose(document)):
        match = re.match(r"smolctl ([a-z]+)(?: ([a-z]+))?", code)
        if match and match[1] in known:
            both = f"{match[1]} {match[2]}"
            allowed = known[both if both in known else match[1]] | known[""]
        elif code.startswith(("smolctl ", "--", "RUN")):
            allowed = every
        else:
            continue
        assert set(re.findall(r"(?<![\w-])--[a-z][\w-]*", code)) <= allowed, code


@documents
def test_paths_in_the_text_exist(document):
    rooms = "smollm2|smolctl|tests|benchmarks"
    for path in re.findall(rf"`((?:{rooms})/[a-z0-9_./-]*)`", prose(document)):
        assert (ROOT / path).exists(), path


def test_commands_in_the_text_exist():
    known = options()
    for document in DOCUMENTS:
        for code in re.findall(r"`smolctl ([a-z]+)", prose(document)):
            assert code in known, f"{document.name}: smolctl {code}"


CONSOLE = [block for block in shell_blocks() if block.language == "console"]


@pytest.mark.parametrize("block", CONSOLE, ids=lambda block: name_of(block.document))
def test_shown_output_is_real(block, capsys, monkeypatch, tmp_path):
    """On the committed studies; lines may be omitted, but not changed or put in another order."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("COLUMNS", "100")
    (words,) = block.commands
    figures = ["--figures", str(tmp_path)] if "--figures" in options()[words[0]] else []
    code, out, err = run_main(capsys, *words, *figures)
    assert code == 0, err
    assert block.output
    printed = iter(line.rstrip() for line in out.splitlines())
    for line in block.output:
        assert line in printed, line  # `in` reads on from the last line found


PYTHON = [
    block for document in DOCUMENTS for block in blocks(document) if block.language == "python"
]


@pytest.mark.parametrize("block", PYTHON, ids=lambda block: name_of(block.document))
def test_a_python_example_runs_and_prints_what_its_comments_say(block, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    exec(compile(block.text, block.document.name, "exec"), {})
    said = re.findall(r"^print.*  # (.*)$", block.text, re.MULTILINE)
    assert capsys.readouterr().out.splitlines() == said


def test_the_table_of_variants_is_true():
    text = REFERENCE.read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([\w-]+)` \| ([\d /]+) \| (\d+) \| ([\d,]+) \|", text, re.MULTILINE)
    assert {row[0] for row in rows} == set(VARIANTS)
    for name, dimensions, d_ff, total in rows:
        config = VARIANTS[name]
        shape = (config.d_model, config.n_heads, config.n_kv_heads, config.n_layers)
        assert dimensions == " / ".join(map(str, shape))
        assert int(d_ff) == config.d_ff
        assert int(total.replace(",", "")) == parameters(config).total


def study_keys() -> set[str]:
    with pytest.raises(UserError) as raised:
        study_of({"nonsense": 1}, "gqa")
    return set(re.findall(r"\w+", str(raised.value).partition("Available:")[2]))


@pytest.mark.parametrize(
    "names",
    [
        {field.name for field in dataclasses.fields(ModelConfig)},
        {field.name for field in dataclasses.fields(Recipe)},
        OPTIONS,
        study_keys(),
        *(
            {field.name for field in dataclasses.fields(kind)}
            for kind in (Evaluation, Quantization, SpeedPlan, LadderNotes)
        ),
        Tuning((), (), True).keys.keys(),
        *(set(columns) for columns in TABLES.values()),
        set(TASKS),
    ],
    ids=lambda names: min(names),
)
def test_every_key_and_column_is_in_the_reference(names):
    text = REFERENCE.read_text(encoding="utf-8")
    assert names - code_words(text) == set()


def test_every_environment_variable_is_in_the_reference():
    read = re.compile(r"environ(?:\.get\(|\[)\"(\w+)\"")
    sources = [*ROOT.glob("smolctl/**/*.py"), *ROOT.glob("smollm2/**/*.py")]
    found = {name for path in sources for name in read.findall(path.read_text(encoding="utf-8"))}
    assert "SMOLCTL_CACHE" in found
    assert found - code_words(REFERENCE.read_text(encoding="utf-8")) == set()


def test_the_readme_says_what_the_card_withdraws():
    card, readme = (path.read_text(encoding="utf-8") for path in (ROOT / "MODEL_CARD.md", README))
    assert ("> **Superseded.**" in card) == ("are withdrawn" in readme)
