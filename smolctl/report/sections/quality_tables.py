"""Tables of the losses: what the arms are, the verdicts, and every number beside them."""

from collections.abc import Sequence

from smolctl.analysis.arms import Arm
from smolctl.analysis.comparison import Comparison, View
from smolctl.analysis.run_metrics import ACCURACY, BITS_PER_BYTE, LOSS, Metric
from smolctl.analysis.verdicts import Difference
from smolctl.report.document import Table
from smolctl.report.verdict_words import ends_text, gap_text, verdict_text
from smolctl.report.wording import (
    bounds_text,
    interval_text,
    mean_text,
    number,
    rates_text,
    seeds_text,
)

LARGEST_GAIN = 10  # that is shown: of more, few seeds know the size of no digit
OF_MODEL = (ACCURACY, BITS_PER_BYTE)


def arms_table(comparison: Comparison) -> Table:
    """A column per arm: what it is, and how well it does over its runs."""
    arms = comparison.arms
    counts = [arm.parameters for arm in arms]
    rows = [
        ("runs (seeds)", *(f"{len(arm.runs)} ({seeds_text(arm.seeds)})" for arm in arms)),
        ("parameters", *(f"{count['total']:,}" for count in counts)),
        ("active parameters", *(f"{count['active']:,}" for count in counts)),
        ("embedding parameters", *(f"{count['embedding']:,}" for count in counts)),
        ("training FLOPs per token", *(f"{arm.flops_per_token:.3g}" for arm in arms)),
        ("KV cache bytes per token", *(f"{arm.kv_bytes_per_token:,}" for arm in arms)),
        ("training tokens", *(f"{arm.runs[0].tokens:,}" for arm in arms)),
        ("training tokens per parameter", *(f"{arm.tokens_per_parameter:.3g}" for arm in arms)),
        ("learning rate", *(rates_text(arm) for arm in arms)),
    ]
    rows += [
        (metric.label, *(mean_text(arm.values(metric), metric) for arm in arms))
        for metric in (LOSS, *OF_MODEL)
    ]
    rows += [
        (
            f"test loss of a {name} counted on as many tokens",
            *(floor_text(arm, name) for arm in arms),
        )
        for name in ("unigram", "trigram")
        if any(arm.floor(name) is not None for arm in arms)
    ]
    return Table(
        f"Arms, {comparison.scale} scale, equal {comparison.equal}: mean ± standard deviation",
        ("", *(arm.name for arm in arms)),
        rows,
    )


def floor_text(arm: Arm, name: str) -> str:
    """The loss of an n-gram model of the tokens that the arm has seen."""
    return number(arm.floor(name), LOSS)


def documents_table(comparison: Comparison) -> Table:
    """The differences for the documents of the test, and for documents like these."""
    rows = [
        (
            arm,
            str(found.documents),
            number(found.mean, LOSS, signed=True),
            bounds_text(found.these, "+.4f").strip(" ()") or "–",
            bounds_text(found.like_these, "+.4f").strip(" ()") or "–",
        )
        for arm, found in comparison.over_documents.items()
    ]
    return Table(
        f"Difference to {comparison.base.name} over seeds for the documents of the test, and over "
        "seeds and documents for documents like these",
        ("arm", "documents", "difference", "these documents", "documents like these"),
        rows,
    )


def verdicts_table(comparison: Comparison) -> Table:
    """Every arm against the first on the primary metric, with its verdict; of a superseded study
    the differences alone."""
    title = f"Final test loss against {comparison.base.name}, the primary metric"
    if comparison.superseded is not None:
        means = [
            (arm, number(found.mean, LOSS, signed=True))
            for arm, found in comparison.primary.items()
        ]
        return Table(f"{title}; its verdicts are withdrawn", ("arm", "difference"), means)
    rows = [
        (
            arm,
            verdict_text(found),
            number(found.mean, LOSS, signed=True),
            "–" if found.interval is None else best_rates_cell(found),
            ends_text(found.interval) if found.interval else "–",
        )
        for arm, found in comparison.primary.items()
    ]
    return Table(
        f"{title} ({confidence_text(comparison)} intervals; the first decides)",
        ("arm", "verdict", "difference", "at best rates", "over seeds alone"),
        rows,
        n_words=2,
    )


def best_rates_cell(found: Difference) -> str:
    """The interval that makes the verdict."""
    return ends_text(found.widened) if found.widened else "no bound"


def confidence_text(comparison: Comparison) -> str:
    """`97.5 %`: all intervals of a family have one confidence."""
    found = (one.confidence for one in comparison.primary.values())
    return f"{100 * next(found, 0.95):.4g} %"


def basis_table(comparison: Comparison) -> Table | None:
    """What the verdicts stand on; None for a superseded study."""
    if comparison.superseded is not None:
        return None
    rows = [
        (
            arm,
            gap_text(found, 0),
            gap_text(found, 1),
            pairing_cell(found),
            number(found.minimum_detectable_effect, LOSS),
        )
        for arm, found in comparison.primary.items()
    ]
    base = comparison.base.name
    return Table(
        "What the verdicts stand on, gaps and effect in nats/token",
        (
            *("arm", f"tuning gap of {base}", "tuning gap of the arm"),
            *("pairing is worth", "minimum detectable effect"),
        ),
        rows,
    )


def pairing_cell(found: Difference) -> str:
    """`1.8 × the seeds`, where arms are compared within seeds; with few of them it is rough."""
    if not found.paired:
        return "not paired"
    gain = found.gain_of_pairing
    if gain is None:
        return "unknown"
    return f"over {LARGEST_GAIN} × the seeds" if gain > LARGEST_GAIN else f"{gain:.1f} × the seeds"


def secondary_table(comparison: Comparison, metrics: Sequence[Metric]) -> Table:
    """Other metrics against the first arm; no verdicts."""
    rows = [
        (
            metric.label,
            arm,
            number(difference.mean, metric, signed=True),
            interval_text(difference, metric),
        )
        for metric in metrics
        for arm, difference in comparison.secondary(metric).items()
    ]
    return Table(
        f"Secondary metrics against {comparison.base.name}: over seeds alone, at the rates of the "
        "runs; no verdicts",
        ("metric", "arm", "difference", "interval"),
        rows,
        n_words=2,
    )


def views_table(comparison: Comparison) -> Table:
    """The losses of each arm and the first one where both have had the same of something."""
    base = comparison.base.name

    def cell(view: View, name: str) -> str:
        early = "" if view.ended[name] else " (before its end)"
        return mean_text(view.losses[name], LOSS) + early

    rows = [
        (
            view.arm,
            f"{view.axis} ({view.budget:.3g})",
            view.split,
            cell(view, base),
            cell(view, view.arm),
            verdict_text(comparison.primary[view.arm]) if view.is_fair else "not compared",
        )
        for view in comparison.views
    ]
    return Table(
        "At equal tokens, FLOPs and seconds: test losses, or validation losses of both where a "
        "schedule had not ended; the latter are not compared",
        ("arm", "equal", "split", f"loss of {base}", "loss of the arm", "verdict"),
        rows,
        n_words=3,
    )
