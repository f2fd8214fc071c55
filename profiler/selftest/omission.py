"""Coordinated omission: one stall in an open loop must be felt by all requests that it delays, not only by the one it hit."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from backends.base import LoadOptions
from backends.fake import FakeBackend
from profiler.measure.serving import Kernel, Plan, Threads, serve

RATE_PER_S = 500.0
STALL_S = 0.5
_SECONDS = 2.0
_LATENCY_US = 200


@dataclass(frozen=True)
class Omission:
    """p99 latency of the same work with the same stall, seconds."""

    open_p99_s: float
    """Open loop, from the moment a request was due: about one in eight requests of the run waits behind the stall."""
    closed_p99_s: float
    """Closed loop: one slow request among many, invisible at p99. That is why its p99 says nothing about a service."""

    @property
    def right(self) -> bool:
        """The open loop shows the stall and the closed one does not."""
        return self.open_p99_s >= STALL_S / 2 > self.closed_p99_s


def measure_omission(
    *, rate_per_s: float = RATE_PER_S, seconds: float = _SECONDS, stall_s: float = STALL_S, kernel: Kernel | None = None,
    backend: FakeBackend | None = None,
) -> Omission:  # fmt: skip
    """Serve `seconds` of a constant schedule, and as many requests in a closed loop; both stall once, in the middle."""
    count = int(rate_per_s * seconds)
    schedule = np.arange(count) / rate_per_s
    time_limit_s = seconds + 20.0
    plans = (
        Plan("server", schedule_s=schedule, time_limit_s=time_limit_s),
        Plan("single", count=count, time_limit_s=time_limit_s),
    )
    open_loop, closed_loop = (_run(plan, count // 4, stall_s, kernel or Threads(), backend) for plan in plans)
    due_ns = (schedule * 1e9).astype(np.int64)
    latencies = open_loop[1] - due_ns[: len(open_loop[1])]
    return Omission(
        float(np.quantile(latencies, 0.99)) / 1e9, float(np.quantile(closed_loop[1] - closed_loop[0], 0.99)) / 1e9
    )


def _run(
    plan: Plan, stall_at: int, stall_s: float, kernel: Kernel, backend: FakeBackend | None
) -> tuple[np.ndarray[tuple[int], np.dtype[np.int64]], np.ndarray[tuple[int], np.dtype[np.int64]]]:
    options = {
        "latency_us": str(_LATENCY_US), "wait": "sleep", "stall_at": str(stall_at), "stall_s": str(stall_s), "read": "false",
    }  # fmt: skip
    feeds = {"x": np.zeros((1, 4), np.float32)}
    with tempfile.TemporaryDirectory(prefix="edgeprof-selftest-") as folder:
        anything = Path(folder, "any.bin")
        anything.write_bytes(b"the fake backend takes any file")
        session = (backend or FakeBackend()).load(anything, LoadOptions(options=options))
        served = serve([session.infer], lambda _: feeds, plan, kernel=kernel)
        session.close()
    done = served.completed_ns >= 0
    return served.sent_ns[done], served.completed_ns[done]
