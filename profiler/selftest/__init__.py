"""The profiler measured by itself: known latencies, identical and slowed models, injected interference, what the harness costs.

`run_selftest` does it here and now and gives rows for people and a `SelftestRecord`; docs/selftest.md tells what each row means.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from backends.cpu import usable_cores
from profiler.disturbance import Judged
from profiler.environment import describe, fingerprint
from profiler.errors import EdgeprofError, StudyError
from profiler.latency import judged_ratio
from profiler.progress import Progress, Silent
from profiler.records import SelftestRecord
from profiler.selftest import checks, inject, subject, truth
from profiler.selftest.checks import Check
from profiler.selftest.known import measure_known
from profiler.selftest.omission import measure_omission
from profiler.selftest.subject import EFFORT, Measured, Pulsing, Subject
from profiler.study import Effort

__all__ = ["Selftest", "run_selftest"]

SLOWED = (0.02, 0.05)
DECISIVE_SLOWNESS = 0.05
LEAST_MINUTES = 0.5
_PROCESS_SET_S = 6.0
"""Four processes made ready, and six rounds over them."""
_COMPARING_SHARE, _LABELS_SHARE = 0.6, 0.08
_FEWEST_PROCESSES, _MOST_PROCESSES = 3, 12
_FEWEST_ROUNDS, _MOST_ROUNDS = 10, 60
_QUOTA = 0.5
_GAP_S = 0.2
_NO_TIME = "there was no time left for it: give more --minutes"


@dataclass(frozen=True)
class Selftest:
    """What was found, for people and for the run database."""

    checks: tuple[Check, ...]
    record: SelftestRecord

    @property
    def sentence(self) -> str:
        """The verdict."""
        return checks.sentence(self.checks)


def run_selftest(
    *, minutes: float = 3.0, what: Subject | None = None, effort: Effort = EFFORT, progress: Progress | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Selftest:  # fmt: skip
    """Do all checks within about `minutes`. What cannot be injected or read here is a check "not measured", never an error.

    Raises StudyError when `minutes` are too few for anything to come out.
    """
    if not minutes >= LEAST_MINUTES:
        raise StudyError(f"--minutes {minutes:g} are too few, the self-test needs {LEAST_MINUTES:g} at least.")
    test = _Test(what or Subject(), effort, progress or Silent(), clock, clock() + 60 * minutes, 60 * minutes)
    found = tuple(test.checks())
    notes = tuple(f"{check.title}: {check.note}" for check in found if check.note)
    figures = {name: value for check in found for name, value in check.figures.items()}
    now = datetime.now(timezone.utc).isoformat(timespec="microseconds")
    return Selftest(found, SelftestRecord(fingerprint(describe()), now, checks.passed(found), figures, notes))


@dataclass(frozen=True)
class _Test:
    subject: Subject
    effort: Effort
    progress: Progress
    clock: Callable[[], float]
    until: float
    seconds: float

    def checks(self) -> Iterator[Check]:
        yield self._known()
        yield from self._compared()
        yield from self._interference()
        yield self._omission()

    def _left_s(self) -> float:
        return self.until - self.clock()

    def _known(self) -> Check:
        self.progress.stage("known latencies", 1)
        try:
            return checks.known(measure_known(repeats=3 if self.seconds >= 120 else 1))
        except EdgeprofError as error:
            return checks.missing(
                checks.KNOWN, checks.KNOWN_WANTED, checks.KNOWN_FIGURES, str(error), decisive=True
            )  # fmt: skip
        finally:
            self.progress.step()

    def _compared(self) -> Iterator[Check]:
        """The campaign of identical and slowed models, and what can be read off it besides."""
        seconds = _COMPARING_SHARE * self.seconds
        processes = max(_FEWEST_PROCESSES, min(_MOST_PROCESSES, int(seconds / _PROCESS_SET_S)))
        effort = self.effort.model_copy(update={"processes": processes, "max_processes": processes})
        same = (self.subject.text(copy="a"), self.subject.text(copy="b"))
        slow = {amount: self.subject.text(slow=amount) for amount in SLOWED}
        keys = [self.subject.case(text) for text in (*same, *slow.values())]
        try:
            study = self.subject.study([*same, *slow.values()], effort, seconds=seconds)
            measured = subject.measure(study, progress=self.progress)
            reference = measured.blocks(keys[0])
            ratios = [judged_ratio(measured.blocks(key), reference) for key in keys[1:]]
        except EdgeprofError as error:
            yield from self._not_compared(str(error))
            return
        for ratio, check in zip(ratios, self._comparisons(), strict=True):
            if ratio is None:
                yield from self._not_compared("no two blocks were measured beside each other")
                return
            yield check(ratio)
        yield checks.quiet(truth.labelled_share(reference))
        yield checks.harness(*_harness(measured))

    def _comparisons(self) -> list[Callable[..., Check]]:
        def slowed(amount: float) -> Callable[..., Check]:
            return lambda ratio: checks.slowed(ratio, amount, decisive=amount == DECISIVE_SLOWNESS)

        return [checks.identical, *(slowed(amount) for amount in SLOWED)]

    def _not_compared(self, why: str) -> Iterator[Check]:
        yield checks.missing(checks.AA, checks.AA_WANTED, ["aa_ratio"], why, decisive=True)
        for amount in SLOWED:
            name = f"{checks.slow_name(amount)}_ratio"
            decisive = amount == DECISIVE_SLOWNESS
            yield checks.missing(
                checks.slowed_title(amount), f"found, near {1 + amount:g}", [name], why, decisive=decisive
            )
        yield checks.missing(checks.QUIET, checks.QUIET_WANTED, ["quiet_labelled_share"], why)
        yield checks.missing(checks.HARNESS, checks.HARNESS_WANTED, checks.HARNESS_FIGURES, why)

    def _interference(self) -> Iterator[Check]:
        yield self._guarded(checks.PULSES, "stop_pulses", self._pulses, "stop_pulses_false_share")
        cores = usable_cores()
        for title, name, make in (
            (f"load on all {cores} cores", "spinners", lambda: inject.spinners(cores)),
            (f"a CPU quota of {_QUOTA:.0%}", "quota", lambda: inject.cpu_quota(_QUOTA)),
        ):
            yield self._guarded(title, name, self._loaded(title, name, make))

    def _guarded(self, title: str, name: str, check: Callable[[], Check], *others: str) -> Check:
        names = [f"{name}_recall", *others]
        if self._left_s() < _LABELS_SHARE * self.seconds:
            return checks.missing(title, checks.PULSES_WANTED, names, _NO_TIME)
        try:
            return check()
        except EdgeprofError as error:
            return checks.missing(title, checks.PULSES_WANTED, names, str(error))

    def _pulses(self) -> Check:
        seen: list[Pulsing] = []
        with subject.pulsed(gap_s=_GAP_S, progress=self.progress) as watch:

            def remembered(folder: Path) -> Pulsing:
                seen.append(watch(folder))
                return seen[-1]

            blocks = self._one_case(remembered)
        pulses = [interval for injected in seen[0].injected for interval in injected.intervals]
        found = truth.stopped_windows(blocks, pulses)
        return checks.recall(checks.PULSES, "stops", "stop_pulses", found, false_name="stop_pulses_false_share")

    def _loaded(
        self, title: str, name: str, make: Callable[[], AbstractContextManager[inject.Injected]]
    ) -> Callable[[], Check]:
        def check() -> Check:
            with make() as injected:
                blocks = self._one_case()
            return checks.recall(title, "blocks", name, truth.loaded_blocks(blocks, injected.intervals))

        return check

    def _one_case(self, watch: Callable[[Path], Pulsing] | None = None) -> Sequence[Judged]:
        """Blocks of one case in one process, as many as fit."""
        seconds = max(_LABELS_SHARE * self.seconds, 4.0)
        rounds = min(_MOST_ROUNDS, max(_FEWEST_ROUNDS, int(seconds / 3 / self.effort.block_s)))
        effort = self.effort.model_copy(
            update={"processes": 1, "max_processes": 1, "rounds": rounds, "requeue_share": 0.0}
        )
        text = self.subject.text(copy="a")
        study = self.subject.study([text], effort, seconds=seconds)
        return subject.measure(study, progress=self.progress, watch=watch).blocks(self.subject.case(text))

    def _omission(self) -> Check:
        self.progress.stage("a stall in a service", 1)
        try:
            if self._left_s() < -0.2 * self.seconds:
                return checks.missing(checks.OMISSION, checks.OMISSION_WANTED, checks.OMISSION_FIGURES, _NO_TIME)
            return checks.omission(measure_omission())
        except EdgeprofError as error:
            return checks.missing(checks.OMISSION, checks.OMISSION_WANTED, checks.OMISSION_FIGURES, str(error))
        finally:
            self.progress.step()


def _harness(measured: Measured) -> tuple[float | None, float | None]:
    processes = measured.run.processes
    inside = [process.harness_in_sample_s for process in processes if process.harness_in_sample_s is not None]
    beside = [process.harness_labels_s for process in processes if process.harness_labels_s is not None]
    return (statistics.median(inside) if inside else None), (statistics.median(beside) if beside else None)
