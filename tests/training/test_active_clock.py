"""Time in which the process was stopped is no training; slow steps are."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from smollm2.training import active_clock
from smollm2.training.active_clock import BEAT_SECONDS, ActiveClock

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="no process can be stopped")

STEPS = """
import sys, time
from smollm2.training.active_clock import ActiveClock
with ActiveClock() as clock:
    first, wall = clock.seconds(), time.perf_counter()
    print("ready", flush=True)
    longest, start = 0.0, first
    while time.perf_counter() - wall < float(sys.argv[1]):
        sum(range(10_000))
        now = clock.seconds()
        longest, start = max(longest, now - start), now
    print(clock.seconds() - first, time.perf_counter() - wall, longest)
"""


def stopped(seconds: float, total: float) -> list[float]:
    """Seconds by the clock, by the wall, and of the longest step, of a process that is stopped for
    `seconds` of a `total`."""
    command = [sys.executable, "-c", STEPS, str(total)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.3)
    os.kill(process.pid, signal.SIGSTOP)
    time.sleep(seconds)
    os.kill(process.pid, signal.SIGCONT)
    out, _ = process.communicate()
    return [float(word) for word in out.split()]


def test_a_stopped_process_does_not_train():
    active, wall, longest = stopped(3.0, 4.0)
    assert wall >= 4.0
    assert 0.5 < active < wall - 2.8 + BEAT_SECONDS
    assert longest < 1.0


class Machine:
    """Time as a test sets it: by the wall, and on the processor."""

    def __init__(self, monkeypatch) -> None:
        self.wall = self.processor = 0.0
        monkeypatch.setattr(active_clock.time, "perf_counter", lambda: self.wall)
        monkeypatch.setattr(active_clock.time, "clock_gettime", lambda _: self.processor)

    def advance(self, wall: float, processor: float) -> None:
        self.wall += wall
        self.processor += processor


@pytest.mark.parametrize(
    ("wall", "processor", "counted"),
    [
        (0.9, 0.0, 0.9),  # too short for a pause
        (5.0, 5.0, 5.0),  # a slow step that lets no other thread run
        (5.0, 0.5, 5.0),  # on a busy machine
        (3600.0, 0.05, BEAT_SECONDS),  # stopped
    ],
)
def test_a_pause_is_where_no_thread_ran(monkeypatch, wall, processor, counted):
    machine = Machine(monkeypatch)
    clock = ActiveClock()
    before = clock.seconds()
    machine.advance(wall, processor)
    assert clock.seconds() - before == pytest.approx(counted)
    assert clock.seconds() - before == pytest.approx(counted)


def test_a_wait_in_which_the_other_thread_runs_is_no_pause():
    """Such as for a GPU."""
    with ActiveClock() as clock:
        start, wall = clock.seconds(), time.perf_counter()
        time.sleep(1.5)
        waited = time.perf_counter() - wall
        assert clock.seconds() - start == pytest.approx(waited, abs=0.1)


def test_no_thread_stays():
    with ActiveClock():
        pass
    assert "active clock" not in [thread.name for thread in threading.enumerate()]
