"""Causes that lie in the machine, or in how model and machine meet: instruction sets, memory, threads, sizes. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from statistics import median

from profiler.explain.cause import (
    WEIGHTED,
    Cause,
    int8_peak,
    is_int8,
    kinds_of,
    ops_of,
    profile_command,
    reference_seconds,
    seconds_of,
    shown,
    stored_as,
    wall_of,
)
from profiler.explain.evidence import Counterfactual, Evidence, Layer

CONTENDED_SHARE = 0.1
"""Of the time with more threads than cores: a loss from which on nothing else can be judged before that is put right."""
SLOW_CORE_MACS_PER_S = 5e9
"""Multiply-accumulates per second that any core with SIMD exceeds in float32 (a 1.2 GHz core with 4 lanes does 4.8e9)."""


_LEVELS: tuple[tuple[str, frozenset[str]], ...] = (
    ("amx", frozenset({"amx_tile"})),
    ("avx512", frozenset({"avx512f"})),
    ("avx2", frozenset({"avx2"})),
    ("avx", frozenset({"avx"})),
    ("sse41", frozenset({"sse4_2"})),
)
"""Instruction sets in kernels' names, best first, and the processor's flag for each."""


def kernel_isa(kernel: str | None) -> str | None:
    """Instruction set in the name of an OpenVINO kernel (`brgconv_avx512_amx_I8` → amx); None when the name has none."""
    parts = (kernel or "").lower().split("_")
    return next((level for level, _ in _LEVELS if level in parts), None)


_ISA_SWITCHES = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")


def isa_limited(evidence: Evidence) -> Iterator[Cause]:
    """Kernels for an older instruction set than the processor has, or a processor without int8 products."""
    side, machine = evidence.variant, evidence.machine
    if machine is None:
        return
    order = [level for level, _ in _LEVELS]
    best = next((level for level, flags in _LEVELS[1:] if flags <= set(machine.isa)), None)
    kernels = Counter(
        level for op in ops_of(side) if WEIGHTED.search(op.time.op_type) and (level := kernel_isa(op.time.kernel))
    )
    below = [level for level in kernels if best is not None and order.index(level) > order.index(best)]
    switches = {name: machine.switches[name] for name in _ISA_SWITCHES if name in machine.switches}
    if below and (switches or sum(kernels[level] for level in below) > sum(kernels.values()) / 2):
        lost, how = _otherwise(evidence, "isa", "not measured: nothing was found that could be switched back")
        asked = [f"{name}={value} is set" for name, value in switches.items()]
        yield Cause(
            "isa-limited", f"kernels for {', '.join(below)} ran, this processor has {best}", "speed", "fact", lost, how,
            (*asked, "ops with weights by kernel: " + ", ".join(f"{count} {level}" for level, count in kernels.items()),
             f"the processor: {', '.join(machine.isa)}"),
            tuple(f"unset {name}" for name in switches)
            or ("a container or virtual machine may hide instruction sets from the runtime: `edgeprof doctor`",),
            measured=lost is not None,
        )  # fmt: skip
    yield from _no_dot_product(evidence)


def _no_dot_product(evidence: Evidence) -> Iterator[Cause]:
    machine = evidence.machine
    integer = [op for op in ops_of(evidence.variant) if is_int8(op) and WEIGHTED.search(op.time.op_type)]
    if machine is None or not machine.isa or not integer or int8_peak(machine.isa) >= 4:
        return
    peak = int8_peak(machine.isa)
    yield Cause(
        "isa-without-dot-product", "this processor has no int8 dot product (VNNI, dotprod, i8mm)", "speed", "fact",
        seconds_of(integer) * (1 - peak / 4),
        "int8 ops, were they as fast as with VNNI or dotprod: 4 products per lane and instruction",
        (f"the processor: {', '.join(machine.isa)}", f"int8 gains at most a factor of {peak:.2g} here, 4 with a dot product",
         f"int8 ops with weights: {shown(seconds_of(integer))}"),
        ("another machine: Intel from Cascade Lake or Alder Lake on, AMD from Zen 4 on, Arm from Cortex-A55/A76 on have it",
         f"7-bit weights, against saturated sums: {profile_command(evidence, 'int8-static{reduce_range=true}')}",
         "onnxruntime: session.x64quantprecision=1 trades speed for exact U8S8 sums on such processors"),
    )  # fmt: skip


def _otherwise(evidence: Evidence, change: str, missing: str) -> tuple[float | None, str]:
    """Time lost against the variant measured again without the cause."""
    found: Counterfactual | None = next((item for item in evidence.counterfactuals if item.change == change), None)
    if found is None:
        return None, missing
    lost = median(mine - other for mine, other in zip(found.beside_s, found.wall_s, strict=True))
    text = f"{shown(median(found.wall_s))} against {shown(median(found.beside_s))}"
    return max(0.0, lost), f"measured again with {found.text}, in turns with what was asked for: {text}"


def provider_fallback(evidence: Evidence) -> Iterator[Cause]:
    """Ops that ran elsewhere than on the device that was asked for."""
    side = evidence.variant
    facts = side.facts
    if facts is None or facts.provider.startswith("CPU"):
        return
    counts = {
        key.removeprefix("ops on "): int(value) for key, value in facts.details.items() if key.startswith("ops on ")
    }
    elsewhere = {name: count for name, count in counts.items() if name != facts.provider and count}
    if not elsewhere:
        return
    ran = [op for op in ops_of(side) if op.time.provider in elsewhere]
    yield Cause(
        "provider-fallback", f"{sum(elsewhere.values())} of {sum(counts.values())} ops ran elsewhere than on {facts.provider}",
        "speed", "fact", seconds_of(ran) if ran else None,
        "time of these ops; copies to and from the device come on top" if ran else "the runtime tells no times for these ops",
        tuple(f"{count} ops on {name}" for name, count in counts.items()),
        (f"make a fallback an error: --backends '{side.backend.partition('{')[0]}{{cpu_ops=refuse}}'",
         ("quantize in a form that the device has kernels for: TensorRT takes symmetric Q/DQ "
         "(int8-static{quantize_bias=false,symmetric_activations=true}), not QLinear or ConvInteger ops")),
    )  # fmt: skip


def tiny_model(evidence: Evidence) -> Iterator[Cause]:
    """A model whose arithmetic takes next to no time."""
    side, wall = evidence.variant, wall_of(evidence.variant)
    macs = [layer.macs for layer in evidence.reference.file.layers]
    if wall is None or not macs or any(count is None for count in macs):
        return
    total = sum(count for count in macs if count is not None)
    arithmetic = total / SLOW_CORE_MACS_PER_S
    if arithmetic > 0.1 * wall:
        return
    inside = seconds_of(ops_of(side)) if side.ops else None
    heavy = seconds_of(
        op for op in ops_of(side) if op.time.precision == "conversion" or op.time.op_type == "ConvInteger"
    )
    if heavy > wall / 2:
        return
    yield Cause(
        "tiny-model", "the model is so small that fixed costs per inference and per op are nearly all of its time", "speed",
        "fact", wall - arithmetic, f"everything beyond its {total:,} multiplications at {SLOW_CORE_MACS_PER_S:.0e} a second",
        (f"{total:,} multiply-accumulates take at most {shown(arithmetic)} of {shown(wall)}",
         *(() if inside is None else (f"{shown(max(0.0, wall - inside))} pass outside of all ops",)),
         *(() if side.ops is None else (f"{len(side.ops)} ops are started",))),
        (f"several rows in one inference: {profile_command(evidence, side.variant, batches=(1, 8, 32))}",
         "fewer and larger ops (fuse, prune layers); no precision makes starting an op cheaper"),
    )  # fmt: skip


def weight_only(evidence: Evidence) -> Iterator[Cause]:
    """Weight-only quantization of ops that do not wait for their weights."""
    side, machine = evidence.variant, evidence.machine
    layers = stored_as(side, "weight-only", "weights")
    mine = [op for op in ops_of(side) if op.layer in layers]
    before = reference_seconds(evidence, set(layers))
    if not mine or before is None or machine is None:
        return
    full = {layer.name: layer for layer in evidence.reference.file.layers if layer.name in layers}
    size = sum(layer.weight_bytes for layer in full.values())
    reuse = [layer.macs / layer.weights for layer in full.values() if layer.macs and layer.weights]
    cached = machine.cache_bytes is not None and size <= machine.cache_bytes
    lost = seconds_of(mine) - before
    if lost <= 0 or not (cached or (reuse and median(reuse) >= _COMPUTE_BOUND_REUSE)):
        return
    told = []
    if cached:
        told.append(f"their float weights, {size:,} bytes, fit into a cache of {machine.cache_bytes:,} bytes")
    if reuse:
        told.append(f"each weight is used {median(reuse):.3g} times per inference, so arithmetic decides")
    yield Cause(
        "not-memory-bound", "weight-only quantization saves memory traffic, which is not what these ops wait for", "speed",
        "estimate", lost, "time of the weight-only ops less what the reference takes for the same layers",
        (*told, f"weight-only: {shown(seconds_of(mine))}, reference: {shown(before)}"),
        (f"int8 arithmetic instead: {profile_command(evidence, 'int8-dynamic,int8-static{per_channel=true}')}",),
    )  # fmt: skip


_COMPUTE_BOUND_REUSE = 16
"""Uses of a weight per inference from which on loading it is cheap beside multiplying by it (roofline: some 10 MAC per byte)."""


def memory_bound(evidence: Evidence) -> Iterator[Cause]:
    """int8 layers that take as long as their bytes take from memory: wider arithmetic does not help."""
    side, machine = evidence.variant, evidence.machine
    if machine is None or not machine.bandwidth_bytes_per_s or machine.cache_bytes is None:
        return
    layers = {layer.name: layer for layer in side.file.layers}
    if sum(layer.weight_bytes for layer in layers.values()) <= machine.cache_bytes:
        return
    bound = [
        op for op in ops_of(side)
        if op.layer in layers and layers[op.layer].weight_bytes / machine.bandwidth_bytes_per_s >= op.duration_s / 2 > 0
    ]  # fmt: skip
    if not bound:
        return
    moved = sum(layers[op.layer].weight_bytes for op in bound if op.layer)
    yield Cause(
        "memory-bound", f"{len(bound)} ops wait for their weights, not for arithmetic", "speed", "estimate",
        seconds_of(bound) - moved / machine.bandwidth_bytes_per_s if bound else None,
        "their time beyond reading the weights once at the measured bandwidth",
        ((f"their weights are {moved:,} bytes, {shown(moved / machine.bandwidth_bytes_per_s)} at "
         f"{machine.bandwidth_bytes_per_s / 1e9:.1f} GB/s; they take {shown(seconds_of(bound))}"),
         f"all weights are larger than the cache of {machine.cache_bytes:,} bytes"),
        (f"fewer bytes per weight: {profile_command(evidence, 'int4-weight')}", "several rows share one reading: --batch 1,4,16"),
    )  # fmt: skip


def thread_contention(evidence: Evidence) -> Iterator[Cause]:
    """More threads than cores."""
    side, machine = evidence.variant, evidence.machine
    if machine is None or side.threads <= machine.usable_cores:
        return
    lost, how = _otherwise(evidence, "threads", "not measured with fewer threads")
    yield Cause(
        "thread-contention", f"{side.threads} threads share {machine.usable_cores} cores", "speed", "fact", lost, how,
        (f"{side.threads} threads were asked for, {machine.usable_cores} cores may be used (affinity, container quota)",),
        (profile_command(evidence, side.variant, threads=(machine.usable_cores,)),),
        decisive=lost is not None and lost >= CONTENDED_SHARE * (wall_of(side) or 0.0), measured=lost is not None,
    )  # fmt: skip


def reference_kernels(evidence: Evidence) -> Iterator[Cause]:
    """Ops without an optimised kernel in this precision."""
    slow = [op for op in ops_of(evidence.variant) if "ref" in (op.time.kernel or "").lower().split("_")]
    also = {op.time.op_type for op in ops_of(evidence.reference) if "ref" in (op.time.kernel or "").lower().split("_")}
    # How a plain conversion is done says nothing of a missing kernel.
    slow = [op for op in slow if op.time.op_type not in also and op.time.precision != "conversion"]
    if not slow:
        return
    yield Cause(
        "reference-kernels", f"{len(slow)} ops fell back to the runtime's plain C++ kernels", "speed", "estimate",
        seconds_of(slow),
        "their whole time: an upper bound", (f"{kinds_of(slow)}: {shown(seconds_of(slow))}",),
        ("keep these op types in float: leave them out of op_types", "a newer runtime may have a fast kernel for them"),
    )  # fmt: skip


def small_shapes(evidence: Evidence) -> Iterator[Cause]:
    """int8 layers that gain less than the others, and whose channels do not fill the lanes."""
    machine = evidence.machine
    weak = badly_filled(evidence)
    if machine is None or not weak:
        return
    gains = _gains(evidence)
    full = [gain for name, gain in gains.items() if name not in weak]
    seconds = seconds_of(op for op in ops_of(evidence.variant) if op.layer in weak)
    before = reference_seconds(evidence, weak) or 0.0
    lanes, usual = _lanes(machine.isa), median(full)
    first = next(
        layer for layer in evidence.reference.file.layers if layer.name == min(weak, key=lambda name: gains[name])
    )
    shape = f"{first.in_channels} → {first.out_channels} channels" + (f" in {first.group} groups" * (first.group > 1))
    yield Cause(
        "small-shapes", f"{len(weak)} of {len(gains)} int8 layers have channels that do not fill the {lanes} SIMD lanes", "speed",
        "estimate", max(0.0, seconds - before / usual), "their time, were they as much faster in int8 as the other layers",
        (f"the worst, {first.name}: {shape}, {gains[first.name]:.2f}× as fast as the reference; full layers {usual:.2f}×",),
        (f"keep the worst in float: the option skip={first.name} of int8-static",
         f"where the channels are the model's own to choose: multiples of {lanes} (pruning can cut to them)"),
    )  # fmt: skip


def badly_filled(evidence: Evidence) -> set[str]:
    """int8 layers whose channels do not fill the lanes, and that gain less than the others do; none without others."""
    if evidence.machine is None:
        return set()
    lanes, gains = _lanes(evidence.machine.isa), _gains(evidence)
    narrow = {layer.name for layer in evidence.reference.file.layers if _fills_badly(layer, lanes)} & set(gains)
    full = [gain for name, gain in gains.items() if name not in narrow]
    return {name for name in narrow if full and gains[name] < median(full)}


def _lanes(isa: tuple[str, ...]) -> int:
    return 16 if {"avx512_vnni", "amx_int8"} & set(isa) else 8


def _gains(evidence: Evidence) -> dict[str, float]:
    """Times as fast as in the reference, by int8 layer."""
    gains = {}
    for layer in evidence.reference.file.layers:
        mine = seconds_of(op for op in ops_of(evidence.variant) if op.layer == layer.name and is_int8(op))
        before = reference_seconds(evidence, {layer.name})
        if mine > 0 and before:
            gains[layer.name] = before / mine
    return gains


def _fills_badly(layer: Layer, lanes: int) -> bool:
    # In a depthwise convolution each channel has one input of its own: there is nothing to sum over in an int8 dot product.
    per_group = layer.in_channels // max(1, layer.group)
    return per_group < 4 or layer.out_channels % lanes != 0
