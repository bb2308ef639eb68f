"""A difference of two arms for the documents of the test, and for documents like these."""

from dataclasses import dataclass

import numpy as np

from smolctl.analysis.blocks import Numbers, over_seeds
from smolctl.analysis.stats import Estimate
from smolctl.analysis.verdicts import FEWEST_DOCUMENTS

LEAST_EFFECTIVE = 2  # documents for an interval: with fewer, one of them has most of the text


@dataclass(frozen=True)
class DocumentIntervals:
    """The difference of two arms, arm minus base, in nats/token.

    Attributes:
        documents: how many.
        these: over seeds, for the documents of the test; None if an arm has one run or there is no
            spread.
        like_these: over seeds and documents; None without `these`, below five documents, or if
            one of them has most of the text.
    """

    documents: int
    mean: float
    these: tuple[float, float] | None
    like_these: tuple[float, float] | None


def document_intervals(
    base: Numbers, arm: Numbers, tokens: Numbers, *, blocked: bool, confidence: float = 0.95
) -> DocumentIntervals:
    """The difference of the losses of two arms, for these documents and for documents like these.

    Args:
        base, arm: nats of every document, (seeds, documents); a row of NaN for a seed that an arm
            lacks.
        tokens: of every document, (documents,), positive.
        blocked: whether the arms are compared within seeds.

    Raises:
        ValueError: a document without tokens, or an arm without seeds.
    """
    if not (len(tokens) and np.all(tokens > 0)):
        raise ValueError(f"needs documents that have tokens: {list(tokens)}")
    estimate = over_seeds(base.sum(-1) / tokens.sum(), arm.sum(-1) / tokens.sum(), blocked=blocked)
    if estimate is None:
        difference = np.nanmean(arm, axis=0) - np.nanmean(base, axis=0)
        return DocumentIntervals(len(tokens), float(difference.sum() / tokens.sum()), None, None)
    mean, seeds = float(estimate.mean), float(estimate.half_width(confidence))
    these = (mean - seeds, mean + seeds)
    if len(tokens) < FEWEST_DOCUMENTS or effective_number(tokens) < LEAST_EFFECTIVE:
        return DocumentIntervals(len(tokens), mean, these, None)
    both = float(np.hypot(seeds, over_documents(base, arm, tokens, confidence)))
    return DocumentIntervals(len(tokens), mean, these, (mean - both, mean + both))


def over_documents(base: Numbers, arm: Numbers, tokens: Numbers, confidence: float) -> Numbers:
    """The half-width over documents of the difference, of arrays (..., seeds, documents).

    With that over seeds it makes the interval over both, the root of the sum of their squares: the
    variances of crossed random effects add up, and each has the critical value of its own degrees
    of freedom (the modified large-sample method of Graybill and Wang 1980, JASA 75). What a seed
    does to a single document is in both, so the interval is rather too wide.
    """
    difference = np.nanmean(arm, axis=-2) - np.nanmean(base, axis=-2)
    half: Numbers = ratio_over_documents(difference, tokens).half_width(confidence)
    return half


def ratio_over_documents(sums: Numbers, sizes: Numbers) -> Estimate:
    """The ratio of two sums over documents, `sums` (..., documents) over `sizes` (documents,), if
    the documents are a sample.

    Its variance is the jackknife's for a ratio of sums (Cochran 1977, *Sampling Techniques*, 6.17),
    which a long document does not make too small. The degrees of freedom are the effective number
    of documents, 1 / sum of the squared shares of the sizes, less one.

    Raises:
        ValueError: there is one document: it has no spread.
    """
    if len(sizes) < 2:
        raise ValueError("One document has no spread.")
    share = sizes / sizes.sum()
    each = sums / sizes
    mean = (share * each).sum(-1, keepdims=True)
    away = share * (each - mean) / (1 - share)
    return Estimate(mean[..., 0], np.sqrt((away**2).sum(-1)), effective_number(sizes) - 1)


def effective_number(sizes: Numbers) -> float:
    """As many documents of one size would have the spread of these (Kish 1965, *Survey Sampling*,
    11.7): 1 / sum of the squared shares."""
    share = sizes / sizes.sum()
    return float(1 / (share**2).sum())
