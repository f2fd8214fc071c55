"""What every record has to be, checked before it is stored and again when it is read: by the same rules, so that whatever was
stored can be read, and whatever became something else since is noticed.

All numbers are finite and of a size that a measurement has; arrays are numeric, in the shapes that `profiler/records.py` names,
and fit each other. Types of single fields are the store's business (pydantic). Arrays are looked at whole, never element by
element.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from profiler.records import (
    ArtifactRecord,
    BlockRecord,
    EnergyRecord,
    FailureRecord,
    LoadRecord,
    ProcessRecord,
    QualityRecord,
    SelftestRecord,
    WarmupRecord,
)

LARGEST = 1e18
"""Of any number in any record: beyond it, sums and squares of a few of them leave the range of floats."""
LONGEST_S = 1e9
"""Of any duration: 31 years."""
_DEEPEST = 20

Record = (
    ArtifactRecord
    | ProcessRecord
    | BlockRecord
    | QualityRecord
    | FailureRecord
    | EnergyRecord
    | LoadRecord
    | SelftestRecord
)


def check(record: Record) -> None:
    """Raise ValueError, with what is wrong in words, unless the record is one that a measurement can have made."""
    _check_numbers(type(record).__name__, record, 0)
    _CHECKS[type(record)](record)


def _check_numbers(name: str, value: Any, depth: int) -> None:
    """Every plain number below `value` is finite and of a possible size. Arrays have checks of their own."""
    if depth > _DEEPEST:
        raise ValueError(f"{name[:100]} is nested deeper than {_DEEPEST}")
    if isinstance(value, float):
        if not abs(value) <= LARGEST:
            raise ValueError(f"{name[:100]} is {value}, at most {LARGEST:g} is a figure")
    elif isinstance(value, int):
        if abs(value) > LARGEST:
            raise ValueError(f"{name[:100]} has {len(str(value))} digits, at most {LARGEST:g} is a figure")
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            _check_numbers(str(key), inner, depth + 1)
    elif isinstance(value, (tuple, list)):
        for inner in value:
            _check_numbers(name, inner, depth + 1)
    elif is_dataclass(value):
        for field in fields(value):
            _check_numbers(field.name, getattr(value, field.name), depth + 1)


def _not_negative(record: Record, *names: str) -> None:
    for name in names:
        value = getattr(record, name)
        if value is not None and not 0 <= value <= (LONGEST_S if name.endswith("_s") else LARGEST):
            raise ValueError(f"{name} is {value:g}, which cannot be")


def _column(name: str, array: NDArray[Any], kinds: str, *, length: int | None = None, nan: bool = False) -> None:
    if array.ndim != 1 or array.dtype.kind not in kinds:
        raise ValueError(f"{name} has {array.dtype} {array.shape}, one number after the other is expected")
    if length is not None and len(array) != length:
        raise ValueError(f"{name} has {len(array)} values, {length} are expected")
    if array.dtype.kind == "f" and len(array):
        low, high = (np.nanmin, np.nanmax) if nan and not np.isnan(array).all() else (np.min, np.max)
        if nan and np.isnan(array).all():
            return
        if not (low(array) >= -LARGEST and high(array) <= LARGEST):
            raise ValueError(f"{name} holds values that are no figures")


def _check_artifact(record: ArtifactRecord) -> None:
    _not_negative(record, "size_bytes", "compressed_bytes", "seconds")


def _check_process(record: ProcessRecord) -> None:
    _not_negative(
        record, "replicate", "attempt", "group", "import_s", "load_s", "first_inference_s", "rss_before_load_bytes",
        "peak_rss_bytes", "parked_cpu_s",
    )  # fmt: skip
    if record.warmup is not None:
        _check_warmup(record.warmup)


def _check_warmup(record: WarmupRecord) -> None:
    _check_durations("warm-up samples", record.samples_s)
    if not 0 <= record.cut <= len(record.samples_s):
        raise ValueError(f"the steady state begins at sample {record.cut} of {len(record.samples_s)}")
    if record.time_to_steady_s is not None and not 0 <= record.time_to_steady_s <= LONGEST_S:
        raise ValueError(f"time_to_steady_s is {record.time_to_steady_s:g}, which cannot be")


def _check_durations(name: str, samples: NDArray[Any]) -> None:
    if samples.ndim != 1 or samples.dtype.kind != "f" or not len(samples):
        raise ValueError(
            f"{name} must be positive and finite, one after the other; got {samples.dtype} {samples.shape}"
        )
    # A NaN makes both false.
    if not (samples.min() > 0 and samples.max() <= LONGEST_S):
        raise ValueError(f"{name} must be positive and finite; they go from {samples.min():g} to {samples.max():g} s")


def _check_block(record: BlockRecord) -> None:
    samples = record.samples_s
    _check_durations("samples", samples)
    if not 0 <= record.discarded < len(samples):
        raise ValueError(f"{record.discarded} of {len(samples)} samples cannot be discarded")
    counts = (record.batch, record.inferences_per_sample, record.label_every)
    if min(counts) < 1:
        raise ValueError(f"batch, inferences per sample and label_every are at least 1, got {counts}")
    _not_negative(record, "replicate", "attempt", "group", "round", "position", "cpu_s", "wall_s")
    expected = -(-len(samples) // record.label_every)
    for name in ("window_s", "window_cpu_s", "window_waited_s"):
        found = getattr(record, name)
        if found is not None:
            _column(name, found, "f", length=expected if len(found) else 0)
    if record.window_s is not None and len(record.window_s):
        _check_durations("windows", record.window_s)
    if (record.canary_s is None) != (record.canary_at is None):
        raise ValueError("the canary's songs and places belong together")
    if record.canary_s is not None and record.canary_at is not None:
        _column("canary_s", record.canary_s, "f")
        _column("canary_at", record.canary_at, "iu", length=len(record.canary_s))
        places = record.canary_at
        if len(places) and (places.min() < 0 or places.max() > len(samples)):
            raise ValueError(f"the canary sang at other places than among {len(samples)} samples")


def _check_quality(record: QualityRecord) -> None:
    _not_negative(record, "seconds")
    rows = record.per_sample
    if rows.ndim not in (1, 2) or rows.dtype.kind != "f":
        raise ValueError(f"per_sample has {rows.dtype} {rows.shape}, a row for each sample is expected")
    _column("agreement", record.agreement, "f", length=len(rows))
    if len(rows) and not (record.agreement.min() >= -1.000001 and record.agreement.max() <= 1.000001):
        raise ValueError("agreement lies between -1 and 1")
    if record.predictions is not None:
        _column("predictions", record.predictions, "iu", length=len(rows))


def _check_energy(record: EnergyRecord) -> None:
    _not_negative(record, "window", "inferences", "wall_s", "readings")
    if record.batch < 1:
        raise ValueError(f"batch is at least 1, got {record.batch}")


def _check_load(record: LoadRecord) -> None:
    _not_negative(record, "run", "cpu_s", "wall_s", "rate_per_s")
    count = len(record.sent_s) if record.sent_s.ndim else 0
    # What had not happened when the run ended is NaN.
    for name in ("sent_s", "started_s", "completed_s"):
        _column(name, getattr(record, name), "f", length=count, nan=True)
    _column("batch_size", record.batch_size, "iu", length=count)
    if record.scheduled_s is not None:
        _column("scheduled_s", record.scheduled_s, "f", length=count)


def _check_failure(record: FailureRecord) -> None:
    _not_negative(record, "replicate", "needs_more_than_bytes")


def _check_selftest(record: SelftestRecord) -> None:
    del record


_CHECKS: Mapping[type, Callable[[Any], None]] = {
    ArtifactRecord: _check_artifact,
    ProcessRecord: _check_process,
    BlockRecord: _check_block,
    QualityRecord: _check_quality,
    FailureRecord: _check_failure,
    EnergyRecord: _check_energy,
    LoadRecord: _check_load,
    SelftestRecord: _check_selftest,
}
