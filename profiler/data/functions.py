"""Data from the user's own code: `package.module:function` that returns or yields batches."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from profiler.data.dataset import MAX_BYTES, Array
from profiler.errors import DataError

FUNCTION = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
"""The text form of a function source: `package.module:function`."""

RESERVED = ("labels", "groups", "ids")
"""Array names that are not model inputs."""


def import_function(text: str, kind: str, *, folder: Path | None = None) -> Callable[..., Any]:
    """The function that `text` names, importable from `folder` (default: the working directory) as well as installed.

    Importing runs the module's code; edgeprof does it only for a text that the user gave for this purpose.
    Raises DataError when the module or the function is missing or the import fails; the cause is quoted.
    """
    module_name, _, function_name = text.partition(":")
    with _importable(folder or Path.cwd()):
        try:
            module = importlib.import_module(module_name)
        except Exception as error:
            raise DataError(
                f"cannot import '{module_name}' for {kind} '{text}': {type(error).__name__}: {error}. "
                f"It is looked for among installed packages and in '{folder or Path.cwd()}'."
            ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        defined = sorted(name for name, value in vars(module).items() if callable(value) and not name.startswith("_"))
        raise DataError(
            f"'{module_name}' has no function '{function_name}' for {kind} '{text}'. It has: {', '.join(defined) or 'none'}."
        )
    checked: Callable[..., Any] = function
    return checked


def read_function(
    text: str, input_names: tuple[str, ...], *, limit: int | None, max_bytes: int = MAX_BYTES
) -> dict[str, Array]:
    """Call the function without arguments and join its batches until `limit` rows are there.

    A batch is a mapping of arrays (the inputs, optionally `labels`, `groups`, `ids`), a tuple (inputs, labels) with
    inputs a mapping or the only input's array, or that array alone. One batch may be returned instead of many.
    """
    parts: dict[str, list[Array]] = {}
    rows = size = 0
    for number, batch in enumerate(_batches(text)):
        arrays = _arrays(text, number, batch, input_names)
        if parts and arrays.keys() != parts.keys():
            raise DataError(
                f"batch {number} of '{text}' has arrays {sorted(arrays)}, the ones before {sorted(parts)}: give the same in each."
            )
        counts = {array.shape[0] if array.ndim else None for array in arrays.values()}
        if len(counts) != 1 or None in counts:
            shapes = {name: array.shape for name, array in arrays.items()}
            raise DataError(
                f"batch {number} of '{text}' has arrays of different length {shapes}: the first axis of each is the batch."
            )
        keep = arrays if limit is None else {name: array[: limit - rows] for name, array in arrays.items()}
        for name, array in keep.items():
            # A generator may fill one buffer again and again.
            parts.setdefault(name, []).append(array.copy())
            size += array.nbytes
        rows += len(next(iter(keep.values())))
        if size > max_bytes:
            raise DataError(
                f"'{text}' gave more than {max_bytes / 1e9:,.1f} GB after {rows} rows: limit the number of rows."
            )
        if limit is not None and rows >= limit:
            break
    if not parts:
        raise DataError(f"'{text}' yielded no batch: it must give at least one.")
    return {name: _joined(text, name, arrays) for name, arrays in parts.items()}


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    entry = str(folder)
    sys.path.insert(0, entry)
    try:
        yield
    finally:
        if entry in sys.path:
            sys.path.remove(entry)


def _batches(text: str) -> Iterator[object]:
    function = import_function(text, "data")
    try:
        made = function()
        single = isinstance(made, (Mapping, np.ndarray, tuple)) or not isinstance(made, Iterable)
        yield from ([made] if single else made)
    except Exception as error:  # GeneratorExit, the caller's early end, is no Exception
        raise DataError(f"data function '{text}' raised {type(error).__name__}: {error}") from error


def _arrays(text: str, number: int, batch: object, input_names: tuple[str, ...]) -> dict[str, Array]:
    where = f"batch {number} of '{text}'"
    inputs: object = batch
    named: dict[str, object] = {}
    if isinstance(batch, (tuple, list)):
        # A torch DataLoader gives lists: [inputs, labels], or [inputs] where there are no labels.
        if len(batch) not in (1, 2):
            raise DataError(
                f"{where} is a {type(batch).__name__} of {len(batch)} items: give (inputs, labels) or a mapping of arrays."
            )
        inputs, named["labels"] = batch if len(batch) == 2 else (batch[0], None)
    if isinstance(inputs, Mapping):
        named = {**{str(name): value for name, value in inputs.items()}, **named}
    elif len(input_names) < 2:
        # A model that is still to be exported names none yet: a torch module takes its only input under any name.
        named[input_names[0] if input_names else "input"] = inputs
    else:
        raise DataError(
            f"{where} gives one {type(inputs).__name__}, the model has inputs {list(input_names)}: give a mapping by input name."
        )
    arrays = {}
    for name, value in named.items():
        if value is None:
            continue
        try:
            array = np.asarray(value)
        except Exception as error:
            raise DataError(
                f"array '{name}' in {where} is a {type(value).__name__} that numpy cannot read: {error}"
            ) from error
        if array.dtype.kind not in "biufUS":
            raise DataError(
                f"array '{name}' in {where} has dtype {array.dtype}: give numbers (or text for groups and ids)."
            )
        arrays[name] = array
    return arrays


def _joined(text: str, name: str, arrays: list[Array]) -> Array:
    dtypes, shapes = (
        {array.dtype.name for array in arrays if array.dtype.kind not in "US"},
        {array.shape[1:] for array in arrays},
    )
    if len(dtypes) > 1 or len(shapes) > 1:
        found = sorted(dtypes) if len(dtypes) > 1 else sorted(shapes)
        raise DataError(
            f"array '{name}' of '{text}' changes between batches: {found}. Pad to one shape and keep one dtype."
        )
    return np.concatenate(arrays)
