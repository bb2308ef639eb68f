"""The machine that work is done on."""

import pytest

from smolctl.studies.machine import warn_if_busy


@pytest.mark.parametrize(("load", "is_busy"), [(0.2, False), (1.0, False), (1.1, True), (4, True)])
def test_a_busy_machine_is_warned_of(capsys, monkeypatch, load, is_busy):
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    monkeypatch.setattr("os.getloadavg", lambda: (load, 0, 0), raising=False)
    warn_if_busy()
    assert (f"load {load:.1f} on 2 cores" in capsys.readouterr().err) == is_busy
