"""Takes out of a CUDA library the code for other GPUs than one, so that it compresses to a fraction.

Layout as seen in libraries of CUDA 12 and 13 (NVIDIA documents none): a container begins with a magic number, a version, the size
of its header and of what follows; in it stand entries with kind (1 PTX, 2 machine code), version, sizes and, at byte 28, the
compute capability. Payloads of other capabilities are overwritten by zeros in place: every offset stays what it was.
"""

from __future__ import annotations

import struct

_MAGIC = struct.pack("<I", 0xBA55ED50)
_CONTAINER, _ENTRY = struct.Struct("<IHHQ"), struct.Struct("<HHIQ")
_SM_AT = 28


def slimmed(library: bytes, capability: int) -> tuple[bytes, dict[int, int]]:
    """The library with code for `capability` (90 for an H100) only, and the bytes of code seen by capability.

    Raises ValueError when no code for it is there: the library would run nothing.
    """
    data, seen = bytearray(library), dict[int, int]()
    at = data.find(_MAGIC)
    while at >= 0:
        end = _zero_others(data, at, capability, seen)
        at = data.find(_MAGIC, end)
    if capability not in seen:
        raise ValueError(f"no code for compute capability {capability}, only for {sorted(seen) or 'none'}")
    return bytes(data), seen


def _zero_others(data: bytearray, at: int, capability: int, seen: dict[int, int]) -> int:
    """Go through one container; returns where to look for the next."""
    if at + _CONTAINER.size > len(data):
        return at + 4
    _, version, header, size = _CONTAINER.unpack_from(data, at)
    place, end = at + header, at + header + size
    if version != 1 or header < _CONTAINER.size or end > len(data):
        return at + 4
    while place + _SM_AT + 4 <= end:
        _, _, entry_header, entry_size = _ENTRY.unpack_from(data, place)
        (own,) = struct.unpack_from("<I", data, place + _SM_AT)
        begin, after = place + entry_header, place + entry_header + entry_size
        if entry_header < _SM_AT + 4 or after > end:
            break
        seen[own] = seen.get(own, 0) + entry_size
        if own != capability:
            data[begin:after] = bytes(entry_size)
        place = after
    return end
