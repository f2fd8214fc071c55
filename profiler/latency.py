"""What the timed blocks of a case support: latency, throughput and ratios, as observed and with interference excluded. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from profiler.disturbance import TOO_OFTEN, Cause, Ignored, Judged, Samples, dirty_share, excluded_share, judge
from profiler.records import BlockRecord, Estimate, Figure, NotMeasured, ProcessRecord
from profiler.stats.modes import Modes, crosses_modes, modes
from profiler.stats.quantiles import quantile_interval, throughput_interval
from profiler.stats.ratios import RatioEstimate, ratio_interval
from profiler.stopping import paired_logs

LEVEL = 0.95
PERCENTILES: Mapping[str, float] = {"latency_p50_s": 0.5, "latency_p90_s": 0.9, "latency_p99_s": 0.99}

View = Literal["undisturbed", "observed"]
"""Which samples the figures of a machine's cases are of: without interference, or all. One for all that are compared."""


@dataclass(frozen=True)
class Latency:
    """The figures of one case that come from its blocks."""

    shown: Mapping[str, Figure]
    """latency_p50_s, latency_p90_s, latency_p99_s, throughput_per_s in the view that was asked for."""
    observed: Mapping[str, Figure]
    """The same of all samples."""
    excluded_share: float | None
    """Share of the samples that the first leaves out; None where nothing on this system tells interference apart."""
    dirty_share: float | None
    """Share of this case's blocks that were disturbed."""
    typical: frozenset[str]
    """Which of the percentiles shown speak of a typical process, not of all."""
    limit_p99: Figure
    limit_p99_observed: Figure
    """What a limit on p99 is held against in both views: the bounds for a fresh process where p99 is a typical one's."""
    notes: tuple[str, ...] = ()


def view_of(cases: Mapping[str, Sequence[Judged]], pairs: Sequence[tuple[str, str]]) -> View:
    """The view in which these cases, and these pairs of them, can all be told: undisturbed if that leaves each enough.

    Figures of one case without interference beside those of another with it would compare the weather, not the cases.
    """
    if any(found and not any(item.usable for item in found) for found in cases.values()):
        return "observed"
    for one, other in pairs:
        own, reference = cases.get(one, ()), cases.get(other, ())
        every = len(paired_logs(own, reference, observed=True))
        if len(paired_logs(own, reference)) < min(2, every):
            return "observed"
    return "undisturbed"


def latency(judged: Sequence[Judged], batch: int, why: str, view: View = "undisturbed") -> Latency:
    """Everything from the judged blocks of one case. `why` says what is missing when there are none."""
    if not judged:
        absent: dict[str, Figure] = {name: NotMeasured(why) for name in (*PERCENTILES, "throughput_per_s")}
        return Latency(absent, absent, None, None, frozenset(), NotMeasured(why), NotMeasured(why))
    notes = [_ignored(item) for item in judged[0].ignored]
    some_clean = [item for item in judged if item.usable]
    all_owners = [item.block.replicate for item in judged]
    kept, owners = [item.clean for item in some_clean], [item.block.replicate for item in some_clean]
    if view == "observed":
        kept, owners = [item.observed for item in judged], all_owners
        notes.append(
            "as observed, like all of this machine: too little was undisturbed to leave interference out of each case"
        )
    found = _modes(kept, owners)
    if found is not None:
        notes.append(f"bimodal: {found.reason}")
    seen = _figures([item.observed for item in judged], all_owners, batch, None)
    shown = _figures(kept, owners, batch, found) if kept and (view == "undisturbed" or found is not None) else seen
    return Latency(
        shown.by_name, seen.by_name, excluded_share(judged) if view == "undisturbed" else 0.0 if _told(judged) else None,
        dirty_share({"": judged}), shown.typical, shown.limit_p99, seen.limit_p99, tuple(notes),
    )  # fmt: skip


def _told(judged: Sequence[Judged]) -> bool:
    return excluded_share(judged) is not None


_WHY: Mapping[Cause, str] = {
    "not slower": "were no slower than the others, so they are not left out",
    "too often": f"are over {TOO_OFTEN:.0%}, which is how this machine usually is, so they are not left out",
    "own waiting": "waited, but not for the processor: the model's own waiting (a lock, a page, a file) is not left out",
}


def _ignored(item: Ignored) -> str:
    sensor = "counters" if item.sensor == "counters" else "the canary"
    return f"{item.share:.1%} of the samples were flagged by {sensor} and {_WHY[item.cause]}"


def paired_ratio(blocks: Sequence[BlockRecord], reference: Sequence[BlockRecord]) -> RatioEstimate | None:
    """Ratio of p50 times, from blocks of the same replicate, attempt, group and round. None without any such pair."""
    return judged_ratio(judge(blocks), judge(reference))


def judged_ratio(
    judged: Sequence[Judged], reference: Sequence[Judged], view: View = "undisturbed"
) -> RatioEstimate | None:
    """The same from judged blocks in one view, process pair as the unit."""
    logs = paired_logs(judged, reference, observed=view == "observed")
    return ratio_interval([np.array(values) for values in logs.values()]) if logs else None


def time_to_steady(processes: Sequence[ProcessRecord], why: str) -> Figure:
    """How long inferences had to run before they were steady: median and range over processes."""
    warm = [process.warmup for process in processes if process.warmup is not None]
    if not warm:
        return NotMeasured(why)
    settled = [item.time_to_steady_s for item in warm if item.time_to_steady_s is not None]
    if len(settled) < len(warm):
        return NotMeasured(
            f"{len(warm) - len(settled)} of {len(warm)} processes reached no steady state within the longest warm-up"
        )
    return Estimate(
        statistics.median(settled), min(settled), max(settled), "s", LEVEL, note=f"median and range of {len(warm)} processes"
    )  # fmt: skip


def _modes(rounds: Sequence[Samples], owners: Sequence[int]) -> Modes | None:
    """The two modes of the samples, when there are two."""
    if not rounds or any((samples <= 0).any() for samples in rounds):
        return None
    found = modes(rounds, processes=owners)
    return found if found.count == 2 else None


@dataclass(frozen=True)
class _Figures:
    by_name: Mapping[str, Figure]
    typical: frozenset[str]
    limit_p99: Figure


def _figures(rounds: Sequence[Samples], owners: Sequence[int], batch: int, found: Modes | None) -> _Figures:
    figures: dict[str, Figure] = {}
    typical = set()
    limit: Figure = NotMeasured("no p99")
    for name, p in PERCENTILES.items():
        estimate = quantile_interval(rounds, p, level=LEVEL, processes=owners)
        note = estimate.reason
        if estimate.typical:
            typical.add(name)
            said = "of a typical process: processes differ by more than so few of them can bound"
            note = f"{said}; {note}" if note else said
        if found is not None and crosses_modes(found, p):
            note = f"not resolved: bimodal, p{100 * p:g} falls between the two modes"
        figures[name] = Estimate(estimate.value, estimate.low, estimate.high, "s", LEVEL, note=note)
        if name == "latency_p99_s":
            limit = Estimate(estimate.value, estimate.fresh_low, estimate.fresh_high, "s", LEVEL, note=note)
    value, low, high = throughput_interval(rounds, batch=batch, level=LEVEL, processes=owners)
    figures["throughput_per_s"] = Estimate(value, low, high, "samples/s", LEVEL)
    return _Figures(figures, frozenset(typical), limit)
