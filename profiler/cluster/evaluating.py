"""Accuracy on a cluster: rows in portions, each through a fresh process there as on the target, put together here.

Outputs of fp16, bf16 and int8 kernels depend on the processor's instruction sets. So only cases on CPUs are evaluated there, and
only when all machines of the cluster have the instruction sets of the target; everything else is evaluated on the target,
as is what fails there: a failure counts where the case is meant to run.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backends import spec
from profiler import artifacts
from profiler.cluster.client import (
    Answer,
    Cluster,
    ClusterLost,
    File,
    LetGo,
    Machine,
    TookTooLong,
    WorkerDied,
    file_of,
    file_of_arrays,
)
from profiler.data import Dataset
from profiler.job import Job
from profiler.study import Case
from profiler.targets.conditions import parse as parse_target
from profiler.targets.config import LOCAL

Outputs = dict[str, NDArray[np.generic]]
EVALUATE_LIMIT_S = 3600.0
"""Longest that one portion of the rows may take."""
MOST_ROWS, FEWEST_ROWS, PORTION_BYTES = 4096, 256, 256 << 20
_CPU_BACKENDS: Mapping[str, str | None] = {"ort": "onnxruntime", "ov": "openvino", "fake": None}
"""Backends that run on a CPU everywhere alike, with the package whose version decides."""


@dataclass(frozen=True)
class Evaluated:
    """Outputs of all rows, and where they come from."""

    outputs: Outputs
    notes: tuple[str, ...]


class ClusterEvaluation:
    """Evaluates on a cluster what may be evaluated there; see `profiler.evaluate.Elsewhere`."""

    def __init__(self, cluster: Cluster) -> None:
        """The cluster is not closed here."""
        self._cluster = cluster
        self._told: set[str] = set()

    @contextmanager
    def ahead(self, job: Job, cases: Sequence[Case], data: Dataset) -> Iterator[Ahead]:
        """Begin with these cases, which are asked for in this order."""
        ahead = Ahead(self._cluster, job, data, self._told)
        try:
            ahead.plan(cases)
            yield ahead
        finally:
            ahead.close()


@dataclass
class Ahead:
    """Evaluations under way: never more of them than keep the cluster busy, since outputs of large sets are large."""

    cluster: Cluster
    job: Job
    data: Dataset
    told: set[str]
    _waiting: deque[Case] = field(default_factory=deque)
    _running: dict[str, list[Future[Answer]]] = field(default_factory=dict)
    _files: dict[Any, File] = field(default_factory=dict)
    _gone: threading.Event = field(default_factory=threading.Event)
    _parts: int = 1
    """Into how many portions the rows of a case are cut; more than needed to keep all workers busy only cost process starts."""

    def __post_init__(self) -> None:
        """Threads only wait."""
        self._pool = ThreadPoolExecutor(self.cluster.slots, thread_name_prefix="edgeprof-cluster")

    def plan(self, cases: Sequence[Case]) -> None:
        """Begin with the first of these that may be evaluated on the cluster; the others follow as these are fetched."""
        for case in cases:
            reason = not_there(self.job, case, self.cluster)
            if reason is None:
                self._waiting.append(case)
            elif reason not in self.told:
                self.told.add(reason)
                self.job.progress.note(f"{case.quality_key} is evaluated on its target, not on the cluster: {reason}")
        self._parts = math.ceil(self.cluster.slots / max(1, len(self._waiting)))
        self._fill()

    def outputs(self, case: Case) -> Evaluated | None:
        """Outputs of all rows, in order. None when the case is to be evaluated on its target."""
        if case in self._waiting:
            # Asked for in another order than planned.
            self._waiting.remove(case)
            self._begin(case)
        running = self._running.pop(case.quality_key, None)
        if running is None:
            return None
        try:
            answers = [future.result() for future in running]
            return self._together(case, answers)
        except (ClusterLost, WorkerDied, TookTooLong, LetGo, _OnTarget) as reason:
            for future in running:
                future.cancel()
            if isinstance(reason, ClusterLost):
                self._waiting.clear()
            self.job.progress.note(f"{case.quality_key} is evaluated on its target, not on the cluster: {reason}")
            return None
        finally:
            self._fill()

    def close(self) -> None:
        """Let go of what was not asked for."""
        self._waiting.clear()
        self._gone.set()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _fill(self) -> None:
        while self._waiting and sum(map(len, self._running.values())) <= self.cluster.slots:
            self._begin(self._waiting.popleft())

    def _begin(self, case: Case) -> None:
        target = target_machine(self.job, case, self.cluster.here)
        assert target is not None
        fields = {
            "load": _load_fields(self.job, case),
            "cpu": {"machine": target.machine, "isa": list(target.isa)},
            "limit_s": self.job.limit_s,
            "memory_limit_bytes": self.job.study.memory_limit_bytes,
        }
        source = self._source(self.job.artifacts[case.variant].sha256)
        fields["source"] = {name: file.sha256 for name, file in source.items()}
        self._running[case.quality_key] = [
            self._pool.submit(
                self.cluster.do,
                "evaluate",
                {**fields, "rows": rows.sha256},
                [*source.values(), rows],
                limit_s=EVALUATE_LIMIT_S,
                unwanted=self._unwanted,
            )
            for rows in (self._rows(start, stop, case.batch) for start, stop in self._portions(case.batch))
        ]

    def _unwanted(self) -> bool:
        """Nobody waits any more: they were let go, or the time budget is over, which evaluating on the target then tells."""
        return self._gone.is_set() or self.job.budget.left_s <= 0

    def _portions(self, batch: int) -> list[tuple[int, int]]:
        return portions(len(self.data), batch, self._parts, _row_bytes(self.data))

    def _rows(self, start: int, stop: int, batch: int) -> File:
        """Rows of a portion; the last batch is filled up with rows from the front, as on a target."""
        key = (start, stop, batch)
        if key not in self._files:
            index = np.arange(start, start + math.ceil((stop - start) / batch) * batch) % len(self.data)
            inputs = self.data.inputs
            self._files[key] = file_of_arrays(
                lambda: {name: np.ascontiguousarray(array[index]) for name, array in inputs.items()}
            )
        return self._files[key]

    def _source(self, sha256: str) -> dict[str, File]:
        files = self.job.artifact_store.files(sha256)
        for name, path in files.items():
            if (sha256, name) not in self._files:
                self._files[sha256, name] = file_of(path)
        return {name: self._files[sha256, name] for name in files}

    def _together(self, case: Case, answers: Sequence[Answer]) -> Evaluated:
        parts: dict[str, list[NDArray[np.generic]]] = {}
        for answer, (start, stop) in zip(answers, self._portions(case.batch), strict=True):
            if answer.not_here is not None:
                raise _OnTarget(f"{answer.machine.named}: {answer.not_here}")
            if answer.failed is not None:
                raise _OnTarget(f"{answer.machine.named}: {answer.failed.get('text')}")
            padded = math.ceil((stop - start) / case.batch) * case.batch
            for name, array in answer.arrays.items():
                if array.ndim == 0 or len(array) != padded:
                    raise _OnTarget(
                        f"{answer.machine.named} answered {array.shape} for {padded} rows as output '{name[:80]}'"
                    )
                parts.setdefault(name, []).append(array[: stop - start])
        kinds = {name: {(array.dtype, array.shape[1:]) for array in arrays} for name, arrays in parts.items()}
        if not parts or any(len(parts[name]) != len(answers) or len(kinds[name]) != 1 for name in parts):
            raise _OnTarget("its machines do not agree on what the outputs are")
        places = ", ".join(sorted({answer.machine.named for answer in answers}))
        notes = [f"evaluated on the cluster ({places}), whose instruction sets are those of the target"]
        again = sum(answer.begun > 1 for answer in answers)
        if again:
            notes.append(f"{again} portions of the rows were evaluated again, because a worker died with the result")
        return Evaluated({name: np.concatenate(arrays) for name, arrays in parts.items()}, tuple(notes))


class _OnTarget(Exception):  # noqa: N818 (an answer, no mistake)
    """The case is to be evaluated where it is meant to run; the text says why."""


def not_there(job: Job, case: Case, cluster: Cluster) -> str | None:
    """Why a case may not be evaluated on the cluster; None when it gives there what it gives on its target."""
    if not job.prepared.feeding.is_plain:
        # Portions are cut into batches there, which knows rows on the first axis only.
        return "its inputs are not all rows on the first axis"
    backend = spec.parse(case.backend)
    if backend.name not in _CPU_BACKENDS or (backend.device or "cpu").lower() != "cpu":
        return f"{case.backend} is not known to give the same on every CPU"
    target = target_machine(job, case, cluster.here)
    if target is None:
        return f"the target {case.target} has conditions, or its processor is not known"
    package = _CPU_BACKENDS[backend.name]
    if package is not None and target.identity.get(package) != cluster.here.identity.get(package):
        return f"{target.host} has another {package} than the cluster"
    other = next((found for found in cluster.machines.values() if not found.runs_like(target)), None)
    if other is not None:
        return (
            f"the cluster's {other.named} has other instruction sets than {target.host}, and outputs may depend on them"
        )
    return None


def target_machine(job: Job, case: Case, here: Machine) -> Machine | None:
    """What is known of the case's target, `here` for this machine; None when there are conditions on it or it did not tell."""
    name, conditions = parse_target(case.target)
    if conditions.options():
        return None
    if name == LOCAL:
        return here
    place = job.store.plan(job.run_id).get("targets", {}).get(case.target)
    try:
        there = place["environment"]
        return Machine(
            name, str(there["cpu_model"]), str(there["machine"]), tuple(map(str, there["cpu_isa"])),
            int(there["usable_cores"]), dict(there["versions"]),
        )  # fmt: skip
    except (KeyError, TypeError, ValueError):
        return None


def portions(rows: int, batch: int, parts: int, row_bytes: int) -> list[tuple[int, int]]:
    """Rows in portions of whole batches, about `parts` of them, none tiny, none larger than memory likes: (start, stop) each."""
    wanted = min(max(math.ceil(rows / parts), FEWEST_ROWS), MOST_ROWS, max(1, PORTION_BYTES // max(1, row_bytes)))
    size = math.ceil(wanted / batch) * batch
    return [(start, min(start + size, rows)) for start in range(0, rows, size)]


def _row_bytes(data: Dataset) -> int:
    return sum(int(array[:1].nbytes) for array in data.inputs.values())


def _load_fields(job: Job, case: Case) -> dict[str, Any]:
    """How `Job.load` loads the artifact, without what depends on the machine."""
    record, backend = job.artifacts[case.variant], spec.parse(case.backend)
    return {
        "backend": backend.name,
        "device": backend.device,
        "options": {**artifacts.backend_options(record, backend.name), **backend.options},
        "threads": case.threads,
        "batch": case.batch,
        "streams": 1,
        "varying_batch": False,
        "sample_shapes": job.prepared.feeding.shapes(job.prepared.rows, case.batch),
    }
