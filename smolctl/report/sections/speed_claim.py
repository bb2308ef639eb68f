"""What a card claimed about speed, beside what was measured."""

from collections.abc import Sequence

from smolctl.analysis.comparison import Comparison
from smolctl.report.sections.speed import by_cause
from smolctl.report.wording import NO_INTERVAL

CLAIMED_MINUTES = (10.76, 10.06)  # that the original and pow2 took
# Minutes that are 6.5 % fewer are a speed that is 7.0 % higher.
CLAIMED_SPEED = 100 * (CLAIMED_MINUTES[0] / CLAIMED_MINUTES[1] - 1)
SPEED_CLAIM = (
    f"pow2 trains 6.5 % faster ({CLAIMED_MINUTES[1]} against {CLAIMED_MINUTES[0]} min, which is "
    f"{CLAIMED_SPEED:.1f} % more speed), significantly"
)


def judged_speeds(pairs: Sequence[Comparison]) -> tuple[str, str]:
    """What was measured of pow2 beside each original, and whether the claim survives.

    Args:
        pairs: an original and pow2, timed.
    """
    texts, verdicts = [], []
    for pair in pairs:
        assert pair.speeds is not None
        (found,) = pair.speeds.ratios.values()
        text = (
            f"{more(found.tokens.mean):+.1f} % tokens per second against {pair.base.name}, at "
            f"{found.flops_per_token:.2f} times the FLOPs per token and {found.flops.mean:.2f} "
            "times the FLOPs per second"
        )
        if found.tokens.interval is None:
            texts.append(f"{text}, {NO_INTERVAL}")
            verdicts.append(f"open (against {pair.base.name})")
            continue
        low, high = map(more, found.tokens.interval)
        texts.append(f"{text} ({100 * found.confidence:.4g} % interval {low:+.1f} to {high:+.1f})")
        verdict = f"{speed_verdict(low, high)}{by_cause(found)}"
        verdicts.append(f"{verdict} (against {pair.base.name})")
    return "; ".join(texts), "; ".join(verdicts)


def more(times: float) -> float:
    """How many percent more."""
    return 100 * (times - 1)


def speed_verdict(low: float, high: float) -> str:
    """Of an interval of the speed, in percent more."""
    if high < 0:
        return "falls: slower"
    if high < CLAIMED_SPEED:
        return "falls: faster, but by less" if low > 0 else "falls: not by so much"
    return "survives" if low > 0 else "inconclusive"
