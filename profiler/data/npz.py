"""Reading npz files that come from anywhere: nothing is unpickled, and nothing is allocated on a file's bare word.

An npz is a zip of npy members. `numpy.load` allocates what a header claims, so a file of 200 bytes can ask for a
terabyte. Here the sum of the declared sizes is limited first, and each header must claim exactly the bytes that
its member has (zip directory: PKWARE APPNOTE 4.3; npy header: numpy.lib.format).
"""

from __future__ import annotations

import math
import stat
import zipfile
import zlib
from pathlib import Path
from typing import IO

import numpy as np

from profiler.data.dataset import MAX_BYTES, Array
from profiler.errors import DataError

_MAX_MEMBERS = 256
_CHUNK_BYTES = 1 << 20
_NO_FILES = (
    (stat.S_ISFIFO, "a pipe"), (stat.S_ISCHR, "a device"), (stat.S_ISBLK, "a device"), (stat.S_ISSOCK, "a socket"),
    (stat.S_ISDIR, "a folder"),
)  # fmt: skip
_REFUSED_KINDS = {"O": "Python objects", "V": "structured or raw records", "M": "dates", "m": "time spans"}


def read_npz(path: Path, *, max_bytes: int = MAX_BYTES) -> dict[str, Array]:
    """All arrays of an npz file by name, in the file's order.

    Raises DataError when it is no plain file or no npz, is truncated or corrupt, holds object arrays, or declares more than
    `max_bytes`.
    """
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            # Opening a pipe waits for whoever writes into it, and a device may never end.
            kind = next((name for is_one, name in _NO_FILES if is_one(mode)), "no plain file")
            raise DataError(f"'{path}' is {kind}: give a plain file, written with numpy.savez(path, **arrays).")
        with zipfile.ZipFile(path) as archive:
            members = _members(path, archive, max_bytes)
            return {name: _read_member(path, archive, info) for name, info in members.items()}
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise DataError(
            f"'{path}' is not a readable npz file ({error}): write it again with numpy.savez(path, **arrays)."
        ) from error
    except (NotImplementedError, RuntimeError) as error:
        raise DataError(
            f"'{path}' uses a zip feature that npz files do not have ({error}): write it with numpy.savez."
        ) from error
    except OSError as error:
        raise DataError(f"cannot read '{path}': {error.strerror or error}.") from error


def _members(path: Path, archive: zipfile.ZipFile, max_bytes: int) -> dict[str, zipfile.ZipInfo]:
    infos = archive.infolist()
    if len(infos) > _MAX_MEMBERS:
        raise DataError(
            f"'{path}' has {len(infos)} arrays, at most {_MAX_MEMBERS} are read: give one array for each model input."
        )
    declared = sum(info.file_size for info in infos)
    if declared > max_bytes:
        raise DataError(
            f"'{path}' unpacks to {declared / 1e9:,.1f} GB, at most {max_bytes / 1e9:,.1f} GB are read: save fewer rows, "
            "or give the data as package.module:function, which is read batch by batch up to the limit."
        )
    members: dict[str, zipfile.ZipInfo] = {}
    for info in infos:
        name = info.filename.removesuffix(".npy")
        if name == info.filename:
            raise DataError(
                f"'{path}' holds '{info.filename}', which is no npy array: write the file with numpy.savez."
            )
        if name in members:
            raise DataError(f"'{path}' holds array '{name}' twice: write the file again.")
        members[name] = info
    return members


def _read_member(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Array:
    what = f"array '{info.filename.removesuffix('.npy')}' in '{path}'"
    with archive.open(info) as stream:
        shape, fortran, dtype, header_bytes = _header(what, stream)
        if dtype.hasobject or dtype.kind in _REFUSED_KINDS:
            kind = "Python objects" if dtype.hasobject else _REFUSED_KINDS[dtype.kind]
            raise DataError(f"{what} holds {kind}, which are never loaded: save numbers (or text for groups and ids).")
        size = math.prod(shape) * dtype.itemsize
        if header_bytes + size != info.file_size:
            raise DataError(
                f"{what} declares {size:,} bytes and has {info.file_size - header_bytes:,}: the file is cut off or forged."
            )
        buffer = bytearray()
        # Grows with the bytes that are really there, and reading to the end makes zipfile compare the checksum.
        while part := stream.read(_CHUNK_BYTES):
            buffer += part
        if len(buffer) != size:
            raise DataError(f"{what} ends after {len(buffer):,} of {size:,} bytes: the file is cut off.")
    array: Array = np.frombuffer(buffer, dtype) if size else np.zeros(math.prod(shape), dtype)
    return array.reshape(shape[::-1]).T if fortran else array.reshape(shape)


def _header(what: str, stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[np.generic], int]:
    """Shape, order, dtype and length in bytes of the npy header, with numpy's own length limit against header bombs."""
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    try:
        version = np.lib.format.read_magic(stream)
        if version not in readers:
            raise DataError(f"{what} has npy version {version}, 1.0 and 2.0 are read: save plain numeric arrays.")
        shape, fortran, dtype = readers[version](stream)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError) as error:
        raise DataError(
            f"{what} has no valid npy header ({str(error)[:200]}): write the file with numpy.savez."
        ) from error
    if any(size < 0 for size in shape):
        raise DataError(f"{what} declares shape {shape}: the file is forged.")
    return shape, fortran, dtype, stream.tell()
