"""Imported models are quantized and trained further."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from support.command import run_main
from support.foreign import runs_here, theirs_in
from support.planted import plant_weights
from support.tiny import changed
from tokenizers import Tokenizer

from smolctl.analysis.selection import study_comparison
from smolctl.studies.targets import finished_runs
from smollm2 import SmolLM2, variant
from smollm2.data import batch
from smollm2.runs.run import Run

# Quantizing


@pytest.mark.parametrize("kind", ["untied", "mixtral"])
def test_an_imported_model_is_quantized(capsys, workdir, elsewhere, corpus, story_file, kind):
    target = str(elsewhere / kind)
    options = ("--group-size", "32", "--tokens", "256", "--no-compile", "--data", str(corpus))
    code, out, err = run_main(capsys, "quantize", target, *options)
    assert code == 0, err
    assert f"{kind}, beside bf16" in out
    run = Run(Path("results/runs") / kind)
    row = run.table("quantize").set_index("name").loc["int4-g32-clip"]
    # All but norms, and in a mixture routers.
    assert row["quantized_share"] > 0.98
    weights = load_file(run.path / "quantized/int4-g32-clip/model.safetensors")
    assert weights["lm_head.codes"].shape == weights["embed.codes"].shape == (512, 32)
    assert not torch.equal(weights["lm_head.codes"], weights["embed.codes"])
    two_tables = 2 * 512 * (32 + 2)  # codes of a byte, and a scale in bf16 a row
    assert row["disk_bytes_without_embedding"] == row["disk_bytes"] - two_tables
    assert abs(row["loss_delta"]) < 0.5

    code, out, _ = run_main(capsys, "eval", f"{target}+int4-g32-clip", *options[-2:], "--json")
    assert code == 0
    assert {row["run"] for row in json.loads(out)} == {f"{kind}+int4-g32-clip"}
    options = ("--bits", "8", "--no-speed", "--data", story_file)
    code, _, err = run_main(capsys, "quantize", target, *options)
    assert code == 2
    assert "was quantized on a text other than stories.jsonl" in err


def test_the_speed_of_a_small_model_is_not_measured_and_the_reason_is_reported(
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

    options = ("--data", story_file, "--from", "./back", "--steps", "2", "--study", "on")
    assert run_main(capsys, *changed(training, *options))[0] == 0
    code, card, err = run_main(capsys, "report", "--study", "on")
    assert code == 0, err
    assert "Small scale says nothing about speed, memory and quantization at full size" in card
    assert "full scale" not in card


# Training on


@pytest.fixture
def training(corpus) -> list[str]:
    """Options of a short training; append --from, --steps and --name."""
    options = ["train", "--data", str(corpus), "--micro-batch-size", "2", "--lr", "3e-3"]
    return [*options, "--dtype", "fp32", "--val-tokens", "128", "--test-tokens", "256"]


@pytest.mark.parametrize("kind", ["untied", "mixtral", "bf16"])
def test_training_continues_from_the_loss_that_transformers_has(
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

    # The arm has the name of the imported run, against which one of its runs is a checkpoint.
    code, out, err = run_main(capsys, "compare", "mine", "first", "--json")
    assert code == 0, err
    assert json.loads(out)["base"]["imported_from"] == "./mine"
    code, _, err = run_main(capsys, "report", "--appendix", "appendix.md")
    assert code == 0, err
    commands = [
        line
        for line in Path("appendix.md").read_text().splitlines()
        if line.startswith("smolctl train")
    ]
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

    _, first, _ = run_main(capsys, "report", "--study", "first", "--appendix", "appendix.md")
    first += Path("appendix.md").read_text()
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


def test_a_run_that_continues_one_of_ours_is_of_its_family(capsys, finished, training):
    start = "./results/runs/first"
    options = ("--from", start, "--steps", "2", "--study", "on", "--name", "second")
    assert run_main(capsys, *training, *options)[0] == 0
    code, card, err = run_main(capsys, "report", "--study", "on")
    assert code == 0, err
    assert "of the SmolLM2 family, trained on from the weights of `first` under one" in card
    assert "license" not in card.lower()  # nobody chose one


def test_the_origin_of_an_older_manifest_is_what_it_started_from(template, workdir):
    shutil.copytree(template, "run")
    path = Path("run/run.json")
    for start, origin in (("./mine", "./mine"), ("hf:a/b", "hf:a/b"), ("a@3", None), (None, None)):
        manifest = json.loads(path.read_text()) | {"started_from": start}
        manifest.pop("origin", None)
        path.write_text(json.dumps(manifest))
        assert Run(Path("run")).origin == origin


def test_runs_from_other_weights_of_the_same_name_are_not_one_arm(
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

    def excluded() -> list[str]:
        return list(study_comparison("all", finished_runs(Path("results"), "all")).excluded)

    expected = f"(weights started from: {starts[2]} there, {starts[0]} here)."
    assert [text.endswith(expected) for text in excluded()] == [True, True]
    for path in Path("results/all").iterdir():
        manifest = json.loads((path / "run.json").read_text())
        del manifest["started_from_sha256"]  # as an older version wrote it
        (path / "run.json").write_text(json.dumps(manifest))
    assert excluded() == []


def test_paths_may_contain_an_at_sign(capsys, model, training):
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
        # Weights alone have seen nobody knows how many tokens; a checkpoint has a step.
        assert (run.manifest["floors"] is None) == (step == 1)


@pytest.mark.parametrize("start", ["./mine@3", "hf:org/name@3", "mine@3"])
def test_a_model_from_elsewhere_has_no_steps(capsys, model, training, start):
    assert run_main(capsys, "generate", "./mine", "--prompt", "a", "--max-new-tokens", "1")[0] == 0
    code, out, err = run_main(capsys, *training, "--from", start, "--steps", "6")
    assert (code, out) == (2, "")
    assert f"{start[:-2]} was trained elsewhere and has no step 3 to continue" in err


WRONG_START = {
    "another tokenizer": (("--tokenizer", "train:300"), "are for another tokenizer"),
    "another architecture": (("--variant", "orig"), "has another architecture: d_model"),
    "another field": (("--set", "n_layers=3"), "has another architecture: n_layers: 2"),
    "a scale": (("--scale", "nano"), "--scale applies to --variant"),
    "too long sequences": (("--seq-len", "128"), "is longer than the model's context of 64"),
    "no horizon": (("--tokens", "1000"), "Give one of --steps, --tokens or --flops"),
}


@pytest.mark.parametrize("case", WRONG_START, ids=str)
def test_a_wrong_continuation_is_refused(capsys, model, corpus, case):
    options, sentence = WRONG_START[case]
    start = ("train", "--from", "./mine", "--data", str(corpus), "--steps", "2")
    code, out, err = run_main(capsys, *start, *options)
    assert (code, out) == (2, "")
    assert sentence in err
    assert set(runs_here()) <= {"mine"}


def test_a_model_that_was_imported_is_found_again_by_the_name_in_a_card(capsys, model, training):
    options = ("--steps", "4", "--dry-run")
    assert run_main(capsys, *training, "--from", "./mine", *options)[0] == 0
    model.rename(model.with_name("moved"))
    code, _, err = run_main(capsys, *training, "--from", "./mine", *options)
    assert code == 0, err
    assert "Using run mine, which was imported from ./mine: that is not here." in err
    for other in ("./mime", "./mine@3"):
        code, _, err = run_main(capsys, *training, "--from", other, *options)
        assert code == 2
        assert "does not exist" in err
