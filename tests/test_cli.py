"""The command line: bad input gets a sentence and exit code 2, and leaves nothing behind."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import run_main, smolctl

from smolctl.cli import main
from smollm2.runs import Run

NANO = ["train", "--variant", "pow2", "--scale", "nano", "--steps", "2"]


def write_bad_files(folder: Path) -> None:
    (folder / "empty.txt").write_text("")
    (folder / "binary.txt").write_bytes(b"text\0\1\2 more")
    (folder / "latin1.txt").write_bytes("caf\xe9 ".encode("latin-1") * 100)
    (folder / "nofield.jsonl").write_text('{"body": "hello"}\n' * 30)
    (folder / "broken.jsonl").write_text('{"text": "hello"}\n{"text": \n')
    (folder / "short.txt").write_text("Too short a text to hold anything out of it. " * 20)
    (folder / "bad.toml").write_text("d_model = [")
    (folder / "file").write_text("a file, no directory")


BAD_INPUT = {
    "unknown variant": (["train", "--variant", "pow3", "--steps", "2"], "Did you mean 'pow2'?"),
    "no variant": (["train", "--steps", "2"], "--variant pow2"),
    "unknown setting": ([*NANO, "--set", "n_layer=3"], "Did you mean 'n_layers'?"),
    "wrong type": ([*NANO, "--set", "n_layers=many"], "n_layers takes a whole number"),
    "setting without value": ([*NANO, "--set", "n_layers"], "field=value"),
    "indivisible heads": ([*NANO, "--set", "n_heads=7"], "does not divide"),
    "indivisible kv heads": ([*NANO, "--set", "n_kv_heads=3"], "does not divide"),
    "short form": (
        ["train", "--variant", "pow2:heads=3", "--steps", "2"],
        "Did you mean 'n_heads'?",
    ),
    "broken toml": (["train", "--variant", "bad.toml", "--steps", "2"], "is not a readable TOML"),
    "unknown scale": (
        ["train", "--variant", "pow2", "--scale", "mini", "--steps", "2"],
        "full or nano",
    ),
    "unknown recipe": ([*NANO, "--recipe", "smolm2"], "Did you mean 'smollm2'?"),
    "unknown optimizer": ([*NANO, "--optimizer", "sgd"], "adamw or muon"),
    "negative rate": ([*NANO, "--lr", "-1"], "lr must be positive"),
    "infinite decay": ([*NANO, "--set", "weight_decay=inf"], "weight_decay must be finite"),
    "rate set twice": ([*NANO, "--lr", "1e-3", "--set", "lr=2e-3"], "both set lr; give one"),
    "no steps": (["train", "--variant", "pow2"], "--steps 5000"),
    "zero steps": (["train", "--variant", "pow2", "--steps", "0"], "--steps must be more than 0"),
    "two horizons": ([*NANO, "--tokens", "1e6"], "--steps and --tokens"),
    "zero batch": ([*NANO, "--batch-size", "0"], "--batch-size must be at least 1"),
    "long sequences": ([*NANO, "--seq-len", "4096"], "--set max_seq_len=4096"),
    "unknown device": ([*NANO, "--device", "tpu"], "Unknown device"),
    "unknown dtype": ([*NANO, "--dtype", "fp8"], "fp32 or bf16"),
    "missing corpus": ([*NANO, "--data", "missing.txt"], "There is no file or folder"),
    "empty corpus": ([*NANO, "--data", "empty.txt"], "There is no text in"),
    "binary corpus": ([*NANO, "--data", "binary.txt"], "is a binary file"),
    "invalid utf-8": ([*NANO, "--data", "latin1.txt"], "is not UTF-8 text"),
    "no text field": ([*NANO, "--data", "nofield.jsonl"], "string in the field `text`"),
    "broken json": ([*NANO, "--data", "broken.jsonl"], "line 2: broken JSON"),
    "small corpus": (
        [*NANO, "--data", "short.txt", "--tokenizer", "train:300"],
        "use more text or a shorter",
    ),
    "no network": ([*NANO, "--data", "hub:some/corpus"], "hub cannot be reached"),
    "no network for tokenizer": (
        [*NANO, "--data", "CORPUS", "--tokenizer", "smollm2"],
        "for the model 'HuggingFaceTB/SmolLM2-135M'",
    ),
    "bad train spec": (
        [*NANO, "--data", "CORPUS", "--tokenizer", "train:many"],
        "names no vocabulary size",
    ),
    "huge vocabulary": (
        ["prepare", "--out", "made", "--tokenizer", "train:99999999999999999999"],
        "at most 1,000,000",
    ),
    "long name": (
        [*NANO, "--data", "CORPUS", "--name", "x" * 300],
        "name of a run has at most 100 characters",
    ),
    "long study": (
        [*NANO, "--data", "CORPUS", "--study", "x" * 300],
        "name of a study has at most 100 characters",
    ),
    "large tokenizer": (
        [*NANO, "--data", "CORPUS", "--tokenizer", "train:600", "--set", "vocab_size=512"],
        "--tokenizer train:512",
    ),
    "slash in name": ([*NANO, "--data", "CORPUS", "--name", "a/b"], "no name for a run"),
    "parent as study": ([*NANO, "--data", "CORPUS", "--study", ".."], "no name for a study"),
    "unwritable results": (
        [*NANO, "--data", "CORPUS", "--results", "file"],
        "choose another --results",
    ),
    "resume of nothing": (["train", "--resume", "nothing"], "no run 'nothing'"),
    "from nothing": ([*NANO, "--from", "nothing"], "no run 'nothing'"),
    "negative seed": ([*NANO, "--seed", "-1"], "--seed must be from 0"),
    "huge seed": ([*NANO, "--seed", str(10**20)], "--seed must be from 0"),
    "narrow experts": (
        ["train", "--variant", "moe-160m", "--scale", "nano", "--steps", "2", "--set", "d_ff=321"],
        "divisible by 8",
    ),
    "long name of a corpus": ([*NANO, "--data", "x" * 300], "Cannot read"),
    "name of a variant": ([*NANO, "--data", "CORPUS", "--name", "pow2"], "means something else"),
    "resume of a variant": (["train", "--resume", "pow2"], "is a variant, not a run"),
    "kept step too late": ([*NANO, "--keep-step", "3"], "after the last step"),
    "kept step too early": ([*NANO, "--keep-step", "-1"], "before the step that it starts from, 0"),
    "infinite horizon": (
        ["train", "--variant", "pow2", "--tokens", "1e400"],
        "--tokens must be finite",
    ),
    "horizon that is no number": (
        ["train", "--variant", "pow2", "--flops", "nan"],
        "--flops must be finite",
    ),
    "eval of no tokens": (["eval", "pow2", "--tokens", "0"], "--tokens must be at least 1"),
    "checkpoint every 0": (
        [*NANO, "--checkpoint-every", "0"],
        "--checkpoint-every must be at least 1",
    ),
    "compare without runs": (["compare", "orig", "pow2"], "smolctl train --variant"),
    "compare one arm": (["compare", "orig"], "two different arms"),
    "eval without runs": (["eval", "pow2"], "smolctl train --variant"),
    "generate without runs": (
        ["generate", "pow2", "--prompt", "a"],
        "smolctl train --variant",
    ),
    "report without runs": (["report"], "smolctl train --variant"),
    "three bits": (["quantize", "--bits", "3"], "--bits takes 8 or 4"),
    "prepare without tokenizer": (["prepare", "--out", "made"], "Say which tokenizer"),
    "prepare of infinitely many": (
        ["prepare", "--out", "made", "--tokenizer", "train:300", "--max-tokens", "inf"],
        "--max-tokens must be at least 1 and finite",
    ),
    "prepare of no number": (
        ["prepare", "--out", "made", "--tokenizer", "train:300", "--max-tokens", "nan"],
        "--max-tokens must be at least 1 and finite",
    ),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_gets_a_sentence_and_leaves_nothing(case, capsys, workdir, corpus):
    write_bad_files(workdir)
    before = sorted(workdir.rglob("*"))
    arguments, expected = BAD_INPUT[case]
    arguments = [str(corpus) if word == "CORPUS" else word for word in arguments]
    code, out, err = run_main(capsys, *arguments)
    assert code == 2
    assert out == ""
    assert expected in err
    assert expected not in " ".join(arguments)  # what was typed comes back in any sentence
    assert err.startswith(("Error: ", "Preparing tokens of "))
    assert err.splitlines()[-1].startswith("Error: ")
    assert err.strip().endswith((".", "?", "300", ")"))
    assert sorted(workdir.rglob("*")) == before


@pytest.mark.parametrize("spec", ["train:513", "folder"])
def test_a_tokenizer_too_large_is_refused_before_the_text_is_read(
    capsys, workdir, fresh_cache, tiny, tokenizer, spec
):
    asked = tokenizer if spec == "folder" else spec
    size = "256" if spec == "folder" else "512"  # the folder's: 256 bytes and some more
    options = ["--steps", "2", "--tokenizer", asked, "--set", f"vocab_size={size}"]
    code, _, err = run_main(capsys, *tiny, *options)
    assert code == 2
    assert f"tokens, the model {size}; use --tokenizer train:{size}, or --set vocab_size=" in err
    assert "Preparing" not in err
    assert not any(fresh_cache.iterdir())


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_results_directory_without_permission_is_refused(capsys, workdir, tiny):
    (workdir / "locked").mkdir(mode=0o500)
    code, _, err = run_main(capsys, *tiny, "--steps", "2", "--results", "locked/results")
    assert code == 2
    assert "choose another --results" in err


def test_an_existing_run_is_not_overwritten(capsys, finished, tiny):
    before = (finished / "run.json").read_bytes()
    code, _, err = run_main(capsys, *tiny, "--steps", "6", "--name", "first")
    assert code == 2
    assert "exists and is finished. Choose another --name" in err
    assert (finished / "run.json").read_bytes() == before


def test_an_existing_default_name_is_refused_before_tokens_are_made(capsys, finished, monkeypatch):
    finished.rename(finished.with_name("pow2-nano-2-s0"))
    monkeypatch.setattr("smolctl.tokens.prepared", None)
    code, _, err = run_main(capsys, *NANO)
    assert code == 2
    assert "Run 'pow2-nano-2-s0' exists and is finished" in err


@pytest.fixture
def kept(capsys, workdir, tiny) -> Run:
    """A run of 6 steps with a checkpoint at step 3, which a test can call unfinished."""
    options = ["--steps", "6", "--name", "first", "--keep-step", "3"]
    assert run_main(capsys, *tiny, *options, "--study", "s")[0] == 0
    return Run(workdir / "results/s/first")


@pytest.mark.parametrize(
    ("state", "words"),
    [("stopped", "stopped"), ("failed", "failed"), ("running", "was interrupted")],
)
def test_an_unfinished_run_says_its_state_and_how_to_resume(capsys, kept, tiny, state, words):
    kept.update(state=state)
    how = f"{words} (saved: step 3 of 6): continue it with smolctl train --resume first --study s"
    again = [*tiny, "--steps", "6", "--name", "first", "--study", "s"]
    for command, said in (
        (again, f"Run 'first' exists and {how}, or choose another --name."),
        (["eval", "first", "--study", "s"], f"Run 'first' {how}"),
        (["eval", "tiny", "--study", "s"], f"Run 'first' {how}"),
        (["eval", "results/s/first"], f"Run results/s/first {how}"),
        (["compare", "first", "tiny", "--study", "s"], f"Run 'first' {how}"),
    ):
        code, _, err = run_main(capsys, *command)
        assert code == 2
        assert err == f"Error: {said}\n"


def test_a_run_named_by_a_path_of_dots_keeps_its_name(capsys, kept, monkeypatch):
    kept.update(state="stopped")
    results = kept.path.parent.parent
    again = "continue it with smolctl train --resume first --study s"
    for folder, target in ((kept.path, "."), (kept.path.parent, "./first")):
        monkeypatch.chdir(folder)
        code, _, err = run_main(capsys, "eval", target)
        assert code == 2
        assert err.endswith(f"{again} --results {results}\n")
    kept.update(state="finished")
    code, out, _ = run_main(capsys, "eval", "./first", "--tokens", "64", "--json")
    assert code == 0
    assert {(row["study"], row["run"]) for row in json.loads(out)} == {("s", "first")}
    monkeypatch.chdir(results)
    code, _, err = run_main(capsys, "eval", ".")
    assert code == 2
    assert err == "Error: results is not a run: it has no run.json.\n"


@pytest.mark.parametrize("harm", ["sidecar", "weights", "architecture", "heads"])
def test_a_finished_run_that_is_broken_is_named(capsys, finished, harm):
    manifest = json.loads((finished / "run.json").read_text())
    model = manifest["protocol"]["model"]
    expected = "Error: Checkpoint final of run 'first' is damaged"
    if harm == "sidecar":
        (finished / "checkpoints/final.json").write_text("[]")
    elif harm == "weights":
        (finished / "checkpoints/final.safetensors").write_bytes(b"torn")
    elif harm == "architecture":
        model["n_layers"] += 1
        expected = "Error: The weights of run 'first' are not of the architecture in its run.json"
    else:
        model["d_model"] += 1
        expected = "first/run.json: d_model 33 does not divide"
    (finished / "run.json").write_text(json.dumps(manifest))
    (finished / "checkpoints/step-abc.json").write_text("{}")
    code, _, err = run_main(capsys, "eval", "first")
    assert code == 2
    assert expected in err
    if harm != "heads":
        assert "train it again under another --name" in err


def test_a_strange_column_in_eval_csv_does_no_harm(capsys, finished):
    path = finished / "eval.csv"
    header, *rows = path.read_text().splitlines()
    path.write_text("\n".join([f"{header},mine", *(f"{row},1,2" for row in rows)]) + "\n")
    assert run_main(capsys, "eval", "first", "--tokens", "64")[0] == 0
    assert path.read_text().splitlines()[0] == header


def test_steps_that_cannot_be_kept_are_refused(capsys, kept, tiny):
    branch = ["--steps", "6", "--name", "b", "--study", "s", "--from", "first@3"]
    code, _, err = run_main(capsys, *tiny, *branch, "--keep-step", "2")
    assert code == 2
    assert "--keep-step 2 is before the step that it starts from, 3" in err
    assert not kept.path.with_name("b").exists()
    kept.update(state="stopped")
    resume = ["train", "--resume", "first", "--study", "s", "--keep-step"]
    for step, says in (("7", "after the last step, 6"), ("2", "before the step")):
        code, _, err = run_main(capsys, *resume, step)
        assert code == 2
        assert says in err
    assert Run(kept.path).manifest["keep_steps"] == [3]
    assert run_main(capsys, *resume, "3")[0] == 0


def test_a_resume_with_a_setting_for_an_option_names_the_field(capsys, finished):
    manifest = Run(finished).manifest
    request = manifest["request"] | {"lr": 1e-3}
    Run(finished).update(state="stopped", request=request)
    code, _, err = run_main(capsys, "train", "--resume", "first", "--set", "lr=0.5")
    assert code == 2
    assert "recipe.lr: 0.001 there, 0.5 asked for" in err


def test_a_run_in_another_process_is_waited_for(capsys, kept):
    kept.update(state="running")
    with kept.writing():
        code, _, err = run_main(capsys, "eval", "first", "--study", "s")
    assert code == 2
    assert "is running in another process (saved: step 3 of 6): wait for it" in err


def test_finished_runs_are_found_beside_unfinished_ones(capsys, finished, tiny):
    assert run_main(capsys, *tiny, "--steps", "6", "--name", "second")[0] == 0
    Run(finished).update(state="stopped")
    code, out, _ = run_main(capsys, "eval", "tiny", "--json")
    assert code == 0
    assert {row["run"] for row in json.loads(out)} == {"second"}
    code, _, err = run_main(capsys, "eval", "tony")
    assert code == 2
    assert "Did you mean 'tiny'?" in err


def test_a_folder_that_is_no_run_is_not_written_into(capsys, workdir, tiny):
    (workdir / "results/runs/mine").mkdir(parents=True)
    code, _, err = run_main(capsys, *tiny, "--steps", "2", "--name", "mine")
    assert code == 2
    assert "it has no run.json. Choose another --name." in err


def test_a_finished_run_is_not_resumed(capsys, finished):
    code, _, err = run_main(capsys, "train", "--resume", "first")
    assert code == 2
    assert "--from first" in err


def test_a_resume_with_another_configuration_names_the_fields(capsys, finished):
    Run(finished).update(state="stopped")
    code, _, err = run_main(
        capsys, "train", "--resume", "first", "--lr", "0.5", "--seed", "3", "--val-every", "5"
    )
    assert code == 2
    assert "recipe.lr: 0.001 there, 0.5 asked for" in err
    assert "seed: 0 there, 3 asked for" in err
    assert "validation_every" not in err


def test_a_resume_while_another_process_writes_is_refused(capsys, finished):
    run = Run(finished)
    run.update(state="stopped")
    with run.writing():
        code, _, err = run_main(capsys, "train", "--resume", "first")
    assert code == 2
    assert "Another process is writing run 'first'; wait until it is done." in err
    assert "--name" not in err


def test_from_another_architecture_names_the_fields(capsys, finished, tiny):
    code, _, err = run_main(
        capsys, *tiny, "--steps", "6", "--set", "n_layers=3", "--from", "first", "--name", "b"
    )
    assert code == 2
    assert "n_layers: 2 there, 3 asked for" in err
    assert not finished.with_name("b").exists()


def test_from_a_checkpoint_of_another_optimizer_is_refused(capsys, workdir, tiny):
    options = ["--steps", "6", "--name", "first", "--keep-step", "3"]
    assert run_main(capsys, *tiny, *options)[0] == 0
    options = ["--steps", "6", "--name", "b", "--from", "first@3", "--optimizer", "muon"]
    code, _, err = run_main(capsys, *tiny, *options)
    assert code == 2
    assert "--optimizer adamw" in err
    assert not (workdir / "results/runs/b").exists()


@pytest.fixture
def other_text(workdir) -> str:
    """A corpus that has nothing in common with `corpus`."""
    path = workdir / "other.jsonl"
    text = " ".join(f"{i * i} xyz" for i in range(400))
    path.write_text(f'{{"text": "{text}."}}\n' * 40)
    return str(path)


def test_a_warm_start_takes_its_runs_tokenizer(capsys, finished, tiny, other_text):
    at = tiny.index("--tokenizer")
    options = [*tiny[:at], *tiny[at + 2 :], "--steps", "2", "--name", "b", "--from", "first"]
    assert run_main(capsys, *options, "--data", other_text)[0] == 0
    first, second = Run(finished).protocol.data, Run(finished.with_name("b")).protocol.data
    assert first.tokenizer_fingerprint == second.tokenizer_fingerprint
    assert first.fingerprint != second.fingerprint


def test_a_warm_start_refuses_another_tokenizer(capsys, finished, tiny, other_text):
    options = ["--steps", "2", "--name", "b", "--from", "first", "--data", other_text]
    code, _, err = run_main(capsys, *tiny, *options)
    assert code == 2
    assert "embeddings would stand for other tokens; give --tokenizer results/runs/first" in err
    assert not finished.with_name("b").exists()


def test_a_branch_refuses_other_data_and_another_batch(capsys, kept, tiny, other_text):
    branch = ["--steps", "6", "--name", "b", "--study", "s", "--from", "first@3"]
    at = tiny.index("--tokenizer")
    own = [*tiny[:at], *tiny[at + 2 :], "--data", other_text, *branch]
    code, _, err = run_main(capsys, *own)
    assert code == 2
    assert "goes on with the data that its run began with (corpus.jsonl" in err
    for change in (["--batch-size", "3"], ["--seq-len", "16", "--batch-size", "4"]):
        code, _, err = run_main(capsys, *tiny, *branch, *change)
        assert code == 2
        assert "continues steps of another size" in err
    same = ["--batch-size", "1", "--grad-accum", "2"]
    assert run_main(capsys, *tiny, *branch, *same, "--dry-run")[0] == 0
    assert not kept.path.with_name("b").exists()


def test_a_warm_start_does_not_take_the_plain_name(capsys, finished):
    finished.rename(finished.with_name("pow2-nano-2-s0"))
    code, _, err = run_main(capsys, *NANO, "--from", "pow2-nano-2-s0")
    assert code == 2
    assert "is another architecture" in err  # and not that a run of that name exists


def test_a_resume_with_its_own_settings_goes_on(capsys, finished):
    Run(finished).update(state="stopped")
    same = ["--set", "weight_decay=0.01", "--tokens", str(6 * 64), "--seq-len", "32"]
    assert run_main(capsys, "train", "--resume", "first", *same)[0] == 0


def test_arms_hold_one_architecture_and_no_branches(capsys, finished, tiny, workdir):
    assert run_main(capsys, *tiny, "--steps", "6", "--name", "more", "--from", "first")[0] == 0
    (workdir / "tiny.toml").write_text(
        Path(tiny[tiny.index("--variant") + 1]).read_text() + "rope_theta = 500.0\n"
    )
    other = [*tiny, "--variant", "tiny.toml", "--steps", "6"]
    assert run_main(capsys, *other, "--set", "n_layers=3", "--name", "b")[0] == 0
    assert run_main(capsys, *other, "--name", "same-name")[0] == 0
    code, out, err = run_main(capsys, "compare", "tiny", "tiny:n_layers=3", "--json")
    assert code == 0
    assert json.loads(out)["arms"][0]["runs"] == ["same-name"]  # the newest decides what `tiny` is
    assert "first has another architecture than" in err
    assert "more differs from" in err
    code, _, err = run_main(capsys, "compare", "tiny", "first")
    assert code == 2
    assert "stands in both" in err


def test_altered_tokens_are_not_trained_on(capsys, workdir, tiny, corpus):
    options = ["--data", str(corpus), "--tokenizer", "train:512", "--out", "tokens"]
    assert run_main(capsys, "prepare", *options)[0] == 0
    tokens = workdir / "tokens/train.bin"
    tokens.write_bytes(bytes(tokens.stat().st_size))
    at = tiny.index("--tokenizer")
    code, _, err = run_main(capsys, *tiny[:at], *tiny[at + 2 :], "--steps", "2", "--data", "tokens")
    assert code == 2
    assert "copy the folder again" in err


def test_a_tokenizer_beside_a_prepared_folder_asks_no_network(
    capsys, workdir, tiny, corpus, monkeypatch
):
    options = ["--data", str(corpus), "--tokenizer", "train:512", "--out", "tokens"]
    assert run_main(capsys, "prepare", *options)[0] == 0

    def network(*_: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr("smollm2.data.tokenizer.require_on_hub", network)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(workdir / "nothing-fetched"))
    at = tiny.index("--tokenizer")
    options = [*tiny[:at], *tiny[at + 2 :], "--steps", "2", "--data", "tokens"]
    for tokenizer in ("smollm2", "hub:some/model", "train:512", "missing"):
        code, _, err = run_main(capsys, *options, "--tokenizer", tokenizer)
        assert code == 2
        assert "leave out the tokenizer" in err
    own = [*options, "--tokenizer", "tokens/tokenizer.json", "--dry-run"]
    assert run_main(capsys, *own)[0] == 0


def test_from_a_step_that_was_not_kept_says_what_there_is(capsys, finished, tiny):
    code, _, err = run_main(capsys, *tiny, "--steps", "6", "--from", "first@3", "--name", "b")
    assert code == 2
    assert "--keep-step" in err


def test_the_tables_have_the_columns_of_the_contract(finished):
    run = Run(finished)
    train = run.table("train")
    assert list(train["step"]) == [1, 2, 3, 4, 5, 6]
    assert list(run.table("val")["step"]) == [0, 5, 6]
    timed = train[train["step"] > 2]
    assert train[train["step"] <= 2]["seconds"].eq(0).all()
    assert timed["seconds"].is_monotonic_increasing
    assert timed["mfu"].between(0, 1).all()
    assert set(run.table("eval")["metric"]) == {"loss", "accuracy", "perplexity", "bits_per_byte"}


def test_the_manifest_holds_no_path_of_the_machine(finished, corpus, variants):
    manifest = (finished / "run.json").read_text()
    assert str(corpus.parent) not in manifest
    assert str(variants) not in manifest
    assert '"source": "corpus.jsonl"' in manifest


def test_train_prints_json_on_stdout_alone(capsys, workdir, tiny):
    code, out, _ = run_main(capsys, *tiny, "--steps", "6", "--name", "first", "--json")
    assert code == 0
    summary = json.loads(out)
    assert summary["steps"] == 6
    assert summary["tokens"] == 6 * 2 * 32
    assert summary["test"]["loss"] == pytest.approx(
        Run(workdir / "results/runs/first").table("eval").set_index("metric")["value"]["loss"]
    )


def test_a_dry_run_plans_and_trains_not(capsys, workdir, tiny):
    code, out, _ = run_main(capsys, *tiny, "--tokens", "640000", "--dry-run", "--json")
    assert code == 0
    plan = json.loads(out)
    assert plan["protocol"]["steps"] == 10_000
    assert plan["epochs"] > 10
    assert plan["eta_seconds"] == pytest.approx(10_000 * plan["step_seconds"])
    assert not (workdir / "results").exists()


def test_a_dry_run_shows_the_schedule(capsys, workdir, tiny):
    code, out, _ = run_main(capsys, *tiny, "--steps", "100", "--dry-run")
    assert code == 0
    assert "to 1.0e-03 by step 5, constant to 80, then to 0 at 100" in out


@pytest.mark.parametrize(("val_every", "words"), [("1", "every step,"), ("7", "every 7 steps,")])
def test_a_dry_run_says_how_often_it_validates(capsys, workdir, tiny, val_every, words):
    code, out, _ = run_main(capsys, *tiny, "--steps", "20", "--val-every", val_every, "--dry-run")
    assert code == 0
    assert f"128 validation tokens {words}" in " ".join(out.split())


def test_the_five_commands_run_in_a_row(capsys, workdir, tiny, variants, corpus):
    for name, *more in (("a0",), ("a1", "--seed", "1"), ("b0", "--set", "n_layers=3")):
        assert run_main(capsys, *tiny, "--steps", "6", "--name", name, *more)[0] == 0
    code, out, _ = run_main(capsys, "eval", "a0", "--json")
    assert code == 0
    assert {row["metric"] for row in json.loads(out)} >= {"loss", "bits_per_byte"}
    code, out, _ = run_main(capsys, "compare", "tiny", "tiny:n_layers=3", "--json")
    assert code == 0
    found = json.loads(out)
    assert [len(arm["metrics"]["loss"]) for arm in found["arms"]] == [2, 1]
    (verdict,) = (row["verdict"] for row in found["differences"] if row["primary"])
    assert verdict == "unresolved"  # one seed
    code, out, _ = run_main(capsys, "report")
    assert code == 0
    assert "Not measured" in out
    assert "| b0 | tiny:n_layers=3 | 0 |" in out
    assert run_main(capsys, "quantize", "--bits", "4")[0] == 0


def test_a_broken_run_is_named_and_left_out(capsys, finished):
    broken = finished.with_name("broken")
    broken.mkdir()
    (broken / "run.json").write_text("{")
    code, _, err = run_main(capsys, "report")
    assert code == 0
    assert "broken/run.json cannot be read" in err


def test_another_protocol_is_never_mixed_in(capsys, finished, tiny):
    assert (
        run_main(capsys, *tiny, "--steps", "7", "--name", "longer", "--set", "n_layers=3")[0] == 0
    )
    code, _, err = run_main(capsys, "compare", "first", "longer")
    assert code == 2
    assert "longer differs from first (" in err


def test_preparing_says_so_without_a_terminal_and_only_when_it_is_done(capsys, workdir, tiny):
    at = tiny.index("--tokenizer")
    options = [*tiny[:at], *tiny[at + 2 :], "--tokenizer", "train:501", "--steps", "2"]
    _, _, first = run_main(capsys, *options, "--dry-run")
    assert first.startswith("Preparing tokens of corpus.jsonl ...\nPrepared ")
    assert "training tokens in" in first
    _, _, second = run_main(capsys, *options, "--dry-run")
    assert "Prepar" not in second


def test_prepared_tokens_train_without_datasets(workdir, tiny, corpus):
    made = smolctl(
        *("prepare", "--data", str(corpus), "--tokenizer", "train:512", "--out", "tokens"),
        cwd=workdir,
    )
    assert made.returncode == 0, made.stderr
    block = "import sys; sys.modules['datasets'] = sys.modules['pyarrow'] = None; "
    code = block + "from smolctl.cli import main; main(sys.argv[1:])"
    options = [*tiny, "--steps", "6", "--name", "r", "--data", "tokens"]
    at = options.index("--tokenizer")
    del options[at : at + 2]  # the folder brings its own
    options = [
        o for i, o in enumerate(options) if "--tokenizer" not in options[max(i - 1, 0) : i + 1]
    ]

    # A machine with an empty cache, to which only the folder was brought.
    environment = os.environ | {"SMOLCTL_CACHE": str(workdir / "other-cache")}
    for arguments in (options, ["eval", "r"]):
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            cwd=workdir,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr


def test_help_loads_nothing_heavy():
    code = (
        "import sys, smolctl.cli\n"
        "heavy = {'torch', 'pandas', 'scipy', 'datasets', 'matplotlib', 'tokenizers', 'numpy'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )

    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_typo_is_refused_before_torch_is_imported(workdir):
    typos = [
        ["--variant", "pow3"],
        ["--set", "n_layer=3"],
        ["--set", "n_layers=many"],
        ["--recipe", "smolm2"],
        ["--scale", "mini"],
        ["--schedule", "wds"],
        ["--optimizer", "sgd"],
        ["--steps", "0"],
        ["--seq-len", "4096"],
        ["--val-every", "0"],
        ["--test-tokens", "0"],
        ["--name", "a/b"],
    ]
    code = (
        "import json, sys\n"
        "from smolctl.cli import main\n"
        "nano, typos = json.loads(sys.argv[1])\n"
        "for typo in typos:\n"
        "    try:\n"
        "        main([*nano, *typo])\n"
        "    except SystemExit as error:\n"
        "        assert error.code == 2\n"
        "    assert 'torch' not in sys.modules, typo\n"
    )
    arguments = [sys.executable, "-c", code, json.dumps([NANO, typos])]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("Error: ") == len(typos)


@pytest.mark.parametrize("command", ["train", "prepare", "eval", "compare", "quantize", "report"])
def test_every_help_has_examples(capsys, command):
    code, out, _ = run_main(capsys, command, "--help")
    assert code == 0
    assert "Examples" in out
    assert f"smolctl {command}" in out


def test_unexpected_errors_are_sentences_without_debug(capsys, monkeypatch, workdir):
    def explode(*_: object) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr("smolctl.targets.finished_runs", explode)
    code, _, err = run_main(capsys, "report")
    assert code == 1
    assert "--debug" in err
    with pytest.raises(ZeroDivisionError):
        main(["--debug", "report"])
