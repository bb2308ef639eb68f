"""`smolctl generate --chat`: one message and its answer; and special tokens in any prompt."""

import io
import json
import shutil
from pathlib import Path

import pytest
from support.command import run_main
from support.instruct import set_fields, set_template
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from smollm2.runs.run import Run

MESSAGE = ("--prompt", "abc <|im_end|> de", "--max-new-tokens", "8")
SPELLED = "<|im_start|>user\r\nabc<|im_end|>\n\n<|im_start|>assistant\n"


def reply(capsys, target: str, *options) -> dict:
    code, out, err = run_main(capsys, "generate", target, *map(str, options), "--json")
    assert code == 0, err
    return json.loads(out)


def type_in(monkeypatch, text: str) -> None:
    stdin = io.TextIOWrapper(io.BytesIO(text.encode()), encoding="utf-8")
    monkeypatch.setattr("sys.stdin", stdin)


def chat_ids(folder: Path, *messages: tuple[str, str]) -> list[int]:
    chat = [{"role": role, "content": content} for role, content in messages]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)


@pytest.fixture
def trained(capsys, talker, corpus) -> list[str]:
    """The model as it came, and what it became: imported, quantized, trained from it twice, and
    exported and imported again."""
    options = ["--data", str(corpus), "--seq-len", "16", "--steps", "2", "--name"]
    quantize = ["--data", str(corpus), "--bits", "8", "--no-speed"]
    for words in (
        ["train", "--from", "./talker", *options, "tuned"],
        ["train", "--from", "tuned", *options, "again"],
        ["quantize", "talker", *quantize],
        ["quantize", "tuned", "--bits", "8", "--no-speed"],
        ["export", "again", "back", "--to", "hf"],
    ):
        code, _, err = run_main(capsys, *words)
        assert code == 0, err
    return ["./talker", "talker", "talker+int8", "tuned", "tuned+int8", "again", "./back"]


def test_the_prompt_has_the_tokens_of_transformers_wherever_the_model_went(
    capsys, monkeypatch, talker, trained
):
    asked = chat_ids(talker, ("user", MESSAGE[1]))
    system = chat_ids(talker, ("system", "de"), ("user", MESSAGE[1]))
    tokenizer = AutoTokenizer.from_pretrained(talker)
    plain = tokenizer(SPELLED, add_special_tokens=False)["input_ids"]
    assert asked.count(tokenizer.eos_token_id) == 2  # that of the message counts, too
    for target in trained:
        found = reply(capsys, target, "--chat", *MESSAGE)
        assert found["prompt_ids"] == asked
        assert found["prompt_tokens"] == len(asked)
        assert (found["prompt"], found["system"], found["chat"]) == (MESSAGE[1], None, True)
        found = reply(capsys, target, "--chat", "--system", "de", *MESSAGE)
        assert found["prompt_ids"] == system
        type_in(monkeypatch, SPELLED)
        found = reply(capsys, target, "--max-new-tokens", 2)
        assert found["prompt_ids"] == plain
        assert (found["prompt"], found["chat"]) == (SPELLED, False)


def test_the_answer_follows_the_prompt_that_the_template_writes(capsys, monkeypatch, talker):
    answer = reply(capsys, "./talker", "--chat", *MESSAGE)
    written = f"<|im_start|>user\n{MESSAGE[1]}<|im_end|>\n<|im_start|>assistant\n"
    assert reply(capsys, "./talker", "--prompt", written, *MESSAGE[2:])["text"] == answer["text"]
    code, out, err = run_main(capsys, "generate", "talker", "--chat", *MESSAGE)
    assert (code, out, err) == (0, answer["text"] + "\n", "")
    type_in(monkeypatch, "abc\n")  # a message keeps its line break
    ids = reply(capsys, "talker", "--chat", *MESSAGE[2:])["prompt_ids"]
    assert ids == chat_ids(talker, ("user", "abc\n"))


def test_a_model_trained_here_reads_special_tokens_as_text(capsys, finished):
    found = reply(capsys, "first", "--prompt", "<|endoftext|>", "--max-new-tokens", 1)
    assert len(found["prompt_ids"]) > 1
    assert 0 not in found["prompt_ids"]


def make_special(folder: Path, number: int) -> str:
    """Make a token of the vocabulary special; returns it."""
    tokens = Tokenizer.from_file(str(folder / "tokenizer.json"))
    word = tokens.id_to_token(number)
    tokens.add_special_tokens([word])
    assert tokens.token_to_id(word) == number
    tokens.save(str(folder / "tokenizer.json"))
    return word


@pytest.mark.parametrize("named", ["eos_token", "--stop"])
def test_a_chat_also_ends_at_the_end_token_of_the_tokenizer(capsys, talker, named):
    options = ("--chat", "--prompt", "abc", "--max-new-tokens", 12)
    endless = reply(capsys, "./talker", *options)["tokens"]
    place = next(n for n in range(2, 12) if endless[n] not in endless[:n])
    word = make_special(talker, endless[place])
    if named == "eos_token":
        set_fields(talker / "tokenizer_config.json", eos_token=word)
        (talker / "special_tokens_map.json").unlink()
    else:
        options += ("--stop", word)
    shutil.rmtree("results")
    found = reply(capsys, "./talker", *options)
    assert found["tokens"] == endless[:place]
    assert found["stopped_by"] == "end-of-text"
    if named == "eos_token":  # a text that is no chat ends as before
        text = "<|im_start|>user\nabc<|im_end|>\n<|im_start|>assistant\n"
        assert reply(capsys, "talker", "--prompt", text, *options[3:])["tokens"] == endless


# What is refused


def refused(capsys, *words: str) -> str:
    code, out, err = run_main(capsys, "generate", *words)
    assert (code, out) == (2, "")
    assert err.count("Error: ") == 1
    return err


def test_without_a_template_the_sentence_says_what_to_do(capsys, talker, finished):
    (talker / "chat_template.jinja").unlink()
    for target in ("first", "./talker"):
        err = refused(capsys, target, "--chat", *MESSAGE)
        assert f"{target.removeprefix('./')} has no chat template: it was not trained for" in err
        assert "Omit --chat to continue the prompt as it is, or name an instruct model" in err


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{% for i in range(9 ** 9) %}{% endfor %}", "cannot be used: Range too big."),
        ("{{ ''.__class__.__mro__ }}", "is unsafe. Without --chat the prompt is taken as it is"),
        ("{% include 'secret.txt' %}", "it reads another file, secret.txt"),
        ("{{ raise_exception('No system.') }}", "Error: The chat template refuses this: No system"),
        ("{% if %}", "line 1: "),
    ],
)
def test_a_template_that_goes_wrong_is_a_sentence(capsys, talker, template, said):
    Path("secret.txt").write_text("secret")
    set_template(talker, template)
    err = refused(capsys, "./talker", "--chat", "--system", "x", *MESSAGE)
    assert said in " ".join(err.split())


def test_a_template_without_a_default_is_named(capsys, talker):
    (talker / "chat_template.jinja").unlink()
    several = [{"name": "rag", "template": "a"}]
    set_fields(talker / "tokenizer_config.json", chat_template=several)
    err = refused(capsys, "./talker", "--chat", *MESSAGE)
    assert "The model has the chat templates rag, and none is called default." in err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--system", "x"], "--system is the first message of a chat; give --chat as well"),
        (["--chat", "--truncate"], "--truncate drops the start of the prompt, which with --chat"),
        (["--chat", "--system", "\udcff"], "--system is not UTF-8 text"),
        (["--chat", "--prompt", ""], "The prompt is empty"),
        (["--chat", "--prompt", "abc " * 99], "fit into the model's context of 64"),
        (["--chat", "--max-new-tokens", "64"], "leaves no room for a prompt"),
    ],
)
def test_what_does_not_go_together_is_refused(capsys, talker, options, said):
    given = {"--prompt": "abc", "--max-new-tokens": "8"}
    more = [word for pair in given.items() if pair[0] not in options for word in pair]
    err = refused(capsys, "./talker", *options, *more)
    assert said in err
    assert "--truncate." not in err


def test_what_the_model_brought_is_kept_without_an_end(capsys, talker, corpus):
    """Its template, also where it names no token that ends a text."""
    for name in ("generation_config.json", "config.json"):
        set_fields(talker / name, eos_token_id=...)
    options = ["--data", str(corpus), "--seq-len", "16", "--steps", "2", "--name", "tuned"]
    assert run_main(capsys, "train", "--from", "./talker", *options)[0] == 0
    assert "bounds" not in Run(Path("results/runs/tuned")).manifest
    found = reply(capsys, "tuned", "--chat", *MESSAGE)
    assert found["prompt_ids"] == chat_ids(talker, ("user", MESSAGE[1]))
