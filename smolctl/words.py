"""A comparison in sentences: what the runs show, and what they do not."""

from collections.abc import Collection, Sequence

from smolctl.comparison import SAME_BUDGET, Arm, Comparison, best_rate
from smolctl.stats import Difference

AXES = {"tokens": "tokens", "flops": "FLOPs", "seconds": "training time"}
SAME_SIZE = 0.02  # parameters and FLOPs that differ by less are the same


def conclusion(comparison: Comparison) -> list[str]:
    """What the runs say about quality, and on how much text, then about speed."""
    return [*on_quality(comparison), on_text(comparison), *on_speed(comparison)]


def on_text(comparison: Comparison) -> str:
    """On how much text the verdicts stand."""
    tokens, documents = comparison.base.protocol.test_tokens, comparison.base.runs[0].test_documents
    return (
        f"The test loss is over {tokens:,} tokens of {documents} held-out "
        f"document{'' if documents == 1 else 's'}: other text may say otherwise."
    )


def on_quality(comparison: Comparison, answered: Collection[tuple[str, str]] = ()) -> list[str]:
    """The verdict on each arm against the first, then what holds for several.

    Args:
        answered: arms, each with what of `tokens`, `flops` and `seconds` another study has made
            equal for it: there that one's verdict holds.
    """
    models = [arm for arm in comparison.others if not is_control(comparison.base, arm)]
    sentences = verdict_sentences(comparison)
    sentences += [control(comparison, arm) for arm in comparison.others if arm not in models]
    sentences += resolvable(comparison, models)
    sentences += sizes(comparison.base, models)
    sentences += other_views(comparison, models, answered)
    for arm in comparison.arms:
        if arm.failed:
            sentences.append(
                f"{' and '.join(arm.failed)} of {arm.name} failed and stands in no number here: "
                f"what is said of {arm.name} is of the runs that ended, and may flatter it."
            )
    sentences += rates(comparison)
    whole = comparison.family or comparison
    if len(whole.others) > 1:
        sentences.append(
            f"The {len(whole.others)} verdicts of the study hold together, for which their "
            f"intervals are wider (Holm's correction): if no arm differed from {whole.base.name}, "
            "the chance of any false one would be at most 5 %."
        )
    return sentences


def verdict_sentences(comparison: Comparison) -> list[str]:
    """A sentence an arm."""
    return [quality(comparison, arm) for arm in comparison.others]


def on_speed(comparison: Comparison) -> list[str]:
    """Sentences on each arm against the first, or why there are none."""
    if comparison.has_speed:
        sentences = [speed(comparison, arm) for arm in comparison.others]
        return [
            *sentences,
            f"Measured on {machine(comparison)}: another machine may say otherwise. Each interval "
            "stands by itself.",
        ]
    if comparison.scale != "full":
        return [
            f"Nothing is concluded about speed or memory: what holds at {comparison.scale} scale "
            "does not carry over to full size. A handful of full-size steps tells."
        ]
    return [
        "Nothing is concluded about speed: the runs were made on different machines or with "
        "different numbers of threads."
    ]


def machine(comparison: Comparison) -> str:
    """`AMD EPYC (2 cores) with 2 threads`, of runs that were made on one."""
    device, threads = comparison.machines[0]
    return f"{device} with {threads} thread{'' if threads == 1 else 's'}"


def on_chance(comparison: Comparison) -> list[str]:
    """How many accuracies guessing could explain; none where no task was scored."""
    rows = comparison.tasks[comparison.tasks["metric"] == "acc"].dropna(subset="chance")
    if rows.empty:
        return []
    error = (rows["chance"] * (1 - rows["chance"]) / rows["n"]) ** 0.5  # of one run that guesses
    above = int((rows["mean"] > rows["chance"] + 2 * error).sum())
    below = int((rows["mean"] < rows["chance"] - 2 * error).sum())
    text = (
        f"{above} of {len(rows)} accuracies lie more than two standard errors of a run above what "
        "guessing gives (chance), where guessing would put one in forty"
    )
    if below:
        text += f"; {below} lie as far below it, as where a model likes short answers best"
    if above + below < len(rows):
        text += (
            ". The others cannot be told from guessing by so many questions; the bits per byte of "
            "the right answers tell models apart sooner"
        )
    return [f"{text}."]


def described(comparison: Comparison) -> str:
    """``Study `s`: nano scale, 1,000 steps of 1,024 tokens``; where steps differ, all of them."""
    steps = sorted({arm.protocol.steps for arm in comparison.arms})
    counts = listed([f"{count:,}" for count in steps])
    tokens = comparison.base.protocol.tokens_per_step
    return (
        f"Study `{comparison.study}`: {comparison.scale} scale, {counts} steps of {tokens:,} tokens"
    )


def is_control(base: Arm, arm: Arm) -> bool:
    """Whether the two are one model, trained in one way under two names, with other seeds."""
    one, two = base.protocol, arm.protocol
    is_same = (one.model, one.recipe, one.steps) == (two.model, two.recipe, two.steps)
    return is_same and not set(base.seeds) & set(arm.seeds)


def is_of_controls(study: Comparison) -> bool:
    """Whether every arm is the first one under another name."""
    return bool(study.others) and all(is_control(study.base, arm) for arm in study.others)


def control(comparison: Comparison, arm: Arm) -> str:
    """What the verdict on a control says of the method."""
    text = f"{arm.name} is a control: {comparison.base.name} under another name, with other seeds."
    difference = comparison.primary[arm.name]
    if difference.interval is None:  # nothing else could have come out
        return text
    if difference.verdict == "unresolved":
        return f"{text} That it is unresolved is as it should be."
    return (
        f"{text} That it is {difference.verdict} is a false verdict, as one control in twenty may "
        "show."
    )


def quality(comparison: Comparison, arm: Arm) -> str:
    """The verdict on the primary metric, with what it stands on."""
    base, difference = comparison.base, comparison.primary[arm.name]
    start = f"{horizon(comparison, arm)} {arm.name}"
    runs = f"{count(arm)} against {count(base)}"
    amount = distance(difference, base)
    if min(len(base.runs), len(arm.runs)) < 2:
        return (
            f"{start} ended {amount} on the test split ({runs}): unresolved. The noise between "
            "runs is known only from several of each arm; add seeds."
        )
    if difference.interval is None:
        return f"{start} ended {amount} on the test split ({runs}), every run alike: unresolved."
    stands_on = f"{amount} ({interval_words(difference)}, {runs})"
    if difference.verdict != "unresolved":
        return f"{start} is {difference.verdict} than {base.name}: its test loss is {stands_on}."
    return f"{start} against {base.name} is unresolved: its test loss is {stands_on}."


def resolvable(comparison: Comparison, arms: Sequence[Arm]) -> list[str]:
    """How small a difference these runs could have found, of the arms where they found none."""
    found = ((arm.name, comparison.primary[arm.name]) for arm in arms)
    texts = [
        f"{difference.resolvable:.4f} ({name})"
        for name, difference in found
        if difference.verdict == "unresolved" and difference.resolvable is not None
    ]
    if not texts:
        return []
    return [
        "If the noise is as these runs suggest, the smallest true difference that would be found "
        f"four times in five is {listed(texts)}; a smaller one takes more seeds."
    ]


def horizon(comparison: Comparison, arm: Arm) -> str:
    """`At equal tokens`; planned seconds that came out unequal are said to have."""
    if comparison.equal != "seconds":
        return f"At equal {AXES[comparison.equal]}"
    ours, theirs = arm.mean_of("seconds"), comparison.base.mean_of("seconds")
    if max(ours, theirs) <= min(ours, theirs) * (1 + SAME_BUDGET["seconds"]):
        return f"At equal {AXES['seconds']}"
    return (
        f"With steps planned for equal {AXES['seconds']}, which came out as {ours:.0f} s against "
        f"{theirs:.0f} s,"
    )


def distance(difference: Difference, base: Arm) -> str:
    """`0.0123 nats a token below that of orig`."""
    if abs(difference.mean) < 0.00005:
        return f"within 0.0001 nats a token of that of {base.name}"
    side = "below" if difference.mean < 0 else "above"
    return f"{abs(difference.mean):.4f} nats a token {side} that of {base.name}"


def sizes(base: Arm, arms: Sequence[Arm]) -> list[str]:
    """How parameters and FLOPs compare, and so what the verdicts are not about."""
    alike, unlike = list[str](), list[str]()
    for arm in arms:
        total, active, flops = size_changes(base, arm)
        parts = [f"{share(total)} parameters"]
        if abs(active - total) > 0.005:
            parts.append(f"{share(active)} active ones")
        parts.append(f"{share(flops)} FLOPs a token")
        (alike if is_alike(base, arm) else unlike).append(f"{arm.name} has {listed(parts)}")
    sentences = []
    if alike:
        sentences.append(f"Of equal size and cost with {base.name}: {'; '.join(alike)}.")
    if unlike:
        sentences.append(f"Not of equal size and cost with {base.name}: {'; '.join(unlike)}.")
    return sentences


def is_alike(base: Arm, arm: Arm) -> bool:
    """Whether the two are of equal size and cost."""
    return max(map(abs, size_changes(base, arm))) <= SAME_SIZE


def size_changes(base: Arm, arm: Arm) -> tuple[float, float, float]:
    """How many more parameters, active ones and FLOPs a token an arm has, as shares."""
    return (
        arm.parameters["total"] / base.parameters["total"] - 1,
        arm.parameters["active"] / base.parameters["active"] - 1,
        arm.flops_per_token / base.flops_per_token - 1,
    )


def other_views(
    comparison: Comparison, arms: Sequence[Arm], answered: Collection[tuple[str, str]]
) -> list[str]:
    """Whether the verdicts also hold at equal tokens, FLOPs or time."""
    names, base = {arm.name for arm in arms}, comparison.base.name
    fair, unfair = dict[str, list[str]](), dict[str, list[str]]()
    for view in comparison.views:
        is_told = view.axis == comparison.equal or (view.arm, view.axis) in answered
        if view.arm in names and not is_told:
            found = fair if view.is_fair else unfair
            found.setdefault(AXES[view.axis], []).append(view.arm)
    sentences = [
        f"{listed(equal)} also had equal {axis} with {base}, so the same holds there."
        for axis, equal in fair.items()
    ]
    sentences += [
        f"At equal {axis} these runs cannot tell of {listed(open_)} against {base}: one of each "
        "pair was still in the middle of its schedule there, and the loss falls at its end."
        for axis, open_ in unfair.items()
    ]
    return sentences


def rates(comparison: Comparison) -> list[str]:
    """Whether the learning rates are a reason of their own."""
    if comparison.is_swept:
        edges = [
            arm.name
            for arm in comparison.arms
            if best_rate(comparison.sweep[arm.name])
            in (min(comparison.sweep[arm.name]), max(comparison.sweep[arm.name]))
        ]
        if not edges:
            return []
        return [
            f"The best learning rate of {' and '.join(edges)} lies at the edge of the sweep: one "
            "beyond it may be better."
        ]
    if len({arm.rates for arm in comparison.arms}) == 1:
        return []
    listed = (
        f"{' and '.join(f'{r:g}' for r in arm.rates)} for {arm.name}" for arm in comparison.arms
    )
    return [
        f"The learning rates differ ({', '.join(listed)}) and were not chosen by a sweep of this "
        "study: the verdict is on model and rate together."
    ]


def speed(comparison: Comparison, arm: Arm) -> str:
    """Tokens a second, which is a measurement of the runs' machine."""
    base, found = comparison.base, comparison.speed_ratios
    if arm.name not in found:
        return f"The speed of {arm.name} was not measured: its runs are too short."
    speed = found[arm.name]
    flops = arm.flops_per_token / base.flops_per_token
    tokens_bounds, flops_bounds = ", without an interval", ""
    if speed.interval is not None:
        low, high = speed.interval
        tokens_bounds = f" (95 % interval {low:.2f} to {high:.2f})"
        flops_bounds = f" ({flops * low:.2f} to {flops * high:.2f})"
    size = ", of equal size and cost," if is_alike(base, arm) else ""
    return (
        f"{arm.name}{size} trained at {speed.mean:.2f} times the tokens per second of {base.name}"
        f"{tokens_bounds}, which is {flops * speed.mean:.2f} times its FLOPs per second"
        f"{flops_bounds}."
    )


def interval_words(difference: Difference) -> str:
    """`95 % interval -0.0200 to +0.0100`; the interval must be there."""
    assert difference.interval is not None
    low, high = difference.interval
    return f"{100 * difference.confidence:.4g} % interval {low:+.4f} to {high:+.4f}"


def count(arm: Arm) -> str:
    return f"{len(arm.runs)} run{'' if len(arm.runs) == 1 else 's'}"


def share(change: float) -> str:
    """`14 % more`, `as many`."""
    if abs(change) < 0.005:
        return "as many"
    return f"{100 * abs(change):.0f} % {'more' if change > 0 else 'fewer'}"


def listed(names: list[str]) -> str:
    """`a, b and c`."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last
