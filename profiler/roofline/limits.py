"""The least time that a device's peaks and bandwidth leave for a model: the roofline's floor under its latency. Pure.

A floor may only err downwards. So overlaps are perfect, dense peaks are reached, ops are fused, and nothing is waited for. What a
profile does not know is not filled in: the floor is then lower, or not known, and says so.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Literal

from profiler import units
from profiler.cost.devices import DeviceProfile
from profiler.records import NotMeasured
from profiler.roofline.counting import ModelCounts, OpCount, Precision
from profiler.roofline.rules import WEIGHTED

Bound = Literal["arithmetic", "memory"]

PRECISIONS: tuple[Literal["f32", "f16", "bf16", "i8"], ...] = ("f32", "bf16", "f16", "i8")
"""Those that peaks are known in."""
NAMES = {"f32": "fp32", "f16": "fp16", "bf16": "bf16", "i8": "int8", "f8": "fp8", "other": "other"}
"""As variants call them."""
_KEYS = {"f32": "fp32_tflops", "f16": "fp16_dense_tflops", "bf16": "bf16_dense_tflops", "i8": "int8_dense_tops",
         "f8": "fp8_dense_tflops"}  # fmt: skip


@dataclass(frozen=True)
class Rate:
    """A rate per second from a profile: operations, or bytes."""

    per_s: float
    unverified: tuple[str, ...] = ()
    """Figures behind it that the profile marks as derived, or from memory; and what is derived here."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Floor:
    """The least time of one inference of the batch on a device, in seconds."""

    profile: str
    seconds: float
    """The largest of the bounds that hold in any case: `arithmetic_s`, and `certain_memory_s` where it is known."""
    bound: Bound
    arithmetic_s: float
    """All operations at the peak of what they compute in."""
    certain_memory_s: float | None
    """Weights, inputs and outputs once through memory, less what the caches can hold from one inference to the next. None where
    the profile tells no bandwidth, or no size of the caches."""
    once_s: float | None
    """Weights, inputs and outputs once through memory: under an inference that finds the caches cold, such as the first."""
    streamed_s: float | None
    """Op by op the larger of arithmetic and traffic, added up: when every value between two ops passes through memory. Under what
    a runtime takes that fuses nothing, and no floor for others."""
    counted_share: float
    """Share of the model's nodes that were counted. The others can only add to the floor."""
    unverified: tuple[str, ...] = ()
    """Figures of the profile behind `seconds` that nobody could source; a floor with one is unverified."""
    notes: tuple[str, ...] = ()

    @property
    def cold_s(self) -> float:
        """The floor under an inference with cold caches."""
        return max(self.seconds, self.once_s or 0.0)


def peak(
    profile: DeviceProfile,
    precision: Precision,
    *,
    threads: int | None = None,
    faster: Collection[str] = (),
    sparse: bool = False,
) -> Rate | NotMeasured:
    """Operations per second that the device does at most in `precision`, dense.

    `faster` names precisions that the runtime may use in its place. `sparse`: weights are 2:4 sparse, and the device's factor for
    that counts. On CPUs, `threads` fewer than cores get their share. TF32 counts as fp32, since runtimes use it unasked.
    """
    known: list[tuple[float, str]] = []
    for name in dict.fromkeys((precision, *faster)):
        known += _own(profile, name)
    if not known:
        return NotMeasured(f"{profile.id} has no {NAMES[precision]} peak in its profile")
    best, key = max(known)
    rate, notes = best, []
    unverified = _unverified(profile, [key])
    if key == "tf32":
        unverified = tuple(dict.fromkeys((*_unverified(profile, ["peak.fp16_dense_tflops"]), "TF32 as half of fp16")))
        notes.append("fp32 products may run in TF32: half of the fp16 peak")
    if sparse:
        factor = _sparse_factor(profile)
        if factor is None:
            notes.append("2:4 sparsity brings nothing that the profile knows of")
        else:
            rate *= factor
            unverified = tuple(dict.fromkeys((*unverified, *_unverified(profile, ["peak.int8_sparse_tops"]))))
            notes.append(f"2:4 sparse: {factor:g} × dense")
    share, words = _cores(profile, threads)
    return Rate(rate * share, unverified, (*notes, *words))


def bandwidth(profile: DeviceProfile) -> Rate | NotMeasured:
    """Bytes per second between the compute unit and its memory, at most."""
    found = profile.memory.bandwidth_gbs
    if found is None:
        return NotMeasured(f"{profile.id} has no memory bandwidth in its profile")
    return Rate(found * 1e9, _unverified(profile, ["memory.bandwidth_gbs"]))


def floor(
    counts: ModelCounts,
    profile: DeviceProfile,
    *,
    threads: int | None = None,
    faster: Collection[str] = (),
    sparse: bool = False,
) -> Floor | NotMeasured:
    """The floor under the latency of one inference of `counts.batch` rows, or why there is none. See `peak` for the options.

    Not known when nothing was counted, or when ops that multiply and accumulate compute in what the profile has no peak for.
    Other ops count at the highest peak of the device then: whatever does them is not faster.
    """
    if not any(op.ops for op in counts.ops):
        why = next(iter(counts.uncounted), "its graph has no arithmetic")
        return NotMeasured(f"no operations of the model could be counted: {why}")
    highest = _highest(profile, threads)
    if isinstance(highest, NotMeasured):
        return highest
    rates: dict[tuple[Precision, bool], Rate] = {}
    for op in counts.ops:
        weighted = op.op_type in WEIGHTED
        if not op.ops or (op.precision, weighted) in rates:
            continue
        found = peak(profile, op.precision, threads=threads, faster=faster, sparse=sparse)
        if isinstance(found, NotMeasured):
            if weighted:
                return NotMeasured(f"{found.reason}, and {op.op_type} '{op.name}' computes in it")
            found = highest
        rates[op.precision, weighted] = found
    memory = bandwidth(profile)
    times = [(op, _seconds(op, rates)) for op in counts.ops]
    arithmetic = sum(seconds for _, seconds in times)
    once = streamed = certain = None
    notes = list(dict.fromkeys(note for rate in rates.values() for note in rate.notes))
    if isinstance(memory, Rate):
        once = counts.once_bytes / memory.per_s
        streamed = sum(max(seconds, op.bytes / memory.per_s) for op, seconds in times)
        if profile.memory.cache_mb is not None:
            certain = max(0.0, counts.once_bytes - profile.memory.cache_mb * 1e6) / memory.per_s
        elif once > arithmetic:
            notes.append(
                f"memory is not in the floor: the profile does not tell how much the caches hold, and "
                f"{units.size(counts.once_bytes)} may stay there between inferences; with cold caches it is {units.seconds(once)}"
            )
    else:
        notes.append(f"memory is not in the floor: {memory.reason}")
    if counts.uncounted:
        missed = sum(counts.uncounted.values())
        notes.append(
            f"{missed} of {counts.nodes} nodes are not counted ({', '.join(counts.uncounted)}): they can only add to it"
        )
    bound: Bound = "memory" if certain is not None and certain > arithmetic else "arithmetic"
    if bound == "memory" and isinstance(memory, Rate):
        unverified: Iterable[str] = (*memory.unverified, *_unverified(profile, ["memory.cache_mb"]))
    else:
        unverified = (key for rate in rates.values() for key in rate.unverified)
    return Floor(
        profile=profile.id,
        seconds=max(arithmetic, certain or 0.0),
        bound=bound,
        arithmetic_s=arithmetic,
        certain_memory_s=certain,
        once_s=once,
        streamed_s=streamed,
        counted_share=1 - counts.uncounted_share,
        unverified=tuple(dict.fromkeys(unverified)),
        notes=tuple(notes),
    )


@dataclass(frozen=True)
class Share:
    """One op's part of the model."""

    op: OpCount
    of_ops: float
    of_bytes: float
    bound: Bound | None
    """What limits it on the device when its values pass through memory; None where the profile does not tell both."""


def dominating(
    counts: ModelCounts, profile: DeviceProfile, most: int = 8, *, threads: int | None = None
) -> tuple[Share, ...]:
    """The ops with the largest share of operations or of bytes, largest first."""
    all_ops, all_bytes = max(1, counts.total_ops), max(1, counts.streamed_bytes)
    memory = bandwidth(profile)
    ranked = sorted(counts.ops, key=lambda op: -max(op.ops / all_ops, op.bytes / all_bytes))
    shares = []
    for op in ranked[:most]:
        found = peak(profile, op.precision, threads=threads)
        bound: Bound | None = None
        if isinstance(found, Rate) and isinstance(memory, Rate):
            bound = "arithmetic" if op.ops / found.per_s >= op.bytes / memory.per_s else "memory"
        shares.append(Share(op, op.ops / all_ops, op.bytes / all_bytes, bound))
    return tuple(shares)


def _seconds(op: OpCount, rates: dict[tuple[Precision, bool], Rate]) -> float:
    return op.ops / rates[op.precision, op.op_type in WEIGHTED].per_s if op.ops else 0.0


def _own(profile: DeviceProfile, precision: str) -> list[tuple[float, str]]:
    """`(operations per second, key)` of what computes `precision` on this device."""
    key = _KEYS.get(precision)
    value = getattr(profile.peak, key, None) if key else None
    found = [(value * 1e12, f"peak.{key}")] if value is not None else []
    # NVIDIA's tensor cores have TF32 since they have bf16 (Ampere), at half the rate of fp16 (A100, H100 and Orin white papers).
    half = profile.peak.fp16_dense_tflops
    if precision == "f32" and half is not None and profile.peak.bf16_dense_tflops is not None and _nvidia(profile):
        found.append((half * 0.5e12, "tf32"))
    return found


def _nvidia(profile: DeviceProfile) -> bool:
    return bool(profile.gpu_names) or "nvidia" in profile.name.casefold()


def _highest(profile: DeviceProfile, threads: int | None) -> Rate | NotMeasured:
    known = [
        (rate.per_s, rate) for name in PRECISIONS if isinstance(rate := peak(profile, name, threads=threads), Rate)
    ]
    if not known:
        return NotMeasured(f"{profile.id} has no arithmetic peak in its profile")
    return max(known, key=lambda item: item[0])[1]


def _sparse_factor(profile: DeviceProfile) -> float | None:
    """How much more the device does on 2:4 sparse weights. The headline may sum GPU and DLAs: so must what it is divided by."""
    found = profile.peak
    if found.int8_sparse_tops is None or found.int8_dense_tops is None:
        return None
    return max(1.0, found.int8_sparse_tops / (found.int8_dense_tops + (found.dla_int8_dense_tops or 0.0)))


def _cores(profile: DeviceProfile, threads: int | None) -> tuple[float, tuple[str, ...]]:
    if not profile.peak_is_of_cpu or threads is None:
        return 1.0, ()
    cores = profile.cpu.cores
    if cores is None:
        return 1.0, (
            "the peak of all cores stands for the threads: the profile does not tell how many cores there are",
        )
    if threads >= cores:
        return 1.0, ()
    return threads / cores, (f"{threads} of {cores} cores: that share of the peak",)


def _unverified(profile: DeviceProfile, keys: Iterable[str]) -> tuple[str, ...]:
    return tuple(key for key in keys if key in profile.source.unverified)
