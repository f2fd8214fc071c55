"""What disturbed a run's blocks, from their records: flags per sample, reasons per block, rounds that extra ones replace. Pure.

Two views of the same samples follow from it and are always shown together: *as observed*, all of them, and *interference
excluded*, without the samples during which the processor was taken away and without disturbed rounds that were measured again.
Nothing is ever left out for its latency. The other way round, a sensor is not believed (`Ignored`) where what it flags is no
slower than the rest, where it flags so much that the flagged is the usual, or where the model waited by itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from profiler.records import BlockRecord
from profiler.stats.interference import Windows, choose_rule, dirt, preempted, slowed
from profiler.targets.conditions import stopped_by_quota

Samples = NDArray[np.float64]

_ON_THIS_CORE = 0.5
"""CPU time per wall time below which a model computes on a device, whose speed the canary does not share."""
_FEWEST_SHARE = 0.1
"""Of a block's samples: with less left, its median says little."""
NOT_SLOWER = 1.02
"""Median of the flagged samples over that of the others below which what a sensor flags did not disturb the inferences."""
TOO_OFTEN = 0.30
"""Share of the samples above which slow songs of the canary are the machine's usual, not somebody's interference."""
_EXPLAINED = 0.5
_RECURRING = 0.6
"""A wait that no run queue, host or quota explains, in this share of the blocks, is the model's own: a lock, a page, a file."""

Sensor = Literal["counters", "canary"]
Cause = Literal["not slower", "too often", "own waiting"]


@dataclass(frozen=True)
class Ignored:
    """A sensor whose flags leave nothing out of a case's figures, and why."""

    sensor: Sensor
    cause: Cause
    share: float
    """Of the samples: what it had flagged."""


@dataclass(frozen=True)
class Judged:
    """One block and what its labels say."""

    block: BlockRecord
    flags: NDArray[np.bool_] | None
    """Per sample, shape (n,); None when nothing on this system tells."""
    reasons: tuple[str, ...]
    """Why it is dirty; empty when clean."""
    kept: bool = True
    """Whether its round counts where interference is excluded; an extra round took its place otherwise."""
    outside: NDArray[np.bool_] | None = None
    """Per sample: what the canary told, whether or not a counter told it too; None where it did not sing."""
    ignored: tuple[Ignored, ...] = ()
    """Sensors that are not believed for this case."""

    @property
    def observed(self) -> Samples:
        """All samples but those that re-entered caches."""
        return self.block.samples_s[self.block.discarded :]

    @property
    def usable(self) -> bool:
        """Whether enough undisturbed samples are left for a median."""
        return len(self.clean) > 0 and len(self.clean) >= _FEWEST_SHARE * len(self.observed)

    @property
    def clean(self) -> Samples:
        """Those of them that nothing disturbed; all when nothing tells, none when its round does not count."""
        if not self.kept:
            return self.block.samples_s[:0]
        if self.flags is None:
            return self.observed
        return self.observed[~self.flags[self.block.discarded :]]

    @cached_property
    def log_median(self) -> float | None:
        """Logarithm of the median of `clean`; None where it is not `usable`. Kept: a frontier pairs each block with dozens."""
        return float(np.log(np.median(self.clean))) if self.usable else None

    @cached_property
    def log_observed(self) -> float:
        """The same of `observed`."""
        return float(np.log(np.median(self.observed)))


def judge(blocks: Sequence[BlockRecord]) -> list[Judged]:
    """Flags and reasons for the blocks of ONE case, in the order given."""
    windows = [_windows(block) for block in blocks]
    rule, usual = choose_rule([found for found in windows if found is not None])
    outside = _slowed(blocks, usual)
    clocks = [block.labels["clock_hz"] for block in blocks if "clock_hz" in block.labels]
    clock = float(np.median(clocks)) if clocks else None
    if blocks and stopped_by_quota(blocks[0].case):
        # The envelope's own doing: without it there is nothing that the figures could be of.
        return [Judged(block, None, ()) for block in blocks]
    taken = [None if found is None else preempted(found, rule, usual) for found in windows]
    ignored = [
        item
        for item in (
            _doubt(
                "counters",
                [None if found is None else found.wall_s for found in windows],
                taken,
                own=rule == "cpu" and _waits_by_itself(blocks, windows, taken),
            ),
            _doubt("canary", [block.samples_s for block in blocks], outside, own=False),
        )
        if item is not None
    ]
    unbelieved = {item.sensor for item in ignored}
    judged = []
    for block, flags, slow in zip(blocks, taken, outside, strict=True):
        heard = np.zeros_like(slow) if "canary" in unbelieved and slow is not None else slow
        counted = np.zeros_like(flags) if "counters" in unbelieved and flags is not None else flags
        told = _either(_per_sample(block, counted), heard)
        reasons = dirt(None if told is None else told[block.discarded :], block.labels, block.wall_s, clock)
        if counted is not None:
            # Whoever had the processor left other things in its caches: the window after it pays for that.
            counted = counted | np.concatenate(([False], counted[:-1]))
        every = _either(_per_sample(block, counted), heard)
        judged.append(Judged(block, every, reasons, outside=heard, ignored=tuple(ignored)))
    return judged


def _doubt(
    sensor: Sensor, durations: Sequence[Samples | None], flags: Sequence[NDArray[np.bool_] | None], *, own: bool
) -> Ignored | None:
    """Why a sensor's flags are no interference; None where they are, or where it flagged nothing.

    `durations` by block, in s, of what one flag stands for: a sample, or a window of several.
    """
    pairs = [
        (times, found) for times, found in zip(durations, flags, strict=True) if found is not None and times is not None
    ]
    total, flagged = sum(len(times) for times, _ in pairs), sum(int(found.sum()) for _, found in pairs)
    if not flagged:
        return None
    share = flagged / total
    if own:
        return Ignored(sensor, "own waiting", share)
    # Inside a block, so that a slow hour with more flags is not taken for slow samples; whole blocks beside the others.
    quiet = [times[~found] for times, found in pairs if not found.all()]
    usual = float(np.median(np.concatenate(quiet))) if quiet else None
    ratios = [
        float(np.median(times[found]) / (usual if found.all() and usual is not None else np.median(times[~found])))
        for times, found in pairs
        if found.any() and (usual is not None)
    ]
    if ratios and float(np.median(ratios)) < NOT_SLOWER:
        return Ignored(sensor, "not slower", share)
    return Ignored(sensor, "too often", share) if sensor == "canary" and share > TOO_OFTEN else None


def _waits_by_itself(
    blocks: Sequence[BlockRecord], windows: Sequence[Windows | None], taken: Sequence[NDArray[np.bool_] | None]
) -> bool:
    """Whether the time that is missing from the processor's is spent waiting for something else than the processor."""
    missing, explained, recurring, told = 0.0, 0.0, 0, 0
    for block, found, flags in zip(blocks, windows, taken, strict=True):
        if found is None or found.cpu_s is None or flags is None or "run_delay_s" not in block.labels:
            continue
        told += 1
        away = float((found.wall_s - found.cpu_s)[flags].sum())
        by_others = block.labels["run_delay_s"] + block.labels.get("throttled_s", 0.0)
        by_others += block.labels.get("steal_share", 0.0) * block.wall_s
        missing += away
        explained += min(away, by_others)
        recurring += bool(flags.any() and by_others < _EXPLAINED * away)
    return told > 0 and explained < _EXPLAINED * missing and recurring >= _RECURRING * told


def judge_run(blocks: Mapping[str, Sequence[BlockRecord]], rounds: int) -> dict[str, list[Judged]]:
    """The blocks of all cases, by case. `rounds` were planned per process: the dirtiest beyond that many do not count.

    A round is left out for all cases or for none, so that what is compared was measured beside each other.
    """
    judged = {case: judge(found) for case, found in blocks.items()}
    dirty: dict[tuple[int, int, int], dict[int, float]] = {}
    for found in judged.values():
        for item in found:
            block = item.block
            place = (block.replicate, block.attempt, block.group)
            share = 0.0 if item.flags is None else float(item.flags.mean()) if len(item.flags) else 0.0
            by_round = dirty.setdefault(place, {})
            # A reason counts for more than any share of samples: what the host did hits samples without a label too.
            by_round[block.round] = max(by_round.get(block.round, 0.0), (1.0 + share) if item.reasons else share)
    dropped = {(*place, index) for place, by_round in dirty.items() for index in _surplus(by_round, rounds)}
    return {
        case: [
            replace(i, kept=(i.block.replicate, i.block.attempt, i.block.group, i.block.round) not in dropped)
            for i in found
        ]
        for case, found in judged.items()
    }  # fmt: skip


def excluded_share(judged: Sequence[Judged]) -> float | None:
    """Share of samples with a flag, which the clean view leaves out; None when nothing on this system tells."""
    flagged = [item.flags[item.block.discarded :] for item in judged if item.flags is not None]
    total = sum(map(len, flagged))
    return float(sum(flags.sum() for flags in flagged)) / total if total else None


def replaced_rounds(judged: Mapping[str, Sequence[Judged]]) -> int:
    """Disturbed rounds that do not count because others took their place."""
    places = {
        (item.block.replicate, item.block.attempt, item.block.group, item.block.round)
        for found in judged.values()
        for item in found
        if not item.kept
    }
    return len(places)


def dirty_share(judged: Mapping[str, Sequence[Judged]]) -> float | None:
    """Share of all blocks that are dirty; None without blocks, or when nothing tells."""
    every = [item for found in judged.values() for item in found]
    if not every or all(item.flags is None and not item.block.labels for item in every):
        return None
    return sum(bool(item.reasons) for item in every) / len(every)


def _surplus(by_round: Mapping[int, float], rounds: int) -> list[int]:
    """Disturbed rounds that can be spared: the dirtiest, as long as `rounds` remain."""
    spare = max(0, len(by_round) - rounds)
    worst = sorted((index for index, dirty in by_round.items() if dirty >= 1), key=lambda index: -by_round[index])
    return worst[:spare]


def _windows(block: BlockRecord) -> Windows | None:
    if block.window_s is None or not len(block.window_s):
        return None
    return Windows(block.window_s, block.window_cpu_s, block.window_waited_s)


def _slowed(blocks: Sequence[BlockRecord], usual: float | None) -> list[NDArray[np.bool_] | None]:
    """Flags from the canary; None where there is none, or where the work is done elsewhere than on this core."""
    sung = [block for block in blocks if block.canary_s is not None and block.canary_at is not None]
    if not sung or (usual is not None and usual < _ON_THIS_CORE):
        return [None] * len(blocks)
    songs = [block.canary_s for block in sung if block.canary_s is not None]
    places = [block.canary_at for block in sung if block.canary_at is not None]
    flags = iter(slowed(songs, places, [len(block.samples_s) for block in sung]))
    known = {id(block) for block in sung}
    return [next(flags) if id(block) in known else None for block in blocks]


def _per_sample(block: BlockRecord, windows: NDArray[np.bool_] | None) -> NDArray[np.bool_] | None:
    return None if windows is None else np.repeat(windows, block.label_every)[: len(block.samples_s)]


def _either(one: NDArray[np.bool_] | None, other: NDArray[np.bool_] | None) -> NDArray[np.bool_] | None:
    """Flagged by one or the other; None when neither tells."""
    if one is None or other is None:
        return other if one is None else one
    return one | other
