"""The first use of a model imports it as a run; later uses find that run."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from support.command import run_main
from support.foreign import change, runs_here, theirs_in
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
)

from smolctl.studies.models import load_one
from smolctl.studies.targets import finished_runs
from smollm2.interop.hf_import import FolderSource, open_folder
from smollm2.interop.source import import_run
from smollm2.runs.run import Run

# One run of a model


def test_the_first_use_imports_and_later_ones_find_the_run(capsys, model):
    prompt = ("--prompt", "abc", "--max-new-tokens", "3")
    code, out, err = run_main(capsys, "generate", "./mine", *prompt)
    assert code == 0
    assert err.startswith("Imported ./mine (")
    assert err.rstrip().endswith("as run mine: results/runs/mine")
    before = (model.parent / "results/runs/mine/run.json").read_bytes()
    for target in ("./mine", "mine", str(model), "results/runs/mine"):
        assert run_main(capsys, "generate", target, *prompt) == (0, out, "")
    shutil.copytree("mine", "Copy Of It")
    assert run_main(capsys, "generate", "./Copy Of It", *prompt) == (0, out, "")
    assert runs_here() == ["mine"]
    run = Run(Path("results/runs/mine"))
    assert (run.path / "run.json").read_bytes() == before
    assert (run.manifest["role"], run.is_finished, run.protocol.steps) == ("imported", True, 0)
    assert run.manifest["source"]["name"] == "./mine"
    assert str(model.parent) not in before.decode()
    code, _, err = run_main(capsys, "generate", "mine", *prompt, "--study", "other")
    assert code == 2
    assert "'mine' is not a run or variant here; for the folder type ./mine" in err


def test_other_files_in_the_folder_are_no_matter(capsys, model):
    (model / "model.json").write_text("{}")
    code, _, err = run_main(
        capsys, "generate", "./mine", "--prompt", "abc", "--max-new-tokens", "1"
    )
    assert code == 0, err
    assert runs_here() == ["mine"]


def test_an_imported_model_is_listed_and_shown_as_one(capsys, model):
    run_main(capsys, "generate", "./mine", "--prompt", "abc", "--max-new-tokens", "1")
    code, out, err = run_main(capsys, "runs")
    assert code == 0, err
    assert "imported" in out
    code, out, err = run_main(capsys, "runs", "show", "mine")
    assert code == 0, err
    assert "imported from ./mine (float32)" in out
    assert "recipe" not in out


def test_a_folder_that_has_changed_is_another_model(capsys, model):
    prompt = ("--prompt", "abc", "--max-new-tokens", "3")
    assert run_main(capsys, "generate", "./mine", *prompt)[0] == 0
    change(model, rope_parameters={"rope_theta": 300.0, "rope_type": "default"})
    code, out, err = run_main(capsys, "generate", "./mine", *prompt)
    assert (code, out) == (2, "")
    assert "run mine was imported from ./mine, and this is another model or has changed" in err
    assert "remove results/runs/mine to import it again" in err
    assert run_main(capsys, "generate", "./mine", *prompt, "--study", "other")[0] == 0
    shutil.rmtree("results/runs/mine")
    assert run_main(capsys, "generate", "./mine", *prompt)[0] == 0
    assert Run(Path("results/runs/mine")).protocol.model.rope_theta == 300.0


def test_a_damaged_import_does_not_stop_others(capsys, model):
    prompt = ("--prompt", "abc", "--max-new-tokens", "3")
    assert run_main(capsys, "generate", "./mine", *prompt)[0] == 0
    Run(Path("results/runs/mine")).update(source={})
    shutil.copytree("mine", "other")
    code, _, err = run_main(capsys, "generate", "./other", *prompt)
    assert code == 0, err
    assert Run(Path("results/runs/other")).manifest["source"]["name"] == "./other"
    code, _, err = run_main(capsys, "generate", "mine", *prompt)
    assert code == 2
    assert "mine/run.json is damaged: it has no source.name. It is skipped" in err


@pytest.mark.parametrize("same", [True, False])
def test_the_later_of_two_simultaneous_first_uses_finds_the_run(capsys, model, monkeypatch, same):
    prompt = ("--prompt", "abc", "--max-new-tokens", "3")
    read = FolderSource.read_state

    def meanwhile(source):
        """While this import reads the weights another one, from first to last."""
        monkeypatch.setattr(FolderSource, "read_state", read)
        other = open_folder(model, "./mine")
        if not same:
            other.__dict__["fingerprint"] = "0" * 16
        import_run(Path("results"), "runs", "mine", other)
        return read(source)

    monkeypatch.setattr(FolderSource, "read_state", meanwhile)
    code, out, err = run_main(capsys, "generate", "./mine", *prompt)
    assert runs_here() == ["mine"]
    if same:
        assert (code, err) == (0, "")
        assert run_main(capsys, "generate", "mine", *prompt) == (0, out, "")
    else:
        assert (code, out) == (2, "")
        assert err == "Error: ./mine: Another process has just created run 'mine'; try again.\n"


def test_the_name_of_a_trained_run_is_taken(capsys, finished, elsewhere):
    shutil.copytree(elsewhere / "tied", "first")
    before = (finished / "run.json").read_bytes()
    code, _, err = run_main(capsys, "generate", "./first", "--prompt", "abc")
    assert code == 2
    assert "its run would be called first, and that name is taken; give another --study" in err
    assert (finished / "run.json").read_bytes() == before


def test_held_out_text_needs_a_name(capsys, model, corpus, finished):
    code, out, err = run_main(capsys, "eval", "./mine")
    assert (code, out) == (2, "")
    assert "--data mine.jsonl" in err
    code, _, err = run_main(capsys, "quantize", "./mine", "--group-size", "32")
    assert code == 2
    assert "--data mine.jsonl" in err
    others = Path("others")
    assert (
        run_main(
            capsys,
            *("prepare", "--data", str(corpus), "--tokenizer", "train:300", "--out", str(others)),
        )[0]
        == 0
    )
    code, _, err = run_main(capsys, "eval", "./mine", "--data", str(others))
    assert code == 2
    assert "was prepared with a different tokenizer" in err


def test_comparisons_and_reports_exclude_imported_runs(capsys, finished, model):
    assert run_main(capsys, "generate", "./mine", "--prompt", "a", "--max-new-tokens", "1")[0] == 0
    assert runs_here() == ["first", "mine"]
    assert [run.name for run in finished_runs(Path("results"), "runs")] == ["first"]
    code, out, _ = run_main(capsys, "report")
    assert code == 0
    assert "mine" not in out
    for name in ("mine", "./results/runs/mine"):  # it is no arm, but a checkpoint
        code, out, err = run_main(capsys, "compare", "tiny", name, "--json")
        assert code == 0, err
        assert json.loads(out)["checkpoint"]["name"] == "mine"
    shutil.rmtree(finished)
    code, _, err = run_main(capsys, "report")
    assert code == 2
    assert "has no finished runs but the imported mine. Train one" in err
    code, _, err = run_main(capsys, "compare", "a", "b")
    assert code == 2
    assert "has no finished runs but the imported mine. Train one" in err


# As published


def test_the_published_layout_is_imported(capsys, workdir, real_data):
    """SmolLM2-135M's own config.json and tokenizer, with two layers."""
    published = real_data / "tokenizer"
    config = LlamaConfig.from_pretrained(published, num_hidden_layers=2)
    LlamaForCausalLM(config).bfloat16().save_pretrained("SmolLM2-135M")
    shutil.copyfile(published / "tokenizer.json", "SmolLM2-135M/tokenizer.json")
    shutil.copyfile(published / "config.json", "SmolLM2-135M/config.json")
    change(Path("SmolLM2-135M"), num_hidden_layers=2)
    loaded = load_one("./SmolLM2-135M", Path("results"), "runs", "cpu", "fp32")
    run = loaded.source.run
    assert run.name == "smollm2-135m"
    own = run.protocol
    assert (own.model.rope_theta, own.model.max_seq_len, own.seq_len) == (100_000, 8192, 2048)
    assert (own.dtype, own.model.tie_embeddings) == ("bfloat16", True)
    tokens = torch.tensor([loaded.tokenizer.encode("It was the best of times, " * 50).ids])
    with torch.no_grad():
        expected = theirs_in(Path("SmolLM2-135M"))(tokens).logits
        torch.testing.assert_close(loaded.model(tokens), expected, atol=1e-5, rtol=0)
