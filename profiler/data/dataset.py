"""The checked rows of a study: inputs, labels, subgroups and clusters, identified by their content."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from profiler.errors import DataError

Array = NDArray[np.generic]

MAX_BYTES = 4 * 2**30
"""Most bytes that one data set may take in memory: a study holds it once in the parent and sends parts of it to workers."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """Rows to evaluate or calibrate on. Made by `load_dataset` (or `Dataset.of`), which checks them."""

    name: str
    inputs: Mapping[str, Array]
    """Array by model input, batch axis first, n rows each."""
    labels: Array | None
    """Class indexes (integers) or names (texts), shape (n,), or target values (floats, shape (n,) or (n, …))."""
    groups: NDArray[np.str_] | None
    """Name of each row's subgroup, shape (n,)."""
    ids: NDArray[np.str_] | None
    """Rows with the same id are views of one source: they are resampled and split together. Shape (n,)."""
    sha256: str
    """Hash of names, dtypes, shapes and bytes of all arrays; the name and the notes are not part of it."""
    notes: tuple[str, ...] = ()
    constants: Mapping[str, Array] = field(default_factory=dict)
    """Inputs that are the same for all rows, where the data hold them."""

    @classmethod
    def of(
        cls,
        name: str,
        inputs: Mapping[str, Array],
        labels: Array | None = None,
        groups: Array | None = None,
        ids: Array | None = None,
        notes: tuple[str, ...] = (),
        constants: Mapping[str, Array] | None = None,
    ) -> Dataset:
        """Check the parts against each other and hash them. Raises DataError that names the array and the fault."""
        if not inputs and constants:
            raise DataError(
                f"data '{name}' has a single value for each input ({', '.join(constants)}), the same for all rows: there are no "
                "rows to evaluate. Leave the data out to measure time, with --input 'NAME{value=…}' for each."
            )
        if not inputs:
            raise DataError(f"data '{name}' has no input arrays: give one array for each of the model's inputs.")
        # Not ascontiguousarray, which turns a single value into an array of one row.
        arrays = {key: np.asarray(_native(array), order="C") for key, array in inputs.items()}
        rows = _rows(name, arrays)
        for key, array in arrays.items():
            _check_finite(f"input '{key}' of data '{name}'", array)
        whole = {key: np.asarray(_native(array), order="C") for key, array in (constants or {}).items()}
        for key, array in whole.items():
            _check_finite(f"input '{key}' of data '{name}'", array)
        checked_labels = None if labels is None else _checked_labels(name, labels, rows)
        names = {
            key: None if column is None else _texts(name, key, column, rows)
            for key, column in (("groups", groups), ("ids", ids))
        }
        return cls(
            name=name,
            inputs=arrays,
            labels=checked_labels,
            groups=names["groups"],
            ids=names["ids"],
            sha256=_content_hash(
                {
                    **{f"input:{key}": array for key, array in arrays.items()},
                    **{f"constant:{key}": array for key, array in whole.items()},
                    "labels": checked_labels,
                    **names,
                }
            ),
            notes=notes,
            constants=whole,
        )

    def __len__(self) -> int:
        """Number of rows."""
        return int(next(iter(self.inputs.values())).shape[0])

    def take(self, index: NDArray[np.int64]) -> Dataset:
        """The rows at `index`, in that order, as a data set with a hash of its own."""
        return Dataset.of(
            self.name,
            {key: array[index] for key, array in self.inputs.items()},
            None if self.labels is None else self.labels[index],
            None if self.groups is None else self.groups[index],
            None if self.ids is None else self.ids[index],
            self.notes,
            self.constants,
        )


def row_hashes(data: Dataset) -> list[bytes]:
    """One 16-byte hash for each row's inputs (labels, groups and ids left out): equal inputs, equal hash."""
    prefix = repr(
        [(key, data.inputs[key].dtype.str, data.inputs[key].shape[1:]) for key in sorted(data.inputs)]
    ).encode()
    columns = [np.ascontiguousarray(data.inputs[key]) for key in sorted(data.inputs)]
    hashes = []
    for row in range(len(data)):
        digest = hashlib.blake2b(prefix, digest_size=16)
        for column in columns:
            digest.update(column[row].tobytes())
        hashes.append(digest.digest())
    return hashes


def check_labels(labels: Array, n_classes: int) -> None:
    """Raise DataError unless `labels` are class indexes 0 … n_classes−1, shape (n,)."""
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise DataError(
            f"labels are {labels.dtype.name} of shape {labels.shape}, a classifier needs integer class indexes of shape (n,)."
        )
    index = labels.astype(np.int64)
    outside = np.flatnonzero((index < 0) | (index >= n_classes))
    if outside.size:
        raise DataError(
            f"{outside.size} labels lie outside 0 … {n_classes - 1}, the model has {n_classes} classes; first: "
            f"label {labels[outside[0]]} in row {outside[0]}. Number the classes from 0 in the order of the model's output."
        )


def _native(array: Array) -> Array:
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def _rows(name: str, arrays: Mapping[str, Array]) -> int:
    scalars = [key for key, array in arrays.items() if array.ndim == 0]
    if scalars:
        raise DataError(f"input '{scalars[0]}' of data '{name}' is a single value: the first axis has to be the batch.")
    sizes = {key: int(array.shape[0]) for key, array in arrays.items()}
    if len(set(sizes.values())) > 1:
        shapes = ", ".join(f"'{key}' {array.shape}" for key, array in arrays.items())
        raise DataError(
            f"the inputs of data '{name}' have different numbers of rows: {shapes}. Row i of each belongs to sample i; an input "
            "that is the same for all rows is declared with --input 'NAME{value=data}' (docs/data.md)."
        )
    rows = next(iter(sizes.values()))
    if rows == 0:
        raise DataError(f"data '{name}' is empty: its inputs have 0 rows.")
    if (total := sum(array.nbytes for array in arrays.values())) > MAX_BYTES:
        raise DataError(
            f"data '{name}' takes {total / 1e9:.1f} GB, at most {MAX_BYTES / 1e9:.1f} GB are read: use fewer rows."
        )
    return rows


def _check_finite(what: str, array: Array) -> None:
    if array.dtype.kind not in "fc":
        return
    bad = ~np.isfinite(array)
    if count := int(bad.sum()):
        row = int(np.argwhere(bad)[0][0])
        raise DataError(
            f"{what} has {count} NaN or infinite values of {array.size}, the first in row {row}: clean or drop these rows."
        )


def _checked_labels(name: str, labels: Array, rows: int) -> Array:
    if labels.dtype.kind not in "iufbUS":
        raise DataError(
            f"the labels of data '{name}' are {labels.dtype.name}: give class indexes (integers), class names (texts) or target "
            "values (floats)."
        )
    if labels.ndim == 0 or labels.shape[0] != rows:
        raise DataError(
            f"data '{name}' has {rows} rows and labels of shape {labels.shape}: one label for each row is needed."
        )
    if labels.size == 0:
        raise DataError(f"the labels of data '{name}' have shape {labels.shape}: there is no value for a row.")
    if labels.dtype.kind in "US":
        return _texts(name, "labels", labels[:, 0] if labels.shape[1:] == (1,) else labels, rows)
    _check_finite(f"array 'labels' of data '{name}'", labels)
    # A column of whole numbers may be classes, also where a table gave them as floats.
    if (
        labels.ndim == 2
        and labels.shape[1] == 1
        and (labels.dtype.kind != "f" or bool((labels == np.floor(labels)).all()))
    ):
        labels = labels[:, 0]
    if labels.dtype.kind == "u" and int(labels.max()) > np.iinfo(np.int64).max:
        raise DataError(
            f"the labels of data '{name}' reach {labels.max()}, beyond 64-bit integers: number the classes from 0."
        )
    return np.ascontiguousarray(labels, np.float64 if labels.dtype.kind == "f" else np.int64)


def _texts(name: str, key: str, column: Array, rows: int) -> NDArray[np.str_]:
    if column.dtype.kind not in "iuUSb":
        raise DataError(
            f"array '{key}' of data '{name}' is {column.dtype.name}: give a name (text or integer) for each row."
        )
    if column.shape != (rows,):
        raise DataError(
            f"data '{name}' has {rows} rows and '{key}' of shape {column.shape}: one name for each row is needed."
        )
    try:
        return column.astype(np.str_)
    except UnicodeDecodeError as error:
        raise DataError(
            f"array '{key}' of data '{name}' holds bytes that are no ASCII text: save it as text (dtype U)."
        ) from error


def _content_hash(arrays: Mapping[str, Array | None]) -> str:
    """SHA-256 over name, kind, shape and little-endian bytes of each array, sorted by name. Text is hashed as UTF-8 rows."""
    digest = hashlib.sha256()
    for key in sorted(arrays):
        array = arrays[key]
        if array is None:
            continue
        if array.dtype.kind == "U":
            # The width of a numpy text dtype depends on the longest row, not on what the rows say.
            encoded = [text.encode() for text in array.tolist()]
            digest.update(repr((key, "text", array.shape)).encode())
            for text in encoded:
                digest.update(len(text).to_bytes(8, "little") + text)
        else:
            digest.update(repr((key, array.dtype.newbyteorder("<").str, array.shape)).encode())
            digest.update(np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"), copy=False)).data)
    return digest.hexdigest()
