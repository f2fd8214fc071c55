"""The timing stage: fresh processes, and in each of them rounds of blocks in random order over all cases.

A campaign has P replicates. In each, every case gets a worker of its own, warmed up until its steady state is found; then K
rounds follow, one block per case and round, in a random order that is stored. Workers that are not measured sleep in a pipe
read. Because neighbours in time see the same disturbances, ratios are taken inside a round, and because every process has
a small lasting offset of its own, processes are what ratios are averaged over (docs/method.md).

A round in which a block was disturbed from outside is kept and measured again, up to a limit. With a precision or a time budget
fresh processes follow until the precision is reached or the time is up (profiler/stopping.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from backends.base import SessionFacts
from profiler import stopping
from profiler.errors import BudgetError, TargetError
from profiler.job import Job, add, again_if_killed
from profiler.measure.loop import (
    MAX_BLOCK_SAMPLES,
    canary_places,
    inferences_per_sample,
    reentry_samples,
    samples_per_window,
)
from profiler.records import BESIDE_TIMING, BlockRecord, FailureRecord, ProcessRecord, WarmupRecord
from profiler.stats.sequential import process_looks
from profiler.stats.warmup import steady_state
from profiler.study import Case, Effort
from profiler.targets.process import WorkerFailure, WorkerProcess

_WARMUP_GROWTH = 1.5
_AROUND_BLOCK_S = 0.025
"""Collector, waiting for silence, pipe and store, as scripts/bench_overhead finds them; only plans are made with it."""
_WARMUP_BUDGET_SHARE = 0.5
"""Of a replicate's time under a budget: warming up may take half, the rest is for rounds."""


@dataclass
class _Lane:
    """One case in one replicate: its worker and what was learned while warming it up."""

    case: Case
    worker: WorkerProcess
    per_sample: int = 1
    label_every: int = 1
    usual_s: float = 0.0
    parked_cpu_s: float = 0.0
    blocks: list[BlockRecord] = field(default_factory=list)

    def block_s(self, effort: Effort) -> float:
        """About how long a block takes, before the first one: its inferences and what is around them."""
        inferences = min(effort.block_samples * self.usual_s, max(1.0, self.usual_s))
        return max(effort.block_s, inferences) + _AROUND_BLOCK_S


@dataclass
class _Pace:
    """What replicates of one group took, so that the next is only begun when it can end in time."""

    setup_s: float = 0.0
    round_s: float = 0.0


@dataclass
class _Campaign:
    """What all replicates share."""

    job: Job
    done: set[tuple[str, int, int, int]]
    failed: set[str]
    killed: set[str] = field(default_factory=set)
    """Cases of which a worker was ended from outside."""
    paces: dict[int, _Pace] = field(default_factory=dict)
    complete_rounds: int = 0
    requeued: int = 0


def measure(job: Job, groups: Sequence[Sequence[Case]]) -> None:
    """Measure every block of the plan that is not stored yet. A case that fails is stored as a failure and left out.

    A group's place is its number in the records; groups of other devices are empty here. Raises BudgetError when the time budget
    ends before the first round did.
    """
    failures = job.store.records(job.run_id, FailureRecord)
    failed = {record.case for record in failures if record.stage not in BESIDE_TIMING}
    campaign = _Campaign(job, job.store.done_blocks(job.run_id), failed)
    effort = job.study.effort
    own = [(number, group) for number, group in enumerate(groups) if group]
    done = 0
    for upto in _looks(job):
        cases = sum(len(group) for group in groups)
        job.progress.stage("measuring", (upto - done) * cases * (effort.rounds + 1))
        for replicate in range(done, upto):
            for place, (number, group) in enumerate(own):
                wanted = [case for case in group if case.key not in failed]
                units = max(1, (max(effort.processes, upto) - replicate) * len(own) - place)
                if wanted and not _fits(campaign, replicate, number):
                    return _out_of_time(campaign, groups)
                try:
                    _replicate(campaign, replicate, number, wanted, units)
                except BudgetError:
                    # A step that took longer than what was left.
                    return _out_of_time(campaign, groups)
        done = upto
        if not stopping.sequential(job.study) or stopping.look(job.store.run(job.run_id)).converged:
            break
    if campaign.requeued:
        job.progress.note(f"{campaign.requeued} disturbed rounds were measured again")
    return None


def _looks(job: Job) -> Sequence[int]:
    """After how many replicates to look whether it is enough."""
    effort = job.study.effort
    if not stopping.sequential(job.study):
        return (effort.processes,)
    return process_looks(effort.processes, max(effort.processes, effort.max_processes))


def _fits(campaign: _Campaign, replicate: int, group: int) -> bool:
    """Whether one more replicate of the group, of one round at least, can be had in the time that is left."""
    pace = campaign.paces.get(group, _Pace())
    left = campaign.job.budget.left_s
    if replicate > 0 and not any(key[1] == replicate for key in campaign.done):
        return left > pace.setup_s + pace.round_s
    return left > 0


def _out_of_time(campaign: _Campaign, groups: Sequence[Sequence[Case]]) -> None:
    """The budget is used up: fine when something was measured, an error when nothing was."""
    if campaign.complete_rounds == 0 and not campaign.done:
        _too_short(campaign, sum(len(group) for group in groups), 0)
    campaign.job.progress.note("the time budget is used up: what was measured until here stands")


def _too_short(campaign: _Campaign, cases: int, ready: int) -> None:
    budget = campaign.job.budget
    at_hand = f"{ready} of {cases} workers were ready" if ready else "no worker was ready yet"
    raise BudgetError(
        f"the time budget of {campaign.job.study.time_budget_s or budget.seconds or 0:.3g} s ended after {budget.spent_s:.0f} s, "
        f"before one round of {cases} cases was "
        f"measured ({at_hand}). Give more time with --time-budget, or fewer variants; "
        f"`{campaign.job.resume}` goes on from here."
    )


def _replicate(campaign: _Campaign, replicate: int, group: int, cases: Sequence[Case], units: int) -> None:
    job = campaign.job
    rounds = job.study.effort.rounds
    missing = {
        (case.key, index)
        for case in cases
        for index in range(rounds)
        if (case.key, replicate, group, index) not in campaign.done
    }
    open_cases = [case for case in cases if any((case.key, index) in missing for index in range(rounds))]
    for _ in range(len(cases) * (rounds + 1) - len(missing) - len(open_cases)):
        job.progress.step()
    if not open_cases:
        return
    began, share = job.budget.spent_s, job.budget.share_s(units)
    attempt = job.store.last_attempt(job.run_id, replicate, group) + 1
    with ExitStack() as stack:
        lanes: dict[str, _Lane] = {}
        for place, case in enumerate(open_cases):
            if job.budget.left_s <= 0:
                if not campaign.complete_rounds and not campaign.done:
                    _too_short(campaign, len(open_cases), place)
                return
            warmup_s = _WARMUP_BUDGET_SHARE * (share - (job.budget.spent_s - began)) / (len(open_cases) - place)
            try:
                lanes[case.key] = again_if_killed(
                    job,
                    case.key,
                    lambda case=case, warmup_s=warmup_s: stack.enter_context(  # type: ignore[misc]
                        _opened(job, case, replicate, attempt, group, warmup_s)
                    ),
                )
            except WorkerFailure as failure:
                job.fail(case.key, "load" if failure.kind != "timeout" else "warmup", failure, replicate)
                campaign.failed.add(case.key)
            job.progress.step(case.key)
        pace = campaign.paces.setdefault(group, _Pace())
        pace.setup_s = job.budget.spent_s - began
        fresh = _Replicate(campaign, replicate, attempt, group, cases, lanes, missing)
        fresh.measure(share - pace.setup_s, pace)


@dataclass
class _Replicate:
    """One set of processes that are ready: the rounds over them."""

    campaign: _Campaign
    replicate: int
    attempt: int
    group: int
    cases: Sequence[Case]
    lanes: dict[str, _Lane]
    missing: set[tuple[str, int]]

    def measure(self, share_s: float, pace: _Pace) -> None:
        """All rounds that are missing and fit into `share_s`, then those that replace disturbed ones."""
        job = self.campaign.job
        rounds = job.study.effort.rounds
        allowed = int(job.study.effort.requeue_share * rounds)
        began, used = job.budget.spent_s, 0.0
        disturbed = extra = 0
        round_s = pace.round_s or sum(lane.block_s(job.study.effort) for lane in self.lanes.values())
        for index in self._indices(rounds, allowed):
            if index >= rounds and extra >= min(disturbed, allowed):
                break
            # The processes are ready: one round is worth having even when getting there took longer than its share.
            room = job.budget.left_s if not used else min(job.budget.left_s, share_s - used)
            if round_s > room:
                break
            extra += index >= rounds
            disturbed += self._round(index)
            self.campaign.complete_rounds += 1
            before, used = used, job.budget.spent_s - began
            round_s = pace.round_s = max(pace.round_s, used - before)
        self.campaign.requeued += extra
        if self.campaign.complete_rounds == 0 and not self.campaign.done and self.lanes:
            _too_short(self.campaign, len(self.cases), len(self.lanes))

    def _indices(self, rounds: int, allowed: int) -> Iterator[int]:
        wanted = sorted({index for _, index in self.missing})
        yield from wanted
        stored = [key[3] for key in self.campaign.done if key[1] == self.replicate and key[2] == self.group]
        # What an interrupted attempt added stays; this one's additions come after it.
        first = max([rounds - 1, *stored]) + 1
        self.missing |= {(case.key, index) for case in self.cases for index in range(first, first + allowed)}
        yield from range(first, first + allowed)

    def _round(self, index: int) -> bool:
        """One block of each case, in random order; returns whether one of them was disturbed."""
        job = self.campaign.job
        dirty = False
        seeds = (job.study.seed, self.replicate, self.group, index)
        for position, place in enumerate(np.random.default_rng(seeds).permutation(len(self.cases))):
            key = self.cases[place].key
            if (key, index) not in self.missing:
                continue
            lane = self.lanes.get(key)
            if lane is not None:
                try:
                    block = _block(job, lane, self.replicate, self.attempt, self.group, index, position)
                    add(job, block)
                    lane.blocks.append(block)
                    dirty |= bool(stopping.dirty_blocks(lane.blocks)[-1])
                except WorkerFailure as failure:
                    self.lanes.pop(key).worker.kill()
                    if failure.from_outside and key not in self.campaign.killed:
                        # Somebody ended it, which says nothing about the case: its next process goes on.
                        self.campaign.killed.add(key)
                        job.progress.note(f"{key}: {str(failure).splitlines()[0][:300]} Its next process goes on.")
                    else:
                        job.fail(key, "measure", failure, self.replicate)
                        self.campaign.failed.add(key)
            if index < job.study.effort.rounds:
                job.progress.step(key)
        return dirty


class _opened:  # noqa: N801 (a context manager, used like contextlib's)
    """Open, load, feed and warm up a worker; store its process record; close it at the end."""

    def __init__(self, job: Job, case: Case, replicate: int, attempt: int, group: int, warmup_s: float) -> None:
        self._args = (job, case, replicate, attempt, group)
        self._warmup_s = warmup_s
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
        loaded = job.load(worker, case)
        worker.request("feed", job.feeds(case), timeout_s=job.limit_s)
        first, _ = worker.request("first", timeout_s=job.limit_s)
        warmup, lane, cost = _warm_up(job, case, worker, self._warmup_s)
        memory, _ = worker.request("memory", timeout_s=job.study.time_limit_s)
        facts, _ = worker.request("facts", timeout_s=job.study.time_limit_s)
        inferences = lane.per_sample * lane.label_every
        try:
            record = ProcessRecord(
                case=case.key, replicate=replicate, attempt=attempt, group=group, pid=worker.pid,
                import_s=float(loaded["import_s"]), load_s=float(loaded["load_s"]),
                first_inference_s=float(first["first_inference_s"]),
                rss_before_load_bytes=loaded.get("rss_before_load_bytes"), peak_rss_bytes=memory.get("peak_rss_bytes"),
                facts=SessionFacts(**facts["facts"]), warmup=warmup, parked_cpu_s=lane.parked_cpu_s,
                notes=tuple(str(note) for note in memory.get("memory_notes", ())),
                harness_in_sample_s=float(cost["in_sample_s"]) / lane.per_sample,
                harness_labels_s=float(cost["labelled_s"]) / inferences,
                memory={str(phase): dict(found) for phase, found in memory.get("phases", {}).items()},
            )  # fmt: skip
        except (KeyError, TypeError, ValueError) as error:
            raise TargetError(f"the worker of {case.key} gave an incomplete answer: {error}.") from error
        add(job, record)
        return lane


def _warm_up(
    job: Job, case: Case, worker: WorkerProcess, budget_s: float
) -> tuple[WarmupRecord, _Lane, dict[str, float]]:
    """Run until the steady state is found, or the longest warm-up is over; the label says which. Also what the harness costs."""
    effort = job.study.effort
    longest = min(effort.warmup_max_s, max(budget_s, effort.warmup_s))
    samples = np.empty(0)
    seconds = effort.warmup_s
    lane = _Lane(case, worker)
    while True:
        # At least 3 inferences, so that there is something to look at; at least one second for slow models.
        reply, arrays = worker.request(
            "time", timeout_s=job.limit_s, min_s=seconds, min_samples=3, max_s=max(seconds, 1.0) * 3, weigh=True,
            label_every=lane.label_every,
        )  # fmt: skip
        samples = np.concatenate([samples, _seconds(arrays)["durations_ns"]])
        lane.parked_cpu_s = max(lane.parked_cpu_s, float(reply["parked_cpu_s"]))
        lane.label_every = samples_per_window(float(np.median(samples)))
        state = steady_state(samples)
        spent = float(samples.sum())
        if state.accepted or spent >= longest:
            break
        seconds = min(spent * (_WARMUP_GROWTH - 1) + effort.warmup_s, longest)
    label = state.label if state.accepted else "no_steady_state"
    steady = samples[state.cut :] if state.cut < len(samples) else samples
    usual = float(np.median(steady))
    lane.usual_s = usual
    lane.per_sample = inferences_per_sample(usual)
    lane.label_every = samples_per_window(usual * lane.per_sample)
    time_to_steady = float(samples[: state.cut].sum()) if state.accepted else None
    return WarmupRecord(samples, state.cut, label, time_to_steady), lane, reply["harness"]


def _block(job: Job, lane: _Lane, replicate: int, attempt: int, group: int, index: int, position: int) -> BlockRecord:
    effort = job.study.effort
    reply, arrays = lane.worker.request(
        "time", timeout_s=job.limit_s, min_s=effort.block_s, min_samples=effort.block_samples,
        # A slow model ends its block after a second, once it has three samples' worth of time.
        max_s=max(effort.block_s, 1.0), max_samples=MAX_BLOCK_SAMPLES, per_sample=lane.per_sample, label_every=lane.label_every,
    )  # fmt: skip
    seconds = _seconds(arrays)
    samples = seconds["durations_ns"] / lane.per_sample
    return BlockRecord(
        case=lane.case.key, replicate=replicate, attempt=attempt, group=group, round=index, position=position,
        started_s=float(reply["started_s"]), samples_s=samples, discarded=reentry_samples(samples, lane.per_sample),
        inferences_per_sample=lane.per_sample, batch=lane.case.batch,
        cpu_s=float(reply["cpu_s"]), wall_s=float(reply["wall_s"]),
        labels={str(key): float(value) for key, value in reply["labels"].items()},
        window_s=seconds.get("window_ns"), window_cpu_s=seconds.get("cpu_ns"), window_waited_s=seconds.get("waited_ns"),
        label_every=lane.label_every, canary_s=seconds.get("canary_ns"), canary_at=canary_places(arrays),
    )  # fmt: skip


def _seconds(arrays: Mapping[str, NDArray[np.generic]]) -> dict[str, NDArray[np.float64]]:
    """A worker's nanoseconds as seconds. Raises WorkerFailure for durations that no clock can have measured."""
    found = {name: values.astype(np.float64) / 1e9 for name, values in arrays.items() if name != "canary_at"}
    durations = found.get("durations_ns", np.zeros(0))
    if not len(durations) or not (np.isfinite(durations).all() and (durations > 0).all()):
        raise WorkerFailure(
            "error",
            f"the worker's clock jumped: a duration of {durations.min(initial=0.0):g} s came, which cannot be. Measure again.",
        )  # fmt: skip
    return found


def plan_groups(
    cases: Sequence[Case], sizes: dict[str, int], budget_bytes: int, references: Mapping[str, Sequence[Case]]
) -> list[list[Case]]:
    """Split the cases into groups whose workers fit into memory together; every group holds the references of its cases.

    `sizes` are artifact sizes by variant, bytes; `references` are what a case is compared with, by its key. A group is of one
    target: machines do not share their weather. A loaded model takes about three times its file (weights, packed copies,
    activations) beside the runtime itself: deliberately generous, since a full memory ruins every timing.
    """

    def need(case: Case) -> int:
        return _RUNTIME_BYTES + 3 * sizes[case.variant]

    groups: list[list[Case]] = []
    for case in cases:
        # A reference is its own reference.
        wanted = list(dict.fromkeys([case, *references.get(case.key, ())]))
        group = groups[-1] if groups and groups[-1][0].target == case.target else []
        extra = [item for item in wanted if item not in group]
        if not group or len(group) + len(extra) > MAX_RESIDENT or sum(map(need, [*group, *extra])) > budget_bytes:
            group = []
            groups.append(group)
            extra = wanted
        group.extend(extra)
    return groups


_RUNTIME_BYTES = 200 << 20
MAX_RESIDENT = 32
