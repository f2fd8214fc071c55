"""Ranges of activations for static quantization, in bounded memory: one batch's activations and one histogram a tensor.

ONNX Runtime's own histogram calibrators keep all activations of all rows, and widen histograms bin by bin, which takes
gigabytes when a first row is nearly zero. Two passes avoid both: extremes first, then counts in bins that are fixed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from profiler.variants.base import Calibration

Method = Literal["minmax", "entropy", "percentile", "mse"]
Run = Callable[[Any], Mapping[str, NDArray[Any]]]
Range = tuple[float, float]

BINS = 2048
LEVELS = 128
"""Bins of |x| and levels an 8-bit magnitude has (S. Migacz, "8-bit Inference with TensorRT", GTC 2017)."""
STEPS = 255
"""Steps between the lowest and the highest value of 8 bits."""
SMALLEST_SHARE = 0.125
"""Least share of the extremes that a range of least error may keep: below it a bin would be wider than a step."""


def activation_ranges(
    run: Run,
    feeds: Callable[[], Iterable[Any]],
    method: Method,
    percentile: float = 99.999,
    *,
    symmetric: bool = False,
) -> dict[str, Range]:
    """`(low, high)` of each tensor that `run` returns, over all `feeds()`; NaN and infinities are left out.

    `minmax` takes the extremes; `percentile` cuts both tails to that share; `entropy` clips |x| where the Kullback-Leibler
    divergence between the histogram and its 8-bit form is smallest; `mse` clips where the expected squared error of 8 bits is
    smallest, `symmetric` when they are spread evenly around zero. `feeds` is called once or twice.
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
    signed = method != "entropy"
    counts = {name: np.zeros(BINS, np.int64) for name in extremes}
    for row in feeds():
        for name, array in run(row).items():
            if name in extremes:
                values = array[np.isfinite(array)].astype(np.float64)
                counts[name] += np.histogram(values if signed else np.abs(values), BINS, _span(extremes[name], signed))[
                    0
                ]
    if method == "mse":
        return {name: mse_range(counts[name], extremes[name], symmetric=symmetric) for name in extremes}
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


def mse_range(counts: NDArray[np.int64], extremes: Range, *, symmetric: bool = False) -> Range:
    """`extremes` clipped where rounding and clipping together have the smallest expected squared error.

    Rounding costs step²/12 for each value inside, clipping the squared distance of each value outside (R. Banner et al.,
    "Post training 4-bit quantization of convolutional networks", NeurIPS 2019, with the histogram in place of a fitted
    distribution). Zero is always inside and represented exactly, so the values of its bin cost nothing: after a ReLU they
    would dominate. First one share is tried for both ends, then each end on its own.
    """
    low, high = min(extremes[0], 0.0), max(extremes[1], 0.0)
    if high <= low:
        return extremes
    edges = np.linspace(*_span(extremes, signed=True), len(counts) + 1)
    centres = (edges[1:] + edges[:-1]) / 2
    masses = counts.astype(np.float64)
    masses[(edges[:-1] <= 0) & (edges[1:] > 0)] = 0.0

    def error(bottom: float, top: float) -> float:
        width = 2 * max(-bottom, top) if symmetric else top - bottom
        outside = np.maximum(bottom - centres, 0) + np.maximum(centres - top, 0)
        inside = masses[outside == 0].sum()
        return float((width / STEPS) ** 2 / 12 * inside + (masses * outside**2).sum())

    shares = np.linspace(SMALLEST_SHARE, 1.0, 64)
    if symmetric:
        largest = max(-low, high)
        best = min(shares, key=lambda s: (error(max(low, -s * largest), min(high, s * largest)), -s))
        return max(low, -best * largest), min(high, best * largest)
    both = min(shares, key=lambda s: (error(s * low, s * high), -s))
    bottom, top = both * low, both * high
    for _ in range(2):
        bottom = low * min(shares, key=lambda s: (error(s * low, top), -s))
        top = high * min(shares, key=lambda s: (error(bottom, s * high), -s))
    return float(max(extremes[0], bottom)), float(min(extremes[1], top))


def clip_weights(array: NDArray[Any], axis: int | None, levels: int = 127) -> NDArray[Any]:
    """Weights clipped to ±t, t with the least squared error of rounding to ±`levels` steps; one t per slice along `axis`.

    A quantizer that takes the largest magnitude as range then finds t.
    """
    values = np.asarray(array, np.float64)
    rows = values.reshape(1, -1) if axis is None else np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1)
    largest = np.abs(rows).max(axis=1, keepdims=True)
    best, least = largest.copy(), np.full_like(largest, np.inf)
    for share in np.linspace(1.0, 0.5, 51):
        limit = share * largest
        step = np.where(limit > 0, limit, 1) / levels
        off = np.clip(np.rint(rows / step), -levels, levels) * step - rows
        total = (off**2).sum(axis=1, keepdims=True)
        better = total < least
        best, least = np.where(better, limit, best), np.where(better, total, least)
    if axis is None:
        return np.asarray(np.clip(values, -best[0, 0], best[0, 0]), array.dtype)
    shape = [1] * values.ndim
    shape[axis] = -1
    limits = best.reshape(shape)
    return np.asarray(np.clip(values, -limits, limits), array.dtype)


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


def drawn(calibration: Calibration, seed: int) -> Calibration:
    """The rows of `calibration` as `seed` draws them: 0 leaves them, others draw as many with replacement, all arrays alike.

    With replacement, because the rows are often no more than a recipe takes: mere orders of the same rows would all give the
    same ranges, and a spread of nothing.
    """
    rows = min((len(array) for array in calibration.values() if array.ndim), default=0)
    if seed == 0 or not rows:
        return calibration
    order = np.random.default_rng(seed).integers(0, rows, rows)
    return {name: array[order] if array.ndim else array for name, array in calibration.items()}
