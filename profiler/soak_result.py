"""What a stored soak says: burst, sustained and their ratio for each case, and the course of heat, clock and latency.

Pure functions of a run's records. The phases and sensor readings lie in the labels of its blocks; everything else is computed
again whenever the run is read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from profiler.records import BlockRecord, Estimate, Figure, NotMeasured
from profiler.stats.quantiles import quantile_interval
from profiler.stats.thermal import BURST, SUSTAINED, SustainedRatio, ThermalState, sustained_ratio, thermal_state
from profiler.store import RunData

PHASE = "soak_phase"
"""Label of every block of a soak: 0 burst, 1 heating, 2 sustained."""
ELAPSED_S = "soak_s"
"""Seconds of load since the burst began."""
TEMPERATURE_C = "soak_temperature_c"
CLOCK_HZ = "soak_clock_hz"
THROTTLES = "soak_throttles"
"""Thermal throttle events counted since the burst began; absent where nothing counts them."""
HELD = "soak_held"
"""1 when firmware or driver said at that moment that it holds the device back, else 0; absent where nothing could tell."""
IDLE_C, START_C, WAITED_S = "soak_idle_c", "soak_start_c", "soak_waited_s"
COOL = "soak_cool"
"""1 when the burst began at most `cool_to_c` above idle, 0 when it did not; absent where that is not known."""

LEVEL = 0.95


@dataclass(frozen=True)
class CaseSoak:
    """One case: before and after it got hot."""

    case: str
    burst_p50_s: Figure
    sustained_p50_s: Figure
    ratio: SustainedRatio | NotMeasured


@dataclass(frozen=True)
class Course:
    """One soak: what the sensors and the latency did. Arrays hold one entry per round, NaN where a sensor was silent."""

    replicate: int
    group: int
    cases: tuple[str, ...]
    times_s: NDArray[np.float64]
    phases: NDArray[np.int64]
    temperatures_c: NDArray[np.float64]
    clocks_hz: NDArray[np.float64]
    slowdown: NDArray[np.float64]
    """Time of the round relative to the burst, by the median case."""
    held: NDArray[np.float64]
    throttles: int | None
    """Events counted from beginning to end."""
    first_throttle_s: float | None
    """When the first one showed, or the device was first said to be held back."""
    state: ThermalState
    """When the sustained phase began."""
    idle_c: float | None
    start_c: float | None
    waited_s: float
    cool: bool | None

    @property
    def heated_s(self) -> float | None:
        """Load before the sustained phase; None when the soak did not come to it."""
        hot = self.times_s[self.phases == SUSTAINED]
        return float(hot[0]) if len(hot) else None


@dataclass(frozen=True)
class Soak:
    """Everything a run's soaks say."""

    cases: tuple[CaseSoak, ...]
    courses: tuple[Course, ...]


def read_soak(run: RunData) -> Soak:
    """Read the soaks of a run; both parts are empty when it holds none."""
    blocks = _last_attempts([block for block in run.blocks if PHASE in block.labels])
    by_soak: dict[tuple[int, int], list[BlockRecord]] = {}
    by_case: dict[str, list[BlockRecord]] = {}
    for block in blocks:
        by_soak.setdefault((block.replicate, block.group), []).append(block)
        by_case.setdefault(block.case, []).append(block)
    return Soak(
        tuple(_case(case, own) for case, own in by_case.items()),
        tuple(_course(*key, own) for key, own in sorted(by_soak.items())),
    )


def of_phase(blocks: Sequence[BlockRecord], phase: int) -> list[BlockRecord]:
    """The blocks of one phase."""
    return [block for block in blocks if block.labels.get(PHASE) == phase]


def _last_attempts(blocks: Sequence[BlockRecord]) -> list[BlockRecord]:
    """An interrupted soak cannot be continued, since the device has cooled: of each, the last attempt that became sustained."""
    best: dict[tuple[int, int], tuple[bool, int]] = {}
    for block in blocks:
        place, rank = (block.replicate, block.group), (block.labels[PHASE] == SUSTAINED, block.attempt)
        best[place] = max(rank, best.get(place, rank))
    kept = [block for block in blocks if block.attempt == best[block.replicate, block.group][1]]
    return sorted(kept, key=lambda block: (block.replicate, block.group, block.round, block.position))


def _case(case: str, blocks: Sequence[BlockRecord]) -> CaseSoak:
    phases = {phase: of_phase(blocks, phase) for phase in (BURST, SUSTAINED)}
    # A case in two groups (the reference) is soaked in each: every soak is a process of its own.
    places = sorted({(block.replicate, block.group) for block in blocks})
    medians = {
        phase: [
            np.array([_median(block) for block in found if (block.replicate, block.group) == place]) for place in places
        ]
        for phase, found in phases.items()
    }
    ratio: SustainedRatio | NotMeasured
    if any(len(b) and len(s) for b, s in zip(medians[BURST], medians[SUSTAINED], strict=True)):
        ratio = sustained_ratio(medians[BURST], medians[SUSTAINED], level=LEVEL)
    else:
        ratio = NotMeasured("no process has both a burst and a sustained phase")
    return CaseSoak(case, _p50(phases[BURST], "burst"), _p50(phases[SUSTAINED], "sustained"), ratio)


def _p50(blocks: Sequence[BlockRecord], phase: str) -> Figure:
    if not blocks:
        return NotMeasured(f"the {phase} phase was not reached")
    owners = sorted({(block.replicate, block.group) for block in blocks})
    found = quantile_interval(
        [_kept(block) for block in blocks], 0.5, level=LEVEL,
        processes=[owners.index((block.replicate, block.group)) for block in blocks],
    )  # fmt: skip
    return Estimate(found.value, found.low, found.high, "s", LEVEL, note=found.reason)


def _course(replicate: int, group: int, blocks: Sequence[BlockRecord]) -> Course:
    usual = {
        case: float(np.median([_median(block) for block in of_phase(blocks, BURST) if block.case == case] or [np.nan]))
        for case in dict.fromkeys(block.case for block in blocks)
    }
    rounds: dict[int, list[BlockRecord]] = {}
    for block in blocks:
        rounds.setdefault(block.round, []).append(block)
    firsts = [found[0].labels for found in rounds.values()]
    times = np.array([labels[ELAPSED_S] for labels in firsts])
    phases = np.array([int(labels[PHASE]) for labels in firsts])
    temperatures, clocks, held, counts = (
        np.array([labels.get(key, np.nan) for labels in firsts]) for key in (TEMPERATURE_C, CLOCK_HZ, HELD, THROTTLES)
    )
    slowdown = np.array([relative_time({b.case: _median(b) for b in found}, usual) for found in rounds.values()])
    before = phases != SUSTAINED
    events = np.nan_to_num(counts) + np.nan_to_num(held)
    throttled = np.flatnonzero(events > 0)
    return Course(
        replicate, group, tuple(usual), times, phases, temperatures, clocks, slowdown, held,
        throttles=None if np.isnan(counts).all() else int(np.nanmax(counts)),
        first_throttle_s=float(times[throttled[0]]) if len(throttled) else None,
        state=state_of(times[before], temperatures[before], clocks[before], slowdown[before]),
        idle_c=firsts[0].get(IDLE_C), start_c=firsts[0].get(START_C), waited_s=firsts[0].get(WAITED_S, 0.0),
        cool=None if COOL not in firsts[0] else bool(firsts[0][COOL]),
    )  # fmt: skip


def relative_time(medians: Mapping[str, float], usual: Mapping[str, float]) -> float:
    """How much longer than usual the cases of one round took, by the median case; NaN when none can be compared."""
    ratios = [seconds / usual[case] for case, seconds in medians.items() if usual.get(case, np.nan) > 0]
    return float(np.median(ratios)) if ratios else float("nan")


def state_of(
    times_s: NDArray[np.float64], temperatures_c: NDArray[np.float64], clocks_hz: NDArray[np.float64],
    slowdown: NDArray[np.float64],
) -> ThermalState:  # fmt: skip
    """`thermal_state` of a course whose silent sensors are NaN throughout."""
    told = [None if np.isnan(values).all() else values for values in (temperatures_c, clocks_hz, slowdown)]
    return thermal_state(times_s, *told)


def _median(block: BlockRecord) -> float:
    return float(np.median(_kept(block)))


def _kept(block: BlockRecord) -> NDArray[np.float64]:
    return block.samples_s[block.discarded :]
