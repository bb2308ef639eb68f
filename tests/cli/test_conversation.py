"""`smolctl generate --chat` on a terminal: a conversation."""

import os
import pty
import select
import signal
import subprocess
import sys
import time

import pytest
from support.command import run_main
from support.instruct import TEMPLATE, set_fields, set_template
from transformers import AutoTokenizer

from smollm2.inference.decoder import Decoder

NEW = ("--max-new-tokens", "6")


@pytest.fixture
def prompts(monkeypatch) -> list[list[int]]:
    """Every prompt that is read, and a terminal as stdin."""
    prefill, read = Decoder.prefill, []

    def kept(decoder, tokens):
        read.append(list(tokens))
        return prefill(decoder, tokens)

    monkeypatch.setattr(Decoder, "prefill", kept)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    return read


@pytest.fixture
def talk(capsys, monkeypatch, talker, prompts):
    """A function that types lines in a conversation; an error among them is raised."""

    def typed(*lines, options=(), code=0) -> tuple[list[str], str]:
        left = iter([*lines, EOFError()])

        def next_line(prompt: str = "") -> str:
            line = next(left)
            if isinstance(line, BaseException):
                raise line
            return line

        monkeypatch.setattr("builtins.input", next_line)
        words = ["generate", "./talker", "--chat", *NEW, *options]
        found, out, err = run_main(capsys, *words)
        assert found == code, err
        return out.splitlines(), err

    return typed


def ids(*contents: str, system: str | None = None) -> list[int]:
    """The prompt after messages of the user and answers in turns."""
    chat = [] if system is None else [{"role": "system", "content": system}]
    for number, content in enumerate(contents):
        chat.append({"role": ("user", "assistant")[number % 2], "content": content})
    tokenizer = AutoTokenizer.from_pretrained("talker")
    return tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)


def test_the_history_is_part_of_the_next_prompt(talk, talker, prompts):
    set_template(talker, TEMPLATE.replace("{{ m['role'] }}\n", "{{ m['role'][0] }}"))
    answers, err = talk("abc", "", "  ", "de", options=("--system", "b"))
    assert len(answers) == 2
    assert prompts == [
        ids("abc", system="b"),
        ids("abc", answers[0], "de", system="b"),
    ]
    assert "Each line is a message. Ctrl-C stops an answer. Ctrl-D or /exit ends" in err
    assert err.count("> ") == 5
    assert err.count("The answer was cut after --max-new-tokens 6.") == 2


def test_exit_ends_it(talk):
    answers, err = talk("abc", " /exit ", "de", options=("--stats",))
    assert len(answers) == 1
    assert err.count("Prompt: ") == 1


def test_the_oldest_turns_are_forgotten_when_the_context_is_full(talk, talker, prompts):
    set_template(talker, "{% for m in messages %}{{ m.role[0] }}{{ m.content }}|{% endfor %}")
    lines = [f"{letter}q" * 6 for letter in "abcdefgh"]
    answers, err = talk(*lines, options=("--system", "b"))
    assert len(answers) == len(lines)
    assert all(len(prompt) <= 64 - 6 for prompt in prompts)
    assert "The model's context of 64 tokens is full: the oldest turn is forgotten." in err
    for last, prompt in enumerate(prompts):
        pairs = [text for pair in zip(lines, answers, strict=True) for text in pair]
        known = [ids(*pairs[2 * first : 2 * last + 1], system="b") for first in range(last + 1)]
        fitting = [tokens for tokens in known if len(tokens) <= 64 - 6]
        assert prompt == fitting[0]  # the longest
    assert len(known) > len(fitting) > 1


def test_a_message_that_does_not_fit_is_left_out(talk, talker, prompts):
    set_template(talker, "{% for m in messages %}{{ m.role[0] }}{{ m.content }}|{% endfor %}")
    answers, err = talk("abc", "z" * 99, "de")
    assert len(answers) == 2
    assert "tokens, and only 58 fit into the model's context of 64 with --max-new-tokens 6" in err
    assert prompts[-1] == ids("abc", answers[0], "de")


def test_ctrl_c_stops_an_answer_and_the_conversation_goes_on(talk, talker, prompts, monkeypatch):
    set_template(talker, "{% for m in messages %}{{ m.role[0] }}{{ m.content }}|{% endfor %}")
    step, steps = Decoder.step, []

    def interrupted(decoder, token):
        steps.append(token)
        if len(steps) == 3:
            raise KeyboardInterrupt
        return step(decoder, token)

    monkeypatch.setattr(Decoder, "step", interrupted)
    answers, err = talk("abc", KeyboardInterrupt(), "de")
    assert len(answers) == 2
    assert prompts[-1] == ids("abc", answers[0], "de")
    assert err.count("Ctrl-D or /exit ends the conversation.") == 2


def test_what_is_not_utf8_is_typed_again(talk):
    answers, err = talk("a\udcff", "abc")
    assert len(answers) == 1
    assert "That was not UTF-8 text; type it again." in err


@pytest.mark.parametrize("options", [["--json"], ["--n", "2", "--temperature", "1"]])
def test_a_conversation_takes_no_options_of_one_message(talk, options):
    _, err = talk(options=options, code=2)
    assert f"{' '.join(options[:2])} is for one message, not for a conversation" in err


def test_a_template_that_refuses_ends_it_with_a_sentence(talk, talker):
    set_template(talker, "{{ raise_exception('No system.') }}")
    _, err = talk("abc", options=("--system", "b"), code=2)
    assert "Error: The chat template refuses this: No system." in err


# On a real terminal


def read_until(descriptor: int, wanted: str, seconds: float = 90) -> str:
    """What comes from a terminal up to some text."""
    found, end = "", time.monotonic() + seconds
    while wanted not in found:
        assert time.monotonic() < end, found
        if select.select([descriptor], [], [], 1)[0]:
            found += os.read(descriptor, 10_000).decode(errors="replace")
    return found


@pytest.mark.parametrize("is_all", [True, False])
def test_on_a_terminal(talker, is_all):
    """Everything on the terminal, or the answers in a pipe."""
    set_template(talker, "{{ messages[-1].content }}")
    ours, theirs = pty.openpty()
    words = ["generate", "./talker", "--chat", "--max-new-tokens", "6"]
    process = subprocess.Popen(
        [sys.executable, "-m", "smolctl", *words],
        stdin=theirs,
        stdout=theirs if is_all else subprocess.PIPE,
        stderr=theirs,
    )
    os.close(theirs)
    read_until(ours, "> ")
    os.write(ours, b"abc\n")
    read_until(ours, "> ")
    process.send_signal(signal.SIGINT)  # while it waits for a line
    read_until(ours, "ends the conversation.")
    os.write(ours, b"de\n")
    read_until(ours, "> ")
    os.write(ours, b"\x04")
    out = process.communicate(timeout=60)[0]
    os.close(ours)
    assert process.returncode == 0
    if not is_all:
        assert len(out.decode().splitlines()) == 2
        assert not out.startswith(b"> ")


def test_ctrl_c_on_a_terminal_stops_the_answer(talker):
    set_template(talker, "{{ messages[-1].content }}")
    set_fields(talker / "config.json", max_position_embeddings=9000)
    ours, theirs = pty.openpty()
    words = ["generate", "./talker", "--chat", "--max-new-tokens", "8900"]
    with subprocess.Popen(
        [sys.executable, "-m", "smolctl", *words],
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=theirs,
    ) as process:
        os.close(theirs)
        read_until(ours, "> ")
        os.write(ours, b"abc\n")
        assert process.stdout.read(20)  # it is answering
        process.send_signal(signal.SIGINT)
        read_until(ours, "> ")
        os.write(ours, b"/exit\n")
        process.stdout.read()
    os.close(ours)
    assert process.returncode == 0
