"""What the measuring stages share: the study, where records go, and how a worker is brought to a loaded model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from backends import spec
from profiler import advice, artifacts
from profiler.artifacts import ArtifactStore
from profiler.budget import Budget
from profiler.errors import StoreError
from profiler.machines import device_of
from profiler.named_code import named_code
from profiler.prepare import Prepared, timing_feeds
from profiler.progress import Progress
from profiler.records import ArtifactRecord, FailureRecord
from profiler.store import InvalidRecord, Record, Store
from profiler.study import Case, Study
from profiler.targets import launch
from profiler.targets.base import get as get_target
from profiler.targets.modes import Modes
from profiler.targets.process import WorkerFailure, WorkerProcess
from profiler.variants import registry as variant_registry
from profiler.wire import file_sha256

_SHORTEST_S = 0.5
T = TypeVar("T")
_Stage = Literal["load", "warmup", "measure", "quality"]


@dataclass(frozen=True)
class Job:
    """One run in progress."""

    run_id: str
    study: Study
    store: Store
    artifact_store: ArtifactStore
    artifacts: Mapping[str, ArtifactRecord]
    prepared: Prepared
    folder: Path
    """Files of this run besides the database: reference outputs, the report."""
    progress: Progress
    budget: Budget = field(default_factory=Budget)
    resume: str = ""
    """The command that goes on where this run stops; left out: that of a run which is no search."""
    modes: Modes = field(default_factory=Modes)
    """Power modes that are set now. Whoever makes the job closes them."""

    def __post_init__(self) -> None:
        """Whoever is told to go on is told of this run."""
        if not self.resume:
            object.__setattr__(self, "resume", advice.resume(self.run_id, code=named_code(self.study)))

    @property
    def limit_s(self) -> float:
        """Longest that the next step may take: the study's limit, or what the time budget leaves. Raises BudgetError."""
        self.needs(0.0)
        return min(self.study.time_limit_s, max(self.budget.left_s, _SHORTEST_S))

    def needs(self, seconds: float) -> None:
        """Raise BudgetError when a step of that length cannot end within the time budget."""
        self.budget.require(seconds, self.study.time_budget_s, self.resume)

    def open(self, case: Case, environment: Mapping[str, str] | None = None) -> WorkerProcess:
        """A fresh worker on the case's target and under its conditions, not loaded yet.

        `environment` is added to its own, on this machine only. Raises WorkerFailure for conditions that cannot be had.
        """
        target = get_target(case.target)
        if environment:
            target = replace(target, environment={**target.environment, **environment})
        self.modes.ensure(target)
        cache = self.artifact_store.folder / "received" if target.shares_files else None
        return launch.start(target, cache=cache, memory_limit_bytes=self.study.memory_limit_bytes)

    def load(
        self, worker: WorkerProcess, case: Case, *, streams: int = 1, varying_batch: bool = False
    ) -> dict[str, Any]:
        """Bring the case's artifact to the worker and load it; returns the worker's answer. Raises WorkerFailure.

        `streams` and `varying_batch` as in LoadOptions.
        """
        record = self.artifacts[case.variant]
        backend = spec.parse(case.backend)
        target = get_target(case.target)
        path: str | None = None
        self._ensure_artifact(record)
        if target.shares_files:
            path = str(self.artifact_store.path(record.sha256).resolve())
        else:
            files = self.artifact_store.files(record.sha256)
            hashes = {name: file_sha256(file) for name, file in files.items()}
            worker.send_artifact(record.sha256, files, hashes, timeout_s=self.limit_s)
        shapes = self.prepared.feeding.shapes(self.prepared.rows, case.batch)
        try:
            reply, _ = worker.request(
                "load",
                timeout_s=self.limit_s,
                backend=backend.name,
                device=backend.device,
                options={**artifacts.backend_options(record, backend.name), **backend.options},
                threads=case.threads,
                batch=case.batch,
                streams=streams,
                varying_batch=varying_batch,
                sample_shapes=shapes,
                path=path,
                sha256=record.sha256,
                name=artifacts.MODEL_NAME,
                cache_dir=str((self.artifact_store.folder / "engines").resolve()) if target.shares_files else None,
            )
        except WorkerFailure as error:
            if error.kind != "unavailable" or target.shares_files:
                raise
            # What the worker advises is for its own machine, where nobody is to install anything by hand.
            name = device_of(case.target)
            where = f"That is so on '{name}': what runtimes it gets is `edgeprof target setup {name} --runtimes …`."
            raise WorkerFailure(error.kind, f"{error} {where}", error.log_tail) from error
        return reply

    def _ensure_artifact(self, record: ArtifactRecord) -> None:
        """Make an artifact again that is not in the cache any more. Raises WorkerFailure where that gives another one."""
        try:
            self.artifact_store.path(record.sha256)
            return
        except StoreError:
            self.progress.note(f"{record.variant} is not in the cache any more: it is made again")
        rows = self.prepared.calibration
        inputs, sha256 = (None, None) if rows is None else (rows.inputs, rows.sha256)
        again = self.artifact_store.remake(
            self.prepared.source, variant_registry.make(record.variant), inputs, sha256, record.sha256
        )
        if again != record.sha256:
            raise WorkerFailure(
                "error",
                f"the artifact of {record.variant} was lost from '{self.artifact_store.folder}', and making it again gave "
                "another file. Start a new run.",
            )

    def feeds(self, case: Case) -> dict[str, NDArray[np.generic]]:
        """The batches that timing takes in turn."""
        return timing_feeds(self.prepared, case, self.study.seed)

    def fail(self, case_key: str, stage: _Stage, failure: WorkerFailure, replicate: int | None = None) -> FailureRecord:
        """Store a worker's failure and tell it. Raises BudgetError where the failure is only that the time was over."""
        if failure.kind == "timeout":
            self.needs(0.0)
        record = FailureRecord(
            case=case_key, stage=stage, kind=failure.kind, message=str(failure), replicate=replicate,
            log_tail=failure.log_tail, needs_more_than_bytes=failure.needs_more_than_bytes,
        )  # fmt: skip
        self.store.add(self.run_id, record)
        self.progress.note(f"{case_key} failed ({record.kind}): {record.message.splitlines()[0][:200]}")
        return record


def add(job: Job, record: Record) -> None:
    """Store what a worker gave. Raises WorkerFailure where no measurement can have given it: that costs this record."""
    try:
        job.store.add(job.run_id, record)
    except InvalidRecord as error:
        raise WorkerFailure("error", str(error)) from error


def again_if_killed(job: Job, name: str, step: Callable[[], T]) -> T:
    """Do a step, and once more where somebody killed its worker: that says nothing about what it did."""
    try:
        return step()
    except WorkerFailure as failure:
        if not failure.from_outside:
            raise
        job.progress.note(f"{name}: {str(failure).splitlines()[0][:300]} It is tried once more.")
        return step()
