"""What the devices of a database do now, and how far a run is with each: read from its records, nobody is asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from profiler.fleet.devices import lease_name
from profiler.leases import LeaseState, QueueState, has_ended
from profiler.machines import device_of, devices_of
from profiler.records import BESIDE_TIMING, FailureRecord, LoadRecord
from profiler.store import Store
from profiler.study import Case


@dataclass(frozen=True)
class DeviceStatus:
    """One line of `edgeprof fleet status RUN`."""

    device: str
    state: str
    """`idle`, `measuring CASE`, `lost`, `failed`, `done`, `waiting`, with who else has the device."""
    reason: str | None
    since_unix_s: float | None
    """Since when; None where the run never came to it."""
    cases: int
    measured: int
    """Cases with all processes and rounds that the study asks for; of a run that only serves, with any request served."""
    failed: int
    attempt: int | None
    """Leases of the device so far, less one."""
    refused: int
    """Results that came after their lease was over, of all runs."""


def of_run(store: Store, run_id: str) -> tuple[DeviceStatus, ...]:
    """Every device of a run, in the study's order. Raises StoreError for an unknown run."""
    study = store.study(run_id)
    cases = [Case(**fields) for fields in store.plan(run_id).get("cases", [])]
    # Of quality keys too: what has no accuracy is not timed.
    failed = {record.case for record in store.records(run_id, FailureRecord) if record.stage not in BESIDE_TIMING}
    blocks: dict[str, int] = {}
    for case, *_ in store.done_blocks(run_id):
        blocks[case] = blocks.get(case, 0) + 1
    wanted = study.effort.processes * study.effort.rounds
    if study.load is not None and study.load.only:
        blocks, wanted = {record.case: 1 for record in store.records(run_id, LoadRecord)}, 1
    leases = {state.device: state for state in store.leases()}
    queues = {state.device: state for state in store.queues(run_id)}
    found = []
    for device in devices_of(study):
        own = [case for case in cases if device_of(case.target) == device]
        lost = [case for case in own if case.key in failed or case.quality_key in failed]
        whole = wanted if study.soak is None and study.time_budget_s is None else 1
        measured = [case for case in own if case not in lost and blocks.get(case.key, 0) >= whole]
        lease, queue = leases.get(lease_name(device)), queues.get(device)
        state, reason, since = _state(run_id, lease, queue)
        found.append(
            DeviceStatus(
                device, state, reason, since, len(own), len(measured), len(lost),
                None if lease is None else lease.attempt, 0 if lease is None else lease.refused,
            )
        )  # fmt: skip
    return tuple(found)


def words_of(lease: LeaseState) -> str:
    """What a device does, for the list of all devices."""
    if lease.left_s is None:
        return "idle"
    if lease.owner is not None and has_ended(lease.owner):
        return f"idle: {lease.owner}, which had it, has ended"
    last = f", last {lease.last_stored}" if lease.last_stored else ""
    return f"measuring run {lease.run_id} for {lease.owner or 'someone'}{last}"


def as_json(states: tuple[DeviceStatus, ...]) -> list[Mapping[str, object]]:
    """For programs: the fields as they are."""
    return [dict(vars(state)) for state in states]


def _state(run_id: str, lease: LeaseState | None, queue: QueueState | None) -> tuple[str, str | None, float | None]:
    live = lease is not None and lease.live
    if lease is not None and live and lease.run_id != run_id:
        return "waiting", f"run {lease.run_id} of {lease.owner or 'someone'} has it", lease.since_unix_s
    if queue is None:
        return "idle", None, None
    if queue.status == "measuring":
        if not live or lease is None:
            return "idle", "its controller ended while it was measured", queue.since_unix_s
        return f"measuring {lease.last_stored}" if lease.last_stored else "measuring", None, queue.since_unix_s
    return queue.status, queue.reason, queue.since_unix_s
