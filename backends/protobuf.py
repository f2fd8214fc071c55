"""The little of protobuf's wire format that is needed to walk a file without its library (protobuf.dev, "Encoding")."""

from __future__ import annotations

from collections.abc import Callable


def varint(read: Callable[[int], bytes]) -> int | None:
    """The number that stands next; None at the end, and for one of more than ten bytes."""
    value = 0
    for shift in range(0, 70, 7):
        byte = read(1)
        if not byte:
            return None
        value |= (byte[0] & 0x7F) << shift
        if not byte[0] & 0x80:
            return value
    return None


def field_length(read: Callable[[int], bytes], wire: int) -> int | None:
    """Bytes from here to the next field, by wire type (0 varint, 1 fixed64, 2 length-delimited, 5 fixed32)."""
    if wire == 2:
        return varint(read)
    if wire == 0:
        return None if varint(read) is None else 0
    return 8 if wire == 1 else 4
