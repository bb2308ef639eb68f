"""`smolctl train`: a run is new, resumed or branched as was asked, or not touched."""

import json
from pathlib import Path

import pytest
from support.command import run_main
from support.planted import planted
from support.tiny import changed, without

from smollm2.errors import UserError
from smollm2.files import write_json
from smollm2.runs.manifest import Role, RunState
from smollm2.runs.run import Run

NANO = ["train", "--variant", "pow2", "--scale", "nano", "--steps", "2"]


def test_an_existing_run_is_not_overwritten(capsys, finished, tiny):
    before = (finished / "run.json").read_bytes()
    code, _, err = run_main(capsys, *tiny, "--steps", "6", "--name", "first")
    assert code == 2
    assert "exists and is finished. Choose another --name" in err
    assert (finished / "run.json").read_bytes() == before


def test_an_existing_default_name_is_refused_before_tokens_are_made(capsys, finished, monkeypatch):
    finished.rename(finished.with_name("pow2-nano-2-s0"))
    monkeypatch.setattr("smolctl.studies.new_run.prepared", None)
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
        (again, f"Run 'first' exists: choose another --name. It {how}"),
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
    again = "continue it with smolctl train --resume first --study s"
    for folder, target, results in (
        (kept.path, ".", "../.."),
        (kept.path.parent, "./first", ".."),
    ):
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
    assert err.startswith("Error: 'results' is neither a run nor a model in the layout of t")


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
        expected = "first/run.json: d_model 33 is not a multiple of n_heads"
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
    assert "--keep-step 2 is before step 3, where the run starts" in err
    assert not kept.path.with_name("b").exists()
    kept.update(state="stopped")
    resume = ["train", "--resume", "first", "--study", "s", "--keep-step"]
    for step, says in (("7", "after the last step, 6"), ("2", "before step 3")):
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
    assert "recipe.lr: 0.001 there, 0.5 requested" in err


def test_a_run_in_another_process_is_waited_for(capsys, kept):
    kept.update(state="running")
    with kept.writing():
        code, _, err = run_main(capsys, "eval", "first", "--study", "s")
    assert code == 2
    assert "is running in another process (saved: step 3 of 6): wait for it" in err


def test_finished_runs_are_found_among_unfinished_ones(capsys, finished, tiny):
    assert run_main(capsys, *tiny, "--steps", "6", "--name", "second")[0] == 0
    Run(finished).update(state="stopped")
    code, out, _ = run_main(capsys, "eval", "tiny", "--json")
    assert code == 0
    assert {row["run"] for row in json.loads(out)} == {"second"}
    code, _, err = run_main(capsys, "eval", "tony")
    assert code == 2
    assert "Did you mean 'tiny'?" in err


def test_a_folder_that_is_not_a_run_is_not_written_into(capsys, workdir, tiny):
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
    assert "recipe.lr: 0.001 there, 0.5 requested" in err
    assert "seed: 0 there, 3 requested" in err
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
    assert "n_layers: 2 there, 3 requested" in err
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
    options = ["--steps", "2", "--name", "b", "--from", "first", "--data", other_text]
    assert run_main(capsys, *changed(without(tiny, "--tokenizer"), *options))[0] == 0
    first, second = Run(finished).protocol.data, Run(finished.with_name("b")).protocol.data
    assert first.tokenizer_fingerprint == second.tokenizer_fingerprint
    assert first.fingerprint != second.fingerprint


def test_a_warm_start_refuses_another_tokenizer(capsys, finished, tiny, other_text):
    options = ["--steps", "2", "--name", "b", "--from", "first", "--data", other_text]
    code, _, err = run_main(capsys, *changed(tiny, *options))
    assert code == 2
    assert "Give --tokenizer results/runs/first" in err
    assert not finished.with_name("b").exists()


def test_a_branch_refuses_other_data_and_another_batch(capsys, kept, tiny, other_text):
    branch = ["--steps", "6", "--name", "b", "--study", "s", "--from", "first@3"]
    own = changed(without(tiny, "--tokenizer"), "--data", other_text)
    code, _, err = run_main(capsys, *own, *branch)
    assert code == 2
    assert "must continue on the data of its run (corpus.jsonl" in err
    for change in (["--micro-batch-size", "3"], ["--seq-len", "16", "--micro-batch-size", "4"]):
        code, _, err = run_main(capsys, *changed(tiny, *change), *branch)
        assert code == 2
        assert "was trained with steps of a different size" in err
    same = ["--micro-batch-size", "1", "--grad-accum", "2"]
    assert run_main(capsys, *changed(tiny, *same), *branch, "--dry-run")[0] == 0
    assert not kept.path.with_name("b").exists()


def test_a_warm_start_does_not_take_the_plain_name(capsys, finished):
    finished.rename(finished.with_name("pow2-nano-2-s0"))
    code, _, err = run_main(capsys, *NANO, "--from", "pow2-nano-2-s0")
    assert code == 2
    assert "has another architecture" in err  # and not that a run of that name exists


def test_a_resume_with_its_own_settings_continues(capsys, finished):
    Run(finished).update(state="stopped")
    same = ["--set", "weight_decay=0.01", "--tokens", str(6 * 64), "--seq-len", "32"]
    assert run_main(capsys, "train", "--resume", "first", *same)[0] == 0


def test_arms_hold_one_architecture_and_no_branches(capsys, finished, tiny, workdir):
    assert run_main(capsys, *tiny, "--steps", "6", "--name", "more", "--from", "first")[0] == 0
    (workdir / "tiny.toml").write_text(
        Path(tiny[tiny.index("--variant") + 1]).read_text() + "rope_theta = 500.0\n"
    )
    other = changed(tiny, "--variant", "tiny.toml", "--steps", "6")
    assert run_main(capsys, *other, "--set", "n_layers=3", "--name", "b")[0] == 0
    assert run_main(capsys, *other, "--name", "same-name")[0] == 0
    code, out, err = run_main(capsys, "compare", "tiny", "tiny:n_layers=3", "--json")
    assert code == 0
    assert json.loads(out)["arms"][0]["runs"] == ["same-name"]  # the newest decides what `tiny` is
    assert "first is excluded: it has another architecture than" in err
    assert "more is excluded: it differs from" in err
    code, _, err = run_main(capsys, "compare", "tiny", "first")
    assert code == 2
    assert "is in both" in err


def test_altered_tokens_are_not_trained_on(capsys, workdir, tiny, corpus):
    options = ["--data", str(corpus), "--tokenizer", "train:512", "--out", "tokens"]
    assert run_main(capsys, "prepare", *options)[0] == 0
    tokens = workdir / "tokens/train.bin"
    tokens.write_bytes(bytes(tokens.stat().st_size))
    own = changed(without(tiny, "--tokenizer"), "--steps", "2", "--data", "tokens")
    code, _, err = run_main(capsys, *own)
    assert code == 2
    assert "copy the folder again" in err


def test_a_tokenizer_given_with_a_prepared_folder_uses_no_network(
    capsys, workdir, tiny, corpus, monkeypatch
):
    options = ["--data", str(corpus), "--tokenizer", "train:512", "--out", "tokens"]
    assert run_main(capsys, "prepare", *options)[0] == 0

    def network(*_: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr("smollm2.data.tokenizer.require_on_hub", network)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(workdir / "nothing-fetched"))
    options = changed(without(tiny, "--tokenizer"), "--steps", "2", "--data", "tokens")
    for tokenizer in ("smollm2", "hub:some/model", "train:512", "missing"):
        code, _, err = run_main(capsys, *options, "--tokenizer", tokenizer)
        assert code == 2
        assert "omit the tokenizer" in err
    own = [*options, "--tokenizer", "tokens/tokenizer.json", "--dry-run"]
    assert run_main(capsys, *own)[0] == 0


def test_from_a_step_that_was_not_kept_lists_the_kept_ones(capsys, finished, tiny):
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


def test_a_dry_run_plans_without_training(capsys, workdir, tiny):
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
    code, out, _ = run_main(
        capsys, *changed(tiny, "--val-every", val_every), "--steps", "20", "--dry-run"
    )
    assert code == 0
    assert f"128 validation tokens {words}" in " ".join(out.split())


@pytest.mark.parametrize("field", ["state", "role"])
def test_an_unknown_state_or_role_is_refused(template, workdir, field):
    run = planted(template, "a", 0, 5.0)
    write_json(run.path / "run.json", run.manifest | {field: "asleep"})
    with pytest.raises(UserError, match=r"a-s0/run.json is not a manifest of this version"):
        Run(run.path)


def test_states_and_roles_are_plain_words_in_the_manifest(template):
    manifest = json.loads((template / "run.json").read_text())
    assert (manifest["state"], manifest["role"]) == ("finished", "final")
    run = Run(template)
    assert run.state is RunState.FINISHED
    assert run.role is Role.FINAL
