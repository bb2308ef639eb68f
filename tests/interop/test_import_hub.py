"""Models of the Hugging Face hub."""

import hashlib
import shutil
from pathlib import Path

import pytest
from support.command import run_main
from support.foreign import change

from smollm2.errors import UserError
from smollm2.runs.run import Run


@pytest.fixture
def hub_cache(monkeypatch, tmp_path_factory) -> Path:
    """An empty cache of the hub's client, without network."""
    folder = tmp_path_factory.mktemp("hub")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return folder


def cached(folder: Path, cache: Path) -> Path:
    """The files of `folder` in the hub's cache as those of org/Tiny-1: links to blobs."""
    repo = cache / "models--org--Tiny-1"
    snapshot = repo / "snapshots" / ("0" * 40)
    for path in (repo / "blobs", repo / "refs", snapshot):
        path.mkdir(parents=True)
    (repo / "refs/main").write_text("0" * 40)
    for path in folder.iterdir():
        blob = hashlib.sha256(path.read_bytes()).hexdigest()
        shutil.copyfile(path, repo / "blobs" / blob)
        (snapshot / path.name).symlink_to(f"../../blobs/{blob}")
    return snapshot


@pytest.mark.parametrize("kind", ["tied", "sharded"])
def test_a_model_in_the_cache_of_the_hub_is_a_target_without_network(
    capsys, workdir, elsewhere, hub_cache, kind
):
    prompt = ("--prompt", "abc", "--max-new-tokens", "4")
    _, expected, _ = run_main(capsys, "generate", str(elsewhere / kind), *prompt)
    shutil.rmtree("results")
    cached(elsewhere / kind, hub_cache)
    code, out, err = run_main(capsys, "generate", "hf:org/Tiny-1", *prompt)
    assert (code, out) == (0, expected)
    assert "Imported hf:org/Tiny-1 (" in err
    assert Run(Path("results/runs/tiny-1")).manifest["source"]["name"] == "hf:org/Tiny-1"
    assert run_main(capsys, "generate", "hf:org/Tiny-1", *prompt) == (0, expected, "")


def test_what_is_fetched_is_checked_before_the_weights_come(
    capsys, workdir, elsewhere, hub_cache, monkeypatch, tmp_path
):
    asked = []

    def download(repo, *, allow_patterns=None, local_files_only=False):
        if local_files_only:
            raise FileNotFoundError
        asked.append(allow_patterns)
        return str(tmp_path / "there")

    monkeypatch.setattr("huggingface_hub.HfApi.repo_info", lambda *args, **options: None)
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    shutil.copytree(elsewhere / "tied", tmp_path / "there")
    command = ("generate", "hf:org/name", "--prompt", "abc", "--max-new-tokens", "1")
    change(tmp_path / "there", attention_bias=True)
    code, _, err = run_main(capsys, *command)
    assert (code, asked) == (2, [["config.json"]])
    assert "hf:org/name: config.json has attention_bias true" in err
    change(tmp_path / "there", attention_bias=False)
    assert run_main(capsys, *command)[0] == 0
    assert not any(".bin" in p or ".py" in p or p == "*" for p in asked[-1])
    assert Run(Path("results/runs/name")).is_imported


@pytest.mark.parametrize(
    ("target", "sentence"),
    [
        ("hf:org/name", "The Hugging Face hub cannot be reached for the model 'org/name'"),
        ("hf:name", "'hf:name' names no model: expected hf:ORG/NAME"),
        ("hf:", "'hf:' names no model"),
        ("hf:a/b/c", "'hf:a/b/c' names no model"),
    ],
)
def test_an_unavailable_model_reports_an_error(capsys, workdir, hub_cache, target, sentence):
    for command in (
        ("generate", target, "--prompt", "a"),
        ("train", "--from", target, "--steps", "2"),
    ):
        code, out, err = run_main(capsys, *command)
        assert (code, out) == (2, "")
        assert sentence in err
        assert "or give the folder of a model" in err
        assert not Path("results").exists()


def test_half_a_model_in_the_cache_is_fetched(elsewhere, hub_cache):
    from smollm2.interop.hf_import import fetch

    snapshot = cached(elsewhere / "tied", hub_cache)
    assert fetch("org/Tiny-1") == snapshot
    (snapshot / "model.safetensors").unlink()
    with pytest.raises(UserError, match="cannot be reached"):
        fetch("org/Tiny-1")
