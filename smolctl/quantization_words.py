"""What quantizing did to the arms of a comparison, and what fits their widths, in sentences."""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import product
from typing import TypeVar

from smolctl.quantization import (
    BF16,
    LOSS_DELTA,
    SAME_SPEED,
    Pair,
    Quantized,
    percent,
)
from smolctl.words import interval_words, listed
from smollm2.config import ModelConfig
from smollm2.quantize.dimensions import GROUP_SIZES, TILE_PACKED, padding_share, weights

T = TypeVar("T")

# Tokens a parameter up to which more of them pay as much as more parameters do (Hoffmann et al.
# 2022, arXiv:2203.15556). What quantizing changes grows with them (Kumar et al. 2024,
# arXiv:2411.04330), so that weights which have seen fewer say little of others.
COMPUTE_OPTIMAL = 20
SPEEDS = {
    "prefill_ratio": ("reads a prompt", "read a prompt"),
    "decode_ratio": ("decodes", "decode"),
    "compiled_decode_ratio": ("decodes compiled", "decode compiled"),
}


def quantization_conclusion(found: Quantized) -> list[str]:
    """Sentences on the arms against the first; none where nothing was quantized."""
    if not found.is_measured:
        return []
    sentences = not_quantized(found)
    if not found.is_judged:
        return [
            *sentences,
            f"Nothing is concluded about quantization: what holds at {found.comparison.scale} "
            "scale does not carry over to full size.",
        ]
    sentences += little_trained(found)
    for arm in found.comparison.others:
        sentences += losses(found, [pair for pair in found.pairs if pair.arm == arm.name])
    sentences += single_runs(found)
    sentences += unequal_shares(found)
    sentences += sizes(found)
    sentences += speeds(found)
    tested = [pair for pair in found.pairs if pair.difference and pair.difference.interval]
    if len(tested) > 1:
        sentences.append(
            f"The {len(tested)} verdicts on quantization hold together (Holm over every "
            "configuration of every arm): if quantizing harmed all arms alike, the chance of any "
            "false one would be at most 5 %."
        )
    return sentences


def little_trained(found: Quantized) -> list[str]:
    """Of weights that have seen little text, that what holds for them may not last; of those that
    were trained on from others it is not known how much they have seen."""
    base = found.comparison.base
    tokens, parameters = base.runs[0].tokens, base.parameters["total"]
    is_new = base.runs[0].run.manifest["started_from"] is None
    if not is_new or tokens >= COMPUTE_OPTIMAL * parameters:
        return []
    return [
        f"The weights were trained on {tokens:,} tokens, {tokens / parameters:.2g} a parameter: "
        "what quantizing changes grows with training, so that this says little of a finished model."
    ]


def not_quantized(found: Quantized) -> list[str]:
    """Of the arms without a file, how to make one."""
    study = found.comparison.study
    return [
        f"{name} was not quantized: `smolctl quantize {name} --study {study}`."
        for name, configurations in found.arms.items()
        if not configurations.keys() - {BF16}
    ]


def losses(found: Quantized, pairs: Sequence[Pair]) -> list[str]:
    """The verdicts on one arm of which there are several runs: those that are decided one by one,
    the others together."""
    base = found.comparison.base.name
    sentences, unresolved, problems = [], [], dict[str, list[str]]()
    for pair in pairs:
        difference = pair.difference
        if difference is None:
            if not pair.has_unequal_shares:
                problems.setdefault(pair.problem, []).append(pair.name)
        elif difference.verdict != "unresolved":
            sentences.append(decided(base, pair))
        elif difference.interval is not None:
            text = f"{pair.name} ({difference.mean:+.4f}, {interval_words(difference)}"
            unresolved.append(f"{text}, {runs_of(pair)})")
        elif not pair.has_single_run:
            unresolved.append(f"{pair.name} ({difference.mean:+.4f}, every run alike)")
    if unresolved:
        sentences.append(
            f"Whether {pairs[0].arm} quantizes better than {base} is unresolved at "
            f"{listed(unresolved)}: the numbers are the change of its loss, in nats a token, less "
            f"that of {base}'s."
        )
    sentences += [
        f"The losses of {pairs[0].arm} and {base} are not compared at {listed(names)}: {problem}."
        for problem, names in problems.items()
    ]
    return sentences


def single_runs(found: Quantized) -> list[str]:
    """On the arms that one run stands for, or that stand beside one: how far they are apart."""
    by_arm: dict[str, list[Pair]] = {}
    for pair in found.pairs:
        if pair.difference and pair.has_single_run:
            by_arm.setdefault(pair.arm, []).append(pair)
    alike: dict[str, list[str]] = {}
    for arm, pairs in by_arm.items():
        alike.setdefault(listed([pair.name for pair in pairs]), []).append(arm)
    base = found.comparison.base.name
    return [
        f"With one run of an arm it is unresolved whether {listed(arms)} "
        f"{'quantizes' if len(arms) == 1 else 'quantize'} better than {base}. At {names} the "
        f"change of the loss less that of {base}'s is, in nats a token, "
        f"{listed([apart(arm, by_arm[arm]) for arm in arms])}; the errors are over documents, and "
        "the noise of training is not in them."
        for names, arms in alike.items()
    ]


def apart(arm: str, pairs: Sequence[Pair]) -> str:
    """`-0.0005 to +0.0012 for pow2 (standard error at most 0.0005)`."""
    means = [pair.difference.mean for pair in pairs if pair.difference]
    errors = [pair.document_error for pair in pairs]
    error = "unknown" if any(map(math.isnan, errors)) else f"at most {max(errors):.4f}"
    return f"{span(means)} for {arm} (standard error {error})"


def unequal_shares(found: Quantized) -> list[str]:
    """Where less of one arm is quantized than of another, and which widths are a reason."""
    pairs = [pair for pair in found.pairs if pair.has_unequal_shares]
    arms = [arm.name for arm in found.comparison.arms]
    by_shares: dict[str, list[str]] = {}
    for name in once(pair.name for pair in pairs):
        cells = {arm: found.configuration(arm, name) for arm in arms}
        shares = {arm: percent(one.matrix_share) for arm, one in cells.items() if len(one.rows)}
        by_shares.setdefault(by_value(shares, "in"), []).append(name)
    sentences = [
        f"At {listed(names)} not every arm is quantized whole: of the parameters outside the "
        f"embedding are quantized {shares}. There a loss is compared with that of {arms[0]} only "
        "where the shares are the same."
        for shares, names in by_shares.items()
    ]
    return sentences + undivided(found, pairs)


def undivided(found: Quantized, pairs: Sequence[Pair]) -> list[str]:
    """Which widths of the arms that have skipped matrices the groups of `pairs` do not divide."""
    models = {arm.name: arm.protocol.model for arm in found.comparison.arms}
    sizes: dict[str, dict[int, set[int]]] = {}
    for one in (one for pair in pairs for one in (pair.first, pair.second)):
        for size in map(int, one.values("group_size")) if one.texts("skipped") else ():
            for width in sorted({weight.n_in for weight in weights(models[one.arm])}):
                if width % size:
                    sizes.setdefault(one.arm, {}).setdefault(width, set()).add(size)
    texts = {
        arm: " and ".join(
            f"groups of {listed([str(size) for size in sorted(tried)])} do not divide {width:,} "
            "inputs"
            for width, tried in by_width.items()
        )
        for arm, by_width in sizes.items()
    }
    text = by_value(texts, "of matrices of")
    return [f"{text[0].upper()}{text[1:]}."] if texts else []


def decided(base: str, pair: Pair) -> str:
    """A verdict with what it stands on."""
    assert pair.difference is not None
    ours, theirs = (one.mean("loss_delta") for one in (pair.second, pair.first))
    return (
        f"At {pair.name} {pair.arm} quantizes {pair.difference.verdict} than {base}: its loss "
        f"changes by {ours:+.4f} nats a token, that of {base} by {theirs:+.4f}, a difference of "
        f"{pair.difference.mean:+.4f} ({interval_words(pair.difference)}, {runs_of(pair)})."
    )


def runs_of(pair: Pair) -> str:
    ours, theirs = (len(one.values(LOSS_DELTA)) for one in (pair.second, pair.first))
    return f"{ours} run{'' if ours == 1 else 's'} against {theirs}"


def sizes(found: Quantized) -> list[str]:
    """How many bytes a parameter takes in each arm."""
    by_bytes: dict[str, list[str]] = {}
    for name in found.names:
        each = {a: one[name].bytes_a_parameter for a, one in found.arms.items() if name in one}
        texts = {arm: f"{size:.2f}" for arm, size in each.items() if not math.isnan(size)}
        if len(texts) == len(found.arms) and len(set(texts.values())) == 1:
            by_bytes.setdefault(f"{next(iter(texts.values()))} in every arm", []).append(name)
        elif texts:
            by_bytes.setdefault(by_value(texts, "in"), []).append(name)
    if not by_bytes:
        return []
    parts = [f"at {listed(names)} {text}" for text, names in by_bytes.items()]
    return [f"Without the embedding a parameter takes, in bytes on disk, {'; '.join(parts)}."]


def speeds(found: Quantized) -> list[str]:
    """How fast quantized models read a prompt and decode beside their own bf16, where as much of
    both was quantized and both were timed alike."""
    base = found.comparison.base.name
    sentences = []
    for arm, (column, verb) in product(found.comparison.others, SPEEDS.items()):
        ours, theirs, unlike = dict[str, float](), dict[str, float](), []
        for pair in (pair for pair in found.pairs if pair.arm == arm.name):
            both = (pair.first, pair.second)
            if pair.has_unequal_shares or not all(one.values(column) for one in both):
                continue
            if len({c for one in both for c in one.conditions(SAME_SPEED, column)}) > 1:
                unlike.append(pair.name)
                continue
            theirs[pair.name], ours[pair.name] = (one.mean(column) for one in both)
        if ours:
            n_more = sum(ours[name] > theirs[name] for name in ours)
            sentences.append(
                f"Beside its own bf16 {arm.name} {verb[0]} {extremes(ours)} times as fast, {base} "
                f"{extremes(theirs)}; {n_more} of {len(ours)} "
                f"{'ratio is' if len(ours) == 1 else 'ratios are'} above that of {base}. Each is "
                "of a few timings, without an interval."
            )
        if unlike:
            sentences.append(
                f"How fast {arm.name} and {base} {verb[1]} at {listed(unlike)} is not compared: it "
                "was timed in another dtype, on another device or with other threads."
            )
    return sentences


def extremes(values: Mapping[str, float]) -> str:
    """`0.30 (llm-int8) to 1.29 (int4-g128)`; of a single value that."""
    ends = once([min(values, key=values.__getitem__), max(values, key=values.__getitem__)])
    return " to ".join(f"{values[name]:.2f} ({name})" for name in ends)


def span(values: Collection[float]) -> str:
    """`-0.0005 to +0.0023`; of values that look the same that."""
    return " to ".join(once(f"{end:+.4f}" for end in (min(values), max(values))))


def by_value(texts: Mapping[str, str], word: str) -> str:
    """`25.0 % in orig, 100.0 % in pow2 and moe`: names with one text together, after `word`, here
    `in`."""
    names: dict[str, list[str]] = {}
    for name, text in texts.items():
        names.setdefault(text, []).append(name)
    return ", ".join(f"{text} {word} {listed(found)}" for text, found in names.items())


def once(items: Iterable[T]) -> list[T]:
    """Each of them once, in their order."""
    return list(dict.fromkeys(items))


def dimension_sentences(configs: dict[str, ModelConfig]) -> list[str]:
    """Which widths a group size does not divide, and what tiles of 1024 cost, model by model."""
    sentences = []
    for name, config in configs.items():
        widths: dict[int, list[str]] = {}
        for weight in weights(config):
            widths.setdefault(weight.n_in, []).append(weight.name)
        odd = [
            f"groups of {listed([str(size) for size in sizes])} do not divide the {width:,} inputs "
            f"of {'; '.join(names)}"
            for width, names in widths.items()
            if (sizes := [size for size in GROUP_SIZES if width % size])
        ]
        fits = ", and ".join(odd) if odd else "every group size divides the inputs of every matrix"
        padding = padding_share(config, TILE_PACKED.k_multiple, TILE_PACKED.n_multiple)
        sentences.append(
            f"{name}: {fits}. Padding to the tiles of {TILE_PACKED.name}, adds {percent(padding)} "
            "to its matrices."
        )
    return sentences
