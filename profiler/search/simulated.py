"""A bench whose truth is known and whose clock is virtual: what searches are tested against, and scripts/bench_search.

Costs are assumed, after a small model on a small machine: most of the time goes into starting and warming up processes. Noise has
a lasting offset per process, weather that all candidates of a round share, and scatter of single blocks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from profiler.frontier import hypervolume_2d
from profiler.records import REFERENCE_VARIANT
from profiler.search.engine import Decision
from profiler.study import Case

Floats = NDArray[np.float64]

MAKE_S, ROW_S = 1.5, 2e-4
"""Making a variant, and evaluating a row."""
START_S, RACE_WARM_S, FULL_WARM_S = 1.0, 0.4, 1.2
"""Until a process has loaded its model, and until it is warm by the standards of the race and of the default effort."""
RACE_BLOCK_S, BLOCK_S, RACE_ROUNDS = 0.075, 0.125, 3
"""A block with what is around it."""
PROCESS_S = START_S + RACE_WARM_S + RACE_ROUNDS * RACE_BLOCK_S
FULL_PROCESSES, FULL_ROUNDS = 5, 6
FULL_PROCESS_S = START_S + FULL_WARM_S + FULL_ROUNDS * BLOCK_S
ROWS, CONFIRMATION_ROWS = 2000, 2000


@dataclass(frozen=True)
class Truth:
    """What one case really is."""

    log_time: float
    drop: float
    """Accuracy lost against the reference; negative where it gained."""
    flips: float
    """Share of answers that change either way."""
    fails: bool = False


@dataclass
class SimulatedBench:
    """The `Bench` of known truths. `variants` in the order in which they are made; `truths` by case."""

    truths: Mapping[Case, Truth]
    seed: int = 0
    budget_s: float = math.inf
    spent_s: float = 0.0
    process_sd: float = 0.003
    block_sd: float = 0.01
    bad_share: float = 0.0
    bad_ratio: float = 1.0
    """Share of the processes that are slower by so much for as long as they live."""
    decisions: list[Decision] = field(default_factory=list)
    finished: dict[str, tuple[float, float]] = field(default_factory=dict)
    """By case measured in the final: its time and its accuracy on the confirmation rows, as measured."""
    confirmed: set[str] = field(default_factory=set)
    _logs: dict[str, dict[int, Floats]] = field(default_factory=dict)

    def make(self, variant: str) -> str | None:  # noqa: ARG002 (all can be made)
        """Takes time, always succeeds."""
        self.spent_s += MAKE_S
        return None

    def cases(self, variant: str) -> Sequence[Case]:
        """Those of the variant, in the order of the truths."""
        return [case for case in self.truths if case.variant == variant]

    def more(self) -> Sequence[str]:
        """Nothing: the truths are all there is."""
        return ()

    def screen(self, case: Case, stop: Callable[[Floats], str | None]) -> Floats | None:
        """Rows that are right or wrong, with as many flips as the truth says."""
        self.spent_s += START_S
        if self.truths[case].fails:
            return None
        rows = self._rows(case, ROWS, "screening")
        upto = 128
        while upto < ROWS and stop(rows[:upto]) is None:
            upto *= 2
        rows = rows[:upto]
        self.spent_s += len(rows) * ROW_S * math.exp(self.truths[case].log_time)
        return rows

    def clusters(self) -> None:
        """Every row stands alone."""
        return

    def race(self, cases: Sequence[Case], look: int, processes: int, since: int = 0) -> Mapping[str, Floats]:
        """Blocks with all the noise there is."""
        self.spent_s += len(cases) * processes * PROCESS_S
        random = np.random.default_rng((self.seed, 1, look))
        weather = np.cumsum(random.normal(0, 0.03, (processes, RACE_ROUNDS)), axis=1)
        for case in cases:
            offsets = random.normal(0, self.process_sd, (processes, 1))
            offsets += math.log(self.bad_ratio) * (random.random((processes, 1)) < self.bad_share)
            blocks = random.normal(0, self.block_sd, (processes, RACE_ROUNDS))
            logs = self.truths[case].log_time + offsets + blocks + weather
            self._logs.setdefault(case.key, {})[look] = logs
        return {
            case.key: np.concatenate([logs for at, logs in self._logs[case.key].items() if at >= since])
            for case in cases
        }

    def confirm(self, cases: Sequence[Case]) -> None:
        """Takes the time of an evaluation, once per case."""
        for key in dict.fromkeys(case.quality_key for case in cases):
            if key not in self.confirmed:
                self.confirmed.add(key)
                self.spent_s += START_S + CONFIRMATION_ROWS * ROW_S

    def finish(self, cases: Sequence[Case]) -> None:
        """The final figures; those of one case are the same whoever else is measured."""
        each = len(cases) * FULL_PROCESS_S
        room = math.inf if math.isinf(self.budget_s) else (self.budget_s - self.spent_s) / each
        processes = max(1, min(FULL_PROCESSES, math.floor(room) if math.isfinite(room) else FULL_PROCESSES))
        self.spent_s += processes * each
        for case in cases:
            random = np.random.default_rng((self.seed, 2, self._number(case)))
            offsets = random.normal(0, self.process_sd, FULL_PROCESSES)[:processes]
            blocks = random.normal(0, self.block_sd / FULL_ROUNDS**0.5, FULL_PROCESSES)[:processes]
            time = math.exp(self.truths[case].log_time + float((offsets + blocks).mean()))
            self.finished[case.key] = time, float(self._rows(case, CONFIRMATION_ROWS, "confirmation").mean())

    def raced(self, case: Case) -> bool:
        """Whether it was."""
        return case.key in self._logs

    def race_takes_s(self, cases: int, processes: int) -> float:
        """Exactly what it takes."""
        return cases * processes * PROCESS_S

    def fits_finish(self) -> int:
        """Cases of which three processes can be had."""
        if math.isinf(self.budget_s):
            return len(self.truths)
        return int((self.budget_s - self.spent_s) / (3 * FULL_PROCESS_S))

    def tell(self, decision: Decision) -> None:
        """Keep it."""
        self.decisions.append(decision)

    def _number(self, case: Case) -> int:
        return list(self.truths).index(case)

    def _rows(self, case: Case, count: int, part: str) -> Floats:
        """1 for right. The reference's rows are the same for all; a variant flips its own, the same on every thread count."""
        random = np.random.default_rng((self.seed, 3, part == "screening"))
        right = random.random(count) < 0.92
        truth = self.truths[case]
        if truth.flips == 0:
            return right.astype(float)
        first = next(i for i, other in enumerate(self.truths) if other.quality_key == case.quality_key)
        random = np.random.default_rng((self.seed, 4, part == "screening", first))
        bad, good = (truth.flips + truth.drop) / 2, (truth.flips - truth.drop) / 2
        fall = right & (random.random(count) < bad / 0.92)
        rise = ~right & (random.random(count) < good / 0.08)
        return (right & ~fall | rise).astype(float)


def exhaustive(bench: SimulatedBench) -> None:
    """The sweep that a search is compared with: everything made, everything evaluated and measured at the full effort."""
    cases = list(bench.truths)
    for variant in dict.fromkeys(case.variant for case in cases):
        bench.make(variant)
    working = [case for case in cases if not bench.truths[case].fails]
    for _ in dict.fromkeys(case.quality_key for case in cases):
        bench.spent_s += START_S + (ROWS + CONFIRMATION_ROWS) * ROW_S
    bench.finish(working)


def random_truths(seed: int) -> tuple[Case, dict[Case, Truth]]:
    """A space as real models have it, and its reference: 15 variants, 2 backends, 2 thread counts; one seed, one truth."""
    random = np.random.default_rng((seed, 99))
    reference = Case(REFERENCE_VARIANT, "one", "local", 1, 1)
    truths: dict[Case, Truth] = {}
    for number in range(15):
        variant = REFERENCE_VARIANT if number == 0 else f"v{number}"
        speed = 0.0 if number == 0 else random.normal(-0.15, 0.35)
        # Most lose little, some a point or two, some everything.
        kind = 0 if number == 0 else int(random.choice(4, p=[0.3, 0.35, 0.2, 0.15]))
        drop = (0.0, random.uniform(0, 0.004), random.uniform(0.004, 0.03), random.uniform(0.1, 0.8))[kind]
        flips = (0.0, drop + 0.006, drop + 0.015, min(0.99, drop + 0.05))[kind]
        for place, backend in enumerate(("one", "two")):
            taste = 0.0 if place == 0 else random.normal(0.05, 0.2)
            fails = number > 0 and random.random() < 0.05
            for threads in (1, 2):
                scaling = 0.0 if threads == 1 else random.normal(-0.25, 0.2)
                case = Case(variant, backend, "local", 1, threads)
                truths[case] = Truth(speed + taste + scaling, drop, flips, fails)
    return reference, truths


def true_points(bench: SimulatedBench) -> dict[str, tuple[float, float]]:
    """What the cases of the final really are: time and accuracy lost, by case."""
    known = {case.key: truth for case, truth in bench.truths.items()}
    return {key: (math.exp(known[key].log_time), -known[key].drop) for key in bench.finished}


def hypervolume(
    points: Mapping[str, tuple[float, float]], reference: str, *, margin: float = 0.01, gains: bool = False
) -> float:
    """Area in (time / the reference's time, accuracy) up to twice its time and its accuracy less `margin`.

    Without `gains` a gain over the reference counts as none: among many candidates the luckiest on these rows sets the area.
    """
    time, accuracy = points[reference]
    table = np.array([(t / time, a if gains else min(a, accuracy)) for t, a in points.values()])
    return hypervolume_2d(table, (2.0, accuracy - margin), maximise=(False, True))
