"""Arrays by output name, and how alike the rows of two of them are. Which output is meant is for `choice` to say.

Every function here looks at each row alone, so the outputs of batches can be reduced one after the other.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from profiler.errors import DataError

Array = NDArray[np.generic]
_VALUES_AT_ONCE = 1 << 20
"""Values of each of two arrays that are looked at together."""
NO_CLASS = -(2**63)
"""Predicted class of a row whose outputs hold NaN: always wrong. Not −1, which outlier detectors answer. Exact as a float64."""


def named_output(outputs: Mapping[str, Array], output: str) -> Array:
    """The output called `output`. Raises DataError with the known ones."""
    if output not in outputs:
        raise DataError(
            f"the model has no output '{output}', it has: {', '.join(outputs)}. Set the metric's output option to one of them."
        )
    return outputs[output]


def similarity(values: Array, reference: Array) -> NDArray[np.float64]:
    """Similarity of each row to the reference's, shape (n,), in [−1, 1]; 1 for rows that are equal, zero vectors too.

    Cosine similarity of the flattened rows. For one value a row, where a cosine sees the sign only, it is
    1 − |a − b| / max(|a|, |b|), or 1 − |a − b| when all values lie in 0 … 1: 0.99 means one per cent
    apart. Where only one is zero, NaN or infinite it is 0.

    Outputs may be larger than memory: beside what is given it takes at most about a dozen times the larger of 8 MB and
    one row in float64.
    """
    _check_same_shape(values, reference)
    n = len(values)
    width = max(1, values[:1].size)
    step = max(1, _VALUES_AT_ONCE // width)
    pieces = [slice(start, start + step) for start in range(0, n, step)]
    # Shares and probabilities (a column within 0 … 1) are compared as they are: 1e-5 and 2e-5 agree.
    shares = width == 1 and all(_within_one(values[rows]) and _within_one(reference[rows]) for rows in pieces)
    found = [_similarity(values[rows], reference[rows], shares=shares) for rows in pieces]
    return np.concatenate(found) if found else np.zeros(0)


def _within_one(values: Array) -> bool:
    numbers = np.asarray(values).astype(np.float64)
    return bool(((numbers >= 0) & (numbers <= 1)).all())


def _similarity(values: Array, reference: Array, *, shares: bool) -> NDArray[np.float64]:
    """`similarity` of a few rows; `shares` says whether single values are compared as they are."""
    n = len(values)
    a, b = (np.asarray(array).reshape(n, -1).astype(np.float64) for array in (values, reference))
    equal = ((a == b) | (np.isnan(a) & np.isnan(b))).all(axis=1)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        largest_a, largest_b = np.abs(a).max(axis=1, initial=0), np.abs(b).max(axis=1, initial=0)
        if a.shape[1] == 1:
            result = 1 - np.abs(a - b)[:, 0] / (1.0 if shares else np.maximum(largest_a, largest_b))
        else:
            # Scaled by the largest entry first: squares of very large or small values leave the range of floats.
            a /= largest_a[:, np.newaxis]
            b /= largest_b[:, np.newaxis]
            result = (a * b).sum(axis=1) / np.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1))
    result = np.where(
        np.isfinite(result) & np.isfinite(largest_a) & np.isfinite(largest_b), np.clip(result, -1, 1), 0.0
    )
    return np.where(equal, 1.0, result).astype(np.float64)


def _check_same_shape(values: Array, reference: Array) -> None:
    if values.shape != reference.shape:
        raise DataError(
            f"the outputs have shape {values.shape}, the reference's {reference.shape}: "
            "both must come from the same samples and output."
        )
