"""A name that is too long for the system is the user's error, wherever it is looked up."""

import pytest

from smolctl.cli import app

LONG = "x" * 5000


@pytest.mark.parametrize(
    "arguments",
    [
        ["eval", LONG],
        ["quantize", f"./{LONG}"],
        ["train", "--from", LONG, "--steps", "1"],
        ["train", "--variant", "pow2", "--steps", "1", "--data", LONG],
        ["study", f"{LONG}.toml"],
        ["runs", "show", "a", "--results", LONG],
    ],
    ids=lambda arguments: " ".join(arguments)[:24],
)
def test_a_name_that_is_too_long_is_refused(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        app.main(arguments)
    message = capsys.readouterr().err
    assert (stopped.value.code, list(tmp_path.iterdir())) == (2, [])
    assert "unexpectedly" not in message
    assert len(message) < 1000
