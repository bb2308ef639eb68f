"""What the original power-of-two card claimed, beside what a study measured."""

from collections import Counter

from smolctl.comparison import Arm, Comparison
from smolctl.facts import ACCURACY, LOSS, SECONDS, TOKENS_PER_SECOND, Metric, mean_and_spread
from smolctl.quantization import Quantized
from smolctl.stats import Difference
from smolctl.tables import Table, interval_text, mean_text, number
from smolctl.words import listed

NOT_MEASURED = "not measured"
NO_INTERVAL = "without an interval, for an arm has one run"


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


def claims_table(comparison: Comparison, quantized: Quantized) -> Table:
    """What the original card claimed, what this study measured, and the verdict."""
    pair = power_of_two(comparison)
    pow2 = next((a for a in pair.others if a.protocol.variant == "pow2"), None) if pair else None
    rows = [
        parameters_claim(),
        speed_claim(pair, pow2),
        loss_claim(pair, pow2),
        accuracy_claim(pair, pow2),
        moe_claim(dense_against_moe(comparison)),
        quantization_claim(pair, quantized),
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
        "two models under one name: the table's is not the text's",
    )


def speed_claim(pair: Comparison | None, pow2: Arm | None) -> tuple[str, str, str]:
    claim = "pow2 trains 6.5 % faster (10.06 against 10.76 min), significantly"
    if pair is None or pow2 is None or not pair.has_speed:
        return claim, f'{NOT_MEASURED}: a full-size study on one machine, scale = "full"', "open"
    difference = pair.secondary(TOKENS_PER_SECOND).get(pow2.name)
    if difference is None:
        return claim, f"{NOT_MEASURED}: the runs are too short to be timed", "open"
    change = difference.mean / mean_and_spread(pair.base.values(TOKENS_PER_SECOND))[0]
    text = f"{100 * change:+.1f} % tokens per second against {pair.base.name}, "
    if difference.interval is None:
        return claim, f"{text}{NO_INTERVAL}", "open"
    interval = interval_text(difference, TOKENS_PER_SECOND)
    return claim, f"{text}{interval} tokens per second", "secondary: see the interval"


def loss_claim(pair: Comparison | None, pow2: Arm | None) -> tuple[str, str, str]:
    claim = "validation loss 3.626 (original) and 3.628 (pow2), one run each: comparable"
    if pair is None or pow2 is None:
        return claim, f"{NOT_MEASURED}: a study with the arms orig and pow2", "open"
    difference = pair.primary[pow2.name]
    return claim, both(pair, pow2, LOSS, difference), f"pow2 is {difference.verdict}"


def accuracy_claim(pair: Comparison | None, pow2: Arm | None) -> tuple[str, str, str]:
    claim = "pow2 has the slightly higher accuracy (36.03 % against 36.01 %)"
    if pair is None or pow2 is None:
        return claim, f"{NOT_MEASURED}: a study with the arms orig and pow2", "open"
    difference = pair.secondary(ACCURACY)[pow2.name]
    verdict = "secondary: see the interval" if difference.interval else "open"
    return claim, both(pair, pow2, ACCURACY, difference), verdict


def both(pair: Comparison, arm: Arm, metric: Metric, difference: Difference) -> str:
    """The values of two arms and their difference."""
    interval = interval_text(difference, metric) if difference.interval else NO_INTERVAL
    return (
        f"{metric.label}: {mean_text(pair.base.values(metric), metric)} ({pair.base.name}) and "
        f"{mean_text(arm.values(metric), metric)} ({arm.name}), {pair.scale} scale; difference "
        f"{number(difference.mean, metric, signed=True)}, {interval}"
    )


def moe_claim(pair: Comparison | None) -> tuple[str, str, str]:
    claim = "the dense model starts more slowly than the mixture of experts (Figure 1)"
    if pair is None:
        return claim, f"{NOT_MEASURED}: a study with the arms orig and moe-160m", "open"
    moe = pair.others[0]
    difference = pair.primary[moe.name]
    return (
        claim,
        f"with equal {pair.equal}, at the end: {both(pair, moe, LOSS, difference)}",
        f"{moe.name} is {difference.verdict}",
    )


def quantization_claim(pair: Comparison | None, quantized: Quantized) -> tuple[str, str, str]:
    claim = "power-of-two dimensions make quantization efficient"
    study = quantized.comparison.study
    if pair is None:
        return claim, f"{NOT_MEASURED}: a study with the arms orig and pow2, then quantize", "open"
    if not quantized.is_measured:
        return claim, f"{NOT_MEASURED}: `smolctl quantize --bits 4 --study {study}`", "open"
    if not quantized.is_judged:
        return claim, f"{NOT_MEASURED} at full size: {pair.scale} scale does not carry over", "open"
    texts, verdicts = [], []
    for arm in pair.others:
        found = [p for p in quantized.pairs if p.arm == arm.name]
        compared = {p.name: p.difference for p in found if p.difference}
        if compared:
            changes = [
                f"{number(difference.mean, LOSS, signed=True)} at {name} ({difference.verdict})"
                for name, difference in compared.items()
            ]
            texts.append(
                f"the loss of {arm.name} changes, against that of {pair.base.name}, by "
                f"{listed(changes)}"
            )
        if others := [p.name for p in found if p.name not in compared]:
            texts.append(f"{arm.name} cannot be compared at {listed(others)}: see Quantization")
        counts = Counter(difference.verdict for difference in compared.values())
        if compared:
            parts = [f"{verdict} at {count}" for verdict, count in counts.most_common()]
            verdicts.append(f"{arm.name} is {listed(parts)} of {len(compared)}")
    here = "; ".join(texts) or f"{NOT_MEASURED} for both: see Quantization"
    return claim, here, "; ".join(verdicts) or "open"


def power_of_two_table(comparison: Comparison) -> Table:
    """The table of the original card: parameters, dimensions, time, loss, accuracy."""
    arms = comparison.arms
    models = [arm.protocol.model for arm in arms]
    rows = [
        ("Params", *(f"{arm.parameters['total']:,}" for arm in arms)),
        ("Dimensions", *(f"{m.d_model} / {m.n_heads} / {m.n_layers}" for m in models)),
        ("Training time, s", *(mean_text(arm.values(SECONDS), SECONDS) for arm in arms)),
        ("Test loss", *(mean_text(arm.values(LOSS), LOSS) for arm in arms)),
        ("Test accuracy", *(mean_text(arm.values(ACCURACY), ACCURACY) for arm in arms)),
    ]
    return Table("Power of two", ("Aspect", *(arm.name for arm in arms)), rows)
