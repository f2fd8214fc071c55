"""Which samples were disturbed from outside, told by counters and never by the latency itself. numpy only.

An outlier may be the model's own; a sample during which the processor was taken away is not. So samples are labelled by what the
kernel counted around them: on one thread CPU time that is missing from wall time, on several the run-queue delay. Blocks
and rounds are called dirty when labels pile up, or when the host says that it stole, throttled or overheated (method.md 2.7).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["Rule", "Windows", "choose_rule", "dirt", "preempted", "slowed"]

Rule = Literal["cpu", "waited", "none"]
"""`cpu`: wall time minus CPU time; `waited`: run-queue delay, or CPU time far below the usual; `none`: nothing to tell by."""

MISSING_SHARE = 0.05
"""Share of a window's wall time that may be missing from its CPU time. Kept 98 % of a quiet machine's inferences."""
MISSING_FLOOR_S = 10e-6
"""A timer interrupt takes a few microseconds and belongs to every deployment; only more than this is interference."""
WAITED_SHARE = 0.02
COLLAPSED_SHARE = 0.5
"""CPU time below this share of the usual: the process stood still (SIGSTOP, a quota) without waiting in a queue."""
ONE_THREAD = 0.03
DIRTY_SAMPLES = 0.10
STEAL_SHARE, STEAL_FLOOR_S = 0.02, 0.02
"""Stolen time is counted in ticks of 10 ms: one tick in a block of 100 ms proves nothing, two do."""
SLOW_CLOCK = 0.9
SLOWED = 1.15
"""Songs of one speed scatter by a few per cent; a stranger on the other hardware thread costs 30 to 50 % (ADR 0010)."""


@dataclass(frozen=True)
class Windows:
    """What was counted in the windows of one block, seconds, shape (windows,). None where the system does not tell."""

    wall_s: NDArray[np.float64]
    cpu_s: NDArray[np.float64] | None
    waited_s: NDArray[np.float64] | None


def choose_rule(blocks: Sequence[Windows]) -> tuple[Rule, float | None]:
    """The rule for the blocks of one case, and the usual CPU time per wall time.

    The 90th percentile stands for the undisturbed process: also when most of its windows were disturbed, some were not.
    """
    shares = [block.cpu_s / block.wall_s for block in blocks if block.cpu_s is not None and len(block.wall_s)]
    usual = float(np.quantile(np.concatenate(shares), 0.9)) if shares else None
    if usual is not None and 1 - ONE_THREAD <= usual <= 1 + ONE_THREAD:
        return "cpu", usual
    if any(block.waited_s is not None for block in blocks):
        return "waited", usual
    return "none", usual


def preempted(block: Windows, rule: Rule, usual: float | None) -> NDArray[np.bool_] | None:
    """Whether the processor was taken away in each window, shape (windows,); None when nothing tells."""
    if rule == "cpu" and block.cpu_s is not None:
        missing = block.wall_s - block.cpu_s
        return missing > np.maximum(MISSING_SHARE * block.wall_s, MISSING_FLOOR_S)
    if rule == "waited" and block.waited_s is not None:
        found = block.waited_s > np.maximum(WAITED_SHARE * block.wall_s, MISSING_FLOOR_S)
        if usual is not None and usual >= 1 and block.cpu_s is not None:
            found |= block.cpu_s < COLLAPSED_SHARE * usual * block.wall_s
        return found
    return None


def slowed(
    canary_s: Sequence[NDArray[np.float64]], canary_at: Sequence[NDArray[np.int64]], sizes: Sequence[int]
) -> list[NDArray[np.bool_]]:
    """Whether the core was slowed from outside during each sample of each block of one case, shapes (sizes[i],).

    `canary_s` are the canary's times, `canary_at` the number of samples taken before each. A sample is slowed when the song
    before or the one after it took over `SLOWED` times the usual, which is the 20th percentile over all blocks: the other modes
    are all slower. Where every song is equally slow nobody is blamed.
    """
    known = [songs for songs in canary_s if len(songs)]
    if not known:
        return [np.zeros(size, np.bool_) for size in sizes]
    limit = SLOWED * float(np.quantile(np.concatenate(known), 0.2))
    found = []
    for songs, places, size in zip(canary_s, canary_at, sizes, strict=True):
        slow = songs > limit
        after = np.clip(np.searchsorted(places, np.arange(size), side="right"), 0, max(len(songs) - 1, 0))
        before = np.maximum(after - 1, 0)
        found.append(slow[before] | slow[after] if len(songs) else np.zeros(size, np.bool_))
    return found


def dirt(
    flags: NDArray[np.bool_] | None, labels: Mapping[str, float], wall_s: float, usual_clock_hz: float | None = None
) -> tuple[str, ...]:
    """Why a block is dirty, for people; empty when it is clean as far as anything tells.

    `flags` are one per sample; `labels` as `profiler.measure.host.difference` gives them.
    """
    reasons = []
    if flags is not None and len(flags) and float(flags.mean()) > DIRTY_SAMPLES:
        reasons.append(f"{flags.mean():.0%} of its samples were preempted or slowed")
    steal = labels.get("steal_share", 0.0)
    if steal > STEAL_SHARE and steal * wall_s >= STEAL_FLOOR_S:
        reasons.append(f"the host stole {steal:.0%} of a core")
    if labels.get("throttled_s", 0.0) > 0:
        reasons.append(f"a quota held it back for {labels['throttled_s'] * 1e3:.3g} ms")
    if labels.get("thermal_throttles", 0.0) > 0:
        reasons.append("the processor throttled its clock against heat")
    if labels.get("device_throttled", 0.0) > 0:
        reasons.append("firmware or driver held the device back")
    clock = labels.get("clock_hz")
    if clock is not None and usual_clock_hz is not None and clock < SLOW_CLOCK * usual_clock_hz:
        reasons.append(f"the clock was at {clock / usual_clock_hz:.0%} of the usual")
    return tuple(reasons)
