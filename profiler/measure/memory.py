"""Memory of this process, from the kernel's own accounting."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Memory:
    """Resident memory now and its peak since the process began, bytes; None where the system does not tell."""

    rss_bytes: int | None
    peak_rss_bytes: int | None


def read(root: Path = Path("/")) -> Memory:
    """`VmRSS` and `VmHWM` on Linux; elsewhere psutil and `ru_maxrss`."""
    try:
        fields = {}
        for line in (root / "proc/self/status").read_text().splitlines():
            key, _, value = line.partition(":")
            if key in ("VmRSS", "VmHWM"):
                fields[key] = int(value.split()[0]) * 1024
        return Memory(fields.get("VmRSS"), fields.get("VmHWM"))
    except (OSError, ValueError, IndexError):
        return _portable()


def _portable() -> Memory:
    try:
        import resource

        import psutil
    except ImportError:
        return Memory(None, None)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # ru_maxrss is bytes on macOS and kibibytes on Linux and the BSDs (getrusage(2) of each).
    return Memory(psutil.Process().memory_info().rss, peak if sys.platform == "darwin" else peak * 1024)
