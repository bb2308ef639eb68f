"""Does it quantize better? Bytes, change of the loss, and speed beside the model's own bf16."""

import math
from collections.abc import Mapping, Sequence
from itertools import product

from smolctl.analysis.quantized_arms import (
    BF16,
    LOSS_DELTA,
    SAME_SPEED,
    Pair,
    Quantized,
    percent,
)
from smolctl.analysis.verdicts import Verdict
from smolctl.command_line import command, results_of
from smolctl.report.document import Figure, Section, bullets, paragraph, section
from smolctl.report.evidence import Evidence
from smolctl.report.figures.quantized import quantized_losses_of
from smolctl.report.sections.per_study import figure_name, source
from smolctl.report.sections.quantization_tables import (
    configurations_table,
    notes_table,
    pairs_table,
    quantized_tasks_table,
)
from smolctl.report.wording import by_value, grouped, interval_words, listed, once, runs_text, span
from smollm2.quantize.dimensions import weights
from smollm2.runs.conditions import FEW_DOCUMENTS, FEWEST_DOCUMENTS

# Tokens per parameter up to which more tokens pay as much as more parameters (Hoffmann et al. 2022,
# arXiv:2203.15556). What quantizing changes grows with them (Kumar et al. 2024, arXiv:2411.04330),
# so weights that have seen fewer say little about others.
COMPUTE_OPTIMAL = 20
COLUMNS = (
    "Bytes in brackets are without the embedding, the loss is on windows spread over the "
    "validation split, and speeds are relative to bf16."
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
                "Change of the loss against bytes on disk, and the speed of decoding",
                lambda: quantized_losses_of(found),
            ),
            paragraph(COLUMNS),
            *(configurations_table(arm, by_name) for arm, by_name in found.arms.items()),
            notes_table(found.arms),
            pairs_table(found),
            quantized_tasks_table(found),
        ],
    )


def conclusion(found: Quantized) -> list[str]:
    """Sentences on the arms against the first; an imported model is compared with none."""
    if not found.is_measured or found.comparison.base.runs[0].run.is_imported:
        return few_documents(found)
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
    sentences += byte_sentences(found)
    sentences += quantized_speed_sentences(found)
    sentences += few_documents(found)
    tested = [pair for pair in found.pairs if pair.difference and pair.difference.interval]
    if len(tested) > 1:
        sentences.append(
            f"The {len(tested)} verdicts on quantization hold together (Bonferroni over "
            "every configuration of every arm): if quantizing harmed all arms alike, the chance of "
            "any false verdict would be at most 5 %."
        )
    return sentences


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


def losses(found: Quantized, pairs: Sequence[Pair]) -> list[str]:
    """The verdicts on one arm with several runs: the conclusive ones one by one, the others
    together."""
    base = found.comparison.base.name
    sentences, inconclusive, problems = [], [], dict[str, list[str]]()
    for pair in pairs:
        difference = pair.difference
        if difference is None:
            if not pair.has_unequal_shares:
                problems.setdefault(pair.problem, []).append(pair.name)
        elif difference.verdict is not Verdict.INCONCLUSIVE:
            sentences.append(decided(base, pair))
        elif difference.interval is not None:
            text = f"{pair.name} ({difference.mean:+.4f}, {interval_words(difference)}"
            inconclusive.append(f"{text}, {run_counts(pair)})")
        elif not pair.has_single_run:
            inconclusive.append(f"{pair.name} ({difference.mean:+.4f}, every run alike)")
    if inconclusive:
        sentences.append(
            f"Whether {pairs[0].arm} quantizes better than {base} is inconclusive at "
            f"{listed(inconclusive)}; each number is the change of its loss minus that of "
            f"{base}'s, in nats/token."
        )
    sentences += [
        f"The losses of {pairs[0].arm} and {base} are not compared at {listed(names)}: {problem}."
        for problem, names in problems.items()
    ]
    return sentences


def single_runs(found: Quantized) -> list[str]:
    """How far arms are apart where one of the two has a single run."""
    by_arm: dict[str, list[Pair]] = {}
    for pair in found.pairs:
        if pair.difference and pair.has_single_run:
            by_arm.setdefault(pair.arm, []).append(pair)
    names_of = {arm: listed([pair.name for pair in pairs]) for arm, pairs in by_arm.items()}
    base = found.comparison.base.name
    return [
        f"With one run per arm it is inconclusive whether {listed(arms)} "
        f"{'quantizes' if len(arms) == 1 else 'quantize'} better than {base}. At {names} the "
        f"change of the loss minus that of {base}'s is, in nats/token, "
        f"{listed([apart(arm, by_arm[arm]) for arm in arms])}; the errors are over documents and "
        "do not contain the noise of training."
        for names, arms in grouped(names_of).items()
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
    shares_at = {}
    for name in once(pair.name for pair in pairs):
        cells = {arm: found.configuration(arm, name) for arm in arms}
        shares = {arm: percent(one.matrix_share) for arm, one in cells.items() if len(one.rows)}
        shares_at[name] = by_value(shares, "in")
    sentences = [
        f"Coverage differs at {listed(names)}: of the parameters outside the embedding, {shares} "
        f"are quantized. There a loss is compared with that of {arms[0]} only where the shares are "
        "the same."
        for shares, names in grouped(shares_at).items()
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
            f"groups of {listed([str(size) for size in sorted(tried)])} do not divide the "
            f"{width:,} inputs"
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
        f"changes by {ours:+.4f} nats/token, that of {base} by {theirs:+.4f}, a difference of "
        f"{pair.difference.mean:+.4f} ({interval_words(pair.difference)}, {run_counts(pair)})."
    )


def run_counts(pair: Pair) -> str:
    """`5 runs against 3`: those of the arm and of the first arm."""
    ours, theirs = (len(one.values(LOSS_DELTA)) for one in (pair.second, pair.first))
    return f"{runs_text(ours)} against {theirs}"


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
    return [f"Bytes on disk per parameter, without the embedding: {'; '.join(parts)}."]


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
