"""Which output holds the answer, what class it says, and how far two models' answers agree, row by row.

Every function here looks at each row alone, but for `agreement` of values, which measures in the columns' sizes over all of the
reference's rows.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from profiler.errors import DataError
from profiler.quality.similarity import check_same_shape, similarity

Array = NDArray[np.generic]
NO_CLASS = -(2**63)
"""Predicted class of a row whose outputs hold NaN: always wrong. Not −1, which outlier detectors answer. Exact as a float64."""


def named_output(outputs: Mapping[str, Array], output: str) -> Array:
    """The output called `output`. Raises DataError with the known ones."""
    if output not in outputs:
        raise DataError(
            f"the model has no output '{output}', it has: {', '.join(outputs)}. Set the metric's output option to one of them."
        )
    return outputs[output]


def class_output(outputs: Mapping[str, Array], output: str | None = None) -> Array | None:
    """The first float output of shape [n, classes] with two classes or more (a sklearn model's
    `probabilities`), or None."""
    candidates = outputs.values() if output is None else [named_output(outputs, output)]
    return next(
        (array for array in candidates if array.dtype.kind == "f" and array.ndim == 2 and array.shape[1] > 1), None
    )


def label_output(outputs: Mapping[str, Array], output: str | None = None) -> Array | None:
    """The output that says the class itself, shape (n,), or None.

    An integer output of shape [n] or [n, 1] does when it is asked for by name, is the only output, or stands beside an
    output with a column for each class: a sklearn classifier's `label` may be a class that is not the index of the column.
    """
    if output is None and len(outputs) > 1 and class_output(outputs) is None:
        return None
    candidates = outputs.values() if output is None else [named_output(outputs, output)]
    for array in candidates:
        if array.dtype.kind in "iub" and (array.ndim == 1 or array.shape[1:] == (1,)):
            return array.reshape(-1)
    return None


def value_output(outputs: Mapping[str, Array], output: str | None = None) -> Array:
    """The output named, or the first float one, or the first numeric one. Raises DataError when there is none."""
    if output is not None:
        array = named_output(outputs, output)
    else:
        numeric = [array for array in outputs.values() if array.dtype.kind in "biuf"]
        if not numeric:
            kinds = {name: array.dtype.name for name, array in outputs.items()}
            raise DataError(f"no output of the model is numeric: {kinds}. Export the model with tensor outputs.")
        array = next((array for array in numeric if array.dtype.kind == "f"), numeric[0])
    if array.ndim == 0:
        raise DataError("the output is a single value without a batch axis: one row for each sample is needed.")
    return array


def predictions(outputs: Mapping[str, Array], *, output: str | None = None) -> NDArray[np.int64] | None:
    """The class each row says, shape (n,), or None when the model is no classifier; `NO_CLASS` where its outputs are NaN.

    Ties go to the lower class. A single float column is None: whether it is a probability, a logit or a target value only
    the user knows (`top1{threshold=0.5}`).
    """
    said = label_output(outputs, output)
    if said is not None:
        return said.astype(np.int64)
    columns = class_output(outputs, output)
    if columns is None:
        return None
    # argmax answers with the position of a NaN, which would count as an answer.
    return np.where(np.isnan(columns).any(axis=1), NO_CLASS, columns.argmax(axis=1)).astype(np.int64)


def agreement(
    outputs: Mapping[str, Array], reference: Mapping[str, Array], *, output: str | None = None, classes: bool = True
) -> NDArray[np.float64]:
    """Agreement with the reference for each row, shape (n,): 1 or 0 for classes, otherwise `similarity` of the values.

    With `classes=False` it is always similarity: several target values look like the columns of a classifier.
    """
    mine, theirs = (predictions(arrays, output=output) if classes else None for arrays in (outputs, reference))
    if mine is not None and theirs is not None:
        check_same_shape(mine, theirs)
        return np.asarray(mine == theirs, np.float64)
    return similarity(value_output(outputs, output), value_output(reference, output))
