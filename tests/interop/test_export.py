"""`smolctl export`: what it writes is the run, to transformers and to llama.cpp's own reader."""

import json
import logging
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from support.command import run_main
from support.full_disk import full_disk
from support.planted import plant_weights, planted, task_conditions
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from smollm2 import ModelConfig, SmolLM2
from smollm2.files import write_json
from smollm2.interop.hf import to_hf
from smollm2.runs.load_run import load_model, load_run_tokenizer
from smollm2.runs.run import Run

SHAPE = {"d_model": 64, "n_heads": 4, "n_kv_heads": 2, "n_layers": 2, "d_ff": 96, "vocab_size": 330}
DENSE = ModelConfig(**SHAPE, rope_theta=20_000.0, max_seq_len=128)
MOE = ModelConfig(**SHAPE, n_experts=4, n_active_experts=2, norm_eps=1e-4)
PROMPT = "The cat sat"


def perturbed(config: ModelConfig) -> SmolLM2:
    """A model whose norms differ from one another, and whose logits do not lie close together."""
    model = SmolLM2(config, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter += 0.3 * noise if parameter.ndim == 1 else 0.1 * noise
    return model


@pytest.fixture(params=[DENSE, MOE], ids=["dense", "moe"])
def run(request, workdir, tokenizer) -> Run:
    """A finished run `r`; its tokenizer has fewer tokens than the model embeds."""
    tokens = Tokenizer.from_file(f"{tokenizer}/tokenizer.json")
    return plant_weights(Path("results"), "r", perturbed(request.param), tokens)


@pytest.fixture
def trained(workdir, template) -> Run:
    """A finished run `run` of 10 steps."""
    shutil.copytree(template, workdir / "results/runs/run")
    return Run(Path("results/runs/run"))


def export(capsys, *arguments) -> str:
    """What a command that works says."""
    code, out, err = run_main(capsys, "export", *map(str, arguments))
    assert code == 0, err
    assert "Next: " in err or "With llama.cpp, " in err
    return out + err


# For transformers


def test_transformers_computes_what_the_run_does(capsys, run, caplog, monkeypatch):
    export(capsys, "r", "--to", "hf", "out", "--dtype", "fp32")
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    theirs = AutoModelForCausalLM.from_pretrained("out")
    kind = "MixtralForCausalLM" if run.protocol.model.is_moe else "LlamaForCausalLM"
    assert type(theirs).__name__ == kind
    tokenizer = AutoTokenizer.from_pretrained("out")
    prompt = tokenizer(PROMPT, return_tensors="pt")
    assert prompt.input_ids[0].tolist() == load_run_tokenizer(run).encode(PROMPT).ids
    with torch.no_grad():
        ours = load_model(run, "cpu", "float32")(prompt.input_ids)
        torch.testing.assert_close(ours, theirs(**prompt).logits, atol=1e-5, rtol=0)

    options = ["--prompt", PROMPT, "--max-new-tokens", "32", "--json"]
    found = json.loads(run_main(capsys, "generate", "r", *options)[1])
    tokens = theirs.generate(**prompt, max_new_tokens=32)[0, prompt.input_ids.shape[1] :].tolist()
    assert tokens[: len(found["tokens"])] == found["tokens"]
    assert len(set(found["tokens"])) > 5
    # A text without a prompt begins as a document does.
    assert theirs.generate(max_new_tokens=2)[0, 0] == tokenizer.eos_token_id
    assert [r.message for r in caplog.records if r.name.startswith("transformers")] == []


@pytest.mark.parametrize("own", ["float32", "bfloat16"])
def test_weights_have_the_dtype_of_the_run_unless_another_is_asked_for(
    capsys, workdir, tokenizer, own
):
    tokens = Tokenizer.from_file(f"{tokenizer}/tokenizer.json")
    run = plant_weights(Path("results"), "r", perturbed(DENSE), tokens, own)
    for name, options, dtype in (
        ("default", [], own),
        ("exact", ["--dtype", "fp32"], "float32"),
        ("half", ["--dtype", "bf16"], "bfloat16"),
    ):
        said = export(capsys, "r", "--to", "hf", name, *options)
        assert f"dtype                   {dtype}\n" in said
        assert ("--dtype fp32 keeps them exact" in said) == (name == "default" and own != "float32")
        assert json.loads(Path(name, "config.json").read_text())["torch_dtype"] == dtype
        found = load_file(f"{name}/model.safetensors")
        expected = to_hf(load_model(run, "cpu", dtype).state_dict(), DENSE)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in found)


def test_the_card_is_that_of_the_study_with_its_figures(capsys, workdir, template):
    for seed in range(2):
        planted(template, "orig", seed, 5.0 + 0.01 * seed, model={"d_ff": 72})
        planted(template, "pow2", seed, 5.1, manifest={"created_at": "2027-01-01"})
    other = planted(template, "pow2", 7, 5.1, test_tokens=128)  # newer, of another protocol
    other.update(finished_at="2000-01-01")
    out = export(capsys, "pow2-s1", "--study", "s", "--to", "hf", "out")
    assert "of study s" in out
    card = Path("out/README.md").read_text()
    assert "The weights in this folder are those of `pow2-s1`" in card
    assert "5.0050 ± 0.0071" in card
    assert "\nlibrary_name: transformers\n" in card
    assert "[appendix](CARD_APPENDIX.md)" in card
    appendix = Path("out/CARD_APPENDIX.md").read_text()
    assert "orig-s0" in appendix
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", card + appendix)
    assert len(pictures) >= 2
    assert all(Path("out", picture).stat().st_size > 1000 for picture in pictures)
    assert {path.stem for path in Path("out").iterdir()} == {
        *(
            "README",
            "CARD_APPENDIX",
            "config",
            "model",
            "tokenizer",
            "tokenizer_config",
            "generation_config",
        ),
        "figures",
    }


def test_the_hub_reads_only_the_scores_of_the_weights(capsys, workdir, template):
    for seed in range(2):
        planted(template, "orig", seed, 5.0 + 0.01 * seed, model={"d_ff": 72})
        run = planted(template, "pow2", seed, 5.1 + 0.01 * seed)
        task = {"task": "piqa", "metric": "acc", "value": 0.5 + 0.01 * seed}
        task |= {"n": 9, "total": 9, "clusters": 9}
        run.append("eval", task | task_conditions() | {"fingerprint": "f"})
    export(capsys, "pow2-s1", "--study", "s", "--to", "hf", "out")
    data = ModelCard.load("out/README.md").data
    (accuracy,) = (row["value"] for row in run.rows("eval") if row["metric"] == "accuracy")
    assert [(found.metric_name, found.metric_value) for found in data.eval_results] == [
        ("test loss of pow2-s1", 5.11),
        ("test accuracy of pow2-s1", round(float(accuracy), 6)),
        ("acc of pow2-s1", 0.51),
    ]
    assert data.model_name == "pow2-s1"


def test_the_usage_of_the_card_runs(capsys, trained, monkeypatch):
    export(capsys, "run", "--to", "hf", "out")
    (code,) = re.findall(r"```python\n(.*?)```", Path("out/README.md").read_text(), re.DOTALL)
    monkeypatch.chdir("out")
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out.startswith("Once upon a time")


def test_a_run_after_an_older_one_of_its_seed_has_a_short_card(capsys, trained):
    shutil.copytree(trained.path, "results/runs/second")
    Run(Path("results/runs/second")).update(finished_at="2000-01-01")
    said = export(capsys, "run", "--to", "hf", "out")
    assert "a short one: run is excluded: it has the seed of second" in " ".join(said.split())
    assert not Path("out/figures").exists()


def test_a_short_card_says_what_the_run_s_files_do(capsys, trained):
    trained.update(role="sweep")
    assert "a short one" in export(capsys, "run", "--to", "hf", "out")
    card = Path("out/README.md").read_text()
    (row,) = (row for row in trained.rows("eval") if row["metric"] == "loss")
    assert f"| test | loss | {round(float(row['value']), 4)} |" in card
    assert "| peak learning rate | 0.001 |" in card
    assert "icense" not in card  # nobody chose one


def test_the_card_omits_what_is_not_known_about_a_run(capsys, run):
    assert "a short one" in export(capsys, "r", "--to", "hf", "out")
    card = Path("out/README.md").read_text()
    assert "Not measured: `smolctl eval r`" in card
    assert "license:" not in card
    assert ("Mixtral" in card) == ("| experts | 4 |" in card) == run.protocol.model.is_moe


def test_an_empty_folder_is_filled(capsys, trained):
    Path("out").mkdir()
    record = json.loads(
        run_main(capsys, "export", "run", "--to", "hf", "out", "--dtype", "fp32", "--json")[1]
    )
    assert record["run"] == "run"
    assert record["dtype"] == "float32"
    assert record["parameters"] == trained.manifest["parameters"]["total"]
    assert record["files"] == {
        path.relative_to("out").as_posix(): path.stat().st_size
        for path in Path("out").rglob("*")
        if path.is_file()
    }


# For llama.cpp


def test_what_cannot_be_typed_here_is_said_so(capsys, run, monkeypatch):
    monkeypatch.setattr("smolctl.cli.export_command.shutil.which", lambda name: None)
    said = export(capsys, "r", "--to", "gguf", "m.gguf")
    assert "With llama.cpp, which is not installed here: llama-completion -m m.gguf" in said
    assert "Next:" not in said


def test_a_gguf_file_holds_the_run(capsys, run, monkeypatch):
    which = {"llama-completion": "/bin/llama-completion"}.get
    monkeypatch.setattr("smolctl.cli.export_command.shutil.which", which)
    said = export(capsys, "r", "--to", "gguf", "m.gguf")
    assert "dtype       f16\n" in said
    assert f"m.gguf      {Path('m.gguf').stat().st_size:,} bytes" in said
    assert "Next: llama-completion -m m.gguf -p 'Once upon a time'" in said
    reader = GGUFReader("m.gguf")
    assert reader.fields["general.name"].contents() == "r"
    found = {tensor.name: tensor.data for tensor in reader.tensors}
    state = load_model(run, "cpu", "float32").state_dict()
    assert np.array_equal(found["token_embd.weight"], state["embed.weight"].half().numpy())
    assert np.array_equal(found["output_norm.weight"], state["norm.weight"].numpy())

    options = ["export", "r", "--to", "gguf", "q.gguf", "--dtype", "q8_0", "--json"]
    record = json.loads(run_main(capsys, *options)[1])
    assert record == {
        "study": "runs",
        "run": "r",
        "to": "gguf",
        "path": "q.gguf",
        "dtype": "q8_0",
        "parameters": sum(tensor.numel() for tensor in state.values()),
        "files": {"q.gguf": Path("q.gguf").stat().st_size},
    }


# What cannot be


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "--to", "ggfu", "new"], "Unknown --to 'ggfu'. Did you mean 'gguf'?"),
        (["run", "--to", "onnx", "new"], "Choose hf or gguf"),
        (["run", "--to", "hf", "new", "--dtype", "f16"], "Unknown dtype 'f16'; choose fp32 or"),
        (["run", "--to", "gguf", "new", "--dtype", "fp32"], "Did you mean 'f32'?"),
        (
            ["run", "--to", "gguf", "new", "--dtype", "int4"],
            "Available: f16, f32, bf16, q8_0, q4_0",
        ),
        (["run", "--to", "hf", "full"], "full exists already; name a new or an empty folder"),
        (["run", "--to", "hf", "full/file"], "exists already"),
        (["run", "--to", "hf", "."], "exists already"),
        (["run", "--to", "gguf", "full/file"], "full/file exists already; name a new file"),
        (["run", "--to", "gguf", "full"], "full exists already"),
        (["run", "--to", "gguf", "missing/new"], "There is no folder missing; create it first"),
        (["run", "--to", "hf", "full/file/new"], "There is no folder full/file"),
        (["run", "--to", "gguf", "x" * 300], "File name too long"),
        (["run", "--to", "hf", "x" * 256], "File name too long"),
        (["tiny", "--to", "hf", "new"], "names 2 runs; choose one of run, second"),
        (["rum", "--to", "gguf", "new"], "Did you mean 'run'?"),
        (["run+int8", "--to", "gguf", "new"], "There is no quantized model 'run+int8'"),
        (["narrow", "--to", "gguf", "new", "--dtype", "q8_0"], "d_ff of 72 is not a multiple"),
        (["narrow", "--to", "gguf", "new", "--dtype", "q4_0"], "give --dtype f16"),
    ],
)
def test_impossible_requests_are_refused(capsys, trained, tokenizer, arguments, said):
    shutil.copytree(trained.path, "results/runs/second")
    tokens = Tokenizer.from_file(f"{tokenizer}/tokenizer.json")
    narrow = SmolLM2(ModelConfig(**(SHAPE | {"d_ff": 72})))
    plant_weights(Path("results"), "narrow", narrow, tokens)
    Path("full").mkdir()
    Path("full/file").write_text("mine")
    before = sorted(Path().rglob("*"))
    code, out, err = run_main(capsys, "export", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("Error: ")
    assert err.count("\n") == 1
    assert said in err
    assert sorted(Path().rglob("*")) == before
    assert Path("full/file").read_text() == "mine"


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
@pytest.mark.parametrize("to", ["hf", "gguf"])
def test_a_folder_without_permission_is_refused(capsys, trained, to):
    Path("locked").mkdir(mode=0o500)
    code, out, err = run_main(capsys, "export", "run", "--to", to, "locked/new")
    assert (code, out) == (2, "")
    assert err == "Error: Cannot write locked/new: Permission denied.\n"


def test_the_folder_one_is_in_is_not_replaced(capsys, trained, monkeypatch):
    Path("here").mkdir()
    monkeypatch.chdir("here")
    code, _, err = run_main(capsys, "export", "../results/runs/run", "--to", "hf", ".")
    assert code == 2
    assert "is the current folder" in err


def test_a_quantized_model_is_refused(capsys, trained, tokenizer):
    # At 32 wide there is no group of 64.
    options = ["--bits", "4", "--group-size", "32", "--no-speed", "--tokens", "64"]
    assert run_main(capsys, "quantize", "run", *options)[0] == 0
    for target in ("run+int4-g32-clip", "results/runs/run/quantized/int4-g32-clip"):
        for to in ("hf", "gguf"):
            code, out, err = run_main(capsys, "export", target, "--to", to, "new")
            assert (code, out) == (2, "")
            assert "Export its run, run, with --to gguf --dtype q8_0" in err
    assert not Path("new").exists()


@pytest.mark.parametrize("to", ["hf", "gguf"])
def test_a_run_without_its_tokenizer_is_refused(capsys, trained, to):
    layout = json.loads((trained.path / "tokenizer.json").read_text())
    layout["model"]["merges"].pop()
    write_json(trained.path / "tokenizer.json", layout)
    code, _, err = run_main(capsys, "export", "run", "--to", to, "new")
    assert code == 2
    assert "is not the tokenizer it was trained with" in err
    assert not Path("new").exists()


@pytest.mark.parametrize("to", ["hf", "gguf"])
def test_a_full_disk_ends_with_a_sentence_and_leaves_nothing(capsys, trained, to):
    before = sorted(Path().rglob("*"))
    with full_disk(50_000):
        code, _, err = run_main(capsys, "export", "run", "--to", to, "new")
    assert code == 1
    assert err.startswith("Error: Cannot write new: ")
    assert "None" not in err  # of an error without a number, such as NumPy's
    assert err.count("\n") == 1
    assert sorted(Path().rglob("*")) == before
