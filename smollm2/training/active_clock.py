"""A clock that stands still while the process is stopped."""

import threading
import time
from typing import Self

BEAT_SECONDS = 0.1
PAUSE_SECONDS = 1.0  # what is shorter may be a busy machine, and counts
IDLE_SECONDS = 0.2  # of the processor, which a stopped process does not use


class ActiveClock:
    """Seconds in which this process could work; the zero is arbitrary.

    The system's clock stands still while the machine sleeps (on Linux and macOS), but not while the
    process is stopped: by a signal, a debugger or a frozen container. A thread that wakes up ten
    times per second notices that. If it has not for more than a second, and the thread that
    trains has not used the processor either, the time since then is a pause. A slow step is
    none: while it computes or waits for a GPU, the other thread wakes up as always.

    Use it as a context manager, in the thread that trains.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._beats = threading.Thread(target=self._beat, name="active clock", daemon=True)
        self._paused = 0.0
        self._processor: int | None = None
        if hasattr(time, "pthread_getcpuclockid"):
            self._processor = time.pthread_getcpuclockid(threading.get_ident())
        self._woken, self._used = time.perf_counter(), self._processor_seconds()

    def __enter__(self) -> Self:
        self._beats.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._beats.join()

    def seconds(self) -> float:
        """The time."""
        with self._lock:
            now, used = time.perf_counter(), self._processor_seconds()
            gap = now - self._woken
            if gap > PAUSE_SECONDS and used - self._used < IDLE_SECONDS:
                self._paused += gap - BEAT_SECONDS
            self._woken, self._used = now, used
            return now - self._paused

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            self.seconds()

    def _processor_seconds(self) -> float:
        """Time on a processor of the thread that made this clock, or of the whole process where
        that is not known."""
        if self._processor is None:
            return time.process_time()
        return time.clock_gettime(self._processor)
