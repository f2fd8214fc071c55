"""Framed messages between the parent and a worker: a JSON header, then the raw bytes of numpy arrays. No pickle anywhere.

A frame is `4-byte big-endian header length | UTF-8 JSON header | array bytes`. The header's `arrays` list names each
array with dtype and shape, in the order of the bytes. The same encoding packs sample arrays into the run database.
Both sides are untrusted by the other: lengths are limited, dtypes are numeric, and a short read is an error.
"""

from __future__ import annotations

import io
import json
import math
import struct
import zlib
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from backends.base import EdgeprofError

PROTOCOL = 2
"""Changes whenever an older worker would misunderstand a parent or be misunderstood."""
MAX_HEADER_BYTES = 16 << 20
MAX_PAYLOAD_BYTES = 4 << 30
_KINDS = "biuf"
_LENGTH = struct.Struct(">I")


class Reader(Protocol):
    """Something to read bytes from."""

    def read(self, size: int, /) -> bytes | None:
        """At most `size` bytes; empty at the end."""
        ...


class Writer(Protocol):
    """Something to write bytes to, all of them."""

    def write(self, data: Any, /) -> object:
        """Write all of `data`."""
        ...

    def flush(self) -> None:
        """Send what is buffered."""
        ...


Arrays = dict[str, NDArray[np.generic]]


class WireError(EdgeprofError):
    """The other side closed the pipe in the middle of a frame, or sent something that is no frame."""


def write_frame(
    stream: Writer, header: Mapping[str, Any], arrays: Mapping[str, NDArray[np.generic]] | None = None
) -> None:
    """Write one frame and flush it. Arrays must be numeric or boolean; they are sent in C order."""
    listed = []
    chunks = []
    for name, array in (arrays or {}).items():
        if array.dtype.kind not in _KINDS:
            raise WireError(f"array '{name}' has dtype {array.dtype}: only numbers and booleans travel to workers.")
        contiguous = np.ascontiguousarray(array).reshape(array.shape)
        listed.append({"name": name, "dtype": contiguous.dtype.str, "shape": list(contiguous.shape)})
        chunks.append(contiguous)
    text = json.dumps({**header, "arrays": listed}, allow_nan=False).encode()
    stream.write(_LENGTH.pack(len(text)))
    stream.write(text)
    for chunk in chunks:
        stream.write(chunk.data if chunk.size else b"")
    stream.flush()


def read_frame(stream: Reader, *, max_payload_bytes: int = MAX_PAYLOAD_BYTES) -> tuple[dict[str, Any], Arrays] | None:
    """Read one frame; None at a clean end of the stream. Raises WireError on anything malformed or too large."""
    prefix = _read(stream, _LENGTH.size, at_start=True)
    if prefix is None:
        return None
    (length,) = _LENGTH.unpack(prefix)
    if length > MAX_HEADER_BYTES:
        raise WireError(f"frame header announces {length} bytes, at most {MAX_HEADER_BYTES} are accepted.")
    try:
        header = json.loads(_must_read(stream, length))
        listed = header.pop("arrays")
        specs = [(str(a["name"]), np.dtype(a["dtype"]), tuple(int(size) for size in a["shape"])) for a in listed]
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        # RecursionError: JSON of a hundred thousand opening brackets; OverflowError: an infinite size.
        raise WireError(f"frame header is not what a worker or its parent writes: {error}.") from error
    arrays: Arrays = {}
    total = 0
    for name, dtype, shape in specs:
        size = dtype.itemsize * math.prod(shape)
        total += size
        if dtype.kind not in _KINDS or min(shape, default=1) < 0 or total > max_payload_bytes:
            raise WireError(
                f"array '{name}' of {dtype} {shape} is not accepted (numeric, at most {max_payload_bytes} bytes)."
            )
        data = _must_read(stream, size)
        try:
            arrays[name] = np.frombuffer(data, dtype=dtype).reshape(shape)
        except ValueError as error:
            raise WireError(f"array '{name}' of {dtype} cannot have the shape {shape}: {error}.") from error
    return header, arrays


def pack(arrays: Mapping[str, NDArray[np.generic]]) -> bytes:
    """Arrays as one compressed byte string, for the run database."""
    buffer = io.BytesIO()
    write_frame(buffer, {}, arrays)
    return zlib.compress(buffer.getvalue(), level=3)


def unpack(data: bytes) -> Arrays:
    """The arrays of `pack`."""
    try:
        frame = read_frame(io.BytesIO(zlib.decompress(data)))
    except zlib.error as error:
        raise WireError(f"the stored arrays are damaged: {error}.") from error
    if frame is None:
        raise WireError("the stored arrays are empty.")
    return frame[1]


def _must_read(stream: Reader, size: int) -> bytes:
    data = _read(stream, size, at_start=False)
    assert data is not None
    return data


def _read(stream: Reader, size: int, *, at_start: bool) -> bytes | None:
    """Exactly `size` bytes. None only when the stream ends cleanly before the first byte of a frame."""
    parts: list[bytes] = []
    left = size
    while left:
        part = stream.read(min(left, 1 << 24))
        if not part:
            if at_start and left == size:
                return None
            raise WireError(f"the pipe closed in the middle of a message: {size - left} of {size} bytes came.")
        parts.append(part)
        left -= len(part)
    return b"".join(parts)
