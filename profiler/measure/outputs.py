"""What a runtime answers, as arrays that can travel to the parent: tensors as they are, text, and sequences of maps.

scikit-learn's exporters give probabilities as one map per row (`ZipMap`) unless they are told not to, and the names of classes
as text.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backends.base import BackendError

_NO_ZIPMAP = "options={id(model): {'zipmap': False}}"


def as_arrays(outputs: Mapping[str, Any]) -> dict[str, NDArray[np.generic]]:
    """Outputs by name. A sequence of maps of the same keys becomes an array [rows, keys], its columns in the keys' order.

    What is no array is left out where another output is one; the parent knows the names of all. Raises BackendError that names
    the output which is no array, with what to export instead, where none is.
    """
    arrays: dict[str, NDArray[np.generic]] = {}
    refused: BackendError | None = None
    for name, value in outputs.items():
        try:
            arrays[name] = _array(name, value)
        except BackendError as error:
            refused = refused or error
    if refused is not None and not arrays:
        raise refused
    return arrays


def _array(name: str, value: Any) -> NDArray[np.generic]:
    if isinstance(value, list) and value and all(isinstance(row, dict) for row in value):
        return _columns(name, value)
    if isinstance(value, (list, tuple, dict)):
        kind = "a map" if isinstance(value, dict) else f"a sequence of {len(value)} {_kind(value)}"
        raise BackendError(f"output '{name}' is {kind}, no tensor: export the model with tensors as outputs.")
    array = np.asarray(value)
    if array.dtype.kind != "O":
        return array
    words = array.reshape(-1).tolist()
    if not all(isinstance(word, str) for word in words):
        raise BackendError(
            f"output '{name}' holds objects that are neither numbers nor text: export the model with tensors."
        )
    return np.array(words, dtype=np.str_).reshape(array.shape)


def _columns(name: str, rows: list[dict[Any, Any]]) -> NDArray[np.generic]:
    keys = set(rows[0])
    if any(set(row) != keys for row in rows):
        raise BackendError(
            f"output '{name}' is a map for each row, of other keys in each: it fits no array. Export the model with tensors "
            f"as outputs; with skl2onnx: {_NO_ZIPMAP}."
        )
    # Keys of one map are of one type. The order is that of scikit-learn's `classes_`.
    order = sorted(keys)
    table = np.array([[row[key] for key in order] for row in rows])
    if table.ndim != 2 or table.dtype.kind not in "fiub":
        raise BackendError(
            f"output '{name}' is a map for each row, of values that are no numbers: export the model with tensors as "
            f"outputs; with skl2onnx: {_NO_ZIPMAP}."
        )
    # The runtime gives float32 as Python's floats.
    return table.astype(np.float32) if table.dtype.kind == "f" else table


def _kind(values: list[Any] | tuple[Any, ...]) -> str:
    return f"{type(values[0]).__name__} objects" if values else "things"
