"""A fine-tune against the model that it began as: scored alike, compared and on its card."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from huggingface_hub import ModelCard
from support.command import run_main
from support.stories import stories, text_of, write_jsonl
from support.tiny import changed

from smolctl.cli.app import main
from smolctl.studies.models import load_one
from smollm2.data import TokenData, find_prepared, open_prepared, train_tokenizer, windows
from smollm2.runs.run import Run

RUNS = Path("results/runs")


@pytest.fixture(scope="module")
def world(tmp_path_factory, tiny) -> Path:
    """A folder with ./mine, a model that knows the corpus, and the run `tuned`, which started from
    it, on stories of which 20 are for the test."""
    folder = tmp_path_factory.mktemp("world")
    story_file = write_jsonl(folder / "stories.jsonl", stories(100))
    before = changed(tiny, "--seq-len", "64", "--micro-batch-size", "8")
    shared = ("--dtype", "fp32", "--val-tokens", "128", "--micro-batch-size", "4")
    further = ("--steps", "20", "--lr", "3e-3", "--held-out", "0.2", "--name", "tuned", *shared)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for arguments in (
            (*before, "--steps", "60", "--lr", "1e-2", "--study", "before", "--name", "first"),
            ("export", "./results/before/first", "--to", "hf", "mine"),
            ("train", "--from", "./mine", "--data", story_file, *further),
        ):
            with pytest.raises(SystemExit, match="0"):
                main(list(arguments))
    shutil.rmtree(folder / "results/before")
    return folder


@pytest.fixture
def tuned(world, tmp_path, monkeypatch) -> Run:
    """The run in a copy of its world, the current directory."""
    shutil.copytree(world, tmp_path / "world")
    monkeypatch.chdir(tmp_path / "world")
    return Run(RUNS / "tuned")


def compared(capsys, *arguments: str) -> dict:
    code, out, err = run_main(capsys, "compare", *arguments, "--json")
    assert code == 0, err
    return json.loads(out)


def loss_by_hand(name: str, data: TokenData, seq_len: int) -> float:
    """The mean loss on the whole windows of the test split."""
    loaded = load_one(name, Path("results"), "runs", "cpu", "fp32")
    count = (len(data.test) - 1) // seq_len
    inputs, targets = (torch.from_numpy(part) for part in windows(data.test, seq_len, range(count)))
    with torch.no_grad():
        return F.cross_entropy(loaded.model(inputs).flatten(0, 1), targets.flatten()).item()


def own_tokens(run: Run) -> TokenData:
    data = run.protocol.data
    return open_prepared(find_prepared(data.fingerprint, data.tokenizer_fingerprint))


def test_one_command_says_what_was_gained_and_forgotten(capsys, tuned, corpus, questions):
    before = tuned.rows("eval")
    options = ("--data", str(corpus), "--tasks", "piqa", "--data-dir", str(questions))
    found = compared(capsys, "./mine", "tuned", *options, "--tokens", "100000")
    new, other = found["texts"]
    assert [(text["text"], text["role"]) for text in (new, other)] == [
        ("stories.jsonl", "new"),
        ("corpus.jsonl", "else"),
    ]
    assert (new["verdict"], other["verdict"]) == ("better", "worse")
    assert new["loss"] == pytest.approx(loss_by_hand("tuned", own_tokens(tuned), 64), abs=1e-5)
    assert new["base_loss"] == pytest.approx(loss_by_hand("mine", own_tokens(tuned), 64), abs=1e-5)
    assert new["loss_change"]["mean"] == pytest.approx(new["loss"] - new["base_loss"])
    assert (new["documents"], other["documents"]) == (20, 12)
    (task,) = found["tasks"]
    assert (task["task"], task["n"]) == ("piqa", 6)
    assert found["confidence"] == pytest.approx(1 - 0.05 / 3)
    assert found["began_as_base"]
    conclusion = "\n".join(found["conclusion"])
    assert (
        "tuned against mine, imported from `./mine`, whose weights it started from." in conclusion
    )
    assert "better, so this was gained." in conclusion
    assert "worse, so some of this was forgotten." in conclusion
    assert "This is a statement about these two checkpoints" in conclusion
    assert "What `./mine` was trained on is unknown" in conclusion
    # What the study says of the run is as before.
    assert tuned.rows("eval")[: len(before)] == before
    assert tuned.table("eval")["suite"].iloc[0] == "final-test"
    assert run_main(capsys, "report")[0] == 0


def test_what_is_recorded_is_not_scored_again(capsys, tuned, corpus):
    arguments = ("compare", "./mine", "tuned", "--data", str(corpus))
    code, out, err = run_main(capsys, *arguments)
    assert code == 0, err
    assert "Scoring mine on corpus.jsonl, stories.jsonl ..." in err
    assert "Scoring tuned on corpus.jsonl, stories.jsonl ..." in err
    tables = {run: (RUNS / run / "eval.csv").read_bytes() for run in ("mine", "tuned")}
    shutil.rmtree("mine")  # an imported model is in the study
    for words in (("compare", "mine", "tuned"), ("compare", "./results/runs/mine", "tuned")):
        code, again, err = run_main(capsys, *words)
        assert (code, again) == (0, out)
        assert "Scoring" not in err
        assert "Figure: results/runs/figures/mine-vs-tuned/change-of-tuned.png" in err
    assert tables == {run: (RUNS / run / "eval.csv").read_bytes() for run in ("mine", "tuned")}


def test_scores_whose_documents_are_gone_are_made_again(capsys, tuned):
    first = run_main(capsys, "compare", "./mine", "tuned")[1]
    shutil.rmtree(RUNS / "mine/items")
    code, again, err = run_main(capsys, "compare", "./mine", "tuned")
    assert (code, again) == (0, first)
    assert "Scoring mine on stories.jsonl ..." in err
    assert "Scoring tuned" not in err


def test_scores_that_eval_made_are_compared(capsys, tuned, corpus):
    """With the same windows; another text than the run's own is scored and named."""
    code, _, err = run_main(capsys, "eval", "tuned", "--data", str(corpus))
    assert code == 0, err
    assert "corpus.jsonl is not the text that tuned was trained on (stories.jsonl" in err
    (text,) = Run(tuned.path).manifest["texts"].values()
    assert (text["source"], text["documents"]["test"]) == ("corpus.jsonl", 12)
    code, out, _ = run_main(capsys, "compare", "./mine", "tuned")
    assert code == 0
    note = "corpus.jsonl was not scored with both alike: `smolctl compare mine tuned --data corpus"
    assert note in out
    assert run_main(capsys, "eval", "mine", "--data", str(corpus))[0] == 0
    # The imported model was scored on the usual share of the documents.
    assert note in run_main(capsys, "compare", "./mine", "tuned")[1]
    found = compared(capsys, "./mine", "tuned", "--data", str(corpus), "--tokens", "100000")
    assert [text["text"] for text in found["texts"]] == ["stories.jsonl", "corpus.jsonl"]


@pytest.mark.parametrize("command", [("eval", "tuned"), ("compare", "./mine", "tuned")])
def test_text_that_a_run_was_trained_on_is_not_scored(capsys, tuned, command):
    seen = text_of(own_tokens(tuned), "train")
    write_jsonl(Path("seen.jsonl"), seen)
    before = tuned.rows("eval")
    code, out, err = run_main(capsys, *command, "--data", "seen.jsonl")
    assert (code, out) == (2, "")
    assert "Run 'tuned' was trained on 12 of the 12 test documents of seen.jsonl" in err
    assert tuned.rows("eval") == before


def test_the_own_text_of_both_runs_is_scored(capsys, tuned, corpus):
    """A run that started from one trained here: the old text is known."""
    options = ("--steps", "10", "--dtype", "fp32", "--held-out", "0.2", "--micro-batch-size", "4")
    arguments = ("train", "--from", "tuned", "--data", str(corpus), "--name", "further")
    assert run_main(capsys, *arguments, *options, "--val-tokens", "128")[0] == 0
    found = compared(capsys, "tuned", "further")
    assert [(text["text"], text["role"]) for text in found["texts"]] == [
        ("corpus.jsonl", "new"),
        ("stories.jsonl", "old"),
    ]
    assert found["began_as_base"]
    # And against the model that both began as.
    assert compared(capsys, "./mine", "further")["began_as_base"]


def test_a_base_that_is_not_the_runs_is_another_checkpoint(capsys, tuned, elsewhere):
    shutil.copytree(elsewhere / "untied", "other")
    found = compared(capsys, "./other", "tuned")
    assert not found["began_as_base"]
    conclusion = "\n".join(found["conclusion"])
    assert "neither is known to have started from the other" in conclusion
    assert "gained" not in conclusion
    # The first is the base, whichever was trained.
    (text,) = compared(capsys, "tuned", "./other")["texts"]
    assert (text["role"], text["verdict"]) == ("old", "worse")


def test_two_imported_models_need_a_text_or_a_task(capsys, model, elsewhere, corpus, questions):
    shutil.copytree(elsewhere / "untied", "other")
    code, out, err = run_main(capsys, "compare", "./mine", "./other")
    assert (code, out) == (2, "")
    assert "mine and other were not scored on the same text or tasks. Name a text or tasks" in err
    assert "smolctl compare mine other --data TEXT" in err
    found = compared(capsys, "./mine", "./other", "--data", str(corpus))
    (text,) = found["texts"]
    assert (text["role"], text["n"], text["documents"]) == ("else", text["total"], 3)
    assert text["missing"] == ["documents"]
    assert any("What `./mine` and `./other` was trained" in one for one in found["conclusion"])
    options = ("--tasks", "piqa", "--data-dir", str(questions), "--limit", "4")
    found = compared(capsys, "./mine", "./other", *options)
    assert (len(found["texts"]), found["tasks"][0]["n"]) == (1, 4)


def test_models_of_different_tokenizers_are_compared_by_bytes(capsys, model, elsewhere):
    shutil.copytree(elsewhere / "untied", "other")
    train_tokenizer(400, stories(50)).save("other/tokenizer.json")
    text = write_jsonl(Path("texts.jsonl"), [story * 4 for story in stories(200)])
    arguments = ("./mine", "./other", "--data", text)
    found = compared(capsys, *arguments)
    (change,) = found["texts"]
    assert (change["base_loss"], change["loss"], change["loss_change"]) == (None, None, None)
    # The first document lacks its first token, and the last ones what fills no window.
    assert 5 <= change["documents"] <= 9
    assert change["bits_per_byte_change"]["interval"]
    assert any("have different tokenizers" in one for one in found["conclusion"])
    code, _, err = run_main(capsys, "compare", *arguments, "--tokens", "64")
    assert code == 2
    assert "have different tokenizers, so only whole texts are comparable: omit --tokens" in err


def test_a_quantized_model_is_compared_with_its_run(capsys, tuned):
    options = ("--group-size", "32", "--tokens", "256", "--no-speed", "--no-compile")
    code, _, err = run_main(capsys, "quantize", "tuned", *options)
    assert code == 0, err
    found = compared(capsys, "tuned", "tuned+int4-g32-clip")
    (text,) = found["texts"]
    assert (found["checkpoint"]["name"], text["documents"]) == ("tuned+int4-g32-clip", 20)
    assert abs(text["loss_change"]["mean"]) > 0
    assert "the weights are those of one run, tuned, in two precisions" in found["conclusion"][0]


WRONG = {
    "three": (("./mine", "tuned", "mine"), "A comparison of checkpoints takes two, the base first"),
    "one": (("./mine",), "A comparison of checkpoints takes two, the base first"),
    "the same": (("./mine", "./results/runs/mine"), "are one model, mine: name another"),
    "an option of arms": (
        ("./mine", "tuned", "--detect", "0.1"),
        "--detect compares arms of a stud",
    ),
    "no margin": (("./mine", "tuned", "--margin", "-1"), "--margin must be a number of nats/token"),
    "no tokens": (("./mine", "tuned", "--tokens", "0"), "--tokens must be at least 1"),
    "no tasks": (("./mine", "tuned", "--limit", "3"), "apply to tasks: name some with --tasks"),
    "no such task": (("./mine", "tuned", "--tasks", "pika"), "Did you mean 'piqa'?"),
    "no such text": (("./mine", "tuned", "--data", "none.jsonl"), "no file or folder 'none.jsonl'"),
    "no such run": (("./mine", "nobody"), "'nobody' is not a run or variant"),
    "no such model": (("./other", "tuned"), "'other' does not exist"),
}


@pytest.mark.parametrize("case", WRONG, ids=str)
def test_what_cannot_be_compared_is_a_sentence(capsys, tuned, case):
    arguments, sentence = WRONG[case]
    code, out, err = run_main(capsys, "compare", *arguments)
    assert (code, out) == (2, "")
    assert sentence in err
    assert not list(RUNS.glob("*/items"))


def test_options_of_checkpoints_are_refused_for_arms(capsys, finished):
    code, _, err = run_main(capsys, "compare", "tiny", "other", "--margin", "0.1")
    assert code == 2
    assert "--margin compares two checkpoints, and these are arms of a study; omit it" in err


# The card


def matter_of(text: str):
    return ModelCard(text).data


def test_the_card_leads_with_the_base_and_names_it(capsys, tuned, corpus):
    def written() -> str:
        code, _, err = run_main(capsys, "report", "--out", "card.md")
        assert code == 0, err
        card = Path("card.md").read_text()
        assert matter_of(card).base_model == "mine"
        assert (matter_of(card).license, matter_of(card).datasets) == (None, None)
        assert card.index("## Against the base model") < card.index("## Answer")
        assert run_main(capsys, "report", "--check", "card.md")[0] == 0
        return card

    assert "`smolctl compare mine tuned` scores both" in written()
    compared(capsys, "./mine", "tuned", "--data", str(corpus))
    assert run_main(capsys, "report", "--check", "card.md")[0] == 1
    card = written()
    assert "worse, so some of this was forgotten" in card
    assert "change-of-tuned.png" in card
    assert Path("results/runs/figures/change-of-tuned.png").stat().st_size > 1000
    base = Run(RUNS / "mine")
    base.replace("eval", base.rows("eval")[4:])  # without one of the texts
    assert run_main(capsys, "report", "--check", "card.md")[0] == 1


def test_an_exported_fine_tune_has_the_card_and_what_was_given(capsys, tuned):
    compared(capsys, "./mine", "tuned")
    tuned.read()
    tuned.update(origin="hf:org/base-model", started_from="hf:org/base-model")
    base = Run(RUNS / "mine")
    base.update(source=base.manifest["source"] | {"name": "hf:org/base-model"})
    data = tuned.manifest["protocol"]["data"] | {"source": "hub:org/manuals/plain"}
    tuned.update(protocol=tuned.manifest["protocol"] | {"data": data})
    options = ("--to", "hf", "out", "--license", "apache-2.0")
    code, _, err = run_main(capsys, "export", "tuned", *options)
    assert code == 0, err
    card = Path("out/README.md").read_text()
    matter = matter_of(card)
    assert (matter.base_model, matter.datasets) == ("org/base-model", "org/manuals")
    assert (matter.license, matter.library_name) == ("apache-2.0", "transformers")
    assert "Made by `smolctl export tuned --to hf --license apache-2.0`" in card
    assert card.index("## Against the base model") < card.index("## Answer")
    assert "hub:org/manuals/plain (test documents of the text that tuned was trained on)" in card
    assert Path("out/figures/change-of-tuned.png").exists()
    tuned.update(role="sweep")
    code, _, err = run_main(capsys, "export", "tuned", "--to", "hf", "short")
    assert code == 0, err
    short = Path("short/README.md").read_text()
    assert short.index("## Against the base model") < short.index("## Architecture")
    assert matter_of(short).base_model == "org/base-model"
    assert matter_of(short).license is None
    assert Path("short/figures/change-of-tuned.png").exists()
    code, _, err = run_main(capsys, "export", "tuned", "--to", "gguf", "x.gguf", *options[-2:])
    assert code == 2
    assert "--license is for the card of --to hf" in err


def test_a_license_that_is_given_is_part_of_the_command_of_a_card(capsys, finished):
    assert run_main(capsys, "report", "--license", "mit", "--out", "card.md")[0] == 0
    card = Path("card.md").read_text()
    assert matter_of(card).license == "mit"
    assert "License: mit." in card
    assert "base_model" not in card
    assert run_main(capsys, "report", "--check", "card.md")[0] == 0
