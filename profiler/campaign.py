"""The timing stage: fresh processes, and in each of them rounds of blocks in random order over all cases.

A campaign has P replicates. In each, every case gets a worker of its own, warmed up until its steady state is found; then K
rounds follow, one block per case and round, in a random order that is stored. Workers that are not measured sleep in a pipe
read. Because neighbours in time see the same disturbances, ratios are taken inside a round, and because every process has
a small lasting offset of its own, processes are what ratios are averaged over (docs/method.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np

from backends.base import SessionFacts
from profiler.errors import TargetError
from profiler.job import Job
from profiler.measure.loop import inferences_per_sample
from profiler.records import BlockRecord, FailureRecord, ProcessRecord, WarmupRecord
from profiler.stats.warmup import steady_state
from profiler.study import Case
from profiler.targets.process import WorkerFailure, WorkerProcess

MAX_BLOCK_SAMPLES = 20_000
_REENTRY_SAMPLES = 3
_REENTRY_S = 0.020
_REENTRY_SHARE = 0.2
_WARMUP_GROWTH = 1.5


@dataclass
class _Lane:
    """One case in one replicate: its worker and what was learned while warming it up."""

    case: Case
    worker: WorkerProcess
    per_sample: int = 1
    parked_cpu_s: float = 0.0


def measure(job: Job, groups: Sequence[Sequence[Case]]) -> None:
    """Measure every block of the plan that is not stored yet. A case that fails is stored as a failure and left out."""
    effort = job.study.effort
    failed = {record.case for record in job.store.records(job.run_id, FailureRecord)}
    done = job.store.done_blocks(job.run_id)
    job.progress.stage("measuring", effort.processes * sum(len(group) for group in groups) * (effort.rounds + 1))
    for replicate in range(effort.processes):
        for number, group in enumerate(groups):
            wanted = [case for case in group if case.key not in failed]
            _replicate(job, replicate, number, wanted, done, failed)


def _replicate(
    job: Job, replicate: int, group: int, cases: Sequence[Case], done: set[tuple[str, int, int, int]], failed: set[str]
) -> None:
    rounds = job.study.effort.rounds
    missing = {
        (case.key, index)
        for case in cases
        for index in range(rounds)
        if (case.key, replicate, group, index) not in done
    }
    open_cases = [case for case in cases if any((case.key, index) in missing for index in range(rounds))]
    for _ in range(len(cases) * (rounds + 1) - len(missing) - len(open_cases)):
        job.progress.step()
    if not open_cases:
        return
    attempt = job.store.last_attempt(job.run_id, replicate, group) + 1
    with ExitStack() as stack:
        lanes: dict[str, _Lane] = {}
        for case in open_cases:
            try:
                lanes[case.key] = stack.enter_context(_opened(job, case, replicate, attempt, group))
            except WorkerFailure as failure:
                job.fail(case.key, "load" if failure.kind != "timeout" else "warmup", failure, replicate)
                failed.add(case.key)
            job.progress.step(case.key)
        for index in range(rounds):
            order = np.random.default_rng((job.study.seed, replicate, group, index)).permutation(len(cases))
            for position, place in enumerate(order):
                key = cases[place].key
                if (key, index) not in missing:
                    continue
                lane = lanes.get(key)
                if lane is not None:
                    try:
                        block = _block(job, lane, replicate, attempt, group, index, position)
                        job.store.add(job.run_id, block)
                    except WorkerFailure as failure:
                        job.fail(key, "measure", failure, replicate)
                        failed.add(key)
                        lanes.pop(key).worker.kill()
                job.progress.step(key)


class _opened:  # noqa: N801 (a context manager, used like contextlib's)
    """Open, load, feed and warm up a worker; store its process record; close it at the end."""

    def __init__(self, job: Job, case: Case, replicate: int, attempt: int, group: int) -> None:
        self._args = (job, case, replicate, attempt, group)
        self._worker: WorkerProcess | None = None

    def __enter__(self) -> _Lane:
        job, case, *_ = self._args
        self._worker = job.open(case)
        try:
            return self._warm(self._worker)
        except BaseException:
            self._worker.close()
            raise

    def __exit__(self, *error: object) -> None:
        if self._worker is not None:
            self._worker.close()

    def _warm(self, worker: WorkerProcess) -> _Lane:
        job, case, replicate, attempt, group = self._args
        limit = job.study.time_limit_s
        loaded = job.load(worker, case)
        worker.request("feed", job.feeds(case), timeout_s=limit)
        first, _ = worker.request("first", timeout_s=limit)
        warmup, lane = _warm_up(job, case, worker)
        memory, _ = worker.request("memory", timeout_s=limit)
        facts, _ = worker.request("facts", timeout_s=limit)
        try:
            record = ProcessRecord(
                case=case.key, replicate=replicate, attempt=attempt, group=group, pid=worker.pid,
                import_s=float(loaded["import_s"]), load_s=float(loaded["load_s"]),
                first_inference_s=float(first["first_inference_s"]),
                rss_before_load_bytes=loaded.get("rss_before_load_bytes"), peak_rss_bytes=memory.get("peak_rss_bytes"),
                facts=SessionFacts(**facts["facts"]), warmup=warmup, parked_cpu_s=lane.parked_cpu_s,
            )  # fmt: skip
        except (KeyError, TypeError, ValueError) as error:
            raise TargetError(f"the worker of {case.key} gave an incomplete answer: {error}.") from error
        job.store.add(job.run_id, record)
        return lane


def _warm_up(job: Job, case: Case, worker: WorkerProcess) -> tuple[WarmupRecord, _Lane]:
    """Run until the steady state is found, or the longest warm-up is over; the label says which."""
    effort = job.study.effort
    samples = np.empty(0)
    seconds = effort.warmup_s
    lane = _Lane(case, worker)
    while True:
        # At least 3 inferences, so that there is something to look at; at least one second for slow models.
        reply, arrays = worker.request(
            "time", timeout_s=job.study.time_limit_s, min_s=seconds, min_samples=3, max_s=max(seconds, 1.0) * 3,
        )  # fmt: skip
        samples = np.concatenate([samples, arrays["durations_ns"].astype(np.float64) / 1e9])
        lane.parked_cpu_s = max(lane.parked_cpu_s, float(reply["parked_cpu_s"]))
        state = steady_state(samples)
        spent = float(samples.sum())
        if state.accepted or spent >= effort.warmup_max_s:
            break
        seconds = min(spent * (_WARMUP_GROWTH - 1) + effort.warmup_s, effort.warmup_max_s)
    label = state.label if state.accepted else "no_steady_state"
    steady = samples[state.cut :] if state.cut < len(samples) else samples
    lane.per_sample = inferences_per_sample(float(np.median(steady)))
    time_to_steady = float(samples[: state.cut].sum()) if state.accepted else None
    return WarmupRecord(samples, state.cut, label, time_to_steady), lane


def _block(job: Job, lane: _Lane, replicate: int, attempt: int, group: int, index: int, position: int) -> BlockRecord:
    effort = job.study.effort
    reply, arrays = lane.worker.request(
        "time", timeout_s=job.study.time_limit_s, min_s=effort.block_s, min_samples=effort.block_samples,
        # A slow model ends its block after a second, once it has three samples' worth of time.
        max_s=max(effort.block_s, 1.0), max_samples=MAX_BLOCK_SAMPLES, per_sample=lane.per_sample,
    )  # fmt: skip
    samples = arrays["durations_ns"].astype(np.float64) / 1e9 / lane.per_sample
    return BlockRecord(
        case=lane.case.key, replicate=replicate, attempt=attempt, group=group, round=index, position=position,
        started_s=float(reply["started_s"]), samples_s=samples, discarded=_reentry(samples, lane.per_sample),
        inferences_per_sample=lane.per_sample, batch=lane.case.batch,
        cpu_s=float(reply["cpu_s"]), wall_s=float(reply["wall_s"]),
        labels={str(key): float(value) for key, value in reply["labels"].items()},
    )  # fmt: skip


def _reentry(samples: np.ndarray[tuple[int], np.dtype[np.float64]], per_sample: int) -> int:
    """How many leading samples re-entered caches and clocks: 3 of them or 20 ms, but at most a fifth of the block."""
    elapsed = np.cumsum(samples) * per_sample
    by_time = int(np.searchsorted(elapsed, _REENTRY_S))
    return min(max(_REENTRY_SAMPLES, by_time), int(len(samples) * _REENTRY_SHARE))


def plan_groups(
    cases: Sequence[Case], sizes: dict[str, int], budget_bytes: int, references: dict[str, Case]
) -> list[list[Case]]:
    """Split the cases into groups whose workers fit into memory together; every group holds the references of its cases.

    `sizes` are artifact sizes by variant, bytes. A loaded model takes about three times its file (weights, packed copies,
    activations) beside the runtime itself: deliberately generous, since a full memory ruins every timing.
    """

    def need(case: Case) -> int:
        return _RUNTIME_BYTES + 3 * sizes[case.variant]

    groups: list[list[Case]] = []
    for case in cases:
        # A reference is its own reference.
        wanted = list(dict.fromkeys([case, references.get(case.key, case)]))
        group = groups[-1] if groups else []
        extra = [item for item in wanted if item not in group]
        if not group or len(group) + len(extra) > MAX_RESIDENT or sum(map(need, [*group, *extra])) > budget_bytes:
            group = []
            groups.append(group)
            extra = wanted
        group.extend(extra)
    return groups


_RUNTIME_BYTES = 200 << 20
MAX_RESIDENT = 32
