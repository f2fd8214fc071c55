"""What a worker keeps between load runs: lanes of its session, the rows that requests carry, and which batch sizes are warm."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backends.base import BackendError, Session, lane
from profiler.measure import host, loop, serving

Arrays = dict[str, NDArray[np.generic]]

_ROW = "row/"


@dataclass
class Lanes:
    """Lanes of one session, in the order in which they were made; the session itself is the first."""

    open: list[Session] = field(default_factory=list)
    pool: Arrays = field(default_factory=dict)
    warm: set[tuple[int, int]] = field(default_factory=set)
    """(lanes, largest batch) that every batch size was run for."""

    def serve(
        self, session: Session, header: Mapping[str, Any], arrays: Arrays, *, kernel: serving.Kernel | None = None
    ) -> tuple[dict[str, Any], Arrays]:
        """One load run, as the parent asks in `header`: the fields of `serving.Plan` and `workers`.

        `arrays` may hold the pool of rows, `row/<input>` with shape (rows, …), kept for later runs, and `schedule_s`; `axes` in
        the header as in `serving.Rows`.
        Answers the arrays of `serving.Served` and what the host did meanwhile. Raises BackendError, and what a lane raises.
        """
        pool = {name.removeprefix(_ROW): values for name, values in arrays.items() if name.startswith(_ROW)}
        if pool:
            self.pool, self.warm = pool, set()
        workers, max_batch = int(header["workers"]), int(header.get("max_batch", 1))
        rows = serving.Rows(self.pool, session.inputs, max_batch, header.get("axes"))
        lanes = [one.infer for one in self._lanes(session, workers)]
        if (workers, max_batch) not in self.warm:
            serving.warm(lanes, rows.batch, max_batch)
            self.warm.add((workers, max_batch))
        plan = _plan(header, arrays)
        with loop.quiet_collector():
            before = host.read()
            served = serving.serve(lanes, rows.batch, plan, kernel=kernel or serving.Threads())
            after = host.read()
        reply = {
            "ended": served.ended,
            "started_s": served.begin_ns / 1e9,
            "cpu_s": after.cpu_s - before.cpu_s,
            "wall_s": after.wall_s - before.wall_s,
            "labels": host.difference(before, after),
            "generator_cpu_s": served.generator_cpu_s,
            "padded_to": rows.padded_to,
        }
        return reply, {
            "sent_ns": served.sent_ns, "started_ns": served.started_ns, "completed_ns": served.completed_ns,
            "batch_size": served.batch_size,
        }  # fmt: skip

    def _lanes(self, session: Session, count: int) -> list[Session]:
        if count < 1:
            raise BackendError(f"serving needs one worker at least, got {count}.")
        if not self.open or self.open[0] is not session:
            self.open, self.warm = [session], set()
        while len(self.open) < count:
            self.open.append(lane(session))
        return self.open[:count]

    def close(self) -> None:
        """Close the lanes, not the session."""
        with contextlib.ExitStack() as stack:
            for one in self.open[1:]:
                stack.callback(one.close)
        self.open = []


def _plan(header: Mapping[str, Any], arrays: Arrays) -> serving.Plan:
    schedule = arrays.get("schedule_s")
    return serving.Plan(
        scenario=header["scenario"],
        max_batch=int(header.get("max_batch", 1)),
        max_delay_s=float(header.get("max_delay_s", 0.0)),
        schedule_s=None if schedule is None else schedule.astype(np.float64),
        in_flight=int(header.get("in_flight", 1)),
        samples=int(header.get("samples", 1)),
        count=int(header.get("count", 0)),
        duration_s=float(header.get("duration_s", 0.0)),
        time_limit_s=float(header["time_limit_s"]),
        max_backlog=int(header.get("max_backlog", 0)),
    )
