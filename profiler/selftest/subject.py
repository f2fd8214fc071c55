"""The model that the self-test measures, in copies that differ in name or by a known slowness, through the usual campaign."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from backends.spec import Spec
from profiler import demo
from profiler.disturbance import Judged, judge_run
from profiler.errors import EdgeprofError
from profiler.progress import Progress, Silent
from profiler.records import REFERENCE_VARIANT, BlockRecord, ProcessRecord
from profiler.run import execute
from profiler.selftest.inject import Injected, stop_pulses
from profiler.store import RunData, open_store
from profiler.study import Case, Effort, Study, make_study

EFFORT = Effort(processes=10, rounds=6, warmup_s=0.2, warmup_max_s=1.0)


@dataclass(frozen=True)
class Subject:
    """A model on a backend; `options` are the backend's."""

    backend: str = "ort"
    options: Mapping[str, str] = field(default_factory=dict)
    model: Path | None = None
    """None: the built-in one."""
    threads: int = 1

    def text(self, *, copy: str | None = None, slow: float = 0.0) -> str:
        """The backend's text of a copy, or of a slowed one: `injected:ort{slow=0.02}`."""
        own = {"copy": copy, "slow": f"{slow:g}" if slow else None}
        return str(Spec("injected", self.backend, {**self.options, **{k: v for k, v in own.items() if v is not None}}))

    def case(self, text: str) -> str:
        """The key of the case with that backend text."""
        return Case(REFERENCE_VARIANT, text, "local", 1, self.threads).key

    def study(self, texts: Sequence[str], effort: Effort, *, seconds: float | None = None, seed: int = 0) -> Study:
        """A timing-only study of the unmodified model."""
        return make_study(
            model=str(self.model or demo.model_path()), variants=(REFERENCE_VARIANT,), backends=tuple(texts),
            threads=(self.threads,), effort=effort, seed=seed, time_budget_s=seconds, time_limit_s=60.0,
        )  # fmt: skip


@dataclass(frozen=True)
class Measured:
    """A finished campaign: its records and what their labels say, by case."""

    run: RunData
    judged: Mapping[str, list[Judged]]

    def blocks(self, key: str) -> list[Judged]:
        """The judged blocks of a case. Raises EdgeprofError with the reason when there are none."""
        if self.judged.get(key):
            return self.judged[key]
        why = next((failure.message for failure in self.run.failures if failure.case == key), "no block was measured")
        raise EdgeprofError(f"{key}: {why}")


def measure(
    study: Study, *, progress: Progress | None = None, folder: Path | None = None,
    watch: Callable[[Path], Progress] | None = None,
) -> Measured:  # fmt: skip
    """Do the study in a folder of its own (a temporary one, so that nobody's runs get a self-test among them).

    `watch` makes the progress from that folder, for injectors that have to know the processes of the run.
    """
    with ExitStack() as stack:
        place = folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edgeprof-selftest-")))
        run_id = execute(study, out=place, progress=watch(place) if watch else progress)
        store = open_store(place, create=False)
        try:
            run = store.run(run_id)
        finally:
            store.close()
    return Measured(run, judge(run))


def judge(run: RunData) -> dict[str, list[Judged]]:
    """The run's blocks in time order with what their labels say, by case."""
    blocks: dict[str, list[BlockRecord]] = {}
    for block in sorted(run.blocks, key=lambda b: (b.case, b.replicate, b.attempt, b.group, b.round)):
        blocks.setdefault(block.case, []).append(block)
    return judge_run(blocks, run.study.effort.rounds)


class Pulsing:
    """A progress that stops the processes of the run again and again, from when they are ready; see `pulsed`."""

    def __init__(self, folder: Path, pulses: ExitStack, gap_s: float, inner: Progress) -> None:
        """`pulses` ends what is still pulsing."""
        self._folder, self._pulses, self._gap_s, self._inner = folder, pulses, gap_s, inner
        self._pids: frozenset[int] = frozenset()
        self.injected: list[Injected] = []

    def stage(self, title: str, steps: int) -> None:
        """Pass it on."""
        self._inner.stage(title, steps)

    def step(self, text: str = "") -> None:
        """Processes that have become ready since the last step are pulsed from now on, those of earlier sets are no more."""
        pids = self._ready()
        if pids != self._pids:
            self._pulses.close()
            self._pids = pids
            seed = len(self.injected)
            self.injected.append(self._pulses.enter_context(stop_pulses(sorted(pids), gap_s=self._gap_s, seed=seed)))
        self._inner.step(text)

    def note(self, text: str) -> None:
        """Pass it on."""
        self._inner.note(text)

    def _ready(self) -> frozenset[int]:
        store = open_store(self._folder, create=False)
        try:
            runs = store.runs()
            records = store.records(runs[0].id, ProcessRecord) if runs else ()
        finally:
            store.close()
        newest = max(((record.replicate, record.attempt) for record in records), default=None)
        return frozenset(record.pid for record in records if (record.replicate, record.attempt) == newest)


@contextmanager
def pulsed(*, gap_s: float = 0.3, progress: Progress | None = None) -> Iterator[Callable[[Path], Pulsing]]:
    """`with pulsed() as watch: measure(study, watch=watch)`: a run whose processes are stopped while they are measured."""
    with ExitStack() as pulses:
        yield lambda folder: Pulsing(folder, pulses, gap_s, progress or Silent())
