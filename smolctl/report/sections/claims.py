"""What a published card claimed, beside what was measured; only for studies that ask for it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from smolctl.analysis.arms import Arm
from smolctl.analysis.comparison import Comparison
from smolctl.analysis.quantized_arms import Pair, Quantized
from smolctl.analysis.run_metrics import ACCURACY, LOSS, SECONDS, Metric
from smolctl.analysis.study_notes import POW2
from smolctl.analysis.verdicts import Difference, Missing, missing_in_order
from smolctl.command_line import command, results_of
from smolctl.report.document import Section, Table, bullets, paragraph, section
from smolctl.report.evidence import Evidence
from smolctl.report.sections.experts import (
    dense_against_experts,
    start_difference,
    start_losses,
    start_tokens,
)
from smolctl.report.sections.quantized_verdicts import all_apart
from smolctl.report.sections.speed_claim import SPEED_CLAIM, judged_speeds
from smolctl.report.verdict_words import intervals_words, verdict_text
from smolctl.report.wording import NO_INTERVAL, interval_text, listed, mean_text, number
from smollm2.model.config import VARIANTS
from smollm2.model.cost import parameters

NOT_MEASURED = "not measured"
BY_ITSELF = (
    "*By itself*: by one 95 % interval without correction, as are the verdicts on speed, accuracy "
    "and the start. The other intervals of the loss are those of the study."
)


@dataclass(frozen=True)
class Claim:
    """What was claimed, what was measured here, and whether the claim survives."""

    claim: str
    here: str
    verdict: str


def claims_section(evidence: Evidence) -> Section | None:
    """The claims in a line each, for a card."""
    lines = [f"{capitalized(one.claim)}: **{one.verdict}**" for one in claims_of(evidence)]
    return section("What the original card claimed", [bullets(lines)])


def capitalized(text: str) -> str:
    """With a capital letter, unless it begins with the name of a variant."""
    return text if text.split()[0] in VARIANTS else text[0].upper() + text[1:]


def claims_in_detail_section(evidence: Evidence) -> Section | None:
    """The claims that the study file names, in full."""
    found = claims_of(evidence)
    table = Table(
        "Claims",
        ("the original card claimed", "here", "verdict"),
        [(one.claim, one.here, one.verdict) for one in found],
        n_words=3,
    )
    note = [paragraph(BY_ITSELF)] if found else []
    return section(
        "What the original card claimed, in numbers", [table, *note, pow2_table(evidence)]
    )


def claims_of(evidence: Evidence) -> list[Claim]:
    """Those that the study file of the first study asks for."""
    return pow2_claims(evidence) if evidence.study_notes.claims == POW2 else []


def pow2_claims(evidence: Evidence) -> list[Claim]:
    """The claims of the card that said powers of two are better, each judged by the first study
    that has its arms."""
    twos = [pair for study in evidence.studies if (pair := power_of_two(study)) if pow2_of(pair)]
    mixtures = [pair for study in evidence.studies if (pair := dense_against_experts(study))]
    return [
        parameters_claim(),
        speed_claim(evidence.comparing),
        loss_claim(twos[0] if twos else None),
        accuracy_claim(twos[0] if twos else None),
        experts_claim(mixtures[0] if mixtures else None),
        quantization_claim(evidence.quantized),
    ]


def power_of_two(comparison: Comparison) -> Comparison | None:
    """The first arm, if it is an original one, beside the power-of-two arms; None without."""
    if comparison.base.protocol.variant not in ("orig", "orig-174m"):
        return None
    twos = [a.name for a in comparison.others if a.protocol.variant in ("pow2", "pow2-135m")]
    return comparison.among(twos)


def pow2_table(evidence: Evidence) -> Table | None:
    """The table of the original card: parameters, dimensions, time, loss, accuracy."""
    pair = power_of_two(evidence.main)
    if pair is None or evidence.study_notes.claims != POW2:
        return None
    arms = pair.arms
    models = [arm.protocol.model for arm in arms]
    note = "" if pair.has_speed else " (no basis for a conclusion)"
    rows = [
        ("Params", *(f"{arm.parameters['total']:,}" for arm in arms)),
        ("Dimensions", *(f"{m.d_model} / {m.n_heads} / {m.n_layers}" for m in models)),
        (f"Training time, s{note}", *(mean_text(arm.values(SECONDS), SECONDS) for arm in arms)),
        ("Test loss", *(mean_text(arm.values(LOSS), LOSS) for arm in arms)),
        ("Test accuracy", *(mean_text(arm.values(ACCURACY), ACCURACY) for arm in arms)),
    ]
    return Table("As in the original card", ("Aspect", *(arm.name for arm in arms)), rows)


def withdrawn_claim(claim: str) -> Claim:
    """A claim whose measurement is superseded."""
    return Claim(claim, "measured in a study that is superseded", "withdrawn")


def parameters_claim() -> Claim:
    """Follows from the definitions of the variants; needs no run."""
    counts = {name: parameters(VARIANTS[name]).total for name in ("orig", "orig-174m", "pow2")}
    return Claim(
        "the original has ~135 M parameters in the text, ~174 M in the table; pow2 ~151 M",
        f"by definition at full size: `orig` (d_ff 1536) {counts['orig']:,}, `orig-174m` (d_ff "
        f"2304) {counts['orig-174m']:,}, `pow2` {counts['pow2']:,}",
        "falls: two models under one name, the table's is not the text's",
    )


# Speed


def speed_claim(studies: Sequence[Comparison]) -> Claim:
    """By the first study at full size that has speeds and the arms; first against the original of
    the claim, which had 174 M parameters, where that was timed."""
    full = [study for study in studies if study.scale == "full"]
    able = [study for study in full if study.has_speed or study.is_timed]
    found = [pairs for study in able if (pairs := originals_and_pow2(study))]
    if not found:
        missing = (
            f'{NOT_MEASURED}: a full-size study on one machine, one run at a time, scale = "full"'
        )
        return Claim(SPEED_CLAIM, missing, "open")
    timed = [pairs for pairs in found if pairs[0].is_timed]
    if not timed:
        missing = f"{NOT_MEASURED}: the runs are too short to be timed; give the study [speed]"
        return Claim(SPEED_CLAIM, missing, "open")
    if timed[0][0].superseded is not None:
        return withdrawn_claim(SPEED_CLAIM)
    return Claim(SPEED_CLAIM, *judged_speeds(timed[0]))


# Loss, accuracy and the start


def loss_claim(pair: Comparison | None) -> Claim:
    """By the interval of the study, which is against its first arm, and by that against any other
    original, beside the study's margin."""
    claim = "validation loss 3.626 (original) and 3.628 (pow2), one run each: comparable"
    pow2 = pow2_of(pair) if pair else None
    if pair is None or pow2 is None:
        return Claim(claim, f"{NOT_MEASURED}: a study with the arms orig and pow2", "open")
    if pair.superseded is not None:
        return withdrawn_claim(claim)
    difference = pair.primary[pow2.name]
    texts = [both(pair, pow2, LOSS, difference)]
    word = comparable(difference.widened, pair.margin)
    if difference.missing:
        word = verdict_text(difference)
    verdicts = [f"{word} (against {pair.base.name})"]
    for other, found in beside_others(pair, LOSS):
        texts.append(both(other, other.others[0], LOSS, found))
        verdicts.append(f"no verdict (against {other.base.name})")
    return Claim(claim, "; ".join(texts), "; ".join(verdicts))


def comparable(interval: tuple[float, float] | None, margin: float | None) -> str:
    """Whether the claim survives that two losses are comparable, which is that they differ by less
    than `margin` (nats/token): so does every difference in `interval`, or none, or some."""
    if margin is None:
        return "open: the study names no margin"
    low, high = interval or (-math.inf, math.inf)
    if -margin < low and high < margin:
        return f"survives: equivalent within {margin:g} nats/token"
    if low >= margin:
        return "falls: worse"
    return "falls: better" if high <= -margin else "inconclusive"


def accuracy_claim(pair: Comparison | None) -> Claim:
    """By an interval of its own against each original of the study."""
    claim = "pow2 has the slightly higher accuracy (36.03 % against 36.01 %)"
    pow2 = pow2_of(pair) if pair else None
    if pair is None or pow2 is None:
        return Claim(claim, f"{NOT_MEASURED}: a study with the arms orig and pow2", "open")
    if pair.superseded is not None:
        return withdrawn_claim(claim)
    difference = pair.secondary(ACCURACY)[pow2.name]
    texts = [both(pair, pow2, ACCURACY, difference)]
    verdicts = [accuracy_verdict(pair, pow2, difference)]
    for other, found in beside_others(pair, ACCURACY):
        texts.append(both(other, other.others[0], ACCURACY, found))
        verdicts.append(accuracy_verdict(other, other.others[0], found))
    return Claim(claim, "; ".join(texts), "; ".join(verdicts))


def experts_claim(pair: Comparison | None) -> Claim:
    """By the validation losses at the start of the training."""
    claim = "the dense model starts more slowly than the mixture of experts (Figure 1)"
    if pair is None:
        return Claim(claim, f"{NOT_MEASURED}: a study with the arms orig and moe-160m", "open")
    if pair.superseded is not None:
        return withdrawn_claim(claim)
    mixture = pair.others[0]
    early = start_difference(pair, mixture)
    dense, sparse = start_losses(pair, mixture)
    text = (
        f"after {start_tokens(pair, mixture):,.0f} tokens, validation loss: "
        f"{mean_text(dense, LOSS)} ({pair.base.name}) and {mean_text(sparse, LOSS)} "
        f"({mixture.name}), {pair.scale} scale; difference "
        f"{number(early.mean, LOSS, signed=True)}, {interval_or_none(early, LOSS)}; at the end: "
        f"{both(pair, mixture, LOSS, pair.primary[mixture.name])}"
    )
    verdict = secondary_verdict(pair, mixture, -sign_of(early))
    return Claim(claim, text, f"{verdict} (at the start)")


def pow2_of(comparison: Comparison) -> Arm | None:
    """The first arm that is `pow2`; None without."""
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
        Comparison(
            comparison.study,
            (original, pow2),
            (),
            superseded=comparison.superseded,
            margin=comparison.margin,
        )
        for original in originals
        if original and pow2
    ]


def beside_others(pair: Comparison, metric: Metric) -> list[tuple[Comparison, Difference]]:
    """pow2 beside the originals of the study that are not its first arm."""
    whole = pair.whole or pair
    return [
        (other, difference)
        for other in originals_and_pow2(whole)
        if other.base is not whole.base
        for difference in other.secondary(metric).values()
    ]


def accuracy_verdict(pair: Comparison, arm: Arm, difference: Difference) -> str:
    """Whether the claim on the accuracy survives."""
    return f"{secondary_verdict(pair, arm, sign_of(difference))} (against {pair.base.name})"


def secondary_verdict(pair: Comparison, arm: Arm, sign: int) -> str:
    """Whether a claim on another metric than the final loss survives, by the sign of its interval
    (1 for the claim, -1 against it). Arms whose losses lack tuning, documents or the regime are
    comparable in no metric."""
    found = pair.primary[arm.name]
    lacks = {one for one in found.missing if one is not Missing.SEEDS}
    if found.widened is None:
        lacks.add(Missing.TUNING)
    if lacks:
        return f"inconclusive: {', '.join(missing_in_order(lacks))}"
    return "survives" if sign > 0 else "falls" if sign < 0 else "inconclusive"


def sign_of(difference: Difference) -> int:
    """1 or -1 if the whole interval is on that side of zero, else 0, as without an interval."""
    low, high = difference.interval or (0.0, 0.0)
    return int(low > 0) - int(high < 0)


def both(pair: Comparison, arm: Arm, metric: Metric, difference: Difference) -> str:
    """The values of two arms and their difference."""
    interval = interval_or_none(difference, metric)
    return (
        f"{metric.label}: {mean_text(pair.base.values(metric), metric)} ({pair.base.name}) and "
        f"{mean_text(arm.values(metric), metric)} ({arm.name}), {pair.scale} scale; difference "
        f"{number(difference.mean, metric, signed=True)}, {interval}"
    )


def interval_or_none(difference: Difference, metric: Metric) -> str:
    """The interval as text, or that there is none."""
    if difference.interval is None:
        return NO_INTERVAL
    is_verdict = difference.gaps is not None
    return intervals_words(difference) if is_verdict else interval_text(difference, metric)


# Quantization


def quantization_claim(quantized: Quantized) -> Claim:
    """By the study that was quantized, at full size if there is one."""
    claim = "power-of-two dimensions make quantization efficient"
    study, pair = quantized.comparison.study, power_of_two(quantized.comparison)
    if pair is None:
        missing = f"{NOT_MEASURED}: a study with the arms orig and pow2, then quantize"
        return Claim(claim, missing, "open")
    if not quantized.is_measured:
        results = results_of(quantized.comparison.runs[0].run)
        typed = command("quantize", "--bits", "4", study=study, results=results)
        return Claim(claim, f"{NOT_MEASURED}: `{typed}`", "open")
    if not quantized.is_judged:
        missing = f"{NOT_MEASURED} at full size: {pair.scale} scale does not carry over"
        return Claim(claim, missing, "open")
    texts = []
    arms_of: dict[str, list[str]] = {}  # by their verdict
    for arm in pair.others:
        pairs = [found for found in quantized.pairs if found.arm == arm.name]
        sizes = sizes_at_4_bits(quantized, arm) if quantized.is_full_size else ("", "")
        for text, verdict in (harm_changes(pair.base.name, pairs), sizes):
            if text:
                texts.append(text)
            if verdict:
                arms_of.setdefault(verdict, []).append(arm.name)
    here = "; ".join(texts) or f"{NOT_MEASURED} for both: see Quantization"
    if texts and not quantized.is_full_size:
        here = f"at {pair.scale} scale {here}"
    verdicts = [f"{verdict} ({listed(arms)})" for verdict, arms in arms_of.items()]
    return Claim(claim, here, "; ".join(verdicts) or "open")


def harm_changes(base: str, pairs: Sequence[Pair]) -> tuple[str, str]:
    """What the harm of an arm says about the claim, and the verdicts; either may be empty."""
    texts, verdicts = [], []
    for by_kl, kind in ((True, "KL"), (False, "loss")):
        by_verdict: dict[str, list[Pair]] = {}
        for pair in pairs:
            if pair.difference and pair.is_by_kl is by_kl:
                by_verdict.setdefault(pair.outcome, []).append(pair)
        if not by_verdict:
            continue
        by, arm = "" if by_kl else "by ", pairs[0].arm
        what = f"the loss of {arm} changes, beside that of {base},"
        if by_kl:
            what = f"the KL divergence of {arm} over that of {base} is"
        changes = [
            f"{by}{all_apart(found)} at {listed([pair.name for pair in found])} ({verdict})"
            for verdict, found in by_verdict.items()
        ]
        texts.append(f"{what} {' and '.join(changes)}")
        parts = [f"{verdict} at {len(found)}" for verdict, found in by_verdict.items()]
        verdicts.append(f"{kind} {listed(parts)} of {sum(map(len, by_verdict.values()))}")
    if others := [pair.name for pair in pairs if not pair.difference]:
        texts.append(f"{pairs[0].arm} cannot be compared at {listed(others)}: see Quantization")
    return "; ".join(texts), "; ".join(verdicts)


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
