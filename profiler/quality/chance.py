"""Whether answers have anything to do with the labels: a comparison with a reference that knows nothing shows nothing."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from profiler.records import Chance, QualityRecord

LEVEL = 0.05
"""A reference whose answers are as good by chance with more than this probability is not taken for one that knows the labels."""


def independent_share(answers: NDArray[np.int64], labels: NDArray[np.int64]) -> float:
    """Share that would be right if answers and labels had nothing to do with each other, each as frequent as it is, in [0, 1].

    For answers that are always the same class it is that class's share of the labels; for answers spread evenly over the
    classes it is 1 / classes. A detector of something rare is right less often than "never", and more often than this.
    """
    kinds, codes = np.unique(np.concatenate([answers, labels]), return_inverse=True)
    codes = codes.reshape(-1)
    counts = [
        np.bincount(part, minlength=len(kinds)) / len(labels) for part in (codes[: len(labels)], codes[len(labels) :])
    ]
    return float((counts[0] * counts[1]).sum())


def share_above(right: int, n: int, share: float) -> float:
    """Exact binomial: the chance of `right` or more right answers of `n` when each is with probability `share`."""
    from scipy.stats import binom

    return 1.0 if n == 0 else float(binom.sf(right - 1, n, min(share, 1.0)))


def trend_above(values: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    """The chance that values without relation to the labels grow with them as clearly (Spearman's rank correlation)."""
    from scipy.stats import spearmanr

    if len(values) < 3 or not np.isfinite(values).all() or len(np.unique(values)) < 2 or len(np.unique(labels)) < 2:
        return 1.0
    return float(spearmanr(values, labels, alternative="greater").pvalue)


def of_classes(answers: NDArray[np.int64], labels: NDArray[np.int64]) -> Chance:
    """Answers against the classes that are right, both of shape (n,)."""
    share, right = independent_share(answers, labels), int((answers == labels).sum())
    return Chance(right / len(labels), share, share_above(right, len(labels), share))


def doubtful(record: QualityRecord) -> bool:
    """Whether these answers are at or below chance level, so that nothing follows from a comparison with them.

    False where it was not tested: metrics of values, runs of older versions, no labels.
    """
    return record.chance is not None and record.chance.value < 1 and record.chance.p_value > LEVEL
