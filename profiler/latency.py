"""What the timed blocks of a case support: latency, throughput and ratios, as observed and with interference excluded. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from profiler.disturbance import Judged, Samples, dirty_share, excluded_share, judge
from profiler.records import BlockRecord, Estimate, Figure, NotMeasured, ProcessRecord
from profiler.stats.modes import Modes, crosses_modes, modes
from profiler.stats.quantiles import quantile_interval, throughput_interval
from profiler.stats.ratios import RatioEstimate, ratio_interval
from profiler.stopping import paired_logs

LEVEL = 0.95
PERCENTILES: Mapping[str, float] = {"latency_p50_s": 0.5, "latency_p90_s": 0.9, "latency_p99_s": 0.99}


@dataclass(frozen=True)
class Latency:
    """The figures of one case that come from its blocks."""

    clean: Mapping[str, Figure]
    """latency_p50_s, latency_p90_s, latency_p99_s, throughput_per_s with interference excluded: what is shown first."""
    observed: Mapping[str, Figure]
    """The same of all samples."""
    excluded_share: float | None
    """Share of the samples that the first leaves out; None where nothing on this system tells interference apart."""
    dirty_share: float | None
    """Share of this case's blocks that were disturbed."""
    notes: tuple[str, ...] = ()


def latency(judged: Sequence[Judged], batch: int, why: str) -> Latency:
    """Everything from the judged blocks of one case. `why` says what is missing when there are none."""
    if not judged:
        absent: dict[str, Figure] = {name: NotMeasured(why) for name in (*PERCENTILES, "throughput_per_s")}
        return Latency(absent, absent, None, None)
    notes: list[str] = []
    some_clean = [item for item in judged if item.usable]
    if not some_clean:
        notes.append("every sample was disturbed: nothing could be excluded, the figures are as observed")
    owners = [item.block.replicate for item in judged]
    observed = _figures([item.observed for item in judged], owners, batch, None)
    rounds = [item.clean for item in some_clean]
    found = _modes(rounds, [item.block.replicate for item in some_clean])
    if found is not None:
        notes.append(f"bimodal: {found.reason}")
    clean = _figures(rounds, [item.block.replicate for item in some_clean], batch, found) if rounds else observed
    return Latency(clean, observed, excluded_share(judged), dirty_share({"": judged}), tuple(notes))


def paired_ratio(blocks: Sequence[BlockRecord], reference: Sequence[BlockRecord]) -> RatioEstimate | None:
    """Ratio of p50 times, from blocks of the same replicate, attempt, group and round. None without any such pair."""
    return judged_ratio(judge(blocks), judge(reference))


def judged_ratio(judged: Sequence[Judged], reference: Sequence[Judged]) -> RatioEstimate | None:
    """The same from judged blocks: interference excluded, process pair as the unit."""
    logs = paired_logs(judged, reference)
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


def _figures(rounds: Sequence[Samples], owners: Sequence[int], batch: int, found: Modes | None) -> dict[str, Figure]:
    figures: dict[str, Figure] = {}
    for name, p in PERCENTILES.items():
        estimate = quantile_interval(rounds, p, level=LEVEL, processes=owners)
        note = estimate.reason
        if estimate.typical:
            said = "of a typical process: processes differ by more than so few of them can bound"
            note = f"{said}; {note}" if note else said
        if found is not None and crosses_modes(found, p):
            note = f"not resolved: bimodal, p{100 * p:g} falls between the two modes"
        figures[name] = Estimate(estimate.value, estimate.low, estimate.high, "s", LEVEL, note=note)
    value, low, high = throughput_interval(rounds, batch=batch, level=LEVEL, processes=owners)
    figures["throughput_per_s"] = Estimate(value, low, high, "samples/s", LEVEL)
    return figures
