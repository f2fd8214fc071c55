"""A model's outputs for many rows: batch after batch as they come, and kept for those that are compared with them.

Outputs may be much larger than memory, or than anybody meant (a device may answer whatever it likes). So what is larger than
`IN_MEMORY_BYTES` goes to a file as it comes and is read from there as numpy looks at it; all together are limited before
the first of them is kept. The files have no name: however the process ends, they are gone.
"""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from profiler import units, wire
from profiler.errors import EdgeprofError, StoreError

Outputs = dict[str, NDArray[np.generic]]
MAX_OUTPUT_BYTES = wire.MAX_PAYLOAD_BYTES
"""Of one case: all outputs of all rows. The reference's are kept beside them."""
IN_MEMORY_BYTES = 64 << 20
"""Up to here the outputs of a case stay in memory."""
_ROOM_BYTES = 256 << 20
"""Left free on the disk: the run database needs some."""


class TooLarge(EdgeprofError):  # noqa: N818 (what they are)
    """Outputs that are not kept; the text says how large they are, what the limit is, and what to do."""


class OutputRows:
    """The outputs of `rows` rows, in order."""

    def __init__(
        self, rows: int, folder: Path, *, most_bytes: int = MAX_OUTPUT_BYTES, in_memory_bytes: int = IN_MEMORY_BYTES
    ) -> None:
        """`folder` is where files go, if there are any."""
        self._rows, self._folder = rows, folder
        self._most_bytes, self._in_memory_bytes = most_bytes, in_memory_bytes
        self._done = 0
        self._arrays: Outputs = {}
        self._files: dict[str, tuple[IO[bytes], np.dtype[Any], tuple[int, ...]]] = {}
        self._text: dict[str, list[NDArray[np.generic]]] = {}
        self._text_bytes = 0

    def add(self, outputs: Mapping[str, NDArray[np.generic]]) -> None:
        """The next rows: arrays of the same names, dtypes and shapes every time, the first axis being the rows.

        Raises TooLarge before anything is kept, StoreError when the disk is full after all.
        """
        count = len(next(iter(outputs.values())))
        if not self._done:
            self._begin({name: array for name, array in outputs.items() if array.dtype.kind != "U"})
        for name, array in outputs.items():
            if array.dtype.kind == "U":
                self._text.setdefault(name, []).append(array)
                self._text_bytes += array.nbytes
                self._check(self._text_bytes, self._text_bytes)
            elif name in self._files:
                self._write(self._files[name][0], array)
            else:
                self._arrays[name][self._done : self._done + count] = array
        self._done += count

    def outputs(self) -> Outputs:
        """What came so far; large outputs are read from their file when they are looked at."""
        found = {name: array[: self._done] for name, array in self._arrays.items()}
        for name, (file, dtype, shape) in self._files.items():
            file.flush()
            found[name] = np.memmap(file, dtype, "r", 0, (self._done, *shape))
        found.update({name: np.concatenate(parts) for name, parts in self._text.items()})
        return found

    def _begin(self, outputs: Outputs) -> None:
        sizes = {
            name: self._rows * array.dtype.itemsize * math.prod(array.shape[1:]) for name, array in outputs.items()
        }
        total = sum(sizes.values())
        in_files = total > self._in_memory_bytes
        self._check(total, total if in_files else 0)
        for name, array in outputs.items():
            if in_files and sizes[name]:
                file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 (as long as its rows are looked at)
                self._files[name] = file, array.dtype, array.shape[1:]
            else:
                self._arrays[name] = np.empty((self._rows, *array.shape[1:]), array.dtype)

    def _check(self, total: int, on_disk: int) -> None:
        if total > self._most_bytes:
            raise TooLarge(
                f"the outputs of {self._rows} rows have {units.size(total)}, at most {units.size(self._most_bytes)} are kept: "
                "evaluate fewer rows (--limit), or give the model outputs that are smaller."
            )
        if on_disk and shutil.disk_usage(self._folder).free < on_disk + _ROOM_BYTES:
            raise TooLarge(
                f"the outputs of {self._rows} rows have {units.size(total)}, in '{self._folder}' "
                f"{units.size(shutil.disk_usage(self._folder).free)} are free: free some, or evaluate fewer rows (--limit)."
            )

    def _write(self, file: IO[bytes], array: NDArray[np.generic]) -> None:
        try:
            file.write(np.ascontiguousarray(array).data if array.size else b"")
        except OSError as error:
            raise _not_written(self._folder, error) from error


def write(path: Path, outputs: Outputs) -> None:
    """Keep outputs in a file, whole or not at all. Raises StoreError that names the place when it cannot be written."""
    temporary = path.with_suffix(".tmp")
    try:
        with temporary.open("wb") as file:
            wire.write_frame(file, {}, outputs)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise _not_written(path.parent, error) from error


def read(path: Path) -> Outputs | None:
    """The outputs of `write`, read from the file as they are looked at; None when there is no such file, or another one."""
    try:
        return wire.map_frame(path) or None
    except (OSError, wire.WireError):
        return None


def _not_written(folder: Path, error: OSError) -> StoreError:
    return StoreError(
        f"cannot write the model's outputs to '{folder}': {error.strerror or error}. Free some space there, then go on with "
        "--resume: everything stored so far is kept."
    )
