"""A run, as a table of contents: plan, artifacts, evaluate, measure. Each part stores what it sees as soon as it sees it."""

from __future__ import annotations

import fcntl
import math
import os
import resource
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from datetime import datetime, timezone
from pathlib import Path
from threading import Lock
from typing import Any

import psutil

from backends import spec
from backends.base import SessionFacts
from profiler import __version__, advice, campaign, energy, output_rows, prepare, soak
from profiler.artifacts import ArtifactStore
from profiler.budget import Budget
from profiler.cluster.building import ClusterArtifacts
from profiler.cluster.client import Cluster
from profiler.cluster.evaluating import ClusterEvaluation
from profiler.cost.detect import DetectedMachine, detect_machine
from profiler.cost.model import price_case
from profiler.cost.prices import load_prices
from profiler.doctor.grade import dedicated, fixed_clocks
from profiler.environment import describe, fingerprint
from profiler.errors import BudgetError, DataError, ModelError, StoreError, StudyError, TargetError
from profiler.evaluate import REFERENCE_OUTPUTS, Elsewhere, evaluate, first_look
from profiler.fleet.classes import settled
from profiler.fleet.devices import devices, machine_of
from profiler.fleet.queues import DeviceJob, Queues
from profiler.job import Job
from profiler.leases import QueueStatus
from profiler.load.stage import check_load, measure_load
from profiler.machines import device_of, devices_of
from profiler.making import MakerStore
from profiler.named_code import named_code
from profiler.pricing import undecided
from profiler.progress import Progress, Silent
from profiler.records import ArtifactRecord, Environment, Estimate, NotMeasured
from profiler.store import RunData, Store, open_store
from profiler.study import Case, Study, own_reference, reference_case
from profiler.targets import launch, setup
from profiler.targets.config import LOCAL
from profiler.targets.maker import Limits, limits_of
from profiler.targets.remote import LinkLost

CACHE_NAME = "cache"
LINK_PAUSES_S = (1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
"""A device that reboots is back within them."""
_MEMORY_SHARE = 0.6
_ASKED_AT_ONCE = 16
_FILES_PER_WORKER, _OTHER_FILES = 3, 128
"""Open files: two pipes and a log for each worker, and what databases, models and runtimes need."""
_plan_lock = Lock()
_CLOSING_S, _CLOSING_SHARE, _LARGEST_CLOSING = 4.0, 0.01, 0.25


def execute(
    study: Study | None,
    *,
    out: Path,
    resume: str | None = None,
    progress: Progress | None = None,
    database: str | None = None,
    machines: Callable[[str], str | None] = machine_of,
    cluster: Cluster | None = None,
) -> str:
    """Do a study, or resume the run `resume` of the folder `out`; returns the run's id.

    `machines` tells which devices are one machine, as `profiler.fleet.devices.machine_of` does. Work that needs no particular
    device is done on `cluster`.

    Raises EdgeprofError before anything is measured when the study is not possible, DevicesLeft when some of its devices were
    not measured but others were. Killed at any moment, everything that was measured is in the database, and resuming measures
    the rest. KeyboardInterrupt marks the run as interrupted and passes on.
    """
    progress = progress or Silent()
    began = time.monotonic()
    with only_run_in(out):
        store = open_store(database or out)
        try:
            if resume is not None:
                run_id = store.resolve(resume, search=False, unfinished=True)
                before = store.run(run_id)
                if "search" in before.plan:
                    again = advice.resume(run_id, search=True)
                    raise StudyError(f"run {run_id} is a search: go on with `{again}`.")
                study = before.study
            elif study is None:
                raise StudyError("there is nothing to run: give a study, or a run to resume.")
            else:
                study = settled(study.absolute(), store, progress)
                if (unclear := undecided(study.cost, devices_of(study))) is not None:
                    raise StudyError(unclear)
            variants = prepare.check_names(study, fresh=resume is None)
            check_load(study.load)
            energy.check(study.energy)
            if resume is None:
                run_id = store.create_run(study, describe(), version=__version__)
            advice.began(run_id, code=named_code(study))
            with status_kept(store, run_id, out / run_id, fresh=resume is None):
                budget = Budget(without_closing(study.time_budget_s), began=began)
                _execute(run_id, study, variants, store, out, progress, budget, machines, cluster)
        finally:
            store.close()
    return run_id


@contextmanager
def status_kept(store: Store, run_id: str, folder: Path, *, fresh: bool) -> Iterator[None]:
    """Mark the run as interrupted when what happens inside fails; a `fresh` one that turned out impossible is taken back."""
    try:
        yield
    except BaseException as error:
        # A full disk may refuse this too; what is to be told is the first error.
        with suppress(StoreError, OSError):
            if (
                fresh
                and isinstance(error, (StudyError, ModelError, DataError))
                and not isinstance(error, BudgetError)
                and not store.run(run_id).plan.get("cases")
            ):
                # Not possible as asked, and nothing was measured: `latest` should stay a run with results.
                store.discard(run_id)
                folder.rmdir()
            else:
                store.set_status(run_id, "interrupted")
        raise


def _execute(
    run_id: str, study: Study, variants: Sequence[Any], store: Store, out: Path, progress: Progress, budget: Budget,
    machines: Callable[[str], str | None], cluster: Cluster | None,
) -> None:  # fmt: skip
    store.set_status(run_id, "running")
    artifact_store = store_of_artifacts(out, cluster, progress, study, budget)
    folder = out / run_id
    folder.mkdir(parents=True, exist_ok=True)
    before, again = store.run(run_id), advice.resume(run_id, code=named_code(study))
    with prepare.working_folder() as scratch:
        # The maker ends before anything is timed.
        with artifact_store:
            progress.stage("reading model and data", 1)
            asked = _with_stored_model(study, before, artifact_store)
            prepared = prepare.prepare(asked, tuple(variants), scratch, maker=artifact_store.maker)
            progress.step()
            detected = detect_machine()
            crowded = crowding(study, before.environment)
            for note in crowded:
                progress.note(note)
            warn_about_price(study, before.environment, detected, progress)
            # Before variants are made, which may take minutes: what a target cannot do is told now.
            there = {} if before.plan else of_targets(study, before.environment, progress)
            if not before.plan and not (study.load is not None and study.load.only):
                look(
                    Job(run_id, study, store, artifact_store, {}, prepared, folder, progress, budget, again),
                    variants[0],
                )
            make_ahead(artifact_store, prepared, variants, progress)
            made, failures = prepare.make_artifacts(
                prepared, tuple(variants), artifact_store, progress,
                lambda: budget.require(0.0, study.time_budget_s, again),
            )  # fmt: skip
        _check_unchanged(before, prepared, made)
        # They are made anew each time, and some that did not end in time may do so now.
        store.take_back(run_id, (failure for failure in before.failures if failure.stage == "variant"))
        for artifact in made:
            store.add(run_id, artifact)
        for failure in failures:
            store.add(run_id, failure)
        cases, left_out = prepare.plan_cases(study, made)
        for skipped in left_out:
            store.add(run_id, skipped)
        if not before.plan:
            plan = {
                "cases": [asdict(case) for case in cases],
                "source_sha256": prepared.source_sha256,
                "reference_artifact": made[0].sha256,
                "data_sha256": None if prepared.evaluation is None else prepared.evaluation.sha256,
                "data_name": None if prepared.evaluation is None else prepared.evaluation.name,
                "data_rows": None if prepared.evaluation is None else len(prepared.evaluation),
                "calibration_rows": None if prepared.calibration is None else len(prepared.calibration),
                "clusters": clusters(prepared),
                "detected": asdict(detected),
                **there,
                **conditions(store, before.environment),
            }
            store.set_plan(run_id, plan, (*prepared.notes, *crowded))
        job = Job(
            run_id,
            study,
            store,
            artifact_store,
            {record.variant: record for record in made},
            prepared,
            folder,
            progress,
            budget,
            again,
        )
        with job.modes:
            _measure_all(job, cases, made, machines, None if cluster is None else ClusterEvaluation(cluster))
    store.set_status(run_id, "finished")


def look(job: Job, reference: Any) -> None:
    """Whether metric, limit, labels and outputs fit, from a few rows, before variants are made. Raises DataError, StudyError."""
    if job.prepared.evaluation is None:
        return
    record = prepare.make_artifact(job.artifact_store, job.prepared, reference)
    reading = first_look(replace(job, artifacts={record.variant: record}))
    if reading is None:
        return
    # A metric that was chosen from labels and outputs is known here for the first time.
    limits, metric = job.study.constraints, reading.metric
    unfit = limits.drop_misfit(metric.name, metric.unit) or limits.drop_doubt(metric.name, metric.unit)
    if unfit is not None:
        raise StudyError(f"{unfit}.")


def store_of_artifacts(
    out: Path, cluster: Cluster | None, progress: Progress, study: Study, budget: Budget
) -> MakerStore:
    """The artifact cache of the folder `out`, with the limits of a study; with a cluster, what is missing in it is made there."""

    def limits() -> Limits:
        return limits_of(study.time_limit_s, study.memory_limit_bytes, budget.left_s)

    if cluster is None:
        return MakerStore(out / CACHE_NAME, limits)
    return ClusterArtifacts(out / CACHE_NAME, cluster, progress.note, limits=limits)


def make_ahead(
    store: MakerStore,
    prepared: prepare.Prepared,
    variants: Sequence[Any],
    progress: Progress,
    limit_s: float = math.inf,
) -> None:
    """Have all variants made on the cluster at once, where there is one; they are in the cache afterwards.

    What is not there after `limit_s` is left to whoever asks for it.
    """
    if not isinstance(store, ClusterArtifacts):
        return
    rows = prepared.calibration
    inputs, sha256 = (None, None) if rows is None else (rows.inputs, rows.sha256)
    progress.stage("making variants on the cluster", len(variants))
    for text in store.ahead(prepared.source, variants, inputs, sha256, limit_s=limit_s):
        progress.step(text)


def _measure_all(
    job: Job, cases: Sequence[Case], made: Sequence[ArtifactRecord], machines: Callable[[str], str | None],
    elsewhere: Elsewhere | None,
) -> None:  # fmt: skip
    """Each device's cases in its own queue; the devices beside each other."""
    names, study = devices(cases), job.study
    planned = groups(study, cases, made, job.store.plan(job.run_id).get("group_memory_bytes"))
    quality = job.prepared.evaluation is not None and not (study.load is not None and study.load.only)

    def work(mine: DeviceJob) -> None:
        def device() -> None:
            complete_places(mine, mine.device)
            own = [case for case in cases if device_of(case.target) == mine.device]
            _measure(mine, own, _only(planned, mine.device), elsewhere)

        through_links(mine, device, mine.stop.sleep)

    most = max((len(group) for group in planned), default=1)
    with Queues(job, _asked(names, machines), at_once=_lanes_at_once(most)) as queues:
        if len(names) > 1 and quality:
            _reference_first(job, queues, cases, elsewhere)
        stages = 1 + quality + (study.energy is not None) + (study.load is not None)
        queues.all(names, work, title=f"{len(names)} devices", stages=stages)


def _measure(
    job: Job, cases: Sequence[Case], planned: Sequence[Sequence[Case]], elsewhere: Elsewhere | None = None
) -> None:
    """Every stage stores as it goes and begins with what is missing, so doing all of it again repeats nothing."""
    study = job.study
    failed: set[str] = set()
    if study.load is None or not study.load.only:
        failed = evaluate(job, cases, elsewhere)
        measure = campaign.measure if study.soak is None else soak.measure
        measure(job, [[case for case in group if case.quality_key not in failed] for group in planned])
        energy.measure(job, [case for case in cases if case.quality_key not in failed])
    measure_load(job, [case for case in cases if case.quality_key not in failed])


def _only(planned: Sequence[Sequence[Case]], device: str) -> list[list[Case]]:
    """The groups of one device, in their places: a group's place is its number in the records."""
    return [list(group) if device_of(group[0].target) == device else [] for group in planned]


def _reference_first(job: Job, queues: Queues, cases: Sequence[Case], elsewhere: Elsewhere | None) -> None:
    """Evaluate the unmodified model where it comes first in the plan and works: all devices are compared with these outputs.

    Raises TargetError when there are none and it is not known whether there could be: a device stayed away.
    """
    outputs, unknown = job.folder / REFERENCE_OUTPUTS, None
    for case in {case.quality_key: case for case in cases if case.is_reference_variant}.values():
        if output_rows.read(outputs) is not None:
            return
        try:
            queues.one(
                device_of(case.target),
                lambda mine, case=case: through_links(mine, lambda: _evaluated(mine, case, elsewhere), mine.stop.sleep),  # type: ignore[misc]
            )
        except TargetError as error:
            job.progress.note(str(error))
            unknown = unknown or error
    if unknown is not None and output_rows.read(outputs) is None:
        raise unknown


def _evaluated(job: Job, case: Case, elsewhere: Elsewhere | None) -> None:
    evaluate(job, [case], elsewhere)


def _asked(names: Sequence[str], machines: Callable[[str], str | None]) -> dict[str, str | None]:
    """Which machine each device is; all asked at once, since each answer takes a connection."""
    with ThreadPoolExecutor(_ASKED_AT_ONCE) as pool:
        return dict(zip(names, pool.map(machines, names), strict=True))


def _lanes_at_once(workers: int) -> int:
    """How many devices the open files of this process allow, each with so many workers at a time."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return 1 << 10
    return max(1, (soft - _OTHER_FILES) // (_FILES_PER_WORKER * max(1, workers)))


def of_targets(study: Study, here: Environment, progress: Progress) -> dict[str, Any]:
    """What the plan holds of the targets. Raises StudyError for what a target cannot do, TargetError when none can be reached."""
    return {"conditions": launch.conditions_of(study.targets), **_places(study, here, progress)}


def _places(study: Study, here: Environment, progress: Progress) -> dict[str, Any]:
    """What the plan says of each target's machine, by the target's text. Left out are devices that cannot be reached now.

    `group_memory_bytes` is not completed later as `targets` is: groups are numbered, and must come out the same on resume.
    Raises TargetError when none of the devices can be reached.
    """
    names = [name for name in devices_of(study) if name != LOCAL]

    def ask(name: str) -> setup.Place | TargetError:
        # A short stumble only: whoever mistyped a host wants to know now, and nothing was measured that could be lost.
        pauses = list(LINK_PAUSES_S[:2])
        while True:
            try:
                return setup.place(name)
            except TargetError as error:
                if not isinstance(error, LinkLost) or not pauses:
                    return error
                progress.note(f"{error} Trying again in {pauses[0]:g} s.")
                time.sleep(pauses.pop(0))

    with ThreadPoolExecutor(_ASKED_AT_ONCE) as pool:
        found: dict[str, setup.Place | TargetError] = dict(zip(names, pool.map(ask, names), strict=True))
    problems = [place for place in found.values() if isinstance(place, TargetError)]
    if problems and len(problems) == len({device_of(text) for text in study.targets}):
        raise problems[0]
    for problem in problems:
        progress.note(f"{problem} The others are measured meanwhile; this one is tried again when it is its turn.")
    found[LOCAL] = setup.Place(here, emulated=False, device=None)
    places = {text: found[device_of(text)] for text in study.targets if text != LOCAL}
    known = {text: place for text, place in places.items() if isinstance(place, setup.Place)}
    return {
        "targets": {text: asdict(place) for text, place in known.items()},
        "group_memory_bytes": {text: place.environment.memory_bytes for text, place in known.items()},
    }


def complete_places(job: Job, device: str) -> None:
    """Add to the plan what is known of a device that could not be reached when the plan was made."""
    with _plan_lock:
        plan = job.store.plan(job.run_id)
        missing = [
            text
            for text in job.study.targets
            if device_of(text) == device != LOCAL and text not in plan.get("targets", {})
        ]
    if missing:
        place = asdict(setup.place(device))
        with _plan_lock:
            plan = job.store.plan(job.run_id)
            plan["targets"] = {**plan.get("targets", {}), **dict.fromkeys(missing, place)}
            job.store.set_plan(job.run_id, plan, job.prepared.notes)


def through_links(job: Job, measure: Callable[[], None], sleep: Callable[[float], None] = time.sleep) -> None:
    """Measure, and go on after a connection to a target was lost: on the same device, with pauses that grow.

    Raises LinkLost when it stays away over all of `LINK_PAUSES_S` without anything new being stored meanwhile.
    """
    pauses, before = list(LINK_PAUSES_S), -1
    while True:
        try:
            return measure()
        except LinkLost as error:
            stored = job.store.count(job.run_id)
            if stored > before:
                pauses = list(LINK_PAUSES_S)
            before = stored
            if not pauses:
                raise LinkLost(f"{error} It did not come back; `{job.resume}` goes on when it does.") from None
            job.progress.note(f"{error} Trying again in {pauses[0]:g} s.")
            _tell_queue(job, "lost", str(error))
            sleep(pauses.pop(0))
            _tell_queue(job, "measuring", None)


def _tell_queue(job: Job, status: QueueStatus, reason: str | None) -> None:
    if isinstance(job, DeviceJob):
        job.store.set_queue(job.run_id, job.device, status, reason)


def without_closing(seconds: float | None) -> float | None:
    """A time budget less what start-up, analysis, report and the end of the workers take."""
    return None if seconds is None else seconds - min(_CLOSING_S + _CLOSING_SHARE * seconds, _LARGEST_CLOSING * seconds)


def conditions(store: Store, environment: Environment) -> dict[str, Any]:
    """What decides the run's grade and is known before it: the machine's own state, and its newest self-test."""
    selftest = store.last_selftest(fingerprint(environment))
    return {
        # As the machine is made; whether others used it meanwhile, the blocks tell.
        "dedicated": dedicated(labels={"other_cpu_share": 0.0, "steal_share": 0.0}),
        "fixed_clocks": fixed_clocks(),
        "selftest": None if selftest is None else asdict(selftest),
    }


def _with_stored_model(study: Study, before: RunData, artifact_store: ArtifactStore) -> Study:
    """On resume an exported model is taken from the artifact store: exporting again may write other bytes."""
    stored = before.plan.get("reference_artifact")
    if stored and not study.model.endswith(".onnx") and artifact_store.verify(str(stored)):
        return study.model_copy(update={"model": str(artifact_store.path(str(stored)))})
    return study


def _check_unchanged(before: RunData, prepared: prepare.Prepared, made: Sequence[ArtifactRecord]) -> None:
    """A run is about one model and one data set. Raises StudyError when they changed since the run began."""
    data = None if prepared.evaluation is None else prepared.evaluation.sha256
    if before.plan and before.plan.get("data_sha256") != data:
        raise StudyError(f"the data changed since run {before.id} began: start a new run instead of resuming.")
    stored = {record.variant: record.sha256 for record in before.artifacts}
    changed = [record.variant for record in made if stored.get(record.variant, record.sha256) != record.sha256]
    if changed:
        raise StudyError(
            f"the model (or what makes {changed[0]}) changed since run {before.id} began: start a new run instead of resuming."
        )


def crowding(study: Study, environment: Environment) -> tuple[str, ...]:
    """What there is to say of more threads than this machine has processors: they are measured, but tell little of the model."""
    cores, most = environment.usable_cores, max(study.threads)
    here = any(text == LOCAL for text in study.targets)
    if not here or most <= cores:
        return ()
    note = (
        f"{most} threads take turns on the {cores} processors that this machine has for them: that measures how they get in each "
        f"other's way; --threads {cores} uses them all"
    )
    return (note,)


def warn_about_price(study: Study, environment: Environment, detected: DetectedMachine, progress: Progress) -> None:
    """Say before anything is made what would otherwise stand in the report: what can't be priced as declared."""
    names = devices_of(study)
    here = study.cost.declared_for(LOCAL, names) if LOCAL in names else None
    if here is None or any(spec.parse(text).device not in (None, "cpu", "CPU") for text in study.backends):
        return
    book = load_prices(None if study.cost.prices is None else Path(study.cost.prices))
    facts = SessionFacts("", "", "CPU", max(study.threads), None)
    figure = price_case(
        Estimate(1.0, None, None, "samples/s"), here, environment=environment, facts=facts,
        today=datetime.now(timezone.utc).date(), book=book, detected=detected,
    )  # fmt: skip
    if isinstance(figure, NotMeasured):
        progress.note(f"there will be no costs: {figure.reason}")


def clusters(prepared: prepare.Prepared) -> list[int] | None:
    """Rows with the same id belong to one source; numbered in order of appearance. None when every row stands alone."""
    ids = None if prepared.evaluation is None else prepared.evaluation.ids
    if ids is None:
        return None
    numbers: dict[str, int] = {}
    clusters = [numbers.setdefault(str(name), len(numbers)) for name in ids]
    return None if len(numbers) == len(clusters) else clusters


def groups(
    study: Study, cases: Sequence[Case], made: Iterable[ArtifactRecord], memory_bytes: Mapping[str, int] | None = None
) -> list[list[Case]]:
    """The cases in groups that are measured together, each with what its cases are compared with: the run's reference, and
    the unmodified model on their own backend. `memory_bytes` is what the machines have, by the target's text."""
    planned = set(cases)
    references = {
        case.key: [one for one in (reference_case(case, study), own_reference(case)) if one in planned]
        for case in cases
    }
    return groups_beside(references, cases, made, memory_bytes)


def groups_beside(
    references: Mapping[str, Sequence[Case]],
    cases: Sequence[Case],
    made: Iterable[ArtifactRecord],
    memory_bytes: Mapping[str, int] | None = None,
) -> list[list[Case]]:
    """The same with given references, by case key. A target whose memory is not told is taken to have as much as this machine."""
    sizes = {record.variant: record.size_bytes for record in made}
    # Total and not free memory: the grouping must come out the same when the run is resumed.
    here, known = psutil.virtual_memory().total, memory_bytes or {}
    found: list[list[Case]] = []
    for target in dict.fromkeys(case.target for case in cases):
        own = [case for case in cases if case.target == target]
        budget = int(known.get(target, here) * _MEMORY_SHARE)
        found += campaign.plan_groups(own, sizes, budget, references)
    return found


def is_measuring(out: Path) -> bool:
    """Whether a run is being measured in that folder now: a run that was killed can't take back its status."""
    try:
        with (out / ".lock").open("rb") as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


@contextmanager
def only_run_in(out: Path) -> Iterator[None]:
    """Two runs at once would time each other. The lock vanishes with the process, however that ends."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        handle = os.open(out / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise StoreError(f"cannot write to {out}: {error.strerror}. Choose another folder with --out.") from None
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            owner = os.pread(handle, 40, 0).decode(errors="replace").strip()
            raise StoreError(
                f"another run (process {owner or 'unknown'}) is measuring in {out}: wait for it, or choose another folder "
                "with --out. Two runs at once on one machine spoil each other's timings."
            ) from None
        os.ftruncate(handle, 0)
        os.pwrite(handle, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(handle)
