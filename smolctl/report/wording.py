"""Numbers, names and intervals as text."""

import math
from collections.abc import Collection, Iterable, Mapping
from typing import TypeVar

from smolctl.analysis.arms import Arm
from smolctl.analysis.comparison import Comparison
from smolctl.analysis.quantized_arms import percent
from smolctl.analysis.run_metrics import Metric, mean_and_spread
from smolctl.analysis.verdicts import Difference
from smollm2.errors import first_few

T = TypeVar("T")

AXES = {"tokens": "tokens", "flops": "FLOPs", "seconds": "training time"}
MOST_SEEDS = 10  # pieces of a list of seeds
MOST_NAMES = 3  # of runs that are listed one by one
NO_INTERVAL = "without an interval"


def number(value: float | None, metric: Metric, *, signed: bool = False) -> str:
    """A value with the digits of its metric; `–` where there is none."""
    if value is None or value != value:
        return "–"
    return f"{value:{'+' if signed else ''},.{metric.digits}f}"


def mean_text(values: list[float], metric: Metric) -> str:
    """`5.4321 ± 0.0123`, without a spread for one run."""
    mean, spread = mean_and_spread(values)
    if spread is None or spread != spread:
        return number(mean, metric)
    return f"{number(mean, metric)} ± {number(spread, metric)}"


def interval_text(difference: Difference, metric: Metric) -> str:
    """`-0.0200 to +0.0100 (95 %)`, or `–`."""
    if difference.interval is None:
        return "–"
    low, high = (number(bound, metric, signed=True) for bound in difference.interval)
    return f"{low} to {high} ({100 * difference.confidence:.4g} %)"


def interval_words(difference: Difference) -> str:
    """`95 % interval -0.0200 to +0.0100`; the interval must be there."""
    assert difference.interval is not None
    low, high = difference.interval
    return f"{100 * difference.confidence:.4g} % interval {low:+.4f} to {high:+.4f}"


def bounds_text(bounds: tuple[float, float] | None, form: str) -> str:
    """` (-0.0200 to +0.0100)`, each bound in the format `form`; empty without bounds."""
    return f" ({' to '.join(format(bound, form) for bound in bounds)})" if bounds else ""


def percent_cell(share: float) -> str:
    """`99.9 %`; `–` for NaN."""
    return "–" if math.isnan(share) else percent(share)


def share(change: float) -> str:
    """`14 % more`, `as many`."""
    if abs(change) < 0.005:
        return "as many"
    return f"{100 * abs(change):.0f} % {'more' if change > 0 else 'fewer'}"


def runs_text(count: int) -> str:
    """`1 run`, `5 runs`."""
    return f"{count} run{'' if count == 1 else 's'}"


def listed(names: Collection[str]) -> str:
    """`a, b and c`."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def by_value(texts: Mapping[str, str], word: str) -> str:
    """`25.0 % in orig, 100.0 % in pow2 and moe`: names with the same text together, after `word`,
    here `in`."""
    return ", ".join(f"{text} {word} {listed(found)}" for text, found in grouped(texts).items())


def grouped(texts: Mapping[str, str]) -> dict[str, list[str]]:
    """The keys of each value, in order."""
    keys: dict[str, list[str]] = {}
    for key, text in texts.items():
        keys.setdefault(text, []).append(key)
    return keys


def seeds_text(seeds: Iterable[int]) -> str:
    """`0-2, 5`: in order, three or more in a row as a range; of many pieces the first few `and 41
    more`."""
    pieces: list[list[int]] = []
    for seed in sorted(seeds):
        if pieces and seed == pieces[-1][-1] + 1:
            pieces[-1].append(seed)
        else:
            pieces.append([seed])
    texts: list[str] = []
    for piece in pieces:
        is_range = len(piece) > 2
        texts += [f"{piece[0]}-{piece[-1]}"] if is_range else list(map(str, piece))
    if len(texts) <= MOST_SEEDS:
        return ", ".join(texts)
    return f"{', '.join(texts[: MOST_SEEDS - 1])} and {len(texts) - MOST_SEEDS + 1} more"


def names_text(names: Collection[str]) -> str:
    """`pow2-s0, pow2-s1`; many runs of an arm by their seeds, `47 runs of pow2 (seeds 0-46)`."""
    if len(names) <= MOST_NAMES:
        return listed(names)
    seeds: dict[str, list[int]] = {}
    others = []
    for name in names:
        stem, _, seed = name.rpartition("-s")
        if stem and seed.isdecimal():
            seeds.setdefault(stem, []).append(int(seed))
        else:
            others.append(name)
    texts = [
        f"{runs_text(len(own))} of {stem} (seed{'s' * (len(own) > 1)} {seeds_text(own)})"
        for stem, own in seeds.items()
    ]
    return listed([*texts, first_few(others)] if others else texts)


def briefly(sentences: Iterable[str]) -> list[str]:
    """Sentences that each begin with the name of a run: many that say the same of their runs become
    one, with the others' names after it."""
    alike: dict[str, list[str]] = {}
    for sentence in sentences:
        name = sentence.partition(" ")[0]
        alike.setdefault(sentence.replace(name, "\0"), []).append(name)
    texts = []
    for rest, names in alike.items():
        if len(names) <= MOST_NAMES:
            texts += [rest.replace("\0", name) for name in names]
        else:
            texts.append(f"{rest.replace(chr(0), names[0])} So with {names_text(names[1:])}.")
    return texts


def once(items: Iterable[T]) -> list[T]:
    """Each item once, in order."""
    return list(dict.fromkeys(items))


def machine(comparison: Comparison) -> str:
    """`AMD EPYC (2 cores) with 2 threads`, on which the speeds were measured."""
    speeds = comparison.speeds
    device, threads = comparison.machines[0]
    if speeds is not None:
        device, threads = speeds.device_name, speeds.threads
    return f"{device} with {threads} thread{'' if threads == 1 else 's'}"


def size_words(comparison: Comparison) -> str:
    """`at full size`, `at nano scale`."""
    return "at full size" if comparison.scale == "full" else f"at {comparison.scale} scale"


def described(comparison: Comparison) -> str:
    """``Study `s`: nano scale, 1,000 steps of 1,024 tokens``; all steps where they differ."""
    steps = sorted({arm.protocol.steps for arm in comparison.arms})
    counts = listed([f"{count:,}" for count in steps])
    tokens = comparison.base.protocol.tokens_per_step
    return (
        f"Study `{comparison.study}`: {comparison.scale} scale, {counts} steps of {tokens:,} tokens"
    )


def rates_text(arm: Arm) -> str:
    """`0.004`, or `0.02 and 0.003` where the optimizer has two."""
    return " and ".join(f"{rate:g}" for rate in arm.rates)
