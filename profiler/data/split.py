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
    shared = np.zeros(len(calibration), bool) if by_ids else _same_inputs(calibration, evaluation)
    return np.flatnonzero(shared | _same_ids(calibration, evaluation)).astype(np.int64)


def _same_inputs(calibration: Dataset, evaluation: Dataset) -> NDArray[np.bool_]:
    seen = set(row_hashes(evaluation))
    return np.array([row in seen for row in row_hashes(calibration)], bool)


def _same_ids(calibration: Dataset, evaluation: Dataset) -> NDArray[np.bool_]:
    if calibration.ids is None or evaluation.ids is None:
        return np.zeros(len(calibration), bool)
    return np.isin(calibration.ids, evaluation.ids)


def drop_overlap(calibration: Dataset, evaluation: Dataset, *, by_ids: bool = False) -> Dataset:
    """`calibration` without the rows that also stand in `evaluation`, and a note that says how many.

    Raises DataError when none is left.
    """
    shared = overlap(calibration, evaluation, by_ids=by_ids)
    if not shared.size:
        return calibration
    by_name = _same_ids(calibration, evaluation)
    if shared.size == len(calibration):
        if by_name.all() and calibration.ids is not None:
            first = str(calibration.ids[0])
            raise DataError(
                f"all {shared.size} rows of calibration data '{calibration.name}' have an id that '{evaluation.name}' has too, "
                f"such as '{first}': rows of one id are one source. Give others, or ids that differ between the two files."
            )
        raise DataError(
            f"all {shared.size} rows of calibration data '{calibration.name}' also stand in '{evaluation.name}': give others."
        )
    alike = int(by_name[shared].sum())
    how = "" if not alike else " by their id" if alike == shared.size else f", {alike} of them by their id,"
    kept = calibration.take(np.setdiff1d(np.arange(len(calibration)), shared))
    return replace(
        kept,
        notes=(*kept.notes, f"{shared.size} calibration rows also stand in '{evaluation.name}'{how} and were dropped"),
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
