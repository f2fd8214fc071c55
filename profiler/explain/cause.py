"""What a cause is, and the sums over executed ops that rules are made of. Pure."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Literal

from backends.spec import split_list
from profiler.explain.evidence import Evidence, Layer, Op, Side
from profiler.repeat import study_command
from profiler.study import make_study

WEIGHTED = re.compile(r"Conv|MatMul|Gemm|^FullyConnected|^MatMulNBits$|Attention|LSTM|GRU")
"""Executed ops that multiply, by the names of onnxruntime and OpenVINO."""
Certainty = Literal["fact", "estimate"]
"""`fact`: what is claimed was seen; `estimate`: it follows from the numbers under an assumption that is told."""
Kind = Literal["speed", "quality"]


@dataclass(frozen=True)
class Cause:
    """One reason, with what shows it and what to try."""

    key: str
    title: str
    kind: Kind
    certainty: Certainty
    lost_s: float | None
    """Seconds per inference that it explains; None where nothing measured tells."""
    lost_how: str
    """How `lost_s` was found, or why it was not."""
    evidence: tuple[str, ...]
    advice: tuple[str, ...]
    decisive: bool = False
    """It makes every other cause pointless until it is gone."""
    measured: bool = False
    """The variant was timed with and without it: it is told even where that made no difference."""


def int8_peak(isa: Iterable[str]) -> float:
    """int8 multiply-accumulates per float32 one, per instruction slot: the most that int8 can gain where arithmetic is the limit.

    From the widths of the instructions: AMX tile products 1024 against 2 × 16 per cycle; VNNI and Arm's dot product 4 bytes per
    32-bit lane; i8mm 8; without them three instructions (vpmaddubsw, vpmaddwd, vpaddd) do 32 against 8 in one fused multiply-add.
    """
    has = set(isa)
    if "amx_int8" in has:
        return 32.0
    if "i8mm" in has:
        return 8.0
    if has & _DOT:
        return 4.0
    return 2.0 if "asimd" in has else 4 / 3


_DOT = {"avx512_vnni", "avx_vnni", "avx_vnni_int8", "asimddp"}


def wall_of(side: Side) -> float | None:
    """Time of an inference: the median over the goes; None when it never ran."""
    return median(side.wall_s) if side.wall_s else None


def ops_of(side: Side) -> tuple[Op, ...]:
    """The executed ops; none when the runtime tells none."""
    return side.ops or ()


def seconds_of(ops: Iterable[Op]) -> float:
    """Their time together."""
    return sum(op.duration_s for op in ops)


def kinds_of(ops: Iterable[Op]) -> str:
    """Their most frequent types, for people."""
    return ", ".join(f"{count} {kind}" for kind, count in Counter(op.time.op_type for op in ops).most_common(6))


def shown(seconds: float) -> str:
    """A duration for people."""
    if seconds < _CLOCK_S:
        return "0 µs"
    return f"{seconds * 1e3:.3g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.3g} µs"


_CLOCK_S = 1e-9
"""Less than clocks tell: what is left of sums of floating-point numbers."""


def is_int8(op: Op) -> bool:
    """Whether it computes in int8."""
    return op.time.precision == "i8"


def reference_seconds(evidence: Evidence, names: set[str]) -> float | None:
    """What the reference spends on these layers; None when its ops cannot be told apart by layer."""
    mine = [op for op in ops_of(evidence.reference) if op.layer in names]
    return seconds_of(mine) if mine else None


def profile_command(
    evidence: Evidence, variants: str, *, batches: tuple[int, ...] = (), threads: tuple[int, ...] = ()
) -> str:
    """The command that would measure `variants` on the same backend and asks the run's study otherwise.

    Variants that failed in this run are left out; where none remains, words say so in place of a command.
    """
    asked = split_list(variants)
    left = tuple(text for text in asked if text not in evidence.failed)
    if not left:
        return f"not here: {asked[0]} failed in this run ({evidence.failed[asked[0]]})"
    study = evidence.study or make_study(model=evidence.model, data=evidence.data)
    changed: dict[str, object] = {"variants": left, "backends": (evidence.variant.backend.partition("{")[0],)}
    changed |= {"batches": batches} if batches else {}
    changed |= {"threads": threads} if threads else {}
    return study_command(study.model_copy(update=changed), place=True)


def counted(counts: Mapping[str, int]) -> str:
    """Counts for people, the largest first."""
    items = sorted(counts.items(), key=lambda item: -item[1])
    return ", ".join(f"{count} {name}" for name, count in items[:8]) or "none"


def extra(evidence: Evidence, types: set[str]) -> float:
    """Time of ops of these types beyond what the reference spends on them."""
    mine, other = (seconds_of(op for op in ops_of(side) if op.time.op_type in types) for side in both(evidence))
    return max(0.0, mine - other)


def both(evidence: Evidence) -> tuple[Side, Side]:
    """The variant, then the reference."""
    return evidence.variant, evidence.reference


def stored_as(side: Side, *how: str) -> dict[str, Layer]:
    """Layers that the file holds in one of these ways, by name."""
    return {layer.name: layer for layer in side.file.layers if layer.stored in how}


def conversion_time(evidence: Evidence) -> float:
    """Time in Q/DQ, casts and reorders beyond what the reference spends on them."""
    mine, other = (
        seconds_of(op for op in ops_of(side) if op.time.precision == "conversion") for side in both(evidence)
    )
    return max(0.0, mine - other)
