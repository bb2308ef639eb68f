"""A comparison in sentences: what the runs show, and what they do not."""

from smolctl.comparison import SECONDARY, Arm, Comparison
from smolctl.stats import Difference

AXES = {"tokens": "tokens", "flops": "FLOPs", "seconds": "training time"}
TOKENS_PER_SECOND = next(metric for metric in SECONDARY if metric.name == "tokens_per_second")


def conclusion(comparison: Comparison) -> list[str]:
    """Sentences on each arm against the first, then what holds for all."""
    sentences = []
    for arm in comparison.others:
        difference = comparison.primary[arm.name]
        sentences.append(quality(comparison.equal, comparison.base, arm, difference))
        sentences.append(size(comparison.base, arm))
        sentences += other_views(comparison, arm, difference)
        if comparison.scale == "full":
            sentences.append(speed(comparison, arm))
    rates = {arm.name: arm.protocol.recipe.lr for arm in comparison.arms}
    if len(set(rates.values())) > 1 and not comparison.is_swept:
        text = ", ".join(f"{rate:g} for {arm}" for arm, rate in rates.items())
        sentences.append(
            f"The learning rates differ ({text}) and were not chosen by one sweep in this study: "
            "the verdict is on model and rate together."
        )
    if comparison.scale != "full":
        sentences.append(
            f"Nothing is said about speed or memory: what holds at {comparison.scale} scale does "
            "not carry over to full size. A handful of full-size steps tells."
        )
    if len(comparison.others) > 1:
        sentences.append(
            f"The {len(comparison.others)} verdicts hold together (Holm): if no arm differed from "
            f"{comparison.base.name}, the chance of any false one would be at most 5 %."
        )
    return sentences


def quality(equal: str, base: Arm, arm: Arm, difference: Difference) -> str:
    """The verdict on the primary metric, with what it stands on."""
    seeds = f"{len(arm.runs)} against {len(base.runs)} " + (
        "run" if len(base.runs) == 1 else "runs"
    )
    amount = (
        f"{abs(difference.mean):.4f} nats a token {'below' if difference.mean < 0 else 'above'}"
    )
    if difference.interval is None:
        return (
            f"At equal {AXES[equal]} {arm.name} ended {amount} {base.name} on the test split "
            f"({seeds}): unresolved. Without several runs of each arm, the noise between runs is "
            "not known; add seeds."
        )
    interval = f"{interval_text(difference)}, {seeds}"
    if difference.verdict != "unresolved":
        return (
            f"At equal {AXES[equal]} {arm.name} is {difference.verdict} than {base.name}: its test "
            f"loss is {amount} that of {base.name} ({interval})."
        )
    text = (
        f"At equal {AXES[equal]} {arm.name} against {base.name} is unresolved: its test loss is "
        f"{amount} that of {base.name} ({interval})."
    )
    if difference.resolvable is not None:
        text += (
            f" This design finds a difference of {difference.resolvable:.4f} with 80 % power; "
            "for a smaller one it takes more seeds."
        )
    return text


def size(base: Arm, arm: Arm) -> str:
    """How parameters and FLOPs compare, and so what the verdict is not about."""
    total = arm.parameters["total"] / base.parameters["total"] - 1
    active = arm.parameters["active"] / base.parameters["active"] - 1
    flops = arm.flops_per_token / base.flops_per_token - 1
    parts = [f"{share(total)} parameters"]
    if abs(active - total) > 0.005:
        parts.append(f"{share(active)} active ones")
    parts.append(f"{share(flops)} FLOPs a token")
    text = f"{arm.name} has {', '.join(parts[:-1])} and {parts[-1]}"
    if max(abs(total), abs(flops)) > 0.02:
        text += ": the two are not of equal size and cost"
    return f"{text}."


def other_views(comparison: Comparison, arm: Arm, primary: Difference) -> list[str]:
    """The verdicts at equal FLOPs and time, where the runs can tell."""
    base, sentences, also = comparison.base, [], []
    for view in comparison.views:
        if view.axis == comparison.equal:
            continue
        if not (view.ended[base.name] and view.ended[arm.name]):
            sentences.append(
                f"At equal {AXES[view.axis]} these runs cannot tell: {base.name} and {arm.name} "
                f'did not both end their schedules there (a study with equal = "{view.axis}" does).'
            )
        elif view.differences[arm.name].verdict == primary.verdict:
            also.append(AXES[view.axis])
        else:  # other arms are left out there, and Holm asks for less
            sentences.append(quality(view.axis, base, arm, view.differences[arm.name]))
    if also:
        sentences.append(
            f"{arm.name} and {base.name} ended with equal {' and '.join(also)} too, so the same "
            "holds there."
        )
    return sentences


def speed(comparison: Comparison, arm: Arm) -> str:
    """Tokens a second, which is a measurement of this machine."""
    found = comparison.differences(TOKENS_PER_SECOND)
    base = comparison.base
    if arm.name not in found:
        return f"The speed of {arm.name} was not measured: its runs are too short."
    theirs = sum(base.values(TOKENS_PER_SECOND)) / len(base.runs)
    difference = found[arm.name]
    text = f"{arm.name} trains {1 + difference.mean / theirs:.2f} times the tokens per second"
    machine = base.runs[0].run.manifest["environment"]["device_name"]
    if difference.interval is None:
        return f"{text} of {base.name} on {machine}; over one run an arm, so unresolved."
    low, high = (1 + bound / theirs for bound in difference.interval)
    return f"{text} of {base.name} on {machine} (95 % interval {low:.2f} to {high:.2f})."


def interval_text(difference: Difference) -> str:
    """`95 % interval -0.0200 to +0.0100`; the interval must be there."""
    assert difference.interval is not None
    low, high = difference.interval
    return f"{100 * difference.confidence:.4g} % interval {low:+.4f} to {high:+.4f}"


def share(change: float) -> str:
    """`14 % more`, `as many`."""
    if abs(change) < 0.005:
        return "as many"
    return f"{abs(change):.0%} {'more' if change > 0 else 'fewer'}".replace("%", " %")
