"""Sentences on whether quantizing harms an arm more or less than the first one."""

import math
from collections.abc import Sequence

from smolctl.analysis.quantized_arms import KL_MARGIN, Pair, Quantized, percent
from smolctl.analysis.quantized_ranks import arms_ranked_otherwise, ranked_otherwise
from smolctl.analysis.verdicts import FEWEST_DOCUMENTS, Missing, Verdict
from smolctl.report.wording import grouped, interval_words, listed, once, runs_text

# By whether harm is a KL divergence: what the number of a pair is, BASE being the first arm.
WHAT = {
    True: "each number is its KL divergence over that of BASE",
    False: "each number is the change of its loss minus that of BASE's, in nats/token",
}
LACKING = {
    Missing.SEEDS: "planned runs are missing here, diverged or are lost",
    Missing.DOCUMENTS: f"there are fewer than {FEWEST_DOCUMENTS} documents",
    Missing.REGIME: (
        "an arm is not better than a trigram counted on as many tokens as it was trained on, or "
        "that is not known"
    ),
}
BETWEEN = {
    True: "the KL divergence over that of BASE is",
    False: "the change of the loss minus that of BASE's is, in nats/token,",
}


def verdicts_on_arm(base: str, pairs: Sequence[Pair]) -> list[str]:
    """The verdicts on one arm with several runs: the conclusive ones one by one, the others
    together."""
    sentences, problems = [], dict[str, list[str]]()
    inconclusive: dict[bool, list[str]] = {}
    for pair in pairs:
        difference = pair.difference
        if difference is None:
            if not pair.has_unequal_shares:
                problems.setdefault(pair.problem, []).append(pair.name)
        elif difference.verdict is Verdict.WITHDRAWN:
            continue  # said of the whole study
        elif difference.verdict is not Verdict.INCONCLUSIVE:
            sentences.append(decided(base, pair))
        elif difference.interval is not None:
            text = f"{pair.name} ({apart(pair)}, {interval_of(pair)}, {run_counts(pair)})"
            inconclusive.setdefault(pair.is_by_kl, []).append(text)
        elif not pair.has_single_run:
            text = f"{pair.name} ({apart(pair)}, every run alike)"
            inconclusive.setdefault(pair.is_by_kl, []).append(text)
    sentences += [
        f"Whether {pairs[0].arm} quantizes better than {base} is inconclusive at {listed(texts)}; "
        f"{WHAT[by_kl].replace('BASE', base)}."
        for by_kl, texts in inconclusive.items()
    ]
    sentences += [
        f"{pairs[0].arm} and {base} are not compared at {listed(names)}: {problem}."
        for problem, names in problems.items()
    ]
    return sentences


def lacking(found: Quantized) -> list[str]:
    """Where there is no verdict whatever the intervals, and what is missing."""
    names_of: dict[tuple[str, tuple[Missing, ...]], list[str]] = {}
    for pair in found.pairs:
        if pair.difference and pair.difference.missing and not pair.has_single_run:
            names_of.setdefault((pair.arm, pair.difference.missing), []).append(pair.name)
    return [
        f"There is no verdict on {arm} at {listed(names)}: "
        f"{'; '.join(LACKING[one] for one in missing)}."
        for (arm, missing), names in names_of.items()
    ]


def decided(base: str, pair: Pair) -> str:
    """A verdict with what it stands on."""
    assert pair.difference is not None
    mark = " (exploratory)" if pair.difference.exploratory else ""
    verdict = f"{pair.arm} quantizes {pair.difference.verdict}{mark} than {base}"
    if pair.difference.verdict is Verdict.EQUIVALENT:
        verdict = f"{pair.arm} and {base} are equivalent (within {100 * KL_MARGIN:g} %){mark}"
    ours, theirs = (one.mean("loss_delta") for one in (pair.second, pair.first))
    numbers = (
        f"its loss changes by {ours:+.4f} nats/token, that of {base} by {theirs:+.4f}, a "
        "difference of"
    )
    if pair.is_by_kl:
        ours, theirs = (math.exp(one.mean_log_kl) for one in (pair.second, pair.first))
        numbers = (
            f"the KL divergence of {pair.arm} is {ours:.4f} nats/token, that of {base} "
            f"{theirs:.4f}, a ratio of"
        )
    return (
        f"At {pair.name} {verdict}: {numbers} {apart(pair)} ({interval_of(pair)}, "
        f"{run_counts(pair)})."
    )


def apart(pair: Pair) -> str:
    """`0.80`, a ratio of KL divergences, or `+0.0123`, a difference of changes of the loss."""
    assert pair.difference is not None
    return f"{pair.kl_ratio.mean:.2f}" if pair.is_by_kl else f"{pair.difference.mean:+.4f}"


def interval_of(pair: Pair) -> str:
    """`95 % interval 0.75 to 0.85`; there must be one."""
    assert pair.difference is not None
    if not pair.is_by_kl:
        return interval_words(pair.difference)
    return f"{100 * pair.difference.confidence:.4g} % interval {ratio_bounds(pair)}"


def ratio_bounds(pair: Pair) -> str:
    """`0.75 to 0.85`, of a ratio of KL divergences with an interval."""
    return " to ".join(f"{bound:.2f}" for bound in pair.kl_ratio.interval or ())


def run_counts(pair: Pair) -> str:
    """`5 runs against 3`: those of the arm and of the first arm."""
    ours, theirs = (len(one.harm(pair.is_by_kl)) for one in (pair.second, pair.first))
    return f"{runs_text(ours)} against {theirs}"


def single_runs(found: Quantized) -> list[str]:
    """How far arms are apart where one of the two has a single run."""
    by_arm: dict[tuple[bool, str], list[Pair]] = {}
    for pair in found.pairs:
        if pair.difference and pair.has_single_run:
            by_arm.setdefault((pair.is_by_kl, pair.arm), []).append(pair)
    base = found.comparison.base.name
    sentences = []
    for by_kl, between in BETWEEN.items():
        pairs_of = {arm: pairs for (kind, arm), pairs in by_arm.items() if kind is by_kl}
        names_of = {arm: listed([pair.name for pair in pairs]) for arm, pairs in pairs_of.items()}
        sentences += [
            f"With one run per arm it is inconclusive whether {listed(arms)} "
            f"{'quantizes' if len(arms) == 1 else 'quantize'} better than {base}. At {names} "
            f"{between.replace('BASE', base)} {listed([range_of(pairs_of[arm]) for arm in arms])}; "
            "the errors are over documents and do not contain the noise of training."
            for names, arms in grouped(names_of).items()
        ]
    return sentences


def range_of(pairs: Sequence[Pair]) -> str:
    """`-0.0005 to +0.0012 for pow2 (standard error at most 0.0005)`, with a relative error of
    ratios; all pairs are of one arm and of one kind."""
    errors = [pair.document_error for pair in pairs]
    largest = percent(max(errors)) if pairs[0].is_by_kl else f"{max(errors):.4f}"
    error = "unknown" if any(map(math.isnan, errors)) else f"at most {largest}"
    return f"{all_apart(pairs)} for {pairs[0].arm} (standard error {error})"


def all_apart(pairs: Sequence[Pair]) -> str:
    """`0.80 to 1.02`, ratios of KL divergences, or `-0.0005 to +0.0012`, differences of changes of
    the loss; all pairs are of one kind."""
    ordered = sorted(pairs, key=lambda pair: pair.difference.mean if pair.difference else 0)
    return " to ".join(once([apart(ordered[0]), apart(ordered[-1])]))


def ranked_by_loss(found: Quantized) -> list[str]:
    """Where the change of the loss would rank configurations, or arms, otherwise."""
    places = []
    for arm, by_name in found.arms.items():
        if pairs := ranked_otherwise(by_name.values()):
            more = f", one of {len(pairs)} such pairs" if len(pairs) > 1 else ""
            places.append(f"{listed(pairs[0])} of {arm}{more}")
    places += [
        f"{pair.arm} and {found.comparison.base.name} at {pair.name}"
        for pair in arms_ranked_otherwise(found.pairs)
    ]
    if not places:
        return []
    return [
        f"The change of the loss would rank otherwise: {'; '.join(places)}. It is noisier than the "
        "KL divergence, which compares whole distributions."
    ]
