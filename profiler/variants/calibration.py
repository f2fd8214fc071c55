"""Ranges of activations for static quantization, in bounded memory: one batch's activations and one histogram a tensor.

ONNX Runtime's own histogram calibrators keep all activations of all rows, and widen histograms bin by bin, which takes
gigabytes when a first row is nearly zero. Two passes avoid both: extremes first, then counts in bins that are fixed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Method = Literal["minmax", "entropy", "percentile"]
Run = Callable[[Any], Mapping[str, NDArray[Any]]]
Range = tuple[float, float]

BINS = 2048
LEVELS = 128
"""Bins of |x| and levels an 8-bit magnitude has (S. Migacz, "8-bit Inference with TensorRT", GTC 2017)."""


def activation_ranges(
    run: Run, feeds: Callable[[], Iterable[Any]], method: Method, percentile: float = 99.999
) -> dict[str, Range]:
    """`(low, high)` of each tensor that `run` returns, over all `feeds()`; NaN and infinities are left out.

    `minmax` takes the extremes; `percentile` cuts both tails to that share; `entropy` clips |x| where the Kullback-Leibler
    divergence between the histogram and its 8-bit form is smallest. `feeds` is called once or twice.
    """
    extremes: dict[str, Range] = {}
    for row in feeds():
        for name, array in run(row).items():
            values = array[np.isfinite(array)]
            if values.size == 0:
                continue
            low, high = extremes.get(name, (np.inf, -np.inf))
            extremes[name] = (min(low, float(values.min())), max(high, float(values.max())))
    if method == "minmax":
        return extremes
    signed = method == "percentile"
    counts = {name: np.zeros(BINS, np.int64) for name in extremes}
    for row in feeds():
        for name, array in run(row).items():
            if name in extremes:
                values = array[np.isfinite(array)].astype(np.float64)
                counts[name] += np.histogram(values if signed else np.abs(values), BINS, _span(extremes[name], signed))[
                    0
                ]
    return {
        name: percentile_range(counts[name], extremes[name], percentile)
        if signed
        else entropy_range(counts[name], extremes[name])
        for name in extremes
    }


def _span(extremes: Range, signed: bool) -> Range:
    low, high = extremes
    if not signed:
        low, high = 0.0, max(abs(low), abs(high))
    # np.histogram needs a positive width; a constant tensor gets one around its value.
    return (low, high) if high > low else (low, low + 1.0)


def percentile_range(counts: NDArray[np.int64], extremes: Range, percentile: float) -> Range:
    """The range that holds `percentile` per cent of the values, the rest cut evenly from both tails of `extremes`."""
    edges = np.linspace(*_span(extremes, signed=True), len(counts) + 1)
    share = np.cumsum(counts) / counts.sum()
    cut = (100.0 - percentile) / 200.0
    left, right = int(np.searchsorted(share, cut, side="right")), int(np.searchsorted(share, 1.0 - cut - 1e-12))
    return max(extremes[0], float(edges[left])), min(extremes[1], float(edges[min(right + 1, len(counts))]))


def entropy_range(counts: NDArray[np.int64], extremes: Range) -> Range:
    """`extremes` clipped at the magnitude with the smallest divergence; `counts` are bins of |x| from 0 to the largest.

    Candidates are all bin edges from `LEVELS` up. The first bin is left out of the divergence: exact zeros (after a ReLU)
    are represented without error whatever the threshold is, and would dominate it.
    """
    width = _span(extremes, signed=False)[1] / len(counts)
    masses = counts.astype(np.float64)
    masses[0] = 0.0
    if masses.sum() == 0:
        return extremes
    candidates = range(LEVELS, len(counts) + 1)
    best = min(candidates, key=lambda stop: (_divergence(masses, stop), -stop))
    threshold = best * width
    return max(extremes[0], -threshold), min(extremes[1], threshold)


def _divergence(masses: NDArray[np.float64], stop: int) -> float:
    kept = masses[:stop]
    reference = kept.copy()
    reference[-1] += masses[stop:].sum()
    starts = (np.arange(LEVELS) * stop) // LEVELS
    group = np.repeat(np.arange(LEVELS), np.diff([*starts, stop]))
    occupied = kept > 0
    total = np.add.reduceat(kept, starts)
    filled = np.add.reduceat(occupied.astype(np.float64), starts)
    level = np.divide(total, filled, out=np.zeros(LEVELS), where=filled > 0)
    quantized = np.where(occupied, level[group], 0.0)
    if quantized.sum() == 0:
        return np.inf
    p, q = reference / reference.sum(), quantized / quantized.sum()
    # Outliers folded into an empty last bin have no counterpart: the divergence would be infinite; a floor keeps order.
    support = p > 0
    return float(np.sum(p[support] * np.log(p[support] / np.maximum(q[support], 1e-10))))
