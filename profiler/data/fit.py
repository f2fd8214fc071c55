"""From the arrays that somebody saved to rows with the row axis first and inputs that are the same for all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from backends.base import format_shape
from profiler.data.dataset import Array
from profiler.data.feeding import Feeding, InputRule, text_of
from profiler.errors import DataError


class UndeclaredStateError(DataError):
    """The data lack an array that looks like a state; `asked` is how it can be declared."""

    def __init__(self, message: str, asked: Mapping[str, Mapping[str, object]]) -> None:
        """`asked`: options by input."""
        super().__init__(message)
        self.asked = asked


def fit_arrays(
    name: str, feeding: Feeding, arrays: Mapping[str, Array], labels: Array | None
) -> tuple[dict[str, Array], dict[str, Array], tuple[str, ...]]:
    """Rows by input, row axis first; constants by input; notes. Arrays of no input stay among the rows, to be refused there.

    Raises DataError for an array that is neither one row a sample nor, where that is what the input takes, one value for all.
    """
    rows, constants, notes = dict(arrays), {}, []
    for rule in feeding.rules:
        array = rows.get(rule.name)
        if array is None or rule.from_rows:
            continue
        del rows[rule.name]
        if rule.role == "state":
            notes.append(
                f"array '{rule.name}' is not fed: that input begins with {rule.init:g} and is carried from output "
                f"'{rule.source}' (init=data begins with the array's rows)"
            )
        elif rule.value is not None:
            notes.append(f"array '{rule.name}' is not fed: a value was declared for that input")
        else:
            constants[rule.name], note = _constant(name, rule, array)
            notes += note
    counts = _row_counts(feeding, rows, labels)
    for rule in feeding.rules:
        if rule.from_rows and rule.name in rows:
            rows[rule.name], note = _rows_first(name, rule, rows[rule.name], counts)
            notes += note
    _require(name, feeding, rows)
    return rows, constants, tuple(notes)


def _constant(name: str, rule: InputRule, array: Array) -> tuple[Array, list[str]]:
    if _fits(array.shape, rule.info.shape):
        return array, []
    if array.size and array.ndim and _fits(array.shape[1:], rule.info.shape) and bool((array == array[:1]).all()):
        note = f"input '{rule.name}' is the same for all rows: the first of {len(array)} equal ones is fed"
        return np.asarray(array[0]), [note]
    if array.ndim and array.size == 1 and not rule.info.shape:
        return array.reshape(()), []
    raise DataError(
        f"input '{rule.name}' takes one value for all rows, {format_shape(rule.info.shape)}, and data '{name}' has shape "
        f"{array.shape} with different ones: give one value, or feed row by row, with --batch 1 and "
        f"--input '{text_of(rule.name, {'batch_axis': 'none'})}'."
    )


def _row_counts(feeding: Feeding, rows: Mapping[str, Array], labels: Array | None) -> set[int]:
    """How many rows there are, by the arrays whose rows can only lie on the first axis."""
    sure = [rows[rule.name] for rule in feeding.rules if rule.from_rows and not rule.axis and rule.name in rows]
    return {len(array) for array in (*sure, labels) if array is not None and array.ndim}


def _rows_first(name: str, rule: InputRule, array: Array, counts: set[int]) -> tuple[Array, list[str]]:
    """The array with its rows on the first axis: saved as the model takes it, or row by row."""
    if not rule.axis:
        return array, []
    shape = rule.info.shape
    anyhow = (*shape[: rule.axis], None, *shape[rule.axis + 1 :])
    as_model, by_rows = _fits(array.shape, anyhow), _fits(array.shape, (None, *rule.row_shape))
    if as_model and by_rows:
        # Where both would do, the number of rows decides, and then the model's own layout.
        as_model = array.shape[rule.axis] in counts or array.shape[0] not in counts
    if as_model:
        note = f"input '{rule.name}': rows were taken from axis {rule.axis} of an array of shape {array.shape}"
        return np.moveaxis(array, rule.axis, 0), [note]
    if by_rows:
        return array, []
    raise DataError(
        f"input '{rule.name}' takes {format_shape(shape)} with the rows on axis {rule.axis}, and data '{name}' has shape "
        f"{array.shape}: give the rows on that axis, or on the first one as {format_shape((None, *rule.row_shape))}."
    )


def _fits(shape: Sequence[int], wanted: Sequence[int | str | None]) -> bool:
    return len(shape) == len(wanted) and all(
        not isinstance(want, int) or want == got for got, want in zip(shape, wanted, strict=True)
    )


def _require(name: str, feeding: Feeding, rows: Mapping[str, Array]) -> None:
    """Where an array is missing that looks like a state or a constant, say how it can be declared."""
    for rule in feeding.rules:
        if not rule.from_rows or rule.name in rows:
            continue
        shape = format_shape(rule.info.shape)
        if rule.name in feeding.likely_states:
            options: dict[str, object] = {"from": feeding.likely_states[rule.name]}
            if rule.axis:
                options = {"batch_axis": rule.axis, **options}
            raise UndeclaredStateError(
                f"data '{name}' has no array '{rule.name}' ({shape}). Its type, shape and name are those of output "
                f"'{options['from']}': if it is a state that a sequence carries, say so with "
                f"--input '{text_of(rule.name, options)}', and with an array `ids` in the data, equal for the rows of one "
                "sequence.",
                {rule.name: options},
            )
