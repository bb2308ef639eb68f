"""An imported model has the numbers that transformers computes, and its texts end there."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from gguf import GGUFReader
from safetensors.torch import load_file
from support.command import run_main
from support.foreign import KINDS, change, generation, theirs_in

from smolctl.studies.models import load_one
from smollm2.data import load_tokenizer, prepare, spread_windows, window_count, windows
from smollm2.evaluation.answers import ItemScore
from smollm2.evaluation.score_file import ScoreFile
from smollm2.evaluation.tasks import find_task, load_items
from smollm2.runs.run import Run

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
    spread = spread_windows(window_count(data.test, 64), 2)
    inputs, targets = map(torch.from_numpy, windows(data.test, 64, spread))
    with torch.no_grad():
        logits = theirs_in(elsewhere / "untied")(inputs).logits
    loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
    assert rows["loss"] == pytest.approx(loss.item())


def test_scores_on_two_texts_are_kept_apart(capsys, model, corpus, story_file):
    for text in (str(corpus), story_file):
        assert run_main(capsys, "eval", "./mine", "--data", text, "--tokens", "64")[0] == 0
    run = Run(Path("results/runs/mine"))
    one, other = (row["fingerprint"] for row in run.rows("eval") if row["metric"] == "loss")
    assert one != other
    assert run_main(capsys, "export", "mine", "--to", "hf", "out")[0] == 0
    assert "Not by smolctl" in Path("out/README.md").read_text()
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
    assert (row["suite"], row["context"]) == ("text", len(tokens) - 1)
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
