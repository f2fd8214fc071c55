"""What a loaded model really runs, op by op, and what the cores under it can do. For workers: numpy and the runtime only."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from backends import base, cpu

_SWITCHES = ("ONEDNN_", "DNNL_", "MLAS_", "ORT_", "OV_CPU_", "OMP_NUM_THREADS", "OMP_WAIT_POLICY", "KMP_", "OPENVINO_")
"""Beginnings of environment variables that change which kernels run, or on how many threads."""
_MIN_WALL_S = 0.05
_COPY_BYTES = 64 << 20
_COPIES = 5


@dataclass(frozen=True)
class Cores:
    """What the processor that runs the model offers. None where the system does not tell."""

    isa: tuple[str, ...]
    usable_cores: int
    switches: Mapping[str, str]
    """Environment variables of the worker that decide which kernels run."""
    cache_bytes: int | None
    """The largest cache of one core's view: weights that fit in it need no memory bandwidth when they are used again."""
    bandwidth_bytes_per_s: float | None
    """Bytes read and written per second by one thread that copies an array larger than most caches."""


def machine(root: Path = Path("/"), environ: Mapping[str, str] = os.environ) -> Cores:
    """Ask the system, and copy memory for some 50 ms. `root` stands for the file system's root."""
    switches = {name: value for name, value in environ.items() if name.startswith(_SWITCHES)}
    return Cores(cpu.isa(root), cpu.usable_cores(root), switches, _cache(root), _bandwidth())


def op_report(
    session: base.Session,
    feeds: Sequence[base.Feeds],
    header: Mapping[str, Any],
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Any]:
    """Durations of plain inferences, `wall_s`, then `ops` from the runtime's profiler or `reason`, and the session's facts.

    `header` gives `runs`, the profiled inferences, and `wall_runs`, the plain ones at least. The two follow each other within
    a second, so that a share of the one in the other is a share. Raises what the session raises.
    """
    if not feeds:
        raise base.BackendError("no inputs are here to run on: send 'feed' first.")
    fed = feeds[0]
    wall: list[float] = []
    for _ in range(base.warm_runs(int(header["wall_runs"]))):
        session.infer(fed)
    began = clock()
    while len(wall) < int(header["wall_runs"]) or clock() - began < _MIN_WALL_S:
        start = clock()
        session.infer(fed)
        wall.append(clock() - start)
    found = base.op_times(session, fed, int(header["runs"]))
    report: dict[str, Any] = {
        "wall_s": float(np.median(wall)),
        "facts": asdict(session.facts),
        "ops": None,
        "reason": None,
    }
    if isinstance(found, base.NoOpTimes):
        return report | {"reason": found.reason}
    counts = Counter(op.op_type for op in found)
    return report | {"ops": [asdict(op) for op in found], "op_counts": dict(sorted(counts.items()))}


def _cache(root: Path) -> int | None:
    sizes = []
    for entry in (root / "sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = entry.read_text(encoding="ascii", errors="replace").strip()
        number, unit = text[:-1], text[-1:]
        if number.isdecimal() and unit in "KM":
            sizes.append(int(number) << (10 if unit == "K" else 20))
    return max(sizes, default=None)


def _bandwidth() -> float | None:
    try:
        source = np.ones(_COPY_BYTES, np.uint8)
        target = np.empty_like(source)
    except MemoryError:
        return None
    best = float("inf")
    for _ in range(_COPIES):
        start = time.perf_counter()
        np.copyto(target, source)
        best = min(best, time.perf_counter() - start)
    return 2 * _COPY_BYTES / best
