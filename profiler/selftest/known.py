"""Known latencies: sessions whose every inference was programmed, measured by a real worker with the real loop."""

from __future__ import annotations

import itertools
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from backends.fake_shapes import factors
from profiler.stats.warmup import steady_state
from profiler.targets.base import local
from profiler.targets.process import WorkerProcess

STEADY: Mapping[str, str | None] = {
    "constant": "flat",
    "bimodal": None,
    "drift": "no_steady_state",
    "ar1": None,
    "warmup": "warmup",
    "never_steady": "no_steady_state",
}
"""The class that the steady state should get; None where more than one is defensible."""

LATENCY_S = 400e-6
INFERENCES = 1200
REPEATS = 3
P50_FLOOR_S, P50_SHARE = 1e-6, 0.005
_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Known:
    """One session: what was programmed and what was measured."""

    shape: str
    programmed_p50_s: float
    measured_p50_s: float
    error_s: float
    """Median of measured minus programmed, inference by inference: where the level is constant it is the error of the p50,
    and where it moves it is not mixed up with how many inferences a busy machine pushed over the middle."""
    label: str

    @property
    def p50_right(self) -> bool:
        """Within 1 µs or 0.5 %, whichever is more."""
        return abs(self.error_s) <= max(P50_FLOOR_S, P50_SHARE * self.programmed_p50_s)

    @property
    def label_right(self) -> bool | None:
        """Whether the steady state got its class; None where it has none."""
        wanted = STEADY[self.shape]
        return None if wanted is None else self.label == wanted


def compare(shape: str, programmed_s: NDArray[np.float64], measured_s: NDArray[np.float64]) -> Known:
    """What was measured beside what was programmed, inference by inference in the same order."""
    state = steady_state(measured_s)
    label = state.label if state.accepted else "no_steady_state"
    error = float(np.median(measured_s - programmed_s))
    return Known(shape, float(np.median(programmed_s)), float(np.median(measured_s)), error, label)


def measure_known(
    *, latency_s: float = LATENCY_S, inferences: int = INFERENCES, repeats: int = REPEATS, seed: int = 0,
    worker: Callable[[], WorkerProcess] = lambda: WorkerProcess(local()),
) -> list[Known]:  # fmt: skip
    """Every shape, `repeats` times with seeds of its own, in one worker. About a second per shape."""
    found = []
    with tempfile.TemporaryDirectory(prefix="edgeprof-selftest-") as folder, worker() as process:
        anything = Path(folder, "any.bin")
        anything.write_bytes(b"the fake backend takes any file")
        for shape, repeat in itertools.product(STEADY, range(repeats)):
            number = seed + repeat
            options = {"latency_us": f"{latency_s * 1e6:.3f}", "shape": shape, "seed": str(number), "read": "false"}
            process.request(
                "load", timeout_s=_TIMEOUT_S, backend="fake", path=str(anything), threads=1, batch=1, options=options
            )
            process.request("feed", {"0/x": np.zeros((1, 4), np.float32)}, timeout_s=_TIMEOUT_S)
            _, arrays = process.request(
                "time", timeout_s=_TIMEOUT_S, min_s=0.0, min_samples=inferences, max_s=_TIMEOUT_S, max_samples=inferences
            )  # fmt: skip
            measured = arrays["durations_ns"].astype(np.float64) / 1e9
            programmed = np.array(list(itertools.islice(factors(shape, number), len(measured)))) * latency_s
            found.append(compare(shape, programmed, measured))
    return found


def worst_error_s(found: Sequence[Known]) -> float:
    """The largest error of a shape's p50, each shape's being the median of its repeats."""
    return max((_median_error(found, shape) for shape in _shapes(found)), key=abs)


def wrong(found: Sequence[Known]) -> tuple[str, ...]:
    """What did not come out as programmed, in words; the majority of the repeats decides. Empty when all is right."""
    complaints = []
    for shape in _shapes(found):
        own = [item for item in found if item.shape == shape]
        if 2 * sum(item.p50_right for item in own) <= len(own):
            complaints.append(f"{shape}: p50 is off by {_median_error(found, shape) * 1e6:+.2f} µs")
        if STEADY[shape] is not None and 2 * sum(bool(item.label_right) for item in own) <= len(own):
            seen = statistics.mode(item.label for item in own)
            complaints.append(f"{shape}: its steady state was called {seen}, it is {STEADY[shape]}")
    return tuple(complaints)


def _shapes(found: Sequence[Known]) -> list[str]:
    return list(dict.fromkeys(item.shape for item in found))


def _median_error(found: Sequence[Known], shape: str) -> float:
    return statistics.median(item.error_s for item in found if item.shape == shape)
