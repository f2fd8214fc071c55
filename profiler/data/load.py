"""From what the user names (a file, a folder, a function, arrays) to checked rows that fit the model."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike

from backends.base import FeedError, TensorInfo, check_feeds, format_shape
from profiler.data.dataset import Array, Dataset
from profiler.data.feeding import Feeding, sequences
from profiler.data.fit import fit_arrays
from profiler.data.functions import FUNCTION, RESERVED, read_function
from profiler.data.images import Preprocessing, read_images
from profiler.data.npz import read_npz
from profiler.errors import DataError, StudyError


class FunctionReader(Protocol):
    """How a text `package.module:function` becomes arrays."""

    def __call__(self, text: str, input_names: tuple[str, ...], *, limit: int | None) -> Mapping[str, Array]:
        """As `data.functions.read_function`."""
        ...


_LABEL_LIKE = frozenset({"label", "y", "ys", "target", "targets", "y_true", "y_test", "classes"})
"""Names under which labels are saved where nobody said which."""


def load_dataset(
    source: str | Path | Mapping[str, ArrayLike],
    *,
    inputs: Sequence[TensorInfo],
    preprocessing: Preprocessing | None = None,
    limit: int | None = None,
    seed: int = 0,
    feeding: Feeding | None = None,
    call: FunctionReader = read_function,
) -> Dataset:
    """Read and check the rows of `source` for a model with `inputs`, which are fed as `feeding` says (default: row by row).

    `source` is an `.npz` (arrays named as the inputs, plus optional `labels`, `groups`, `ids`), a folder of images with
    `preprocessing`, a text `package.module:function` (see `data.functions.read_function`), or a mapping of arrays.
    `call` reads a function; where it is code that may crash, in another process (`targets.functions`).
    With `limit`, that many rows are drawn at random with `seed` (a function gives its first rows).
    Raises DataError that names the array or file, what came, what was expected and what to do.
    """
    if limit is not None and limit < 1:
        raise StudyError(f"the limit of rows is {limit}, it has to be 1 or more.")
    feeding = feeding or Feeding.plain(inputs)
    names = tuple(info.name for info in feeding.row_inputs)
    if isinstance(source, Mapping):
        return _fitted("arrays", _as_arrays(source), feeding, (), limit, seed)
    path = Path(source).expanduser()
    if not path.exists():
        if FUNCTION.fullmatch(str(source)):
            return _fitted(str(source), dict(call(str(source), names, limit=limit)), feeding, (), limit, seed)
        raise DataError(
            f"data '{source}' is neither a file, a folder nor package.module:function: check the path from '{Path.cwd()}'."
        )
    if path.is_dir():
        return _images(path, feeding, preprocessing, limit, seed)
    if path.suffix.lower() != ".npz":
        raise DataError(
            f"data '{path}' is a {path.suffix or 'file'}: give an .npz, a folder of images or package.module:function."
        )
    return _fitted(path.name, read_npz(path), feeding, (), limit, seed)


def _as_arrays(source: Mapping[str, ArrayLike]) -> dict[str, Array]:
    arrays = {str(name): np.asarray(value) for name, value in source.items()}
    refused = [name for name, array in arrays.items() if array.dtype.kind not in "biufUS"]
    if refused:
        raise DataError(
            f"array '{refused[0]}' has dtype {arrays[refused[0]].dtype}: give numbers (or text for groups and ids)."
        )
    return arrays


def _images(path: Path, feeding: Feeding, preprocessing: Preprocessing | None, limit: int | None, seed: int) -> Dataset:
    inputs = feeding.row_inputs
    if len(inputs) != 1:
        raise DataError(
            f"images feed one input, the model has {[info.name for info in inputs]}: give an .npz or package.module:function."
        )
    if preprocessing is None:
        raise DataError(
            f"'{path}' is a folder of images: say how they become arrays for input '{inputs[0].name}' "
            f"{format_shape(inputs[0].shape)}, as the model was trained, at least with {_likely_preprocessing(inputs[0])}; in a "
            "study file a table [preprocessing]; mean, std, crop and the rest: docs/data.md."
        )
    images, labels, notes = read_images(path, inputs[0], preprocessing, limit=limit, seed=seed)
    return _fitted(path.name, {inputs[0].name: images, "labels": labels}, feeding, notes, None, seed)


def _likely_preprocessing(info: TensorInfo) -> str:
    """What the input's shape tells of it, as an option of the command line."""
    shape: list[int | str | None] = list(info.shape[1:]) if len(info.shape) == 4 else [None, None, None]
    last = shape[-1] in (1, 3) and shape[0] not in (1, 3)
    channels, sizes = (shape[-1], shape[:-1]) if last else (shape[0], shape[1:])
    height, width = (size if isinstance(size, int) else 224 for size in sizes)
    told = [f"size = [{height}, {width}]"]
    told += ['layout = "NHWC"'] if last else []
    told += ['channels = "L"'] if channels == 1 else []
    return f"--set {shlex.quote('preprocessing={' + ', '.join(told) + '}')}"


def _fitted(
    name: str,
    arrays: dict[str, Array],
    feeding: Feeding,
    notes: tuple[str, ...],
    limit: int | None,
    seed: int,
) -> Dataset:
    expected = {rule.name: rule for rule in feeding.rules}
    # A model may have an input called like a reserved array; then it is the input.
    extras = {key: arrays[key] for key in RESERVED if key in arrays and key not in expected}
    feeds = {key: array for key, array in arrays.items() if key not in extras}
    wanted = [info.name for info in feeding.row_inputs]
    strangers = [key for key in feeds if key not in expected]
    if len(strangers) == len(wanted) == 1 and wanted[0] not in feeds:
        feeds[wanted[0]] = feeds.pop(strangers[0])
        notes += (f"array '{strangers[0]}' was taken as the model's only input '{wanted[0]}'",)
    for key in feeds.keys() & expected.keys():
        feeds[key], note = _converted(name, key, feeds[key], expected[key].info.dtype)
        notes += note
    rows, constants, more = fit_arrays(name, feeding, feeds, extras.get("labels"))
    notes += more
    try:
        check_feeds(feeding.row_inputs, rows)
    except FeedError as error:
        stray = [key for key in feeds if key not in expected and key.lower() in _LABEL_LIKE]
        hint = f" If '{stray[0]}' holds the labels, save it under the name 'labels'." if stray else ""
        raise DataError(f"data '{name}' does not fit the model: {error}{hint}") from error
    _check_shared_dimensions(name, feeding.row_inputs, rows)
    rows = {info.name: rows[info.name] for info in feeding.row_inputs}
    whole = Dataset.of(
        name, rows, extras.get("labels"), extras.get("groups"), extras.get("ids"), notes, constants=constants
    )
    if limit is None or limit >= len(whole):
        return whole
    if feeding.states:
        return _whole_sequences(whole, limit, seed)
    chosen = np.sort(np.random.default_rng(seed).choice(len(whole), limit, replace=False))
    return replace(whole.take(chosen), notes=(*notes, f"{limit} of {len(whole)} rows, drawn at random (seed {seed})"))


def _whole_sequences(data: Dataset, limit: int, seed: int) -> Dataset:
    """Whole sequences drawn at random, as many as `limit` rows hold, one at least: a state makes no sense from the middle."""
    found = sequences(data)
    chosen: list[int] = []
    count = 0
    for place in np.random.default_rng(seed).permutation(len(found)):
        if chosen and len(chosen) + len(found[place]) > limit:
            break
        chosen += found[place]
        count += 1
    note = f"{len(chosen)} of {len(data)} rows: {count} of {len(found)} sequences, drawn at random (seed {seed})"
    return replace(data.take(np.sort(np.array(chosen, np.int64))), notes=(*data.notes, note))


def _check_shared_dimensions(name: str, inputs: Sequence[TensorInfo], feeds: Mapping[str, Array]) -> None:
    """A symbolic dimension is one size in all inputs (a text model's ids and mask have the same length)."""
    seen: dict[str, tuple[str, int]] = {}
    for info in inputs:
        for size, symbol in zip(feeds[info.name].shape[1:], info.shape[1:], strict=True):
            if not isinstance(symbol, str):
                continue
            other, known = seen.setdefault(symbol, (info.name, size))
            if known != size:
                raise DataError(
                    f"data '{name}': dimension '{symbol}' is {known} in input '{other}' and {size} in '{info.name}': "
                    "the model expects one size."
                )


def _converted(name: str, key: str, array: Array, wanted: str) -> tuple[Array, tuple[str, ...]]:
    """The array in the model's dtype where nothing but float precision can be lost; otherwise as it is, for check_feeds."""
    target = _numpy_dtype(wanted)
    if target is None:
        raise DataError(
            f"input '{key}' of the model takes {wanted}, which numpy data cannot hold: choose another model input type."
        )
    if array.dtype == target:
        return array, ()
    kinds = array.dtype.kind + target.kind
    if kinds == "ff":
        with np.errstate(over="ignore"):
            converted: Array = array.astype(target)
        lost = int((np.isfinite(array) & ~np.isfinite(converted)).sum())
        if lost:
            raise DataError(
                f"input '{key}' of data '{name}' has {lost} values too large for {wanted}: the model expects {wanted}."
            )
    elif kinds in ("ii", "uu", "iu", "ui") and array.size:
        limits = np.iinfo(target.name)
        if int(array.min()) < limits.min or int(array.max()) > limits.max:
            raise DataError(
                f"input '{key}' of data '{name}' has values from {array.min()} to {array.max()}, {wanted} cannot hold them."
            )
        converted = array.astype(target)
    elif kinds in ("uf", "if"):
        raise DataError(
            f"input '{key}' of data '{name}' is {array.dtype.name}, the model expects {wanted}: "
            "whether the values have to be scaled (pixels by 1/255, say) only you know; convert the array."
        )
    else:
        return array, ()
    if array.dtype.name == wanted:
        return converted, (f"input '{key}' was converted from the other byte order",)
    return converted, (f"input '{key}' was converted from {array.dtype.name} to {wanted}",)


def _numpy_dtype(name: str) -> np.dtype[np.generic] | None:
    """numpy's own type of that name; types that other packages add (bfloat16) cannot be saved in an .npz."""
    try:
        dtype = np.dtype(name)
    except TypeError:
        return None
    return dtype if dtype.isbuiltin == 1 else None
