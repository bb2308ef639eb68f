"""Messages from below the command line, and their receivers."""

import contextlib

import pytest

from smolctl import talk


@pytest.fixture
def plain():
    """The talk of a program without a command line; afterwards as it was."""
    before = talk._talker
    talk.use(talk.PlainTalker())
    yield
    talk.use(before)


def test_without_a_command_line_sentences_go_to_stderr_and_progress_nowhere(capsys, plain):
    talk.say("Half done.")
    talk.warn("the disk is nearly full.")
    with talk.progress() as show:
        show("windows", 1, 2)
    assert capsys.readouterr() == ("", "Half done.\nWarning: the disk is nearly full.\n")


def test_a_program_can_hear_everything(plain):
    class Notes(list):
        say = warn = list.append

        @contextlib.contextmanager
        def progress(self):
            yield lambda *numbers: self.append(numbers)

    notes = Notes()
    talk.use(notes)
    talk.say("Half done.")
    talk.warn("nearly full.")
    with talk.progress() as show:
        show("windows", 1, None)
    assert notes == ["Half done.", "nearly full.", ("windows", 1, None)]
