"""Rows for calibration, kept apart from the rows that are evaluated.

A variant calibrated on rows that it is then judged on looks better than it is, so clusters (rows with one id) and equal
rows never stand on both sides.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from profiler.data.dataset import Dataset, row_hashes
from profiler.errors import DataError


def split_calibration(data: Dataset, n: int, *, seed: int, by_ids: bool = False) -> tuple[Dataset, Dataset]:
    """Cut at least `n` rows for calibration, drawn at random in whole clusters; the other rows are for evaluation.

    A cluster is the rows that share an id or have equal inputs, directly or through other rows; with `by_ids`
    the rows of one id alone, where a row is a step of a sequence and equal steps say nothing. Both parts keep the data's order.
    Raises DataError when nothing would be left to evaluate on.
    """
    if n < 1:
        raise DataError(f"calibration asks for {n} rows of '{data.name}': at least 1 is needed.")
    clusters = _clusters(data, by_ids=by_ids)
    names, sizes = np.unique(clusters, return_counts=True)
    order = np.random.default_rng(seed).permutation(len(names))
    count = int(np.searchsorted(np.cumsum(sizes[order]), n)) + 1
    if count >= len(names):
        raise DataError(
            f"data '{data.name}' has {len(data)} rows in {len(names)} clusters; {n} rows for calibration "
            "leave none to evaluate on: give calibration data of its own, more data, or fewer calibration rows."
        )
    chosen = np.isin(clusters, names[order[:count]])
    calibration, evaluation = data.take(np.flatnonzero(chosen)), data.take(np.flatnonzero(~chosen))
    cut = f"{len(calibration)} of {len(data)} rows of '{data.name}', cut at random (seed {seed})"
    return (
        replace(calibration, name=f"{data.name} (calibration)", notes=(*data.notes, cut)),
        replace(
            evaluation, notes=(*data.notes, f"{len(calibration)} rows were cut for calibration and are not evaluated")
        ),
    )


def overlap(calibration: Dataset, evaluation: Dataset, *, by_ids: bool = False) -> NDArray[np.int64]:
    """Indexes of the calibration rows whose inputs also stand in the evaluation data, or whose id does. Shape (k,), sorted.

    With `by_ids` inputs don't count: a step of a sequence is no sample.
    """
    seen = set() if by_ids else set(row_hashes(evaluation))
    shared = np.array(
        [row in seen for row in ([] if by_ids else row_hashes(calibration))] or [False] * len(calibration), bool
    )
    if calibration.ids is not None and evaluation.ids is not None:
        shared |= np.isin(calibration.ids, evaluation.ids)
    return np.flatnonzero(shared).astype(np.int64)


def drop_overlap(calibration: Dataset, evaluation: Dataset, *, by_ids: bool = False) -> Dataset:
    """`calibration` without the rows that also stand in `evaluation`, and a note that says how many.

    Raises DataError when none is left.
    """
    shared = overlap(calibration, evaluation, by_ids=by_ids)
    if not shared.size:
        return calibration
    if shared.size == len(calibration):
        raise DataError(
            f"all {shared.size} rows of calibration data '{calibration.name}' also stand in '{evaluation.name}': give others."
        )
    kept = calibration.take(np.setdiff1d(np.arange(len(calibration)), shared))
    return replace(
        kept, notes=(*kept.notes, f"{shared.size} calibration rows also stand in '{evaluation.name}' and were dropped")
    )


def _clusters(data: Dataset, *, by_ids: bool = False) -> NDArray[np.int64]:
    """A cluster number for each row, shape (n,): components of "same id or same inputs" (union–find)."""
    parent = list(range(len(data)))

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    keys: list[list[object]] = [] if by_ids and data.ids is not None else [list(row_hashes(data))]
    if data.ids is not None:
        keys.append(data.ids.tolist())
    for column in keys:
        first: dict[object, int] = {}
        for row, key in enumerate(column):
            parent[root(row)] = root(first.setdefault(key, row))
    return np.array([root(row) for row in range(len(data))], np.int64)
