"""What `causes` judges: plain frozen records of the model files, of what the runtimes ran, and of the machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from backends.base import OpTime, SessionFacts
from profiler.study import Study

Stored = Literal["float", "f16", "f8", "qdq", "activations", "weights", "dynamic", "weight-only", "operator"]
"""How a file holds an op with weights: float; float16; float8 weights as Q/DQ; int8 weights and activations as Q/DQ; Q/DQ
around float weights; int8 weights under float activations; ConvInteger and its kin; MatMulNBits; QLinearConv and its kin."""


@dataclass(frozen=True)
class Layer:
    """One op of a model file that multiplies by stored weights."""

    name: str
    op_type: str
    stored: Stored
    weights: int
    """Number of weights."""
    weight_bytes: int
    macs: int | None
    """Multiply-accumulates in one inference of the batch; None where shapes stay unknown."""
    in_channels: int
    out_channels: int
    group: int = 1
    weakest_levels: int | None = None
    """With one scale for all output channels: the largest |q| in the channel that uses the fewest int8 levels, of 127."""


@dataclass(frozen=True)
class FileFacts:
    """What stands in a model file, whatever a runtime makes of it."""

    op_counts: Mapping[str, int]
    layers: tuple[Layer, ...]
    light: Mapping[str, int]
    """Other ops that stand between DequantizeLinear and QuantizeLinear and do not merely carry int8 through, by type."""
    nodes: frozenset[str] = frozenset()
    """Names of all nodes, to find executed ops again."""


@dataclass(frozen=True)
class Op:
    """An executed op: its time without the profiler's share, and the layer of the unmodified model that it belongs to."""

    time: OpTime
    duration_s: float
    layer: str | None


@dataclass(frozen=True)
class Side:
    """One of the two cases, as it was seen."""

    case: str
    variant: str
    backend: str
    batch: int
    threads: int
    wall_s: tuple[float, ...]
    """Median time of an inference without the profiler, in each go; the two sides' goes took turns."""
    ops: tuple[Op, ...] | None
    ops_reason: str | None
    facts: SessionFacts | None
    """None when the case could not be loaded."""
    file: FileFacts
    changed: bool = True
    equal_to: str | None = None
    notes: tuple[str, ...] = ()
    options: Mapping[str, str] = field(default_factory=dict)
    """Load options of backend and variant together."""


@dataclass(frozen=True)
class Machine:
    """What the worker saw of its processor; see `profiler.measure.realised.Cores`."""

    isa: tuple[str, ...]
    usable_cores: int
    switches: Mapping[str, str]
    cache_bytes: int | None
    bandwidth_bytes_per_s: float | None


@dataclass(frozen=True)
class Counterfactual:
    """The variant measured again with one thing changed: what it takes otherwise is then known and not estimated."""

    change: Literal["isa", "threads"]
    text: str
    """What was changed, `ONEDNN_MAX_CPU_ISA=DEFAULT`, `threads 2`."""
    wall_s: tuple[float, ...]
    """Without the cause, in goes that took turns with those of `beside_s`."""
    beside_s: tuple[float, ...]
    """As it was asked for, in the same goes."""


@dataclass(frozen=True)
class Evidence:
    """Everything that the ranking may use."""

    model: str
    data: str | None
    variant: Side
    reference: Side
    machine: Machine | None
    accuracy_change: float | None
    """Against the reference on the same samples, a proportion; negative is worse. None where not measured."""
    failure: tuple[str, str] | None = None
    """Kind and words of the failure, when the variant never ran."""
    counterfactuals: tuple[Counterfactual, ...] = ()
    notes: tuple[str, ...] = ()
    study: Study | None = None
    """What the run was asked: commands that go on from it ask the same of everything that they do not change."""
    run: str = "latest"
    """The run's id."""
    failed: Mapping[str, str] = field(default_factory=dict)
    """Variants that could not be made in this run, or did not run on this backend: why, by variant."""


def without_overhead(ops: Sequence[OpTime], wall_s: float) -> tuple[float, ...]:
    """Durations of ops that fit into an inference of `wall_s` seconds without the profiler.

    A profiler adds about the same to each op that it times. Where the sum is more than the whole inference takes, an equal share
    per call is taken off, never below nothing; where it is not, durations stay as they are. Pure.
    """
    left = [op.duration_s for op in ops]
    for _ in range(len(ops) + 1):
        excess = sum(left) - wall_s
        calls = sum(op.calls for op, seconds in zip(ops, left, strict=True) if seconds > 0)
        if excess <= wall_s * 1e-6 or calls <= 0:
            break
        share = excess / calls
        left = [max(0.0, seconds - share * op.calls) for op, seconds in zip(ops, left, strict=True)]
    return tuple(left)


def merged_goes(goes: Sequence[Sequence[OpTime]]) -> tuple[OpTime, ...]:
    """One op list from several profiles of one session: the median duration of each op over the profiles that have it."""
    found: dict[str, list[OpTime]] = {}
    for ops in goes:
        for op in ops:
            found.setdefault(op.name, []).append(op)
    merged = []
    for same in found.values():
        ordered = sorted(op.duration_s for op in same)
        middle = len(ordered) // 2
        median = ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
        merged.append(replace(same[0], duration_s=median))
    return tuple(merged)
