"""Framed messages between the parent and a worker: a JSON header, then the raw bytes of numpy arrays. No pickle anywhere.

A frame is `4-byte big-endian header length | UTF-8 JSON header | array bytes`. The header's `arrays` list names each
array with dtype and shape, in the order of the bytes. Text travels too, as dtype `utf8`: the length of each string in bytes
(little-endian, 4 bytes each), then all of them one after the other; `bytes` in the header is both together. The same encoding
packs sample arrays into the run database, and keeps outputs in files.
Both sides are untrusted by the other: lengths are limited, dtypes are numeric or text, and a short read is an error.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Protocol

import numpy as np
from numpy.typing import NDArray

from backends.base import EdgeprofError

PROTOCOL = 3
"""Changes whenever an older worker would misunderstand a parent or be misunderstood."""
MAX_HEADER_BYTES = 16 << 20
MAX_PAYLOAD_BYTES = 4 << 30
MAX_STORED_BYTES = 512 << 20
"""Most bytes of arrays in one record. The largest answer with samples has half of it; a serving run adds when each was due."""
MAX_ARRAYS = 4096
_MAX_AXES = 64
_MAX_DIGITS = 40
_KINDS = "biuf"
_TEXT = "utf8"
_DTYPE = re.compile(r"[<>|=]?[biuf](?:1|2|4|8|16)")
_FILE_PIECE_BYTES = 1 << 22
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
    """Write one frame and flush it. Arrays must be numeric, boolean or text (kind `U`); they are sent in C order."""
    listed = []
    chunks: list[Any] = []
    for name, array in (arrays or {}).items():
        if array.dtype.kind == "U":
            text = _text_bytes(name, array)
            listed.append({"name": name, "dtype": _TEXT, "shape": list(array.shape), "bytes": len(text)})
            chunks.append(text)
            continue
        if array.dtype.kind not in _KINDS:
            raise WireError(
                f"array '{name}' has dtype {array.dtype}: only numbers, booleans and text travel to workers."
            )
        contiguous = np.ascontiguousarray(array).reshape(array.shape)
        listed.append({"name": name, "dtype": contiguous.dtype.str, "shape": list(contiguous.shape)})
        chunks.append(contiguous.data if contiguous.size else b"")
    header_text = json.dumps({**header, "arrays": listed}, allow_nan=False).encode()
    stream.write(_LENGTH.pack(len(header_text)))
    stream.write(header_text)
    for chunk in chunks:
        stream.write(chunk)
    stream.flush()


def _text_bytes(name: str, array: NDArray[np.generic]) -> bytes:
    try:
        encoded = [str(value).encode() for value in array.reshape(-1).tolist()]
    except UnicodeEncodeError as error:
        raise WireError(f"array '{name[:100]}' holds text that is no Unicode: {error.reason}.") from error
    return np.array([len(value) for value in encoded], "<u4").tobytes() + b"".join(encoded)


def read_frame(
    stream: Reader, *, max_payload_bytes: int = MAX_PAYLOAD_BYTES, max_header_bytes: int = MAX_HEADER_BYTES
) -> tuple[dict[str, Any], Arrays] | None:
    """Read one frame; None at a clean end of the stream. Raises WireError on anything malformed or too large."""
    head = _head(stream, max_header_bytes, max_payload_bytes)
    if head is None:
        return None
    header, specs = head
    return header, {spec.name: _array(spec, _must_read(stream, spec.size), max_payload_bytes) for spec in specs}


def map_frame(path: Path, *, max_payload_bytes: int = MAX_PAYLOAD_BYTES) -> Arrays:
    """The arrays of a file that `write_frame` wrote, read from it when they are looked at: they take no memory until then.

    Raises WireError for a file of any other form or length, OSError.
    """
    with path.open("rb") as file:
        head = _head(file, MAX_HEADER_BYTES, max_payload_bytes)
        specs = [] if head is None else head[1]
        offset, found = file.tell(), Arrays()
        if head is None or offset + sum(spec.size for spec in specs) != path.stat().st_size:
            raise WireError(f"'{path}' is cut short, or goes on after its end.")
        for spec in specs:
            if spec.dtype is None or not spec.size:
                file.seek(offset)
                found[spec.name] = _array(spec, _must_read(file, spec.size), max_payload_bytes)
            else:
                found[spec.name] = np.memmap(path, spec.dtype, "r", offset, spec.shape)
            offset += spec.size
    return found


@dataclass(frozen=True)
class _Spec:
    """What a header says of one array."""

    name: str
    dtype: np.dtype[Any] | None
    """None for text."""
    shape: tuple[int, ...]
    size: int
    """Bytes that it takes in the frame."""


def _head(stream: Reader, max_header_bytes: int, max_payload_bytes: int) -> tuple[dict[str, Any], list[_Spec]] | None:
    prefix = _read(stream, _LENGTH.size, at_start=True)
    if prefix is None:
        return None
    (length,) = _LENGTH.unpack(prefix)
    if length > max_header_bytes:
        raise WireError(f"frame header announces {length} bytes, at most {max_header_bytes} are accepted.")
    try:
        text = _must_read(stream, length).decode()
        header = json.loads(text, parse_int=_whole, parse_float=_finite, parse_constant=_no_number)
        listed = header.pop("arrays")
        if not isinstance(listed, list) or len(listed) > MAX_ARRAYS:
            raise ValueError(f"its arrays are no list of at most {MAX_ARRAYS}")
        specs = [_spec(fields) for fields in listed]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        # RecursionError: JSON of a hundred thousand opening brackets.
        raise WireError(f"frame header is not what a worker or its parent writes: {str(error)[:200]}.") from error
    total = 0
    seen: set[str] = set()
    for spec in specs:
        total += spec.size
        if total > max_payload_bytes:
            raise WireError(
                f"array '{spec.name[:100]}' of {spec.dtype or 'text'} {spec.shape} is not accepted, "
                f"at most {max_payload_bytes} bytes are."
            )
        if spec.name in seen:
            raise WireError(f"array '{spec.name[:100]}' comes twice.")
        seen.add(spec.name)
    return header, specs


def _array(spec: _Spec, data: bytearray, max_payload_bytes: int) -> NDArray[np.generic]:
    try:
        if spec.dtype is None:
            return _text(spec, bytes(data), max_payload_bytes)
        return np.frombuffer(data, dtype=spec.dtype).reshape(spec.shape)
    except ValueError as error:
        raise WireError(
            f"array '{spec.name[:100]}' of {spec.dtype or 'text'} cannot have the shape {spec.shape}: {error}."
        ) from error


def _text(spec: _Spec, data: bytes, max_payload_bytes: int) -> NDArray[np.generic]:
    count = math.prod(spec.shape)
    lengths = np.frombuffer(data, "<u4", count).astype(np.int64)
    ends = 4 * count + np.cumsum(lengths)
    if count and ends[-1] != len(data):
        raise ValueError(f"{count} strings of {lengths.sum()} bytes are not what came")
    values = [data[end - length : end].decode() for end, length in zip(ends.tolist(), lengths.tolist(), strict=True)]
    # numpy keeps text in cells of one width.
    if 4 * count * max(map(len, values), default=0) > max_payload_bytes:
        raise ValueError(f"its longest string has {max(map(len, values))} characters, too many for {count} of them")
    return np.array(values, dtype=np.str_).reshape(spec.shape)


def _spec(fields: Any) -> _Spec:
    """An array as a header lists it. Raises ValueError, KeyError or TypeError for any other form."""
    name, dtype, shape = fields["name"], fields["dtype"], fields["shape"]
    text = dtype == _TEXT
    if not isinstance(name, str) or not isinstance(dtype, str) or not (text or _DTYPE.fullmatch(dtype)):
        raise ValueError(f"an array of {str(dtype)[:40]!r} is not accepted, only numbers, booleans and text are")
    if not isinstance(shape, list) or len(shape) > _MAX_AXES:
        raise ValueError(f"the shape of '{name[:100]}' is no list of at most {_MAX_AXES} sizes")
    if not all(type(size) is int and 0 <= size <= MAX_PAYLOAD_BYTES for size in shape):
        raise ValueError(f"the shape of '{name[:100]}' holds what is no size")
    count = math.prod(shape)
    if not text:
        kind = np.dtype(dtype)
        return _Spec(name, kind, tuple(shape), kind.itemsize * count)
    size = fields["bytes"]
    if type(size) is not int or not 4 * count <= size <= MAX_PAYLOAD_BYTES or (not count and size):
        raise ValueError(f"the text of '{name[:100]}' cannot have {str(size)[:40]} bytes")
    return _Spec(name, None, tuple(shape), size)


def _whole(text: str) -> int:
    # Reading a number of a million digits takes minutes.
    if len(text) > _MAX_DIGITS:
        raise ValueError(f"a number of {len(text)} digits")
    return int(text)


def _finite(text: str) -> float:
    value = float(text[: 2 * _MAX_DIGITS])
    if len(text) > 2 * _MAX_DIGITS or not math.isfinite(value):
        raise ValueError(f"the number {text[:40]}")
    return value


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON")


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, hexadecimal: how both sides know a file that travels, or need not. Raises OSError."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_FILE_PIECE_BYTES):
            digest.update(piece)
    return digest.hexdigest()


def pack(arrays: Mapping[str, NDArray[np.generic]], *, max_payload_bytes: int = MAX_STORED_BYTES) -> bytes:
    """Arrays as one compressed byte string, for the run database. Raises WireError for more than `unpack` takes."""
    total = sum(array.nbytes for array in arrays.values())
    if total > max_payload_bytes:
        raise WireError(f"{total} bytes of arrays are not stored, at most {max_payload_bytes} are.")
    packer = _Packer()
    write_frame(packer, {}, arrays)
    return packer.end()


def unpack(data: bytes, *, max_payload_bytes: int = MAX_STORED_BYTES) -> Arrays:
    """The arrays of `pack`, unpacked piece by piece: never more than they announce, and that is at most `max_payload_bytes`."""
    stream = _Unpacker(data)
    try:
        frame = read_frame(stream, max_payload_bytes=max_payload_bytes)
        if frame is None:
            raise WireError("the stored arrays are empty.")
        if stream.read(1) or not stream.ended:
            raise WireError("the stored arrays go on after their end.")
    except zlib.error as error:
        raise WireError(f"the stored arrays are damaged: {error}.") from error
    return frame[1]


class _Packer:
    """Compresses what is written."""

    def __init__(self) -> None:
        self._packer, self._parts = zlib.compressobj(level=3), list[bytes]()

    def write(self, data: Any, /) -> None:
        self._parts.append(self._packer.compress(data))

    def flush(self) -> None:
        """All of it comes at the end."""

    def end(self) -> bytes:
        return b"".join((*self._parts, self._packer.flush()))


class _Unpacker:
    """Decompresses as much as is read: a thousandfold of the data may be in it."""

    def __init__(self, data: bytes) -> None:
        self._unpacker, self._left = zlib.decompressobj(), data

    @property
    def ended(self) -> bool:
        """Whether the stream came to its own end, where its checksum is compared, and nothing follows it."""
        return self._unpacker.eof and not self._unpacker.unused_data

    def read(self, size: int, /) -> bytes:
        if size <= 0 or self._unpacker.eof:
            return b""
        part = self._unpacker.decompress(self._left, size)
        self._left = self._unpacker.unconsumed_tail
        if not part and not self._unpacker.eof:
            # The rest of the input was taken in and gave nothing: it is cut short.
            raise zlib.error("it is cut short")
        return part


def _must_read(stream: Reader, size: int) -> bytearray:
    data = _read(stream, size, at_start=False)
    assert data is not None
    return data


def _read(stream: Reader, size: int, *, at_start: bool) -> bytearray | None:
    """Exactly `size` bytes. None only when the stream ends cleanly before the first byte of a frame."""
    # It grows with what comes: an announced size costs nothing before its bytes are here.
    data = bytearray()
    while len(data) < size:
        part = stream.read(min(size - len(data), 1 << 22))
        if not part:
            if at_start and not data:
                return None
            raise WireError(f"the pipe closed in the middle of a message: {len(data)} of {size} bytes came.")
        data += part
    return data
