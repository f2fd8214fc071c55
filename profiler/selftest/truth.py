"""What labels found of what was injected, counted from records and the injectors' own logs. Pure.

A stop pulse stops the process from its beginning to its end, so exactly one window of a block holds the middle of the pulse; that
one must be labelled. Spinners and quotas take the processor now and then, nobody knows when: there the block is the unit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from profiler.disturbance import Judged
from profiler.records import BlockRecord
from profiler.selftest.inject import Interval

_MARGIN_S = 2e-3
"""A window that only touches a pulse is neither disturbed for certain nor certainly quiet."""
_DISTURBED_SHARE = 0.5
"""A block counts as disturbed when the disturbance lasted for at least half of it, and as quiet when there was none."""
_LABELLED_TIME = 0.10
"""Share of a block's time that its labelled samples hold before the block counts as labelled. A load on all cores or a quota
takes a third of the time and more; one labelled sample is in nearly every block of a machine that is merely in use."""


@dataclass(frozen=True)
class Found:
    """Counts of windows or blocks; the shares are None where there was nothing to find."""

    disturbed: int = 0
    labelled: int = 0
    """Of the disturbed ones."""
    quiet: int = 0
    false: int = 0
    """Labelled ones among the quiet ones."""

    @property
    def recall(self) -> float | None:
        """Share of the disturbed ones that were labelled."""
        return self.labelled / self.disturbed if self.disturbed else None

    @property
    def false_share(self) -> float | None:
        """Share of the quiet ones that were labelled."""
        return self.false / self.quiet if self.quiet else None

    def __add__(self, other: Found) -> Found:
        """Both together."""
        return Found(
            self.disturbed + other.disturbed,
            self.labelled + other.labelled,
            self.quiet + other.quiet,
            self.false + other.false,
        )


def window_edges(block: BlockRecord) -> NDArray[np.float64] | None:
    """Beginnings of the block's windows and the end of the last one, seconds of CLOCK_MONOTONIC; None without windows."""
    if block.window_s is None or not len(block.window_s):
        return None
    return block.started_s + np.concatenate(([0.0], np.cumsum(block.window_s)))


def stopped_windows(judged: Sequence[Judged], pulses: Sequence[Interval]) -> Found:
    """Windows that stood still, and those far from any pulse."""
    total = Found()
    for item in judged:
        edges, flags = window_edges(item.block), _window_flags(item)
        if edges is None or flags is None:
            continue
        stopped = np.zeros(len(flags), np.bool_)
        near = np.zeros(len(flags), np.bool_)
        for start, end in pulses:
            place = int(np.searchsorted(edges, (start + end) / 2, side="right")) - 1
            if 0 <= place < len(flags):
                stopped[place] = True
            near |= (edges[:-1] < end + _MARGIN_S) & (edges[1:] > start - _MARGIN_S)
        quiet = ~(stopped | near)
        total += Found(
            int(stopped.sum()), int((stopped & flags).sum()), int(quiet.sum()), int((quiet & flags).sum())
        )  # fmt: skip
    return total


def loaded_blocks(judged: Sequence[Judged], load: Sequence[Interval]) -> Found:
    """Blocks under a load that lasts; labelled is one that is dirty, or whose labelled samples hold a tenth of its time."""
    total = Found()
    for item in judged:
        begin = item.block.started_s
        end = begin + item.block.wall_s
        covered = sum(max(0.0, min(end, stop) - max(begin, start)) for start, stop in load)
        labelled = bool(item.reasons) or _labelled_time(item) >= _LABELLED_TIME
        if item.flags is None and not item.reasons:
            continue
        if covered >= _DISTURBED_SHARE * (end - begin):
            total += Found(disturbed=1, labelled=int(labelled))
        elif covered == 0:
            total += Found(quiet=1, false=int(labelled))
    return total


def labelled_share(judged: Sequence[Judged]) -> float | None:
    """Share of samples that are labelled; None when nothing on this system tells."""
    flags = [item.flags for item in judged if item.flags is not None and len(item.flags)]
    return float(np.mean(np.concatenate(flags))) if flags else None


def slow_explained(judged: Sequence[Judged], *, factor: float = 2.0) -> float | None:
    """Share of samples over `factor` times the block's median that carry a label; None when there are none.

    Not a truth, an indication: under load nearly all outliers should be explained.
    """
    slow = labelled = 0
    for item in judged:
        if item.flags is None or not len(item.block.samples_s):
            continue
        outliers = item.block.samples_s > factor * np.median(item.block.samples_s)
        slow += int(outliers.sum())
        labelled += int((outliers & item.flags[: len(outliers)]).sum())
    return labelled / slow if slow else None


def _labelled_time(item: Judged) -> float:
    samples = item.block.samples_s
    if item.flags is None or not len(samples):
        return 0.0
    return float(samples[item.flags].sum() / samples.sum())


def _window_flags(item: Judged) -> NDArray[np.bool_] | None:
    return None if item.flags is None else item.flags[:: item.block.label_every]
