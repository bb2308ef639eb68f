"""What quantizing did to the arms of a comparison, and what fits their widths, in sentences."""

import re
from collections.abc import Iterable

from smolctl.quantization import BF16, SAME_SPEED, Pair, Quantized, percent
from smolctl.words import interval_words, listed
from smollm2.config import ModelConfig
from smollm2.quantize.dimensions import GROUP_SIZES, TILE_PACKED, padding_share, weights

# Tokens a parameter up to which more of them pay as much as more parameters do (Hoffmann et al.
# 2022, arXiv:2203.15556). What quantizing changes grows with them (Kumar et al. 2024,
# arXiv:2411.04330), so that weights which have seen fewer say little of others.
COMPUTE_OPTIMAL = 20
SAME_BYTES = 0.01  # bytes a parameter that differ by less are the same


def quantization_conclusion(found: Quantized) -> list[str]:
    """Sentences on each arm against the first; none where nothing was quantized."""
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
        pairs = [pair for pair in found.pairs if pair.arm == arm.name]
        sentences += [*losses(found, pairs), *sizes(found, pairs), *speeds(found, pairs)]
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


def losses(found: Quantized, pairs: Iterable[Pair]) -> list[str]:
    """The verdicts on one arm: those that are decided one by one, the others together."""
    base = found.comparison.base.name
    sentences, unresolved, single, problems = [], [], [], dict[str, list[str]]()
    for pair in pairs:
        difference = pair.difference
        if difference is None:
            problems.setdefault(pair.problem, []).append(pair.name)
        elif difference.verdict != "unresolved":
            sentences.append(decided(base, pair))
        elif difference.interval is not None:
            text = f"{pair.name} ({difference.mean:+.4f}, {interval_words(difference)}"
            unresolved.append(f"{text}, {runs_of(pair)})")
        elif min(n_runs(pair)) < 2:
            single.append(f"{pair.name} ({with_error(difference.mean, pair.document_error)})")
        else:
            unresolved.append(f"{pair.name} ({difference.mean:+.4f}, every run alike)")
        arm = pair.arm
    if unresolved:
        sentences.append(
            f"Whether {arm} quantizes better than {base} is unresolved at {listed(unresolved)}: "
            "the numbers are the change of its loss, in nats a token, less that of "
            f"{base}'s."
        )
    if single:
        sentences.append(
            f"With one run of an arm it is unresolved whether {arm} quantizes better than {base}. "
            f"The change of its loss less that of {base}'s is, in nats a token, {listed(single)}; "
            "± is at most the standard error over documents, which describes these checkpoints: "
            "the noise of training is not in it."
        )
    sentences += [
        f"The losses of {arm} and {base} are not compared at {listed(names)}: {problem}."
        for problem, names in problems.items()
    ]
    return sentences


def decided(base: str, pair: Pair) -> str:
    """A verdict with what it stands on."""
    assert pair.difference is not None
    ours, theirs = (one.mean("loss_delta") for one in (pair.second, pair.first))
    return (
        f"At {pair.name} {pair.arm} quantizes {pair.difference.verdict} than {base}: its loss "
        f"changes by {ours:+.4f} nats a token, that of {base} by {theirs:+.4f}, a difference of "
        f"{pair.difference.mean:+.4f} ({interval_words(pair.difference)}, {runs_of(pair)})."
    )


def with_error(mean: float, error: float) -> str:
    """`+0.0123 ± 0.0004`; no error, as over one document, is said to be unknown."""
    return f"{mean:+.4f} ± {'?' if error != error else format(error, '.4f')}"


def n_runs(pair: Pair) -> tuple[int, int]:
    """Of the arm and of the first one."""
    return len(pair.second.values("loss_delta")), len(pair.first.values("loss_delta"))


def runs_of(pair: Pair) -> str:
    ours, theirs = n_runs(pair)
    return f"{ours} run{'' if ours == 1 else 's'} against {theirs}"


def sizes(found: Quantized, pairs: Iterable[Pair]) -> list[str]:
    """How many bytes a parameter takes, and what was not quantized where they differ."""
    base = found.comparison.base.name
    alike, unlike, sentences = [], dict[str, list[str]](), []
    for pair in pairs:
        first, second = pair.first.bytes_a_parameter, pair.second.bytes_a_parameter
        if abs(second / first - 1) <= SAME_BYTES:
            alike.append(f"{pair.name} ({second:.3f})")
        elif second == second and first == first:
            text = f"{second:.3f} at {pair.name} ({base} {first:.3f})"
            unlike.setdefault(left_as_it_is(pair), []).append(text)
        arm = pair.arm
    if alike:
        sentences.append(
            f"Without the embedding a parameter takes as many bytes on disk in {arm} as in {base} "
            f"at {listed(alike)}."
        )
    sentences += [
        f"Without the embedding a parameter of {arm} takes, in bytes on disk, {listed(texts)}"
        f"{reason}."
        for reason, texts in unlike.items()
    ]
    return sentences


def left_as_it_is(pair: Pair) -> str:
    """What was skipped, after `: `, in words that are the same for every size of the groups; empty
    where nothing was."""
    parts = []
    for one in (pair.first, pair.second):
        if skipped := one.texts("skipped"):
            share = percent(one.matrix_share)
            parts.append(f"of {one.arm} {share} are quantized ({'; '.join(skipped)})")
    text = f": {', '.join(parts)}" if parts else ""
    return re.sub(r"(groups|blocks) of \d+ do", "groups of that size do", text)


def speeds(found: Quantized, pairs: Iterable[Pair]) -> list[str]:
    """How fast quantized models read a prompt and decode beside their own bf16, where both were
    timed alike."""
    base = found.comparison.base.name
    sentences = []
    pairs = list(pairs)
    for column, how, plural in (
        ("prefill_ratio", "reads a prompt", "read a prompt"),
        ("decode_ratio", "decodes", "decode"),
        ("compiled_decode_ratio", "decodes compiled", "decode compiled"),
    ):
        timed, unlike = [], []
        for pair in pairs:
            both = (pair.first, pair.second)
            if not all(one.values(column) for one in both):
                continue
            machines = {c for one in both for c in one.conditions(SAME_SPEED, column)}
            if len(machines) > 1:
                unlike.append(pair.name)
                continue
            first, second = (one.mean(column) for one in both)
            timed.append(f"{second:.2f} times as fast at {pair.name} ({base} {first:.2f})")
        if timed:
            sentences.append(
                f"Beside its own bf16 {pairs[0].arm} {how} {listed(timed)}: each is of a few "
                "timings, without an interval."
            )
        if unlike:
            sentences.append(
                f"How fast {pairs[0].arm} and {base} {plural} at "
                f"{listed(unlike)} is not compared: it was timed in another dtype, on another "
                "device or with other threads."
            )
    return sentences


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
