"""What labels find of injected interference, and how much of a tail's spread between processes they explain. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from profiler.disturbance import Judged
from profiler.selftest import truth
from profiler.selftest.inject import Interval

CONDITIONS = ("quiet", "spinners", "quota", "stop pulses")


def labels(condition: str, judged: Sequence[Judged], intervals: Sequence[Interval]) -> dict[str, Any]:
    """Recall and false labels of one case under one condition.

    Stop pulses: the unit is the window of samples that stood still, false ones are counted far from any pulse. Spinners and
    quota: the unit is the block. Quiet: the share of labelled samples, which holds whatever else the machine did.
    """
    found: dict[str, Any] = {"labelled_samples": truth.labelled_share(judged), "blocks": len(judged)}
    found["dirty_blocks"] = sum(bool(item.reasons) for item in judged) / len(judged) if judged else None
    if condition == "quiet":
        found["labelled_blocks"] = truth.loaded_blocks(judged, ()).false_share
        return {**found, "unit": "sample", "recall": None, "disturbed": 0, **by_sensor(judged)}
    counts = (truth.stopped_windows if condition == "stop pulses" else truth.loaded_blocks)(judged, intervals)
    return {
        **found, "unit": "window" if condition == "stop pulses" else "block", "recall": counts.recall,
        "disturbed": counts.disturbed, "false_share": counts.false_share, "outliers_labelled": truth.slow_explained(judged),
    }  # fmt: skip


def by_sensor(judged: Sequence[Judged]) -> dict[str, float | None]:
    """What was labelled by counters and what by the canary alone, and how much slower the latter's samples really were.

    A counter's label on a quiet machine is a false one. A canary's may be true, since nobody knows what a host does: it is false
    when the samples it points at are no slower than the others.
    """
    counted, outside, times = [], [], []
    for item in judged:
        if item.flags is None:
            continue
        begin = item.block.discarded
        sung = np.zeros(len(item.flags), bool) if item.outside is None else item.outside
        # Where both told, the counter is enough.
        counted.append((item.flags & ~sung)[begin:])
        outside.append(sung[begin:])
        times.append(item.observed)
    if not times:
        return {"false_share": None, "canary_share": None, "canary_slower": None, "canary_right": None}
    counter, canary, seconds = (np.concatenate(parts) for parts in (counted, outside, times))
    free = seconds[~(counter | canary)]
    found: dict[str, float | None] = {"false_share": float(counter.mean()), "canary_share": float(canary.mean())}
    told = seconds[canary]
    usual = float(np.median(free)) if len(free) else None
    found["canary_slower"] = float(np.median(told)) / usual - 1 if usual and len(told) else None
    found["canary_right"] = float(np.mean(told > 1.05 * usual)) if usual and len(told) else None
    return found


def spread(judged: Sequence[Judged], p: float = 0.99) -> dict[str, Any]:
    """Percentile `p` of each process, raw and with interference excluded: median over processes and coefficient of variation."""
    found: dict[str, Any] = {}
    for name in ("observed", "clean"):
        by_process: dict[int, list[np.ndarray[Any, np.dtype[np.float64]]]] = {}
        for item in judged:
            by_process.setdefault(item.block.replicate, []).append(getattr(item, name))
        pooled = [np.concatenate(samples) for samples in by_process.values()]
        values = np.array([np.quantile(samples, p) for samples in pooled if len(samples)])
        found[name] = {
            "processes": len(values),
            "median_s": float(np.median(values)) if len(values) else None,
            "cv": float(values.std(ddof=1) / values.mean()) if len(values) > 1 else None,
        }
    return found


def moved(under: Mapping[str, Any], quiet: Mapping[str, Any]) -> dict[str, float | None]:
    """How far the percentile is from that of the quiet machine (interference excluded there): raw and clean, as a share."""
    base = quiet["clean"]["median_s"]
    return {
        name: None if not base or under[name]["median_s"] is None else under[name]["median_s"] / base - 1
        for name in ("observed", "clean")
    }
