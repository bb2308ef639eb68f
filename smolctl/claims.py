"""What the original power-of-two card claimed, beside what was measured."""

from collections.abc import Sequence

from smolctl.comparison import Arm, Comparison, read_curve
from smolctl.evidence import Evidence
from smolctl.facts import ACCURACY, LOSS, SECONDS, Metric
from smolctl.quantization import Pair, Quantized
from smolctl.quantization_words import span
from smolctl.stats import Difference, differences
from smolctl.tables import Table, interval_text, mean_text, number
from smolctl.words import listed

NOT_MEASURED = "not measured"
CLAIMED_SPEED = 6.5  # percent
START = 0.1  # of the tokens
NO_INTERVAL = "without an interval"


def dense_against_moe(comparison: Comparison) -> Comparison | None:
    """The first arm, if it is dense, beside the mixtures of experts; None without."""
    if comparison.base.protocol.model.is_moe:
        return None
    return comparison.among([a.name for a in comparison.others if a.protocol.model.is_moe])


def power_of_two(comparison: Comparison) -> Comparison | None:
    """The first arm, if it is an original one, beside the power-of-two arms; None without."""
    if comparison.base.protocol.variant not in ("orig", "orig-174m"):
        return None
    twos = [a.name for a in comparison.others if a.protocol.variant in ("pow2", "pow2-135m")]
    return comparison.among(twos)


def claims_table(evidence: Evidence) -> Table:
    """What the original card claimed, what was measured, and whether the claim survives; each by
    the first study that has its arms."""
    twos = [pair for study in evidence.studies if (pair := power_of_two(study)) if pow2_of(pair)]
    moes = [pair for study in evidence.studies if (pair := dense_against_moe(study))]
    rows = [
        parameters_claim(),
        speed_claim(evidence.comparing),
        loss_claim(twos[0] if twos else None),
        accuracy_claim(twos[0] if twos else None),
        moe_claim(moes[0] if moes else None),
        quantization_claim(evidence.quantized),
    ]
    return Table("Claims", ("the original card claimed", "here", "verdict"), rows, n_words=3)


def parameters_claim() -> tuple[str, str, str]:
    from smollm2.config import VARIANTS
    from smollm2.cost import parameters

    counts = {name: parameters(VARIANTS[name]).total for name in ("orig", "orig-174m", "pow2")}
    return (
        "the original has ~135 M parameters in the text, ~174 M in the table; pow2 ~151 M",
        f"by definition at full size: `orig` (d_ff 1536) {counts['orig']:,}, `orig-174m` (d_ff "
        f"2304) {counts['orig-174m']:,}, `pow2` {counts['pow2']:,}",
        "falls: two models under one name, the table's is not the text's",
    )


def speed_claim(studies: Sequence[Comparison]) -> tuple[str, str, str]:
    """By the first study that tells of speed and has the arms; first against the original of the
    claim, which had 174 M parameters, where that was timed."""
    claim = f"pow2 trains {CLAIMED_SPEED:g} % faster (10.06 against 10.76 min), significantly"
    found = [pairs for study in studies if study.has_speed and (pairs := originals_and_pow2(study))]
    if not found:
        return claim, f'{NOT_MEASURED}: a full-size study on one machine, scale = "full"', "open"
    timed = [pairs for pairs in found if pairs[0].is_timed]
    if not timed:
        return claim, f"{NOT_MEASURED}: the runs are too short to be timed", "open"
    texts, verdicts = [], []
    for pair in timed[0]:
        pow2 = pair.others[0]
        speed = pair.speed_ratios[pow2.name]
        flops = pow2.flops_per_token / pair.base.flops_per_token
        text = (
            f"{more(speed.mean):+.1f} % tokens per second against {pair.base.name}, at {flops:.2f} "
            "times the FLOPs a token"
        )
        if speed.interval is None:
            texts.append(f"{text}, {NO_INTERVAL}")
            verdicts.append(f"open (against {pair.base.name})")
            continue
        low, high = map(more, speed.interval)
        texts.append(f"{text} (95 % interval {low:+.1f} to {high:+.1f})")
        verdicts.append(f"{speed_verdict(low, high)} (against {pair.base.name})")
    return claim, "; ".join(texts), "; ".join(verdicts)


def more(times: float) -> float:
    """How many percent more."""
    return 100 * (times - 1)


def speed_verdict(low: float, high: float) -> str:
    """Of an interval in percent."""
    if high < 0:
        return "falls: slower"
    if high < CLAIMED_SPEED:
        return "falls: faster, but by less" if low > 0 else "falls: not by so much"
    return "survives" if low > 0 else "unresolved"


def pow2_of(comparison: Comparison) -> Arm | None:
    return of_variant(comparison, "pow2")


def of_variant(comparison: Comparison, variant: str) -> Arm | None:
    """The first arm that is this variant."""
    return next((arm for arm in comparison.arms if arm.protocol.variant == variant), None)


def originals_and_pow2(comparison: Comparison) -> list[Comparison]:
    """pow2 beside each original, that of the claim's size first, each pair by itself: for intervals
    that are no verdicts of the study."""
    pow2 = pow2_of(comparison)
    originals = [of_variant(comparison, name) for name in ("orig-174m", "orig")]
    return [
        Comparison(comparison.study, (original, pow2), ())
        for original in originals
        if original and pow2
    ]


def loss_claim(pair: Comparison | None) -> tuple[str, str, str]:
    """By the verdict of the study, which is against its first arm, and by the interval against any
    other original."""
    claim = "validation loss 3.626 (original) and 3.628 (pow2), one run each: comparable"
    pow2 = pow2_of(pair) if pair else None
    if pair is None or pow2 is None:
        return claim, f"{NOT_MEASURED}: a study with the arms orig and pow2", "open"
    difference = pair.primary[pow2.name]
    words = {"better": "falls: better", "worse": "falls: worse", "unresolved": "unresolved"}
    texts = [both(pair, pow2, LOSS, difference)]
    verdicts = [f"{words[difference.verdict]} (against {pair.base.name})"]
    for other, found in beside_others(pair, LOSS):
        texts.append(both(other, other.others[0], LOSS, found))
        sign = sign_of(found)
        word = words["worse" if sign > 0 else "better" if sign < 0 else "unresolved"]
        verdicts.append(f"{word} (against {other.base.name}, by itself)")
    return claim, "; ".join(texts), "; ".join(verdicts)


def accuracy_claim(pair: Comparison | None) -> tuple[str, str, str]:
    """By an interval of its own against each original of the study."""
    claim = "pow2 has the slightly higher accuracy (36.03 % against 36.01 %)"
    pow2 = pow2_of(pair) if pair else None
    if pair is None or pow2 is None:
        return claim, f"{NOT_MEASURED}: a study with the arms orig and pow2", "open"
    difference = pair.secondary(ACCURACY)[pow2.name]
    texts = [both(pair, pow2, ACCURACY, difference)]
    verdicts = [accuracy_verdict(pair, difference)]
    for other, found in beside_others(pair, ACCURACY):
        texts.append(both(other, other.others[0], ACCURACY, found))
        verdicts.append(accuracy_verdict(other, found))
    return claim, "; ".join(texts), "; ".join(verdicts)


def accuracy_verdict(pair: Comparison, difference: Difference) -> str:
    sign = sign_of(difference)
    word = "survives" if sign > 0 else "falls" if sign < 0 else "unresolved"
    return f"{word} (against {pair.base.name})"


def sign_of(difference: Difference) -> int:
    """1 or -1 if the whole interval is on that side of zero, else 0, as without an interval."""
    low, high = difference.interval or (0.0, 0.0)
    return int(low > 0) - int(high < 0)


def beside_others(pair: Comparison, metric: Metric) -> list[tuple[Comparison, Difference]]:
    """pow2 beside the originals of the study that are not its first arm."""
    whole = pair.family or pair
    return [
        (other, difference)
        for other in originals_and_pow2(whole)
        if other.base is not whole.base
        for difference in other.secondary(metric).values()
    ]


def both(pair: Comparison, arm: Arm, metric: Metric, difference: Difference) -> str:
    """The values of two arms and their difference."""
    interval = interval_or_none(difference, metric)
    return (
        f"{metric.label}: {mean_text(pair.base.values(metric), metric)} ({pair.base.name}) and "
        f"{mean_text(arm.values(metric), metric)} ({arm.name}), {pair.scale} scale; difference "
        f"{number(difference.mean, metric, signed=True)}, {interval}"
    )


def interval_or_none(difference: Difference, metric: Metric) -> str:
    return interval_text(difference, metric) if difference.interval else NO_INTERVAL


def moe_claim(pair: Comparison | None) -> tuple[str, str, str]:
    """By the validation losses after the first `START` of the training."""
    claim = "the dense model starts more slowly than the mixture of experts (Figure 1)"
    if pair is None:
        return claim, f"{NOT_MEASURED}: a study with the arms orig and moe-160m", "open"
    moe = pair.others[0]
    tokens = START * min(pair.base.mean_of("tokens"), moe.mean_of("tokens"))
    dense, mixture = (
        [read_curve(facts, "tokens", tokens) for facts in arm.runs] for arm in (pair.base, moe)
    )
    early = differences(dense, {moe.name: mixture})[moe.name]
    text = (
        f"after {tokens:,.0f} tokens, validation loss: {mean_text(dense, LOSS)} ({pair.base.name}) "
        f"and {mean_text(mixture, LOSS)} ({moe.name}), {pair.scale} scale; difference "
        f"{number(early.mean, LOSS, signed=True)}, {interval_or_none(early, LOSS)}; at the end: "
        f"{both(pair, moe, LOSS, pair.primary[moe.name])}"
    )
    verdicts = {"better": "survives", "worse": "falls", "unresolved": "unresolved"}
    return claim, text, f"{verdicts[early.verdict]} (at the start)"


def quantization_claim(quantized: Quantized) -> tuple[str, str, str]:
    claim = "power-of-two dimensions make quantization efficient"
    study, pair = quantized.comparison.study, power_of_two(quantized.comparison)
    if pair is None:
        return claim, f"{NOT_MEASURED}: a study with the arms orig and pow2, then quantize", "open"
    if not quantized.is_measured:
        return claim, f"{NOT_MEASURED}: `smolctl quantize --bits 4 --study {study}`", "open"
    if not quantized.is_judged:
        return claim, f"{NOT_MEASURED} at full size: {pair.scale} scale does not carry over", "open"
    texts, verdicts = [], []
    for arm in pair.others:
        pairs = [found for found in quantized.pairs if found.arm == arm.name]
        for text, verdict in (loss_changes(pair.base.name, pairs), sizes_at_4_bits(quantized, arm)):
            texts += [text] * bool(text)
            verdicts += [f"{verdict} ({arm.name})"] * bool(verdict)
    here = "; ".join(texts) or f"{NOT_MEASURED} for both: see Quantization"
    return claim, here, "; ".join(verdicts) or "open"


def loss_changes(base: str, pairs: Sequence[Pair]) -> tuple[str, str]:
    """What the losses of an arm say of the claim, and the verdicts on them; either may be empty."""
    by_verdict: dict[str, dict[str, float]] = {}
    for pair in pairs:
        if pair.difference:
            found = by_verdict.setdefault(pair.difference.verdict, {})
            found[pair.name] = pair.difference.mean
    changes = [
        f"by {span(list(means.values()))} at {listed(list(means))} ({verdict})"
        for verdict, means in by_verdict.items()
    ]
    texts = []
    if changes:
        arm = pairs[0].arm
        texts.append(f"the loss of {arm} changes, beside that of {base}, {' and '.join(changes)}")
    if others := [pair.name for pair in pairs if not pair.difference]:
        texts.append(f"{pairs[0].arm} cannot be compared at {listed(others)}: see Quantization")
    parts = [f"{verdict} at {len(means)}" for verdict, means in by_verdict.items()]
    total = sum(map(len, by_verdict.values()))
    return "; ".join(texts), f"loss {listed(parts)} of {total}" if parts else ""


def sizes_at_4_bits(quantized: Quantized, arm: Arm) -> tuple[str, str]:
    """The fewest bytes that a parameter takes beside those of the first arm."""
    base, smallest = quantized.comparison.base.name, quantized.smallest_at_4_bits
    if not {base, arm.name} <= smallest.keys():
        return "", ""
    (theirs, first), (ours, second) = smallest[base], smallest[arm.name]
    text = (
        f"without the embedding a parameter of {arm.name} takes at least {second:.3f} bytes at "
        f"{ours}, one of {base} {first:.3f} at {theirs}"
    )
    if second == first:
        return text, "bytes fall: as many"
    return text, "bytes survive: fewer" if second < first else "bytes fall: more"


def power_of_two_table(comparison: Comparison) -> Table:
    """The table of the original card: parameters, dimensions, time, loss, accuracy."""
    arms = comparison.arms
    models = [arm.protocol.model for arm in arms]
    note = "" if comparison.has_speed else " (no basis for a conclusion)"
    rows = [
        ("Params", *(f"{arm.parameters['total']:,}" for arm in arms)),
        ("Dimensions", *(f"{m.d_model} / {m.n_heads} / {m.n_layers}" for m in models)),
        (f"Training time, s{note}", *(mean_text(arm.values(SECONDS), SECONDS) for arm in arms)),
        ("Test loss", *(mean_text(arm.values(LOSS), LOSS) for arm in arms)),
        ("Test accuracy", *(mean_text(arm.values(ACCURACY), ACCURACY) for arm in arms)),
    ]
    return Table("Power of two", ("Aspect", *(arm.name for arm in arms)), rows)
