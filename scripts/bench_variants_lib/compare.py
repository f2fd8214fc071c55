"""From a run to who wins. Pure functions of an Analysis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from profiler.analysis import Analysis, CaseResult
from profiler.frontier import hypervolume_2d
from profiler.latency import judged_ratio
from profiler.records import REFERENCE_VARIANT, Estimate, NotMeasured
from profiler.stats.ratios import compare_verdict
from scripts.bench_variants_lib.candidates import PLAIN

Side = Literal["ours", "peer", "both"]

LIMIT = 0.01
"""Largest paired drop, as a proportion, of what may be called the best."""
CORNER = (1.0, 0.05)
"""Reference point of the hypervolume: as slow as the float model on ONNX Runtime, or five points worse. Nothing beyond counts."""


@dataclass(frozen=True)
class Row:
    """One case: what stands in the table."""

    key: str
    variant: str
    """Text of ours, label of a peer."""
    backend: str
    side: Side
    ratio: tuple[float, float | None, float | None] | None
    """p50 time / that of fp32 on ort, with its 95 % interval; below 1 is faster."""
    drop: tuple[float, float | None, float | None] | None
    """Metric lost against fp32 on the same rows, as a proportion, with its 95 % interval; negative is a gain."""
    size_bytes: int | None
    why: str | None
    """Why figures are missing."""


@dataclass(frozen=True)
class Outcome:
    """One model's summary."""

    ours: Row | None
    peer: Row | None
    """The fastest of each side whose drop is at most `LIMIT`."""
    ratio: tuple[float, float | None, float | None] | None
    """Time of ours / time of theirs, in pairs of blocks; None when one is missing or both are the same case."""
    word: str
    """`faster`, `as fast`, `slower`, `undecided`, `the same case`, `only ours`, `only theirs`, `neither`."""
    volume: tuple[float, float]
    """Hypervolume of ours and of theirs, gains of accuracy counted as none: a better metric after quantization is luck."""
    volume_raw: tuple[float, float]
    """The same with gains."""


def rows(analysis: Analysis, labels: Mapping[str, str]) -> tuple[Row, ...]:
    """All cases but the skipped ones. `labels` maps the texts of external variants to their labels."""
    return tuple(_row(case, labels) for case in analysis.cases if case.status != "skipped")


def outcome(analysis: Analysis, table: Sequence[Row]) -> Outcome:
    """Who has the fastest case at the limit, by how much, and who covers more of latency × accuracy."""
    ours, peer = (best(table, side) for side in ("ours", "peer"))
    ratio, word = _compared(analysis, ours, peer)
    return Outcome(
        ours, peer, ratio, word,
        (volume(table, "ours"), volume(table, "peer")), (volume(table, "ours", raw=True), volume(table, "peer", raw=True)),
    )  # fmt: skip


def best(table: Sequence[Row], side: str, limit: float = LIMIT) -> Row | None:
    """The fastest of a side whose estimated drop is within the limit; what both sides have counts for both."""
    fitting = [row for row in _of(table, side) if row.ratio and row.drop and row.drop[0] <= limit]
    return min(fitting, key=lambda row: row.ratio[0] if row.ratio else np.inf, default=None)


def volume(table: Sequence[Row], side: str, *, raw: bool = False) -> float:
    """Area between a side's cases and `CORNER`, as a share of the rectangle from a time of 0 at no drop to it."""
    points = [
        (row.ratio[0], row.drop[0] if raw else max(0.0, row.drop[0]))
        for row in _of(table, side)
        if row.ratio and row.drop
    ]
    if not points:
        return 0.0
    return hypervolume_2d(np.array(points, np.float64), CORNER) / (CORNER[0] * CORNER[1])


def _of(table: Sequence[Row], side: str) -> list[Row]:
    return [row for row in table if row.side in (side, "both")]


def _compared(
    analysis: Analysis, ours: Row | None, peer: Row | None
) -> tuple[tuple[float, float | None, float | None] | None, str]:
    if ours is None or peer is None:
        return None, "neither" if ours is peer else "only theirs" if ours is None else "only ours"
    if ours.key == peer.key:
        return None, "the same case"
    found = judged_ratio(analysis.judged[ours.key], analysis.judged[peer.key])
    if found is None:
        return None, "undecided"
    verdict = compare_verdict(found)
    word = {"equivalent": "as fast", "inconclusive": "undecided"}.get(verdict) or (
        "faster" if found.value < 1 else "slower"
    )
    return (found.value, found.low, found.high), word


def _row(case: CaseResult, labels: Mapping[str, str]) -> Row:
    text = case.case.variant
    missing = [figure.reason for figure in (case.time_ratio, case.accuracy_change) if isinstance(figure, NotMeasured)]
    why = case.failure.message if case.failure is not None else (missing[0] if missing else None)
    size = case.size_bytes
    plain = text == REFERENCE_VARIANT or text in PLAIN
    return Row(
        key=case.key,
        variant=labels.get(text, text),
        backend=case.case.backend,
        side="both" if plain else "peer" if text in labels else "ours",
        ratio=_three(case.time_ratio),
        drop=_lost(case.accuracy_change),
        size_bytes=int(size.value) if isinstance(size, Estimate) else None,
        why=None if why is None else " ".join(why.split()),
    )


def _three(figure: Any) -> tuple[float, float | None, float | None] | None:
    return (figure.value, figure.low, figure.high) if isinstance(figure, Estimate) else None


def _lost(figure: Any) -> tuple[float, float | None, float | None] | None:
    """A change turned round: what was lost."""
    if not isinstance(figure, Estimate):
        return None
    low, high = (None if bound is None else -bound for bound in (figure.high, figure.low))
    return (-figure.value, low, high)
