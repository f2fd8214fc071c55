"""How far numeric outputs agree with the reference's, measured in each column's own size.

Boxes in pixels beside scores in 0 … 1, seconds as 1e-9: a cosine over whole rows sees only the largest columns, and no gain. So
every column is divided by its size on the reference's rows first, and a gain counts as an error:

    similarity = 1 − Σ(x − y)² / (Σx² + Σy²),   x, y: values and reference in units of their columns' sizes

which is the cosine where both are equally long, 0 where one is zero, 2g / (1 + g²) for a gain g, and 1 − e²/2 for a small
relative error e. docs/method.md states it. Work is done in chunks of rows: memory beside the arrays is bounded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from profiler.errors import DataError

Array = NDArray[np.generic]
Floats = NDArray[np.float64]

CHUNK_VALUES = 1 << 20
"""Values that are looked at in float64 at a time."""
ROUNDING = 1e-6
"""Columns smaller than this share of the output's largest one are measured against that share: float32 rounds there."""
SMALLEST_SHARE = 0.01
"""The same among columns within 0 … 1: a class that no row shows says nothing by the noise of its scores."""


@dataclass(frozen=True)
class Scale:
    """The sizes of one output's columns, from the reference's rows."""

    axis: int | None
    """Axis of the output that the columns lie along; None for an output of one value a row."""
    sizes: Floats
    """Root mean square of each column, shape (columns,), above 0."""
    spread: Floats
    """`sizes` for each value of a flattened row, shape (values of a row,)."""


class Unlike(Enum):
    """Why two outputs cannot be compared value by value."""

    SHAPE = "shape"
    NOT_FINITE = "not finite"
    """NaN or infinity where the reference has a number."""


class Precision(Enum):
    """What an artifact is computed in, as coarse as the rule needs it."""

    FULL = "full"
    """float32 or float64 throughout, on both runtimes."""
    REDUCED = "reduced"
    """Integers, float8, float16 or bfloat16 anywhere, in the file or by a load option of either runtime."""


LIMITS: Mapping[Precision, float] = {Precision.FULL: 1e-3, Precision.REDUCED: 0.1}
"""Largest relative error of an output. float32 sums of thousands of terms in another order differ by 1e-5 or so; one step of
8 bits is 0.8 % of a tensor's range, and a few such steps add up on the way."""
COLUMN_LIMITS: Mapping[Precision, float] = {Precision.FULL: 1e-2, Precision.REDUCED: 0.5}
"""The same for one column alone: among many columns the worst one is further off."""
LABEL_LIMITS: Mapping[Precision, float] = {Precision.FULL: 0.01, Precision.REDUCED: 0.1}
"""Largest share of other values in an output that is no float: near ties fall either way."""


@dataclass(frozen=True)
class Difference:
    """One output beside the reference's, over all rows together."""

    output: str
    similarity: float
    """In [−1, 1]; −1 when `unlike`. For outputs that are no floats the share of equal values."""
    relative_error: float
    """Root mean square error in units of the columns' sizes; for outputs that are no floats the share of other values."""
    column: int | None = None
    """The column that is off most, on `axis`; None where there are no columns to tell apart."""
    axis: int | None = None
    column_error: float = 0.0
    """Root mean square error of that column in units of its size."""
    gain: float | None = None
    """What that column was multiplied by, where a factor explains nine tenths of its error or more."""
    unlike: Unlike | None = None
    floats: bool = True
    """Whether both are floats, compared by size and not by equality."""

    def beyond(self, precision: Precision) -> bool:
        """Whether this is more than two ways to compute one function in `precision` may differ by."""
        if self.unlike is not None:
            return True
        if not self.floats:
            return self.relative_error > LABEL_LIMITS[precision]
        return self.relative_error > LIMITS[precision] or self.column_error > COLUMN_LIMITS[precision]

    @property
    def text(self) -> str:
        """What is off, and by how much; a phrase."""
        if self.unlike is Unlike.SHAPE:
            return f"output '{self.output}' has another shape"
        if self.unlike is Unlike.NOT_FINITE:
            return f"output '{self.output}' has NaN or infinity where there were numbers"
        place = f"output '{self.output}'"
        if self.relative_error == 0:
            return f"{place} is equal"
        if not self.floats:
            return f"{place} has other values in {self.relative_error:.3g} of its places"
        if self.column is not None:
            place = f"column {self.column} (axis {self.axis}) of {place}"
        if self.gain is not None and abs(self.gain) < ROUNDING:
            return f"{place} is zero where it was not"
        if self.gain is not None:
            return f"{place} is {self.gain:.3g} times what it was"
        return f"{place} is off by {max(self.column_error, self.relative_error):.3g} times its size"


def column_scale(reference: Array) -> Scale:
    """The sizes of the columns of `reference`, shape (n,) or (n, …); what is NaN or infinite does not count.

    With several axes beside the first, columns lie along the one where sizes differ most: the channels of boxes and scores.
    A column of size 0 is measured against the others: it gets `ROUNDING` of the largest, or 1 when all are 0.
    """
    n = len(reference)
    shape = reference.shape[1:]
    size = int(np.prod(shape, dtype=np.int64))
    largest = max((float(np.abs(b[np.isfinite(b)]).max(initial=0)) for (b,) in _chunks(reference)), default=0.0)
    unit = largest or 1.0
    squares, counts = np.zeros(size), np.zeros(size)
    within = np.ones(size, bool)
    for (b,) in _chunks(reference):
        finite = np.isfinite(b)
        y = np.where(finite, b, 0.0)
        within &= ((y >= 0) & (y <= 1)).all(axis=0)
        # By the largest value first: squares of very large or small ones leave the range of floats.
        squares += np.square(y / unit).sum(axis=0)
        counts += finite.sum(axis=0)
    axis = None if size <= 1 or n == 0 else 1 + _widest(squares.reshape(shape), counts.reshape(shape))
    if axis is None:
        value = np.sqrt(squares / np.maximum(counts, 1))
        spread = np.where(value > 0, value, 1.0) * unit
        return Scale(None, spread, spread)
    others = tuple(other for other in range(len(shape)) if other != axis - 1)
    sizes = _root(squares.reshape(shape), counts.reshape(shape), others)
    shares = within.reshape(shape).all(axis=others)
    sizes = np.maximum(sizes, np.where(shares, SMALLEST_SHARE * sizes[shares].max(initial=0), 0.0))
    sizes = np.maximum(sizes, ROUNDING * sizes.max(initial=0))
    sizes = np.where(sizes > 0, sizes, 1.0) * unit
    along = sizes.reshape([-1 if place == axis - 1 else 1 for place in range(len(shape))])
    return Scale(axis, sizes, np.broadcast_to(along, shape).reshape(-1))


def similarity(values: Array, reference: Array, scale: Scale | None = None) -> Floats:
    """Similarity of each row to the reference's, shape (n,), in [−1, 1]; 1 for rows that are equal, zero vectors too.

    The module says how it is defined. For one value a row it is 1 − |a − b| / max(|a|, |b|, the column's size): 0.99 means one
    per cent apart. Where only one is zero, NaN or infinite it is 0. `scale` is `column_scale` of all of the reference's rows,
    for those who come with them part by part. Raises DataError for arrays of different shapes.
    """
    check_same_shape(values, reference)
    scale = scale or column_scale(reference)
    parts = [_rows(a, b, scale.spread) for a, b in _chunks(values, reference)]
    return np.concatenate(parts) if parts else np.zeros(0)


def cosine(values: Array, reference: Array) -> Floats:
    """Cosine similarity of each flattened row, shape (n,): for vectors whose direction alone is used, whatever their length.

    For one value a row, where a cosine sees the sign only, it is `similarity`. Raises DataError for arrays of different shapes.
    """
    check_same_shape(values, reference)
    if int(np.prod(values.shape[1:], dtype=np.int64)) <= 1:
        return similarity(values, reference)
    parts = [_cosines(a, b) for a, b in _chunks(values, reference)]
    return np.concatenate(parts) if parts else np.zeros(0)


def compare(output: str, values: Array, reference: Array) -> Difference:
    """All rows of one output beside the reference's; see `Difference`. Where the reference is NaN or infinite nothing counts."""
    if values.shape != reference.shape:
        return Difference(output, -1.0, np.inf, unlike=Unlike.SHAPE)
    if reference.ndim == 0:
        values, reference = values.reshape(1), reference.reshape(1)
    if reference.dtype.kind not in "fc" or values.dtype.kind not in "fc":
        changed = float(np.mean(values != reference)) if reference.size else 0.0
        return Difference(output, 1 - changed, changed, floats=False)
    scale = column_scale(reference)
    size = len(scale.spread)
    errors, mine, theirs, both, counts = (np.zeros(size) for _ in range(5))
    for a, b in _chunks(values, reference):
        known = np.isfinite(b)
        if not np.isfinite(a[known]).all():
            return Difference(output, -1.0, np.inf, unlike=Unlike.NOT_FINITE)
        with np.errstate(over="ignore", invalid="ignore"):
            x, y = (np.where(known, array, 0.0) / scale.spread for array in (a, b))
            x = np.clip(x, -1e100, 1e100)
            errors += np.square(x - y).sum(axis=0)
            mine += np.square(x).sum(axis=0)
            theirs += np.square(y).sum(axis=0)
            both += (x * y).sum(axis=0)
        counts += known.sum(axis=0)
    error, total = errors.sum(), mine.sum() + theirs.sum()
    whole = 1.0 if error == 0 else max(-1.0, 1 - error / max(total, np.finfo(float).tiny))
    relative = float(np.sqrt(error / max(counts.sum(), 1)))
    if scale.axis is None:
        gain = _gain(error, both.sum(), theirs.sum())
        return Difference(output, float(whole), relative, None, None, relative, gain)
    folded = [_fold(array, reference.shape, scale.axis) for array in (errors, both, theirs, counts)]
    each = np.sqrt(folded[0] / np.maximum(folded[3], 1))
    worst = int(each.argmax())
    gain = _gain(folded[0][worst], folded[1][worst], folded[2][worst])
    return Difference(output, float(whole), relative, worst, scale.axis, float(each[worst]), gain)


def check_same_shape(values: Array, reference: Array) -> None:
    """Raise DataError unless both have one shape."""
    if values.shape != reference.shape:
        raise DataError(
            f"the outputs have shape {values.shape}, the reference's {reference.shape}: "
            "both must come from the same samples and output."
        )


def _gain(error: float, both: float, theirs: float) -> float | None:
    """The factor of least squares, where it explains nine tenths of the error and is one to speak of."""
    if theirs <= 0 or error <= 0:
        return None
    factor = both / theirs
    explained = theirs * (factor - 1) ** 2
    return float(factor) if explained >= 0.9 * error and not 0.8 < factor < 1.25 else None


def _widest(squares: Floats, counts: Floats) -> int:
    """The axis along which sizes differ by the largest factor; the first of equal ones."""
    found, most = 0, 0.0
    for axis in range(squares.ndim):
        others = tuple(other for other in range(squares.ndim) if other != axis)
        sizes = _root(squares, counts, others)
        sizes = sizes[sizes > 0]
        factor = float(sizes.max() / sizes.min()) if sizes.size > 1 else 1.0
        if factor > most * (1 + 1e-9):
            found, most = axis, factor
    return found


def _root(squares: Floats, counts: Floats, others: tuple[int, ...]) -> Floats:
    root: Floats = np.sqrt(squares.sum(axis=others) / np.maximum(counts.sum(axis=others), 1))
    return root


def _fold(array: Floats, shape: tuple[int, ...], axis: int) -> Floats:
    others = tuple(other for other in range(len(shape) - 1) if other != axis - 1)
    folded: Floats = array.reshape(shape[1:]).sum(axis=others)
    return folded


def _chunks(*arrays: Array) -> Iterator[tuple[Floats, ...]]:
    """Some rows of each array at a time, flattened, as float64."""
    n = len(arrays[0])
    size = int(np.prod(arrays[0].shape[1:], dtype=np.int64))
    step = max(1, CHUNK_VALUES // max(size, 1))
    for start in range(0, n, step):
        yield tuple(
            np.asarray(array[start : start + step]).reshape(min(step, n - start), size).astype(np.float64)
            for array in arrays
        )


def _rows(a: Floats, b: Floats, spread: Floats) -> Floats:
    equal = ((a == b) | (np.isnan(a) & np.isnan(b))).all(axis=1)
    known = np.isfinite(a).all(axis=1) & np.isfinite(b).all(axis=1)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        x, y = a / spread, b / spread
        largest = np.maximum(np.abs(x), np.abs(y)).max(axis=1, initial=0)
        if a.shape[1] == 1:
            result = (
                1 - np.abs(x / np.maximum(largest, 1)[:, np.newaxis] - y / np.maximum(largest, 1)[:, np.newaxis])[:, 0]
            )
        else:
            unit = np.maximum(largest, ROUNDING)[:, np.newaxis]
            x, y = x / unit, y / unit
            floor = 2 * a.shape[1] * np.square(ROUNDING / unit[:, 0])
            result = 1 - np.square(x - y).sum(axis=1) / np.maximum((x * x + y * y).sum(axis=1), floor)
    result = np.where(known & np.isfinite(result), np.clip(result, -1, 1), 0.0)
    return np.where(equal, 1.0, result).astype(np.float64)


def _cosines(a: Floats, b: Floats) -> Floats:
    equal = ((a == b) | (np.isnan(a) & np.isnan(b))).all(axis=1)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        largest_a, largest_b = np.abs(a).max(axis=1, initial=0), np.abs(b).max(axis=1, initial=0)
        # Scaled by the largest entry first: squares of very large or small values leave the range of floats.
        x, y = a / largest_a[:, np.newaxis], b / largest_b[:, np.newaxis]
        result = (x * y).sum(axis=1) / np.sqrt((x * x).sum(axis=1) * (y * y).sum(axis=1))
    known = np.isfinite(result) & np.isfinite(largest_a) & np.isfinite(largest_b)
    return np.where(equal, 1.0, np.where(known, np.clip(result, -1, 1), 0.0)).astype(np.float64)
