"""Every command of the README runs: section by section, in order, on models and texts for tests.

What is shortened: the variants are tiny, `builtin` is a few stories, the hub answers from local
files, and steps and limits are a hundredth (`--steps 5000` and `pow2-5000-s0` become 50). Commands
that are not smolctl's (git, make, pip) are those of `.ci/run`.
"""

import contextlib
import gzip
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from stories import stories, write_jsonl
from test_tasks import ROWS, write

from smolctl.cli import main
from smollm2 import ModelConfig
from smollm2.config import VARIANTS

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
SECTIONS = dict(
    re.findall(r"^##? (.+?)\n(.*?)(?=^##? |\Z)", README, re.MULTILINE | re.DOTALL)
)  # with the subsections that they hold
OTHERS = ("git", "make", "source", "pip", "python")
# A section that trains them itself begins without these runs, any other with both.
TRAINED = {"smolctl": ["orig"], "Five minutes": [], "Train": ["orig"]}
# The shapes of the variants in small.
TINY = {"d_model": 64, "n_layers": 2, "d_ff": 64, "vocab_size": 512, "max_seq_len": 256}


def blocks(section: str) -> list[str]:
    """The blocks of a section that are indented by four, without that."""
    found = re.findall(r"^ {4}.*\n(?:^ {4}.*\n|^\n(?= {4}))*", SECTIONS[section], re.MULTILINE)
    return ["".join(line[4:] or "\n" for line in b.splitlines(keepends=True)) for b in found]


def shortened(text: str) -> str:
    """Counts that stand alone or in a name, a hundredth: `5000`, `pow2-5000-s0`, `@3200`."""
    return re.sub(r"(?<=[ =@-])(\d{1,2})00\b", r"\1", text)


def files() -> dict[str, str]:
    """The files that the README shows, each a block with its name above."""
    shown = (block for section in SECTIONS for block in blocks(section))
    named = (re.match(r"# ([\w-]+\.toml)\n", block) for block in shown)
    return {match[1]: shortened(match.string) for match in named if match}


def commands(section: str) -> list[list[str]]:
    """The words of the command lines, redirections among them."""
    lines = [shortened(line) for block in blocks(section) for line in block.splitlines()]
    words = [shlex.split(line, comments=True) for line in lines if line.startswith("smolctl ")]
    return [line[1:] for line in words]


@pytest.fixture(scope="module")
def tiny_world(tmp_path_factory) -> Iterator[pytest.MonkeyPatch]:
    """Variants, the builtin corpus and the hub, of a size for tests."""
    import huggingface_hub

    import smollm2.data.documents  # noqa: F401

    folder = tmp_path_factory.mktemp("builtin")
    files = [folder / f"story{i}.py" for i in range(200)]
    for path, text in zip(files, stories(200), strict=True):
        path.write_text(f"{text}\n" * 8)
    with pytest.MonkeyPatch.context() as patch:
        for name, config in VARIANTS.items():
            heads = {"n_heads": 8, "n_kv_heads": 8 if config.is_moe else 4}
            experts = {"n_experts": config.n_experts, "n_active_experts": config.n_active_experts}
            patch.setitem(VARIANTS, name, ModelConfig(**TINY, **heads, **experts))
        # `smollm2.data.documents` is the function of that name too.
        patch.setattr(sys.modules["smollm2.data.documents"], "stdlib_files", lambda: files)
        # Read from the environment when datasets was imported, maybe before the tests.
        patch.setattr("datasets.config.HF_HUB_OFFLINE", True)
        patch.setattr(
            "datasets.load_dataset",
            lambda repo, config, split: (
                [row for name, row in ROWS.items() if matches(name, repo, config)] * 8
            ),
        )
        patch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(Path("pow2-hf")))
        yield patch


def matches(task: str, repo: str, config: str | None) -> bool:
    from smollm2.tasks import TASKS

    return (TASKS[task].repo, TASKS[task].config) == (repo, config)


@pytest.fixture(scope="module")
def start(tmp_path_factory, tiny_world) -> Path:
    """The texts and questions that the README names, two trained runs, and one of them exported."""
    folder = tmp_path_factory.mktemp("readme")
    write_jsonl(folder / "novels.jsonl", [text * 8 for text in stories(200)])
    novels = (folder / "novels.jsonl").read_bytes()
    (folder / "novels.jsonl.gz").write_bytes(gzip.compress(novels))
    write_jsonl(folder / "mine.jsonl", [text * 8 for text in stories(150)])
    (folder / "chapter.txt").write_text("Story number 7. The cat")
    (folder / "eval").mkdir()
    for name, row in ROWS.items():
        write(folder / "eval", f"{name}_validation.jsonl", [row] * 8)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in ("orig", "pow2"):
            run(["train", "--variant", name, "--steps", "50"])
        run(["export", "pow2", "--to", "hf", "pow2-hf"])
    for name, text in files().items():
        if name != "smolctl.toml":  # which would hold for every section
            (folder / name).write_text(text)
    return folder


def run(words: list[str]) -> None:
    """One command, with the redirection that may end it, which has to end well."""
    with contextlib.ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        if "<" in words:
            patch.setattr(sys, "stdin", stack.enter_context(open(words[-1])))
        if ">" in words:
            output = stack.enter_context(open(words[-1], "w"))
            stack.enter_context(contextlib.redirect_stdout(output))
        end = next((i for i, word in enumerate(words) if word in "<>"), None)
        with pytest.raises(SystemExit) as exit_:
            main(words[:end])
    assert not exit_.value.code, f"smolctl {shlex.join(words)}: exit code {exit_.value.code}"


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # compilers and libraries warn, of what is theirs
@pytest.mark.parametrize("section", [name for name in SECTIONS if "    smolctl" in SECTIONS[name]])
def test_the_commands_of_a_section_run(section, start, tmp_path, monkeypatch):
    shutil.copytree(start, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    for name in {"orig", "pow2"} - set(TRAINED.get(section, ["orig", "pow2"])):
        shutil.rmtree(f"results/runs/{name}-50-s0")
    if any("pow2-hf" in words for words in commands(section) if words[0] == "export"):
        shutil.rmtree("pow2-hf")
    for words in commands(section):
        run(words)


def test_every_line_of_a_command_block_is_a_command():
    known = ("smolctl ", "#", *(f"{name} " for name in OTHERS))
    for section in SECTIONS:
        for block in blocks(section):
            if block.startswith("smolctl "):
                assert all(line.startswith(known) for line in block.splitlines() if line), block
