"""Does it quantize better? Bytes, KL divergence to the model's own bf16, change of the loss, and
speed beside it."""

import math
from collections.abc import Mapping, Sequence
from itertools import product
from typing import TYPE_CHECKING

from smolctl.analysis.quantized_arms import (
    BF16,
    SAME_BYTES,
    SAME_SPEED,
    Configuration,
    Pair,
    Quantized,
    percent,
)
from smolctl.command_line import command, results_of
from smolctl.report.document import Figure, Section, bullets, paragraph, section
from smolctl.report.evidence import Evidence
from smolctl.report.figures.quantized import harm_figure_of, harm_of
from smolctl.report.sections.per_study import figure_name, source
from smolctl.report.sections.quantization_tables import (
    configurations_table,
    notes_table,
    pairs_table,
    quantized_tasks_table,
)
from smolctl.report.sections.quantized_verdicts import (
    lacking,
    ranked_by_loss,
    single_runs,
    verdicts_on_arm,
)
from smolctl.report.wording import by_value, grouped, listed, once
from smollm2.quantize.dimensions import weights
from smollm2.runs.conditions import FEW_DOCUMENTS, FEWEST_DOCUMENTS

if TYPE_CHECKING:
    from smollm2.runs.run import Run

# Tokens per parameter up to which more tokens pay as much as more parameters (Hoffmann et al. 2022,
# arXiv:2203.15556). What quantizing changes grows with them (Kumar et al. 2024, arXiv:2411.04330),
# so weights that have seen fewer say little about others.
COMPUTE_OPTIMAL = 20
COLUMNS = (
    "Bytes in brackets are without the embedding, the loss is on windows spread over the "
    "validation split, and speeds are relative to bf16."
)
KL_COLUMNS = (
    " KL is the divergence of the predictions from those of bf16 over the whole vocabulary, in "
    "nats/token: the mean over the tokens of these windows, and p99, their 99th percentile. Top-1 "
    "is the share of tokens with the same first choice."
)
WIDTH_ALONE = (
    "Width alone changes nothing at equal groups: the relative error of a group depends on its "
    "size and the distribution of its weights, not on the width of the matrix. Where groups do not "
    "divide a width, the last one of a row is shorter, or layers stay in bf16."
)
SPEEDS = {
    "prefill_ratio": ("reads a prompt", "read a prompt"),
    "decode_ratio": ("decodes", "decode"),
    "compiled_decode_ratio": ("decodes compiled", "decode compiled"),
}


def quantization_section(evidence: Evidence) -> Section | None:
    """Of the study that was quantized, at full size if there is one."""
    found = evidence.quantized
    if not found.is_measured:
        return None
    study = found.comparison
    return section(
        "Quantization",
        [
            *(paragraph(text) for text in source(evidence, study)),
            bullets(conclusion(found)),
            Figure(
                figure_name(evidence, study, "quantization.png"),
                f"{harm_of(found)} against bytes per parameter, and the speed of decoding",
                lambda: harm_figure_of(found),
            ),
            paragraph(COLUMNS + KL_COLUMNS * found.has_kl),
            *(configurations_table(arm, by_name) for arm, by_name in found.arms.items()),
            notes_table(found.arms),
            pairs_table(found),
            quantized_tasks_table(found),
        ],
    )


def conclusion(found: Quantized) -> list[str]:
    """Sentences on the arms against the first; an imported model is compared with none."""
    if not found.is_measured:
        return []
    if (run := found.comparison.base.runs[0].run).is_imported:
        return on_a_grid(run) + ranked_by_loss(found) + few_documents(found)
    sentences = not_quantized(found)
    if not found.is_judged:
        return [
            *sentences,
            f"Nothing is concluded about quantization: what holds at {found.comparison.scale} "
            "scale does not carry over to full size.",
        ]
    sentences = width_alone(found) + sentences + little_trained(found)
    base = found.comparison.base.name
    for arm in found.comparison.others:
        sentences += verdicts_on_arm(base, [pair for pair in found.pairs if pair.arm == arm.name])
    sentences += single_runs(found)
    sentences += lacking(found)
    sentences += ranked_by_loss(found)
    sentences += unequal_shares(found)
    sentences += byte_sentences(found)
    sentences += quantized_speed_sentences(found) if found.is_full_size else small_scale(found)
    sentences += few_documents(found)
    if sum(bool(pair.difference and pair.difference.interval) for pair in found.pairs) > 1:
        sentences.append(
            "All verdicts on quantization hold together (Bonferroni over every configuration of "
            "every planned arm): if quantizing harmed all arms alike, the chance of any false "
            "verdict would be at most 5 %."
        )
    return sentences


def on_a_grid(run: "Run") -> list[str]:
    """A warning that the weights of an imported model were quantized before."""
    grid = run.manifest["source"].get("grid")
    if grid is None:
        return []
    return [
        f"{run.manifest['source']['name']} has its weights in {grid}: they lie on a grid already, "
        "and a format with the same one changes next to nothing. How well the model in 16 bits "
        "would be quantized, these numbers do not say."
    ]


def width_alone(found: Quantized) -> list[str]:
    """What can be expected of arms of different widths."""
    models = [arm.protocol.model for arm in found.comparison.arms]
    widths = {frozenset(weight.n_in for weight in weights(model)) for model in models}
    return [WIDTH_ALONE] if len(widths) > 1 else []


def has_undivided(one: Configuration) -> bool:
    """Whether layers stay in bf16 because groups do not divide their inputs."""
    return any("do not divide" in text for text in one.texts("skipped"))


def small_scale(found: Quantized) -> list[str]:
    """What the verdicts on smaller models are about."""
    return [
        f"This is about models at {found.comparison.scale} scale: bytes and speeds do not carry "
        "over to full size, and what quantizing loses may not."
    ]


def few_documents(found: Quantized) -> list[str]:
    """How rough the errors over documents are."""
    configurations = [one for by_name in found.arms.values() for one in by_name.values()]
    counts = [count for one in configurations for count in one.values("clusters")]
    fewest = min(counts, default=FEW_DOCUMENTS)
    if fewest >= FEW_DOCUMENTS:
        return []
    if fewest < FEWEST_DOCUMENTS:
        return [f"Fewer than {FEWEST_DOCUMENTS} documents give no error over documents."]
    return [f"Errors over documents are rough: there are only {fewest:.0f} documents."]


def little_trained(found: Quantized) -> list[str]:
    """Warns of weights that have seen little text. How much those have seen that started from other
    weights is not known."""
    base = found.comparison.base
    tokens, parameters = base.runs[0].tokens, base.parameters["total"]
    is_new = base.runs[0].run.manifest["started_from"] is None
    if not is_new or tokens >= COMPUTE_OPTIMAL * parameters:
        return []
    return [
        f"The weights were trained on {tokens:,} tokens, {tokens / parameters:.2g} per parameter. "
        "What quantizing changes grows with training, so this says little about a finished model."
    ]


def not_quantized(found: Quantized) -> list[str]:
    """How to quantize the arms that were not."""
    study, results = found.comparison.study, results_of(found.comparison.runs[0].run)
    return [
        f"{name} was not quantized: `{command('quantize', name, study=study, results=results)}`."
        for name, configurations in found.arms.items()
        if not configurations.keys() - {BF16}
    ]


def unequal_shares(found: Quantized) -> list[str]:
    """Where less of one arm is quantized than of another, and which widths are a reason."""
    pairs = [pair for pair in found.pairs if pair.has_unequal_shares]
    arms = [arm.name for arm in found.comparison.arms]
    shares_at = {}
    for name in once(pair.name for pair in pairs):
        cells = {arm: found.configuration(arm, name) for arm in arms}
        shares = {arm: percent(one.matrix_share) for arm, one in cells.items() if len(one.rows)}
        shares_at[name] = by_value(shares, "in")
    sentences = [
        f"Coverage differs at {listed(names)}: of the parameters outside the embedding, {shares} "
        f"are quantized. There an arm is compared with {arms[0]} only where the shares are the "
        "same."
        for shares, names in grouped(shares_at).items()
    ]
    return sentences + undivided(found, pairs)


def undivided(found: Quantized, pairs: Sequence[Pair]) -> list[str]:
    """Which widths the groups of `pairs` do not divide, in arms where that keeps layers in bf16."""
    models = {arm.name: arm.protocol.model for arm in found.comparison.arms}
    sizes: dict[str, dict[int, set[int]]] = {}
    for one in (one for pair in pairs for one in (pair.first, pair.second)):
        for size in map(int, one.values("group_size")) if has_undivided(one) else ():
            for width in sorted({weight.n_in for weight in weights(models[one.arm])}):
                if width % size:
                    sizes.setdefault(one.arm, {}).setdefault(width, set()).add(size)
    texts = {
        arm: " and ".join(
            f"groups of {listed([str(size) for size in sorted(tried)])} do not divide the "
            f"{width:,} inputs"
            for width, tried in by_width.items()
        )
        for arm, by_width in sizes.items()
    }
    text = by_value(texts, "of matrices of")
    return [f"{text[0].upper()}{text[1:]}."] if texts else []


def byte_sentences(found: Quantized) -> list[str]:
    """The bytes per parameter of each arm."""
    texts_at = {}
    for name in found.names:
        each = {a: one[name].bytes_per_parameter for a, one in found.arms.items() if name in one}
        texts = {arm: f"{size:.2f}" for arm, size in each.items() if not math.isnan(size)}
        if len(texts) == len(found.arms) and len(set(texts.values())) == 1:
            texts_at[name] = f"{next(iter(texts.values()))} in every arm"
        elif texts:
            texts_at[name] = by_value(texts, "in")
    if not texts_at:
        return []
    parts = [f"at {listed(names)} {text}" for text, names in grouped(texts_at).items()]
    rule = f" Arms are compared where these agree within {100 * SAME_BYTES:g} %."
    return [
        f"Bytes on disk per parameter, without the embedding: {'; '.join(parts)}."
        + rule * (len(found.arms) > 1)
    ]


def quantized_speed_sentences(found: Quantized) -> list[str]:
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
                f"Relative to its own bf16, {arm.name} {verb[0]} {extremes(ours)} times as fast, "
                f"{base} {extremes(theirs)}; {n_more} of {len(ours)} "
                f"{'ratio is' if len(ours) == 1 else 'ratios are'} above that of {base}. Each "
                "ratio is of a few timings, without an interval."
            )
        if unlike:
            sentences.append(
                f"How fast {arm.name} and {base} {verb[1]} at {listed(unlike)} is not compared: "
                "the two were timed in different dtypes, on different devices or with different "
                "threads."
            )
    return sentences


def extremes(values: Mapping[str, float]) -> str:
    """`0.30 (llm-int8) to 1.29 (int4-g128)`; one value by itself."""
    ends = once([min(values, key=values.__getitem__), max(values, key=values.__getitem__)])
    return " to ".join(f"{values[name]:.2f} ({name})" for name in ends)
