"""The product's own campaign with something else beside it: a naive measurement of the same processes, before or after."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from profiler import __version__, campaign, prepare
from profiler.artifacts import ArtifactStore
from profiler.environment import describe
from profiler.job import Job
from profiler.store import RunData, open_store
from profiler.study import Case, Study
from profiler.targets.process import WorkerProcess

Workers = Mapping[str, WorkerProcess]
Hook = Callable[[int, Workers], None]
"""(replicate, workers by case key)."""


@dataclass(frozen=True)
class HeldJob(Job):
    """A job that remembers the workers of the replicate in progress."""

    held: dict[str, WorkerProcess] = field(default_factory=dict)

    def open(self, case: Case) -> WorkerProcess:
        """A fresh worker, known under its case."""
        self.held[case.key] = super().open(case)
        return self.held[case.key]


class Steps:
    """Counts the campaign's steps: one per process made ready and one per planned block, so hooks can come in between."""

    def __init__(
        self, cases: int, rounds: int, ready: Callable[[int], None], done: Callable[[int], None], tell: Callable[[str], None]
    ) -> None:  # fmt: skip
        self._cases, self._rounds, self._ready, self._done, self._tell = cases, rounds, ready, done, tell
        self._count = 0

    def stage(self, title: str, steps: int) -> None:  # noqa: ARG002 (a Progress)
        self._count = 0

    def step(self, text: str = "") -> None:  # noqa: ARG002 (a Progress)
        self._count += 1
        replicate, place = divmod(self._count - 1, self._cases * (1 + self._rounds))
        if place == self._cases - 1:
            self._ready(replicate)
        if place == self._cases * (1 + self._rounds) - 1:
            self._done(replicate)

    def note(self, text: str) -> None:
        self._tell(text)


def run(
    study: Study, folder: Path, *, ready: Hook, done: Hook, tell: Callable[[str], None] = lambda _: None
) -> RunData:
    """Measure all cases of the study together; `ready` is called before the rounds of a replicate and `done` after them."""
    store = open_store(folder)
    try:
        variants = prepare.check_names(study)
        run_id = store.create_run(study, describe(), version=__version__)
        artifact_store = ArtifactStore(folder / "cache")
        with prepare.working_folder() as scratch:
            silent = Steps(1, 1, lambda _: None, lambda _: None, tell)
            prepared = prepare.prepare(study, variants, Path(scratch))
            made, _ = prepare.make_artifacts(prepared, variants, artifact_store, silent)
            cases, _ = prepare.plan_cases(study, made)
            store.set_plan(run_id, {"cases": [asdict(case) for case in cases]}, prepared.notes)
            held: dict[str, WorkerProcess] = {}
            steps = Steps(len(cases), study.effort.rounds, lambda n: ready(n, held), lambda n: done(n, held), tell)
            job = HeldJob(
                run_id=run_id, study=study, store=store, artifact_store=artifact_store,
                artifacts={record.variant: record for record in made}, prepared=prepared, folder=folder, progress=steps,
                held=held,
            )  # fmt: skip
            campaign.measure(job, [list(cases)])
        store.set_status(run_id, "finished")
        return store.run(run_id)
    finally:
        store.close()


def back_to_back(worker: WorkerProcess, seconds: float, *, timeout_s: float = 60.0) -> NDArray[np.float64]:
    """One long stretch of inferences on a warm worker, seconds each: what a naive benchmark would time."""
    _, arrays = worker.request("time", timeout_s=timeout_s, min_s=seconds, min_samples=20, max_s=3 * max(seconds, 1.0))
    return arrays["durations_ns"].astype(np.float64) / 1e9
