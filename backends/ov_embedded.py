"""OpenVINO's own model form inside an ONNX file, so that it travels as one artifact like any other model.

The file holds one `com.microsoft::EPContext` node, which is how ONNX Runtime keeps models that are compiled for one execution
provider (onnxruntime.ai, "EP Context Design"): attribute `source` names OpenVINO, `ep_cache_context` holds the model. Here that
is the length of the XML as 8 bytes, least significant first, then the XML, then the weights. Graph inputs and outputs are the
model's. Written by `profiler.variants.external`; read here without the onnx package, which workers need not have.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from backends import protobuf

OP_TYPE = "EPContext"
DOMAIN = "com.microsoft"
SOURCE = "OpenVINO IR"
CONTEXT = "ep_cache_context"

# Field numbers of onnx.proto.
_GRAPH, _NODE, _OP_TYPE, _ATTRIBUTE, _NAME, _STRING = 7, 1, 4, 5, 1, 4


def pack(xml: bytes, weights: bytes) -> bytes:
    """The attribute's value."""
    return struct.pack("<Q", len(xml)) + xml + weights


def unpack(context: bytes) -> tuple[bytes, bytes]:
    """XML and weights of what `pack` made. Raises ValueError when it is cut short."""
    if len(context) < 8 or 8 + (size := struct.unpack_from("<Q", context)[0]) > len(context):
        raise ValueError("the OpenVINO model inside the file is cut short: make the artifact again")
    return context[8 : 8 + size], context[8 + size :]


def embedded(path: Path) -> tuple[bytes, bytes] | None:
    """XML and weights when the file at `path` is such a model, else None. Of other models only the first node is read."""
    with path.open("rb") as file:
        end = file.seek(0, 2)
        file.seek(0)
        graph = next((place for number, place in _fields(file, end) if number == _GRAPH), None)
        if graph is None:
            return None
        node = next((place for number, place in _fields(file, graph[1], graph[0]) if number == _NODE), None)
        if node is None:
            return None
        parts = list(_fields(file, node[1], node[0]))
        kind = next((_bytes(file, place) for number, place in parts if number == _OP_TYPE), b"")
        if kind != OP_TYPE.encode():
            return None
        values: dict[bytes, bytes] = {}
        for number, place in parts:
            if number == _ATTRIBUTE:
                inside = dict(_fields(file, place[1], place[0]))
                if _NAME in inside and _STRING in inside:
                    values[_bytes(file, inside[_NAME])] = _bytes(file, inside[_STRING])
    if values.get(b"source") != SOURCE.encode() or CONTEXT.encode() not in values:
        return None
    return unpack(values[CONTEXT.encode()])


def read_model(core: Any, path: Path) -> Any:
    """`core.read_model` that knows the embedded form too. Raises RuntimeError in OpenVINO's words, as it does."""
    try:
        found = embedded(path)
    except ValueError as error:
        raise RuntimeError(str(error)) from error
    if found is None:
        return core.read_model(str(path))
    import numpy as np
    import openvino

    xml, weights = found
    # An empty tensor is no tensor to OpenVINO; a model without weights is read from its XML alone.
    if not weights:
        return core.read_model(model=xml, weights=b"")
    return core.read_model(model=xml, weights=openvino.Tensor(np.frombuffer(weights, np.uint8).copy()))


def _fields(file: Any, end: int, start: int = 0) -> Iterator[tuple[int, tuple[int, int]]]:
    """`(number, (start, end))` of the length-delimited fields of a message that lies at `start` to `end` of the file.

    Stops at what is no protobuf: the runtime says it better.
    """
    at = start
    while at < end:
        file.seek(at)
        tag = protobuf.varint(file.read)
        if tag is None or tag & 7 not in (0, 1, 2, 5):
            return
        size = protobuf.field_length(file.read, tag & 7)
        at = file.tell()
        if size is None:
            return
        if tag & 7 == 2:
            if at + size > end:
                return
            yield tag >> 3, (at, at + size)
        at += size


def _bytes(file: Any, place: tuple[int, int]) -> bytes:
    file.seek(place[0])
    data: bytes = file.read(place[1] - place[0])
    return data
