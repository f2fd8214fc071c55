"""A record as a row of the run database and back: JSON with a checksum, and its arrays as one compressed frame.

Both directions check the same (`profiler/record_checks.py`, and pydantic for the types of fields). Rows may come from a damaged
or a hostile file: sizes are bounded before anything is unpacked, and whatever is wrong is one `ValueError` in words.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any, NoReturn, TypeVar, cast

import numpy as np
from pydantic import TypeAdapter, ValidationError

from profiler import wire
from profiler.record_checks import Record, check
from profiler.records import WarmupRecord

MAX_TEXT_BYTES = 16 << 20
"""Of one record's JSON. A worker's answer has at most a quarter of it (16 MiB for the times of ops, which are not stored)."""
CHECKSUM = "_crc32"
"""Key of the checksum in a record's JSON: of the same JSON without it. Records of older versions have none."""
_T = TypeVar("_T")


def encode(record: Record) -> tuple[dict[str, Any], str, bytes | None]:
    """A record as its fields without the arrays, as JSON text, and the arrays packed. Raises ValueError unless it checks."""
    content, arrays = _split(record)
    try:
        plain = json.dumps(content, allow_nan=False)
        _built(type(record), json.loads(plain), arrays)
        packed = wire.pack(arrays) if arrays else None
    except _WRONG as error:
        raise ValueError(_words(error)) from error
    text = json.dumps({**content, CHECKSUM: _checksum(plain)})
    if len(text) > MAX_TEXT_BYTES:
        raise ValueError(f"it has {len(text)} bytes of text, at most {MAX_TEXT_BYTES} are stored")
    return content, text, packed


def decode(kind: type[_T], text: Any, packed: Any, key: Mapping[str, Any] | None = None) -> _T:
    """The record of a row. `key` is what the row's own columns say of it. Raises ValueError for what `encode` didn't write."""
    try:
        content = loads(text)
        if not isinstance(content, dict):
            raise ValueError("it is no JSON object")
        stored = content.pop(CHECKSUM, None)
        if stored is not None and stored != _checksum(json.dumps(content)):
            raise ValueError("its text does not have the checksum that it was stored with")
        strange = [name for name, value in (key or {}).items() if content.get(name) != value]
        if strange:
            raise ValueError(f"its {strange[0]} is not that of its row")
        return _built(kind, content, wire.unpack(packed) if packed else {})
    except _WRONG as error:
        raise ValueError(_words(error)) from error


def loads(text: Any, *, most_bytes: int = MAX_TEXT_BYTES) -> Any:
    """JSON as it is stored: no NaN, no number without an end, not too long, not too deep. Raises ValueError, TypeError."""
    if len(text) > most_bytes:
        raise ValueError(f"it has {len(text)} bytes of text, at most {most_bytes} are read")
    try:
        return json.loads(text, parse_constant=_no_number)
    except RecursionError:
        raise ValueError("its JSON is nested too deep") from None


_adapters: dict[Any, TypeAdapter[Any]] = {}


def adapter(kind: Any) -> TypeAdapter[Any]:
    """What checks the types of a record's fields; made once per kind."""
    if kind not in _adapters:
        _adapters[kind] = TypeAdapter(kind)
    return _adapters[kind]


_WRONG = (
    ValidationError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, MemoryError, wire.WireError,
)  # fmt: skip


def _built(kind: type[_T], content: dict[str, Any], arrays: wire.Arrays) -> _T:
    content = {**content, **{name: arrays[name] for name in arrays if "." not in name}}
    if content.get("warmup") is not None:
        content["warmup"] = {**content["warmup"], "samples_s": arrays["warmup.samples_s"]}
    record: _T = adapter(kind).validate_python(content)
    check(cast("Record", record))
    return record


def _split(record: Record) -> tuple[dict[str, Any], wire.Arrays]:
    """JSON and arrays of a record; a nested warm-up keeps its samples under `warmup.`."""
    arrays: wire.Arrays = {}
    content: dict[str, Any] = {}
    for field in fields(record):
        value = getattr(record, field.name)
        if isinstance(value, np.ndarray):
            arrays[field.name] = value
        elif isinstance(value, WarmupRecord):
            arrays["warmup.samples_s"] = value.samples_s
            content["warmup"] = {"cut": value.cut, "label": value.label, "time_to_steady_s": value.time_to_steady_s}
        else:
            content[field.name] = asdict(value) if hasattr(value, "__dataclass_fields__") else value
    return content, arrays


def _checksum(text: str) -> str:
    return f"{zlib.crc32(text.encode()):08x}"


def _words(error: BaseException) -> str:
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_context=False)[0]
        place = ".".join(str(part) for part in first["loc"])[:100]
        return f"{place} is {str(first.get('input'))[:60]!r}: {first['msg'][:120]}"
    if isinstance(error, KeyError):
        return f"{str(error)[:100]} is missing"
    return str(error)[:300].rstrip(".") or type(error).__name__


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"it holds {text}, which is no JSON")
