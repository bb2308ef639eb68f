"""Whether the machine is idle enough to measure on: how loaded it is, and its rate of products.

    python benchmarks/idle.py

prints the rate, in FLOP/s. `side_by_side` waits for both.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable

MOST_LOAD = 0.3  # processes that ran or waited in the last minute, before the first measurement
LEAST_RATE = 0.9  # of the best rate of products that was seen
SECONDS = 10.0  # between two looks


class Guard:
    """Waits until the machine is idle, and gives up after `patience` seconds; with 0 it does not
    look.

    Args:
        rate: the rate of products now, in FLOP/s.
    """

    def __init__(self, patience: float, rate: Callable[[], float]) -> None:
        self.patience, self.rate = patience, rate
        self.best = 0.0

    def wait_for_quiet(self) -> None:
        """Wait until the load is low. Only before the first measurement: its own is a load too.

        Raises:
            SystemExit: it did not fall in time.
        """
        self.wait(lambda: os.getloadavg()[0] <= MOST_LOAD, f"the load is above {MOST_LOAD}")

    def wait_for_speed(self) -> None:
        """Wait until products are about as fast as they ever were for this guard.

        Raises:
            SystemExit: they were slower all the time.
        """

        def is_fast() -> bool:
            rate = self.rate()
            self.best = max(self.best, rate)
            return rate >= LEAST_RATE * self.best

        self.wait(is_fast, f"matrix products run below {LEAST_RATE:.0%} of their best rate")

    def wait(self, is_ready: Callable[[], bool], why: str) -> None:
        """Look again and again until it is."""
        start, is_told = time.monotonic(), False
        while self.patience > 0 and not is_ready():
            waited = time.monotonic() - start
            if waited >= self.patience:
                sys.exit(
                    f"This machine is not idle: {why}, for {waited:.0f} s. Stop other work, or "
                    "measure all the same with --patience 0."
                )
            if not is_told:
                print(f"Waiting: {why}.", file=sys.stderr)
                is_told = True
            time.sleep(SECONDS)


def rate_in_process(threads: int) -> float:
    """The rate of products of a process with so many threads; this one does not import torch."""
    output = subprocess.run(
        [sys.executable, __file__],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": str(threads)},
    ).stdout
    return float(output)


if __name__ == "__main__":
    from smollm2.device import matmul_rate_now

    print(matmul_rate_now("cpu", "bfloat16"))
