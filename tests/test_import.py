"""Models of transformers as targets: the same numbers as there, one import, and what is refused."""

import hashlib
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import run_main
from gguf import GGUFReader
from planted import plant_weights
from safetensors.torch import load_file, save_file
from test_tasks import ROWS, write
from tokenizers import Tokenizer
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)
from transformers.utils.logging import disable_progress_bar

from smolctl.card import study_comparison
from smolctl.models import load_one
from smolctl.targets import finished_runs
from smollm2 import SmolLM2, hf_import, variant
from smollm2.data import TokenData, batch, load_tokenizer, prepare
from smollm2.errors import UserError
from smollm2.hf_import import read_config
from smollm2.multiple_choice import ItemScore
from smollm2.runs import Run
from smollm2.scores import ScoreFile
from smollm2.tasks import find_task, load_items

disable_progress_bar()

SHAPE = {
    "vocab_size": 512,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": None,
    "eos_token_id": 0,
    "initializer_range": 0.2,  # so that logits differ
}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
KINDS = ["tied", "untied", "mixtral", "sharded", "bf16", "fp16"]


@pytest.fixture(scope="session")
def elsewhere(tmp_path_factory, data: TokenData) -> Path:
    """A folder with a model of each of `KINDS`, saved by transformers, with the tokenizer of
    `data`."""
    folder = tmp_path_factory.mktemp("elsewhere")
    torch.manual_seed(0)
    tied = LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=True, rope_theta=500.0))
    untied = LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=False))
    mixtral = MixtralForCausalLM(MixtralConfig(**SHAPE, **EXPERTS))
    tied.save_pretrained(folder / "tied")
    untied.save_pretrained(folder / "untied")
    untied.save_pretrained(folder / "sharded", max_shard_size="40KB")
    mixtral.save_pretrained(folder / "mixtral")
    tied.bfloat16().save_pretrained(folder / "bf16")
    untied.half().save_pretrained(folder / "fp16")
    for name in KINDS:
        data.tokenizer.save(str(folder / name / "tokenizer.json"))
    assert len(list((folder / "sharded").glob("*.safetensors"))) > 1
    return folder


@pytest.fixture
def model(elsewhere, workdir) -> Path:
    """A copy of the tied model as ./mine in the current directory."""
    shutil.copytree(elsewhere / "tied", "mine")
    return workdir / "mine"


@pytest.fixture
def questions(tmp_path) -> Path:
    """A folder with 6 questions of piqa."""
    folder = tmp_path / "questions"
    folder.mkdir()
    rows = [ROWS["piqa"] | {"goal": f"dry {i}", "label": i % 2} for i in range(6)]
    write(folder, "piqa_validation.jsonl", rows)
    return folder


def theirs_in(folder: Path):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def change(folder: Path, **fields) -> None:
    """Set fields of config.json; those that are `...` are taken out."""
    path = folder / "config.json"
    content = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({key: v for key, v in content.items() if v is not ...}))


def runs_here() -> list[str]:
    return sorted(path.name for path in Path("results").glob("*/*"))


# The same numbers


@pytest.mark.parametrize("kind", KINDS)
def test_logits_and_text_are_those_of_transformers(capsys, workdir, elsewhere, data, kind):
    target, theirs = str(elsewhere / kind), theirs_in(elsewhere / kind)
    loaded = load_one(target, Path("results"), "runs", "cpu", "fp32")
    tokens = torch.from_numpy(data.test[:80].astype("int64")).view(2, 40)
    with torch.no_grad():
        expected = theirs(tokens).logits
        torch.testing.assert_close(loaded.model(tokens), expected, atol=1e-5, rtol=0)
    capsys.readouterr()

    options = ("--prompt", "abc de", "--max-new-tokens", "12", "--dtype", "fp32", "--json")
    code, out, err = run_main(capsys, "generate", target, *options)
    assert (code, err) == (0, "")  # imported before
    prompt = torch.tensor([data.tokenizer.encode("abc de").ids])
    new = theirs.generate(prompt, max_new_tokens=12, do_sample=False, pad_token_id=0)[0]
    new = [token for token in new[prompt.shape[1] :].tolist() if token != 0]
    assert json.loads(out)["tokens"] == new
    assert len(set(new)) > 2


def test_weights_keep_their_dtype(capsys, workdir, elsewhere):
    for kind, dtype, own in (
        ("untied", torch.float32, "float32"),
        ("bf16", torch.bfloat16, "bfloat16"),
        ("fp16", torch.float16, "float32"),
    ):
        run = load_one(str(elsewhere / kind), Path("results"), "runs", None, None).source.run
        weights = load_file(run.path / "checkpoints/final.safetensors")
        assert {tensor.dtype for tensor in weights.values()} == {dtype}
        assert run.protocol.dtype == own
        assert run.manifest["source"]["dtype"] == str(dtype).removeprefix("torch.")


def test_held_out_text_is_scored_as_transformers_scores_it(
    capsys, workdir, elsewhere, corpus, data
):
    target = str(elsewhere / "untied")
    options = ("--data", str(corpus), "--tokens", "128", "--dtype", "fp32", "--json")
    code, out, err = run_main(capsys, "eval", target, *options)
    assert code == 0, err
    rows = {row["metric"]: row["value"] for row in json.loads(out)}
    tokens = torch.from_numpy(data.test[:129].astype("int64"))
    with torch.no_grad():
        logits = theirs_in(elsewhere / "untied")(tokens[:-1].view(2, 64)).logits
    assert rows["loss"] == pytest.approx(F.cross_entropy(logits.flatten(0, 1), tokens[1:]).item())


def test_scores_on_two_texts_are_told_apart(capsys, model, corpus, story_file):
    for text in (str(corpus), story_file):
        assert run_main(capsys, "eval", "./mine", "--data", text, "--tokens", "64")[0] == 0
    run = Run(Path("results/runs/mine"))
    one, other = (row["fingerprint"] for row in run.rows("eval") if row["metric"] == "loss")
    assert one != other
    assert run_main(capsys, "export", "mine", "--to", "hf", "out")[0] == 0
    for text in (run_main(capsys, "runs", "show", "mine")[1], Path("out/README.md").read_text()):
        rows = [line for line in text.splitlines() if one in line or other in line]
        assert len(rows) == 2 * 4  # loss, accuracy, perplexity, bits per byte
        assert text.count(one) == text.count(other) == 4
    digits = run.rows("eval")
    for row in digits:
        row["fingerprint"] = "0123456789012345"
    run.replace("eval", digits)
    assert set(run.table("eval")["fingerprint"]) == {"0123456789012345"}


def test_a_text_shorter_than_a_window_is_one(capsys, model, tmp_path):
    change(model, max_position_embeddings=4096)
    texts = [f"{i} abc de" for i in range(60)]
    (tmp_path / "short.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    options = ("--data", "short.jsonl", "--dtype", "fp32", "--json")
    code, out, err = run_main(capsys, "eval", "./mine", *options)
    assert code == 0, err
    row = json.loads(out)[0]
    tokens = prepare("short.jsonl", "mine/tokenizer.json").test.astype("int64")
    assert row["n"] == row["total"] == len(tokens) - 1 < 2048
    assert row["protocol"].startswith(f"windows of {len(tokens) - 1}, ")
    tokens = torch.from_numpy(tokens)
    with torch.no_grad():
        logits = theirs_in(model)(tokens[None, :-1]).logits[0]
    assert row["value"] == pytest.approx(F.cross_entropy(logits, tokens[1:]).item())
    options = ("--group-size", "32", "--no-speed", "--data", "short.jsonl")
    code, _, err = run_main(capsys, "quantize", "./mine", *options)
    assert code == 0, err


def test_tasks_are_scored_as_transformers_scores_them(capsys, workdir, elsewhere, questions):
    target, theirs = str(elsewhere / "mixtral"), theirs_in(elsewhere / "mixtral")
    options = ("--data-dir", str(questions), "--tasks", "piqa", "--dtype", "fp32", "--json")
    code, out, err = run_main(capsys, "eval", target, *options)
    assert code == 0, err
    run = Run(Path("results/runs/mixtral"))
    scores = ScoreFile(run.path / "items" / json.loads(out)[0]["items"], ItemScore).read()
    tokenizer = load_one("mixtral", Path("results"), "runs", None, None).tokenizer
    items = load_items(find_task("piqa"), questions, None).items
    for score, item in zip(scores, items, strict=True):
        for nats, context, text in zip(
            score.log_likelihoods, item.contexts, item.continuations, strict=True
        ):
            whole = tokenizer.encode(context + text).ids
            n_context = len(tokenizer.encode(context).ids)
            with torch.no_grad():
                logits = theirs(torch.tensor([whole])).logits[0].log_softmax(dim=-1)
            expected = sum(logits[i - 1, whole[i]].item() for i in range(n_context, len(whole)))
            assert nats == pytest.approx(expected, abs=1e-3)


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
    assert "'mine' is no run or variant here; for the folder give ./mine" in err


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


def test_a_damaged_import_stops_no_other(capsys, model):
    prompt = ("--prompt", "abc", "--max-new-tokens", "3")
    assert run_main(capsys, "generate", "./mine", *prompt)[0] == 0
    Run(Path("results/runs/mine")).update(source={})
    shutil.copytree("mine", "other")
    code, _, err = run_main(capsys, "generate", "./other", *prompt)
    assert code == 0, err
    assert Run(Path("results/runs/other")).manifest["source"]["name"] == "./other"
    code, _, err = run_main(capsys, "generate", "mine", *prompt)
    assert code == 2
    assert "mine/run.json is not a manifest of this version. It is left out" in err


@pytest.mark.parametrize("same", [True, False])
def test_of_two_first_uses_at_the_same_moment_the_later_finds_the_run(
    capsys, model, monkeypatch, same
):
    prompt = ("--prompt", "abc", "--max-new-tokens", "3")
    read = hf_import.read_state

    def meanwhile(source):
        """While this import reads the weights another one, from first to last."""
        monkeypatch.setattr(hf_import, "read_state", read)
        other = hf_import.open_source(model, "./mine")
        if not same:
            other.__dict__["fingerprint"] = "0" * 16
        hf_import.import_run(Path("results"), "runs", "mine", other)
        return read(source)

    monkeypatch.setattr(hf_import, "read_state", meanwhile)
    code, out, err = run_main(capsys, "generate", "./mine", *prompt)
    assert runs_here() == ["mine"]
    if same:
        assert (code, err) == (0, "")
        assert run_main(capsys, "generate", "mine", *prompt) == (0, out, "")
    else:
        assert (code, out) == (2, "")
        assert err == "Error: ./mine: Another process has just made run 'mine'; try again.\n"


def test_the_name_of_a_trained_run_is_taken(capsys, finished, elsewhere):
    shutil.copytree(elsewhere / "tied", "first")
    before = (finished / "run.json").read_bytes()
    code, _, err = run_main(capsys, "generate", "./first", "--prompt", "abc")
    assert code == 2
    assert "it would be called first, and there is such a run; give another --study" in err
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
    assert "is prepared with another tokenizer" in err


def test_comparisons_and_reports_leave_imported_runs_out(capsys, finished, model):
    assert run_main(capsys, "generate", "./mine", "--prompt", "a", "--max-new-tokens", "1")[0] == 0
    assert runs_here() == ["first", "mine"]
    assert [run.name for run in finished_runs(Path("results"), "runs")] == ["first"]
    code, out, _ = run_main(capsys, "report")
    assert code == 0
    assert "mine" not in out
    for name in ("mine", "./results/runs/mine"):
        code, out, err = run_main(capsys, "compare", "tiny", name)
        assert (code, out) == (2, "")
        assert "mine" in err
    shutil.rmtree(finished)
    code, _, err = run_main(capsys, "report")
    assert code == 2
    assert "has no finished runs but the imported mine. Train one" in err
    code, _, err = run_main(capsys, "compare", "a", "b")
    assert code == 2
    assert "has no finished runs but the imported mine. Train one" in err


# Quantizing


@pytest.mark.parametrize("kind", ["untied", "mixtral"])
def test_an_imported_model_is_quantized(capsys, workdir, elsewhere, corpus, story_file, kind):
    target = str(elsewhere / kind)
    options = ("--group-size", "32", "--tokens", "256", "--no-compile", "--data", str(corpus))
    code, out, err = run_main(capsys, "quantize", target, *options)
    assert code == 0, err
    assert f"{kind} quantized" in out
    run = Run(Path("results/runs") / kind)
    row = run.table("quantize").set_index("name").loc["int4-g32"]
    # All but norms, and in a mixture routers.
    assert row["quantized_share"] > 0.98
    weights = load_file(run.path / "quantized/int4-g32/model.safetensors")
    assert weights["lm_head.codes"].shape == weights["embed.codes"].shape == (512, 32)
    assert not torch.equal(weights["lm_head.codes"], weights["embed.codes"])
    two_tables = 2 * 512 * (32 + 2)  # codes of a byte, and a scale in bf16 a row
    assert row["disk_bytes_without_embedding"] == row["disk_bytes"] - two_tables
    assert abs(row["loss_delta"]) < 0.5

    code, out, _ = run_main(capsys, "eval", f"{target}+int4-g32", *options[-2:], "--json")
    assert code == 0
    assert {row["run"] for row in json.loads(out)} == {f"{kind}+int4-g32"}
    options = ("--bits", "8", "--no-speed", "--data", story_file)
    code, _, err = run_main(capsys, "quantize", target, *options)
    assert code == 2
    assert "has been quantized on another text than stories.jsonl" in err


def test_the_speed_of_a_small_model_is_not_measured_and_it_is_said_why(
    capsys, workdir, tokenizer, training, story_file
):
    """A nano run that comes back from its exported folder."""
    nano = SmolLM2(variant("pow2:n_layers=2,max_seq_len=64", scale="nano"))
    tokens = Tokenizer.from_file(f"{tokenizer}/tokenizer.json")
    plant_weights(Path("results"), "r", nano, tokens)
    assert run_main(capsys, "export", "r", "--to", "hf", "back")[0] == 0
    options = ("--tokens", "256", "--data", story_file)
    code, out, err = run_main(capsys, "quantize", "./back", *options)
    assert code == 0, err
    size = sum(p.numel() for name, p in nano.named_parameters() if "embed" not in name)
    assert f"back is not timed: the speed at small scale ({size:,} parameters besides " in err
    assert "tokens/s" not in out + err
    run = Run(Path("results/runs/back"))
    assert run.protocol.scale == "small"
    assert run.table("quantize")["loss"].notna().all()
    assert run.table("quantize").filter(like="per_second").isna().all(axis=None)

    options = (*training, "--data", story_file, "--from", "./back", "--steps", "2", "--study", "on")
    assert run_main(capsys, *options)[0] == 0
    code, card, err = run_main(capsys, "report", "--study", "on")
    assert code == 0, err
    assert "Small scale says nothing about speed, memory or quantization" in card
    assert "full scale" not in card


# Training on


@pytest.fixture
def training(corpus) -> list[str]:
    """Options of a short training; append --from, --steps and --name."""
    options = ["train", "--data", str(corpus), "--batch-size", "2", "--lr", "3e-3"]
    return [*options, "--dtype", "fp32", "--val-tokens", "128", "--test-tokens", "256"]


@pytest.mark.parametrize("kind", ["untied", "mixtral", "bf16"])
def test_training_goes_on_from_the_loss_that_transformers_has(
    capsys, workdir, elsewhere, training, data, kind
):
    folder = elsewhere / kind
    code, _, err = run_main(capsys, *training, "--from", str(folder), "--steps", "6")
    assert code == 0, err
    imported, run = (Run(path) for path in sorted(Path("results/runs").iterdir()))
    assert (imported.name, run.arm, run.manifest["role"]) == (kind, kind, "final")
    assert run.manifest["started_from"] == f"./{kind}"
    assert run.tokenizer_fingerprint == imported.tokenizer_fingerprint
    inputs, targets = batch(data.train, data.fingerprint, 0, 0, 2, 64)
    with torch.no_grad():
        logits = theirs_in(folder)(torch.from_numpy(inputs)).logits
    expected = F.cross_entropy(logits.flatten(0, 1), torch.from_numpy(targets).flatten()).item()
    assert run.table("train")["loss"].iloc[0] == pytest.approx(expected, abs=1e-4)
    validation = run.table("val")["loss"]
    assert validation.iloc[-1] < validation.iloc[0]


def test_a_run_that_was_trained_on_is_a_run_like_any_other(capsys, model, training):
    def trained(start: str, steps: int, name: str, *more: str) -> Run:
        options = ("--from", start, "--steps", str(steps), "--name", name)
        code, _, err = run_main(capsys, *training, *options, *more)
        assert code == 0, err
        return Run(Path("results/runs") / name)

    first = trained("./mine", 6, "first", "--keep-step", "3")
    branch = trained("first@3", 5, "branch")
    assert list(branch.table("train")["step"]) == [4, 5]
    assert trained("first", 2, "second").protocol.model == branch.protocol.model
    assert branch.protocol.model == first.protocol.model
    assert trained("mine", 6, "third", "--seed", "1").manifest["started_from"] == "./mine"

    # The arm is called as the imported run is, which is none.
    code, _, err = run_main(capsys, "compare", "mine", "first")
    assert code == 2
    assert "first stands in both 'mine' and 'first'" in err
    code, out, err = run_main(capsys, "report")
    assert code == 0, err
    commands = [line for line in out.splitlines() if line.startswith("smolctl train")]
    assert [" --from ./mine " in command for command in commands] == [True, True]
    assert not any("--variant" in command for command in commands)


# What a card of weights from elsewhere may not say.
FALSE = ("license", "apache", "scratch", "smollm2 family", "allal", "variant(", "knows nothing")


def test_the_cards_of_what_was_trained_on_name_its_origin_and_no_license(capsys, model, training):
    start = "./mine"
    for study in ("first", "second"):
        options = ("--from", start, "--steps", "2", "--study", study, "--name", study)
        assert run_main(capsys, *training, *options)[0] == 0
        start = f"./results/{study}/{study}"
    run = Run(Path(start))
    assert (run.manifest["started_from"], run.origin) == ("first", "./mine")

    _, first, _ = run_main(capsys, "report", "--study", "first")
    _, second, _ = run_main(capsys, "report", "--study", "second")
    assert "trained on from the weights of `./mine` under one protocol" in first
    assert "on from the weights of `first`, which began as `./mine`, under" in second
    assert run_main(capsys, "export", start, "--to", "hf", "whole")[0] == 0
    run.update(role="sweep")
    assert "a short one" in run_main(capsys, "export", start, "--to", "hf", "short")[1]
    assert "\n\n## Architecture" in first
    whole, short = (Path(name, "README.md").read_text() for name in ("whole", "short"))
    assert "started from the weights of `first`, which began as `./mine`." in short
    for card in (first, second, whole, short):
        assert [word for word in FALSE if word in card.lower()] == []


def test_a_run_that_goes_on_from_one_of_ours_keeps_the_license(capsys, finished, training):
    start = "./results/runs/first"
    options = ("--from", start, "--steps", "2", "--study", "on", "--name", "second")
    assert run_main(capsys, *training, *options)[0] == 0
    code, card, err = run_main(capsys, "report", "--study", "on")
    assert code == 0, err
    assert "of the SmolLM2 family, trained on from the weights of `first` under one" in card
    assert "\nlicense: apache-2.0\n" in card
    assert "- **License:** Apache-2.0" in card


def test_the_origin_of_an_older_manifest_is_what_it_started_from(template, workdir):
    shutil.copytree(template, "run")
    path = Path("run/run.json")
    for start, origin in (("./mine", "./mine"), ("hf:a/b", "hf:a/b"), ("a@3", None), (None, None)):
        manifest = json.loads(path.read_text()) | {"started_from": start}
        manifest.pop("origin", None)
        path.write_text(json.dumps(manifest))
        assert Run(Path("run")).origin == origin


def test_runs_from_other_weights_of_the_same_name_are_no_seeds_of_one_arm(
    capsys, elsewhere, workdir, training
):
    """Two models of one architecture, in folders of one name; the first one in two studies."""
    for study, kind in (("a", "untied"), ("b", "untied"), ("c", "fp16")):
        shutil.rmtree("mine", ignore_errors=True)
        shutil.copytree(elsewhere / kind, "mine")
        more = ("--from", "./mine", "--steps", "2", "--study", study)
        assert run_main(capsys, *training, *more, "--seed", str("abc".index(study)))[0] == 0
    runs = [Run(path) for path in sorted(Path("results").glob("*/mine-*"))]
    assert {run.manifest["started_from"] for run in runs} == {"./mine"}
    ends, starts = zip(
        *((run.name[-6:], run.manifest["started_from_sha256"]) for run in runs), strict=True
    )
    assert (ends[0], starts[0]) == (ends[1], starts[1])  # seeds of one arm
    assert ends[0] != ends[2]
    for run in runs:
        shutil.copytree(run.path, Path("results/all") / run.name)

    def left_out() -> list[str]:
        return list(study_comparison("all", finished_runs(Path("results"), "all")).left_out)

    expected = f"(weights started from: {starts[2]} there, {starts[0]} here), and is left out."
    assert [text.endswith(expected) for text in left_out()] == [True, True]
    for path in Path("results/all").iterdir():
        manifest = json.loads((path / "run.json").read_text())
        del manifest["started_from_sha256"]  # as an older version wrote it
        (path / "run.json").write_text(json.dumps(manifest))
    assert left_out() == []


def test_paths_may_have_the_sign_of_a_step_in_their_names(capsys, model, training):
    shutil.move("mine", "my@3")
    options = ("--steps", "4", "--results", "r@x", "--study", "st", "--keep-step", "2")
    code, _, err = run_main(capsys, *training, "--from", "./my@3", "--name", "first", *options)
    assert code == 0, err
    for start, step in (("./r@x/st/first@2", 3), ("./r@x/st/first", 1)):
        options = ("--from", start, "--steps", "4", "--name", f"from-{step}")
        code, _, err = run_main(capsys, *training, *options)
        assert code == 0, err
        run = Run(Path("results/runs") / f"from-{step}")
        assert run.table("train")["step"].iloc[0] == step


@pytest.mark.parametrize("start", ["./mine@3", "hf:org/name@3", "mine@3"])
def test_a_model_from_elsewhere_has_no_steps(capsys, model, training, start):
    assert run_main(capsys, "generate", "./mine", "--prompt", "a", "--max-new-tokens", "1")[0] == 0
    code, out, err = run_main(capsys, *training, "--from", start, "--steps", "6")
    assert (code, out) == (2, "")
    assert f"{start[:-2]} was trained elsewhere and has no step 3 to continue" in err


WRONG_START = {
    "another tokenizer": (("--tokenizer", "train:300"), "has another tokenizer"),
    "another architecture": (("--variant", "orig"), "is another architecture: d_model"),
    "another field": (("--set", "n_layers=3"), "is another architecture: n_layers: 2"),
    "a scale": (("--scale", "nano"), "--scale is of --variant"),
    "too long sequences": (("--seq-len", "128"), "is longer than the model's context of 64"),
    "no horizon": (("--tokens", "1000"), "takes one of --steps, --tokens or --flops"),
}


@pytest.mark.parametrize("case", WRONG_START, ids=str)
def test_a_wrong_continuation_is_refused(capsys, model, corpus, case):
    options, sentence = WRONG_START[case]
    start = ("train", "--from", "./mine", "--data", str(corpus), "--steps", "2")
    code, out, err = run_main(capsys, *start, *options)
    assert (code, out) == (2, "")
    assert sentence in err
    assert set(runs_here()) <= {"mine"}


# Where a text ends

# config.json and generation_config.json, in which A and B stand for the sixth and the third token
# of a text that nothing ends.
ENDS = {
    "one": ({"eos_token_id": "B", "bos_token_id": 3}, None),
    "several": ({"eos_token_id": ["A", "B"]}, None),
    "the other file first": ({"eos_token_id": "A"}, {"eos_token_id": ["B"], "bos_token_id": 1}),
    "none in the other file": ({"eos_token_id": "A"}, {"do_sample": False}),
    "none": ({"eos_token_id": None}, None),
    "left out": ({"eos_token_id": ...}, None),
    "numbers of no token": ({"eos_token_id": [-1, 512, "B"]}, None),
}


@pytest.mark.parametrize("case", ENDS)
def test_a_text_ends_where_transformers_ends_it_and_still_does_after_export(capsys, model, case):
    def theirs(folder: str) -> list[int]:
        options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
        prompt = torch.tensor([load_tokenizer(folder).encode("abc de").ids])
        new = theirs_in(Path(folder)).generate(prompt, **options)
        return new[0, prompt.shape[1] :].tolist()

    def set_ends(config: dict, other: dict | None) -> None:
        change(model, **config)
        (model / "generation_config.json").unlink(missing_ok=True)
        if other is not None:
            generation(model, **other)

    def numbers(value):
        if isinstance(value, dict):
            return {name: numbers(inner) for name, inner in value.items()}
        return [*map(numbers, value)] if isinstance(value, list) else tokens.get(value, value)

    set_ends({"eos_token_id": None}, None)
    endless = theirs("mine")
    tokens = {"A": endless[5], "B": endless[2]}
    set_ends(*map(numbers, ENDS[case]))
    expected = theirs("mine")
    is_ended = "B" in str(ENDS[case])
    assert expected == endless[: 3 if is_ended else 8]

    options = ("--prompt", "abc de", "--max-new-tokens", "8", "--dtype", "fp32", "--json")
    code, out, err = run_main(capsys, "generate", "./mine", *options)
    assert code == 0, err
    assert json.loads(out)["tokens"] == (expected[:-1] if is_ended else expected)
    assert run_main(capsys, "export", "mine", "out", "--to", "hf", "--dtype", "fp32")[0] == 0
    assert theirs("out") == expected
    before, after = (theirs_in(Path(name)).generation_config for name in ("mine", "out"))
    assert after.bos_token_id == before.bos_token_id


def test_a_gguf_file_names_what_came_with_the_model(capsys, model):
    (model / "generation_config.json").unlink()
    change(model, bos_token_id=1, eos_token_id=[2, 5])
    assert run_main(capsys, "export", "./mine", "m.gguf", "--to", "gguf")[0] == 0
    fields = GGUFReader("m.gguf").fields
    names = ("bos_token_id", "eos_token_id", "eot_token_id")
    assert [fields[f"tokenizer.ggml.{name}"].contents() for name in names] == [1, 2, 5]
    change(model, eos_token_id=[2, 3, 4, 5])
    code, _, err = run_main(capsys, "export", "./mine", "n.gguf", "--to", "gguf", "--study", "s")
    assert code == 2
    assert "4 tokens of the model end a text, and a GGUF file names 3 at most" in err
    assert not Path("n.gguf").exists()


# Reading config.json


def config_in(tmp_path: Path, **fields):
    content = {key: value for key, value in SHAPE.items() if value is not None}
    content |= {"architectures": ["LlamaForCausalLM"], "model_type": "llama"} | fields
    (tmp_path / "config.json").write_text(json.dumps(content))
    return read_config(tmp_path)


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_theta": 100_000, "rope_scaling": None, "torch_dtype": "bfloat16"},
        {"rope_parameters": {"rope_theta": 100_000.0, "rope_type": "default"}, "dtype": "float32"},
        {"rope_scaling": {"type": "default"}, "rope_theta": 100_000.0},
    ],
)
def test_the_rotary_base_is_read_in_the_words_of_each_version(tmp_path, rope):
    config = config_in(tmp_path, max_position_embeddings=8192, **rope)
    assert (config.rope_theta, config.max_seq_len) == (100_000.0, 8192)


@pytest.mark.parametrize("kind", [LlamaConfig, MixtralConfig])
def test_what_is_left_out_is_what_transformers_takes(tmp_path, kind):
    needed = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
    content = {key: SHAPE[key] for key in needed} | {"num_attention_heads": 8}
    name = kind.__name__.replace("Config", "ForCausalLM")
    names = {"architectures": [name], "model_type": kind.model_type}
    (tmp_path / "config.json").write_text(json.dumps(content | names))
    ours, theirs = read_config(tmp_path), kind(**content)
    assert ours.n_kv_heads == theirs.num_key_value_heads == 8
    assert ours.max_seq_len == theirs.max_position_embeddings
    assert ours.norm_eps == theirs.rms_norm_eps
    assert ours.rope_theta == theirs.rope_parameters["rope_theta"]
    assert ours.tie_embeddings == theirs.tie_word_embeddings
    assert ours.n_experts == getattr(theirs, "num_local_experts", 1)
    assert ours.n_active_experts == getattr(theirs, "num_experts_per_tok", 1)


# What cannot be imported


def field(**fields):
    return lambda folder: change(folder, **fields)


def generation(folder: Path, **fields) -> None:
    (folder / "generation_config.json").write_text(json.dumps(fields))


def tensors(edit):
    """A change of the tensors in model.safetensors."""

    def harm(folder: Path) -> None:
        found = load_file(folder / "model.safetensors")
        edit(found)
        save_file(found, folder / "model.safetensors", metadata={"format": "pt"})

    return harm


def index(names: dict[str, str]):
    """An index in the place of the weights, which are in shard.safetensors."""

    def harm(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "shard.safetensors")
        text = json.dumps({"weight_map": names})
        (folder / "model.safetensors.index.json").write_text(text)

    return harm


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")


def cut_off(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def longer_tokenizer(folder: Path) -> None:
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    content["added_tokens"].append(content["added_tokens"][0] | {"id": 512, "content": "<|more|>"})
    path.write_text(json.dumps(content))


EMBEDDING = "model.embed_tokens.weight"
NORM = "model.layers.1.input_layernorm.weight"
BAD = {
    "no config": (
        lambda folder: (folder / "config.json").unlink(),
        "'mine' is neither a run nor a model",
    ),
    "a broken config": (
        lambda folder: (folder / "config.json").write_text("{"),
        "config.json cannot be read",
    ),
    "a list as config": (
        lambda folder: (folder / "config.json").write_text("[1]"),
        "config.json is no table",
    ),
    "an end in words": (
        lambda folder: generation(folder, eos_token_id="</s>"),
        'generation_config.json has eos_token_id "</s>", and only the numbers of tokens',
    ),
    "a broken generation config": (
        lambda folder: (folder / "generation_config.json").write_text("{"),
        "generation_config.json cannot be read",
    ),
    "another architecture": (
        field(architectures=["GPT2LMHeadModel"]),
        'config.json has architectures ["GPT2LMHeadModel"], and only one of LlamaForCausalLM',
    ),
    "no architecture": (field(architectures=...), "config.json has architectures null"),
    "attention biases": (field(attention_bias=True), "config.json has attention_bias true"),
    "MLP biases": (field(mlp_bias=True), "config.json has mlp_bias true, and only false"),
    "another activation": (field(hidden_act="gelu"), 'has hidden_act "gelu", and only "silu"'),
    "a window": (field(sliding_window=32), "config.json has sliding_window 32, and only null"),
    "quantized weights": (
        field(quantization_config={"quant_method": "gptq"}),
        "config.json has quantization_config",
    ),
    "scaled positions": (
        field(rope_scaling={"type": "linear", "factor": 2.0}),
        'config.json has rope type "linear", and only "default"',
    ),
    "scaled positions, version 5": (
        field(rope_parameters={"rope_type": "llama3", "rope_theta": 1e4}),
        'config.json has rope rope_type "llama3"',
    ),
    "partial positions": (
        field(partial_rotary_factor=0.5),
        "config.json has partial_rotary_factor 0.5",
    ),
    "rope settings that are none": (field(rope_scaling=[2]), "config.json has rope_scaling [2]"),
    "positions for each kind of layer": (
        field(rope_parameters={"full_attention": {"rope_type": "default", "rope_theta": 1e6}}),
        "config.json has rope_parameters for each kind of layer (full_attention)",
    ),
    "a type that is not its architecture's": (
        field(model_type="granite", logits_scaling=8.0),
        'config.json has model_type "granite", and with LlamaForCausalLM only "llama"',
    ),
    "no type": (field(model_type=...), "config.json has model_type null"),
    "code of its own": (
        field(auto_map={"AutoModelForCausalLM": "modeling_mine.Mine"}),
        "config.json has auto_map",
    ),
    "wider heads": (field(head_dim=16), "config.json has head_dim 16, and only hidden_size"),
    "no width": (field(hidden_size=...), "config.json lacks hidden_size"),
    "a width in words": (field(hidden_size="wide"), "hidden_size takes a whole number, not 'wide'"),
    "no heads for the keys": (field(num_key_value_heads=3), "does not divide into n_kv_heads 3"),
    "a vocabulary of no size": (field(vocab_size=-1), "vocab_size must be positive"),
    "a width that is not the weights'": (
        field(intermediate_size=10**9),
        "gate_proj.weight has shape (64, 32), where the model has (1000000000, 32)",
    ),
    "a missing tensor": (tensors(lambda found: found.pop(NORM)), f"lacks the tensor {NORM}"),
    "a tensor of another shape": (
        tensors(lambda found: found.update({NORM: torch.ones(31)})),
        f"{NORM} has shape (31,), where the model has (32,)",
    ),
    "a tensor too many": (
        tensors(lambda found: found.update(more=torch.ones(2))),
        "a tensor more, for which the model has no place",
    ),
    "a tensor of integers": (
        tensors(lambda found: found.update({NORM: torch.ones(32, dtype=torch.int8)})),
        f"{NORM} is in int8",
    ),
    "no head of its own": (field(tie_word_embeddings=False), "lacks the tensor lm_head.weight"),
    "a head that is not tied": (
        tensors(lambda found: found.update({"lm_head.weight": found[EMBEDDING] + 1})),
        "tie_word_embeddings true, and the weights an lm_head.weight that differs",
    ),
    "weights cut off": (cut_off, "model.safetensors is damaged"),
    "no weights": (
        lambda folder: (folder / "model.safetensors").unlink(),
        "it has no model.safetensors; make one",
    ),
    "a pickle": (pickled, "only pytorch_model.bin, a pickle"),
    "a shard outside": (
        index({EMBEDDING: "../mine/shard.safetensors"}),
        "names '../mine/shard.safetensors', which is no safetensors file in the folder",
    ),
    "a shard at a path": (index({EMBEDDING: "/etc/passwd"}), "names '/etc/passwd'"),
    "a shard that is none": (index({EMBEDDING: "config.json"}), "names 'config.json'"),
    "a missing shard": (index({EMBEDDING: "a.safetensors"}), "a.safetensors, which model.safeten"),
    "a broken index": (index([]), "model.safetensors.index.json is damaged"),
    "no tokenizer": (
        lambda folder: (folder / "tokenizer.json").unlink(),
        "it has no tokenizer.json",
    ),
    "a broken tokenizer": (
        lambda folder: (folder / "tokenizer.json").write_text("{}"),
        "The tokenizer 'tokenizer.json' is damaged",
    ),
    "a larger tokenizer": (longer_tokenizer, "tokenizer.json has 513 tokens, and vocab_size"),
}


@pytest.mark.parametrize("case", BAD, ids=str)
def test_what_cannot_be_imported_is_refused_with_a_sentence(capsys, model, corpus, case):
    harm, sentence = BAD[case]
    harm(model)
    for command in (
        ("generate", "./mine", "--prompt", "abc"),
        ("train", "--from", "./mine", "--steps", "2", "--data", str(corpus)),
    ):
        code, out, err = run_main(capsys, *command)
        assert (code, out) == (2, "")
        assert err.startswith("Error: ")
        assert err.count("\n") == 1
        assert sentence in err
        assert not Path("results").exists()


@pytest.mark.parametrize(
    "command",
    [
        "export ./mine out --to hf --dtype f16",
        "export ./mine out --to gguf --dtype fp32",
        "generate ./mine --prompt a --dtype f16",
        "eval ./mine --tasks piqa --device tpu",
        "quantize ./mine --device tpu",
    ],
)
def test_nothing_is_imported_for_what_cannot_be(capsys, model, command):
    code, out, err = run_main(capsys, *command.split())
    assert (code, out) == (2, "")
    assert "Unknown d" in err
    assert runs_here() == []


@pytest.mark.parametrize(
    ("name", "expected"),
    [("pow2", "pow2-hf"), ("Figures", "figures-hf"), ("日本", "model-[0-9a-f]{16}"), ("语-1", "1")],
)
def test_a_model_that_no_run_can_be_called_after_has_another_name(capsys, model, name, expected):
    model.rename(name)
    prompt = ("--prompt", "abc", "--max-new-tokens", "2")
    code, out, err = run_main(capsys, "generate", f"./{name}", *prompt)
    assert code == 0, err
    (run,) = runs_here()
    assert re.fullmatch(expected, run)
    for target in (f"./{name}", run):
        assert run_main(capsys, "generate", target, *prompt) == (0, out, "")


def test_a_full_disk_leaves_no_run(capsys, model, monkeypatch):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    code, _, err = run_main(capsys, "generate", "./mine", "--prompt", "abc")
    assert code == 1
    assert "Cannot import run 'mine': [Errno 28] No space left on device" in err
    assert runs_here() == []


def test_a_tied_head_and_old_buffers_in_the_file_are_no_harm(capsys, model):
    def more(found: dict[str, torch.Tensor]) -> None:
        found["lm_head.weight"] = found[EMBEDDING].clone()
        found["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)

    tensors(more)(model)
    assert (
        run_main(capsys, "generate", "./mine", "--prompt", "abc", "--max-new-tokens", "1")[0] == 0
    )
    assert Run(Path("results/runs/mine")).protocol.model.tie_embeddings


def test_a_tokenizer_that_adds_tokens_is_said_to(capsys, model):
    path = model / "tokenizer.json"
    content = json.loads(path.read_text())
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
        ],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {
            "<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}
        },
    }
    path.write_text(json.dumps(content))
    options = ("--prompt", "abc", "--max-new-tokens", "1", "--json")
    code, _, err = run_main(capsys, "generate", "./mine", *options)
    assert code == 0
    assert "Its tokenizer adds <|endoftext|> to a text by itself" in err


# The hub


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
def test_a_model_that_is_not_to_be_had_is_a_sentence(capsys, workdir, hub_cache, target, sentence):
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
    from smollm2.hf_import import fetch

    snapshot = cached(elsewhere / "tied", hub_cache)
    assert fetch("org/Tiny-1") == snapshot
    (snapshot / "model.safetensors").unlink()
    with pytest.raises(UserError, match="cannot be reached"):
        fetch("org/Tiny-1")


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
