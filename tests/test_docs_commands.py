"""Every command of README.md and docs/ runs: section by section, in order, on small models.

What is shortened: the variants are tiny, `builtin` is a few stories, the hub answers from local
files, steps and limits are a hundredth (`--steps 5000` and `pow2-5000-s0` become 50), and a rate
is tuned on three. Commands that are not smolctl's (git, make, pip) are those of `.ci/run`. Blocks
below a comment `not run` need a GPU, the net or hours; `test_docs.py` parses them, and compares
shown output with the real.
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
from support.documents import GUIDES, Block, blocks, shown_files
from support.questions import ROWS, write
from support.stories import stories, write_jsonl

from smolctl.cli.app import main
from smollm2 import ModelConfig
from smollm2.model.config import VARIANTS

# Sections that train these runs themselves begin without them; any other has both.
BEGINS_WITH = {"Five minutes": [], "Train": ["orig"], "Stop, resume, branch": ["orig"]}
# The shapes of the variants in small.
TINY = {"d_model": 64, "n_layers": 2, "d_ff": 64, "vocab_size": 512, "max_seq_len": 256}


def sections() -> dict[tuple[str, str], list[Block]]:
    """The blocks with commands to run, by document and section."""
    found: dict[tuple[str, str], list[Block]] = {}
    for document in GUIDES:
        for block in blocks(document):
            if block.language == "sh" and block.commands and not block.not_run:
                found.setdefault((document.name, block.section), []).append(block)
    return found


SECTIONS = sections()


def shortened(text: str) -> str:
    """Counts that stand alone or in a name, a hundredth: `5000`, `pow2-5000-s0`, `@3200`."""
    return re.sub(r"(?<=[ =@-])(\d{1,2})00\b", r"\1", text)


def commands(section: tuple[str, str]) -> list[list[str]]:
    return [
        [shortened(f" {word}")[1:] for word in words]
        for block in SECTIONS[section]
        for words in block.commands
    ]


@pytest.fixture(scope="module")
def tiny_world(tmp_path_factory) -> Iterator[pytest.MonkeyPatch]:
    """Variants, the builtin corpus and the hub, of a size for tests."""
    import huggingface_hub

    folder = tmp_path_factory.mktemp("builtin")
    files = [folder / f"story{i}.py" for i in range(200)]
    for path, text in zip(files, stories(200), strict=True):
        path.write_text(f"{text}\n" * 8)
    with pytest.MonkeyPatch.context() as patch:
        for name, config in VARIANTS.items():
            heads = {"n_heads": 8, "n_kv_heads": 8 if config.is_moe else 4}
            experts = {"n_experts": config.n_experts, "n_active_experts": config.n_active_experts}
            patch.setitem(VARIANTS, name, ModelConfig(**TINY, **heads, **experts))
        patch.setattr("smollm2.data.kinds.stdlib_corpus.stdlib_files", lambda: files)
        patch.setattr("smolctl.studies.rate_grid.ON_EITHER_SIDE", 1)
        patch.setattr("smolctl.studies.rate_search.MOST_ADDED", 0)
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
    from smollm2.evaluation.tasks import TASKS

    return (TASKS[task].repo, TASKS[task].config) == (repo, config)


@pytest.fixture(scope="module")
def start(tmp_path_factory, tiny_world) -> Path:
    """The texts and questions that the documents name, two runs, and one of them exported twice."""
    folder = tmp_path_factory.mktemp("documents")
    write_jsonl(folder / "novels.jsonl", [text * 8 for text in stories(200)])
    novels = (folder / "novels.jsonl").read_bytes()
    (folder / "novels.jsonl.gz").write_bytes(gzip.compress(novels))
    write_jsonl(folder / "mine.jsonl", [f"Mine. {text}" * 8 for text in stories(150)])
    (folder / "chapter.txt").write_text("Story number 7. The cat")
    (folder / "eval").mkdir()
    for name, row in ROWS.items():
        write(folder / "eval", f"{name}_validation.jsonl", [row] * 8)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in ("orig", "pow2"):
            run(["train", "--variant", name, "--steps", "50"])
        run(["export", "pow2", "--to", "hf", "pow2-hf"])
        run(["export", "pow2", "--to", "gguf", "pow2.gguf"])
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
@pytest.mark.filterwarnings("default")  # of compilers and libraries
@pytest.mark.parametrize("section", SECTIONS, ids=" - ".join)
def test_the_commands_of_a_section_run(section, start, tmp_path, monkeypatch):
    shutil.copytree(start, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    (document,) = {block.document for block in SECTIONS[section]}
    for name, text in shown_files(document).items():
        if name != "smolctl.toml":  # which would hold for every command
            Path(name).write_text(shortened(text))
    for name in {"orig", "pow2"} - set(BEGINS_WITH.get(section[1], ["orig", "pow2"])):
        shutil.rmtree(f"results/runs/{name}-50-s0")
    exported = [word for words in commands(section) if words[0] == "export" for word in words]
    if "pow2-hf" in exported:
        shutil.rmtree("pow2-hf")
    if "pow2.gguf" in exported:
        Path("pow2.gguf").unlink()
    for words in commands(section):
        run(words)
