"""Compiled engines kept between processes, under a key of all that an engine depends on.

Each file has its SHA-256 beside it. What doesn't match (a full disk, a killed writer, another hand) is as good as absent.
The engine files are plain plans, so NVIDIA's own tools open them too.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from backends.base import BackendError

# Field numbers of onnx.proto: the way from a ModelProto down to TensorProto.external_data, through subgraphs too.
_MODEL = {7: "graph", 25: "function"}
_NESTED: Mapping[str, Mapping[int, str]] = {
    "model": _MODEL,
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "external"},
}


def key(**facts: Any) -> str:
    """SHA-256 (hex) of the facts an engine depends on; their order doesn't matter."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def model_digest(path: Path) -> str:
    """SHA-256 (hex) of an ONNX file and of the external data files it names."""
    digest = hashlib.sha256()
    for file in [path, *external_files(path)]:
        digest.update(f"{file.name}\0{file.stat().st_size}\0".encode())
        with file.open("rb") as stream:
            for block in iter(lambda: stream.read(1 << 20), b""):
                digest.update(block)
    return digest.hexdigest()


def external_files(path: Path) -> list[Path]:
    """The external data files an ONNX file names, sorted, each once, read from its bytes: devices may have no onnx.

    Raises BackendError when the file is no protobuf message, or a name leaves the model's folder or doesn't exist.
    """
    if path.stat().st_size == 0:
        raise BackendError(
            f"trt could not load '{path.name}': it is empty, expected an ONNX model. Make the artifact again."
        )
    try:
        with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            names = sorted(set(_locations(data, 0, len(data), "model")))
    except (IndexError, ValueError, UnicodeDecodeError) as error:
        raise BackendError(
            f"trt could not load '{path.name}': it is not an ONNX model ({error}). Export it again."
        ) from error
    folder = path.resolve().parent
    files = []
    for name in names:
        file = (folder / name).resolve()
        if not file.is_relative_to(folder):
            raise BackendError(
                f"'{path.name}' names external data '{name}' outside its folder; expected a file beside it."
            )
        if not file.is_file():
            raise BackendError(f"'{path.name}' names external data '{name}', which is not beside it; copy it there.")
        files.append(file)
    return files


def _locations(data: mmap.mmap, start: int, end: int, message: str) -> Iterator[str]:
    for field, begin, stop in _fields(data, start, end):
        inner = _NESTED[message].get(field)
        if inner == "external":
            entry = {number: data[a:b] for number, a, b in _fields(data, begin, stop)}
            if entry.get(1) == b"location":
                yield entry.get(2, b"").decode()
        elif inner is not None:
            yield from _locations(data, begin, stop, inner)


def _fields(data: mmap.mmap, position: int, end: int) -> Iterator[tuple[int, int, int]]:
    """The length-delimited fields of a protobuf message as (number, begin, end); others are stepped over."""
    while position < end:
        tag, position = _varint(data, position)
        wire = tag & 7
        if wire == 0:
            _, position = _varint(data, position)
        elif wire in (1, 5):
            position += 8 if wire == 1 else 4
        elif wire == 2:
            length, position = _varint(data, position)
            if position + length > end:
                raise ValueError("a field is longer than its message")
            yield tag >> 3, position, position + length
            position += length
        else:
            raise ValueError(f"unknown wire type {wire}")


def _varint(data: mmap.mmap, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        value |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if not byte & 0x80:
            return value, position
        if shift > 63:
            raise ValueError("a number is longer than 64 bits")


class EngineCache:
    """Files in one folder, written whole or not at all. With `folder=None` it keeps nothing."""

    def __init__(self, folder: Path | None) -> None:
        """The folder is made on the first `put`."""
        self._folder = folder

    def get(self, name: str) -> bytes | None:
        """What `put` stored under `name`, or None when it isn't there or is damaged."""
        if self._folder is None:
            return None
        try:
            data = (self._folder / name).read_bytes()
            digest = (self._folder / f"{name}.sha256").read_text("ascii")
        except (OSError, UnicodeDecodeError):
            return None
        return data if data and hashlib.sha256(data).hexdigest() == digest.strip() else None

    def put(self, name: str, data: bytes) -> None:
        """Store `data` under `name`, the digest last, so that a half-written pair never matches."""
        if self._folder is None:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        self._write(self._folder / name, data)
        self._write(self._folder / f"{name}.sha256", hashlib.sha256(data).hexdigest().encode())

    def _write(self, path: Path, data: bytes) -> None:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(data)
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
