"""Differences between arms with their uncertainty; scipy does the mathematics."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Difference:
    """Mean of the second arm minus the first, with a 95 % interval (None with too few runs)."""

    mean: float
    interval: tuple[float, float] | None

    @property
    def verdict(self) -> str:
        """For a loss: lower is better. One run an arm never decides."""
        if self.interval is None or self.interval[0] <= 0 <= self.interval[1]:
            return "unresolved"
        return "better" if self.mean < 0 else "worse"


def welch(first: Sequence[float], second: Sequence[float]) -> Difference:
    """Welch's t interval of mean(second) - mean(first), which needs two runs in each arm."""
    mean = sum(second) / len(second) - sum(first) / len(first)
    if min(len(first), len(second)) < 2:
        return Difference(mean, None)
    from scipy.stats import ttest_ind

    interval = ttest_ind(second, first, equal_var=False).confidence_interval(0.95)
    return Difference(mean, (float(interval.low), float(interval.high)))
