"""Causes that lie in what was made of the model: the recipe, the file, and what the runtime fused of it. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from profiler import advice
from profiler.explain.cause import (
    WEIGHTED,
    Cause,
    conversion_time,
    counted,
    extra,
    int8_peak,
    is_int8,
    ops_of,
    profile_command,
    reference_seconds,
    seconds_of,
    shown,
    stored_as,
)
from profiler.explain.evidence import Evidence, Op, Side

QUANTIZERS = {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "FakeQuantize"}
LARGE_DROP = 0.05
FEW_LEVELS = 8
"""int8 levels of 127: a channel that uses no more than these is known to 1 part in 8 at best."""


def never_ran(evidence: Evidence) -> Cause:
    """The only cause of a case that could not run."""
    kind, words = evidence.failure or ("error", "")
    place = evidence.variant.backend
    if kind in {"mismatch", "unavailable"}:
        return Cause(
            "provider-fallback", f"it never ran on {place}: another provider would have", "speed", "fact", None,
            "nothing ran, so nothing was measured", (words,),
            ("edgeprof backends    (which runtimes and devices work here, and what is missing)",
             f"compare on what is here: {profile_command(evidence, evidence.variant.variant)}"), decisive=True,
        )  # fmt: skip
    title = {
        "unsupported": f"{place} has no kernel for an op of it",
        "out_of_memory": "it ran out of memory",
        "timeout": "it did not answer in time",
    }.get(kind, f"it failed ({kind})")
    return Cause(
        "failed", title, "speed", "fact", None, "nothing ran, so nothing was measured", (words,),
        (f"{advice.of_run('show', evidence.run, evidence.variant.case)}    (the failure in full)",), decisive=True,
    )  # fmt: skip


def nothing_quantized(evidence: Evidence) -> Iterator[Cause]:
    """The recipe changed nothing, so the file is the reference."""
    side = evidence.variant
    if side.equal_to is None and side.changed:
        return
    if side.case == evidence.reference.case or side.variant == evidence.reference.variant:
        return
    if _loads_differently(evidence):
        return
    weighted = [op for op in ops_of(evidence.reference) if WEIGHTED.search(op.time.op_type)]
    peak = int8_peak(evidence.machine.isa) if evidence.machine else None
    most = seconds_of(weighted) * (1 - 1 / peak) if weighted and peak else None
    told = (f"its file is that of {side.equal_to}",) if side.equal_to else ("the recipe changed nothing in the model",)
    yield Cause(
        "nothing-quantized", f"{side.variant} is the model as it was: nothing was quantized", "speed", "fact", most,
        "at most: the time in ops with weights, were they as fast as this processor's int8 instructions allow"
        if most is not None else "no op with weights was seen to run, so there is nothing to gain",
        (*told, f"ops of the file: {counted(side.file.op_counts)}", *side.notes),
        (_no_weights_advice(evidence),), decisive=True,
    )  # fmt: skip


def _loads_differently(evidence: Evidence) -> bool:
    return bool(set(evidence.variant.options.items()) - set(evidence.reference.options.items()))


def _no_weights_advice(evidence: Evidence) -> str:
    layers = evidence.reference.file.layers
    if not layers and {"If", "Loop", "Scan"} & evidence.reference.file.op_counts.keys():
        return "no op outside If, Loop and Scan multiplies by stored weights: int8-dynamic and int8-weight enter their bodies"
    if not layers:
        return "nothing in this model multiplies by stored weights: quantization cannot gain here; try --threads or --batch"
    types = "|".join(sorted({layer.op_type for layer in layers}))
    return f"ask for the ops that it has: {profile_command(evidence, f'int8-static{{op_types={types}}}')}"


def dynamic_conv(evidence: Evidence) -> Iterator[Cause]:
    """Convolutions as ConvInteger."""
    side = evidence.variant
    integer = [op for op in ops_of(side) if op.time.op_type == "ConvInteger"]
    if not integer:
        return
    around = extra(evidence, {"DynamicQuantizeLinear", "Cast", "Mul", "Add"})
    before = reference_seconds(evidence, {op.layer for op in integer if op.layer})
    lost = None if before is None else max(0.0, seconds_of(integer) + around - before)
    yield Cause(
        "dynamic-conv", f"dynamic int8 on {len(integer)} convolutions: ConvInteger has no fast kernel", "speed", "fact", lost,
        "time of ConvInteger and of the ops added around it, less what the reference takes for the same layers",
        (f"{len(integer)} ConvInteger take {shown(seconds_of(integer))}",
         *(() if before is None else (f"the same layers in the reference: {shown(before)}",)),
         f"ops added around them (DynamicQuantizeLinear, Cast, Mul, Add): {shown(around)}"),
        (f"static int8: {profile_command(evidence, 'int8-static{per_channel=true}')}",
         f"dynamic int8 for matrix products only: {profile_command(evidence, 'int8-dynamic')}"),
    )  # fmt: skip


def unfused_qdq(evidence: Evidence) -> Iterator[Cause]:
    """Either every op type was quantized, or particular Q/DQ pairs were not fused; the first explains the second."""
    side = evidence.variant
    executed = [op for op in ops_of(side) if op.time.op_type in QUANTIZERS]
    loose = _float_though_quantized(evidence)
    inside = stored_as(side, "qdq", "activations")
    lost = conversion_time(evidence) + _slower_in_float(evidence, loose)
    how = (
        "time in Q/DQ, casts and reorders beyond the reference's, and of ops left in float beyond what they take there"
    )
    names = ", ".join(sorted({op.layer or op.time.name for op in loose})[:4])
    left = f"{len(loose)} of {len(inside)} quantized layers ran in float all the same" + (f": {names}" if names else "")
    if executed and _quantizes_all(side) and len(executed) > max(2, sum(side.file.light.values())):
        light = ", ".join(sorted(side.file.light)[:4])
        yield Cause(
            "all-ops-qdq", f"ops without weights were quantized too ({light}), which have no int8 kernel", "speed", "fact", lost,
            how,
            (f"{len(executed)} QuantizeLinear/DequantizeLinear are executed, {shown(seconds_of(executed))}",
             f"Q/DQ around ops without weights: {counted(side.file.light)}", *((left,) if loose else ())),
            (f"quantize ops with weights only: {profile_command(evidence, 'int8-static{per_channel=true}')}",
             "with another quantizer: op_types_to_quantize=['Conv', 'Gemm', 'MatMul']"),
        )  # fmt: skip
        return
    if not loose:
        return
    switched_off = side.options.get("opt") in {"off", "basic"}
    bare = sum(layer.stored == "activations" for layer in inside.values())
    hints = [f"let the backend fuse: leave opt={side.options['opt']} out of '{side.backend}'"] if switched_off else []
    if bare:
        types = sorted(
            {"Conv", "Gemm", "MatMul"} | {layer.op_type for layer in inside.values() if layer.stored == "activations"}
        )
        recipe = f"int8-static{{op_types={'|'.join(types)},per_channel=true}}"
        hints.append(f"quantize the weights too: {profile_command(evidence, recipe)}")
    if bare < len(loose):
        hints.append(
            "keep these layers in float, so that their Q/DQ go: the option skip=NAME|NAME of int8-static (Conv:0 is the first "
            "one)"
        )
    yield Cause(
        "qdq-unfused", "Q/DQ were not fused into the ops that they stand around", "speed", "fact", lost, how,
        (left, f"{len(executed)} QuantizeLinear/DequantizeLinear are executed, {shown(seconds_of(executed))}",
         *((f"graph optimisation is opt={side.options['opt']}",) if switched_off else ()),
         *((f"{bare} layers have Q/DQ around their activations and float weights",) if bare else ())),
        tuple(hints),
    )  # fmt: skip


def _float_though_quantized(evidence: Evidence) -> list[Op]:
    """Executed float ops whose layer stands between Q/DQ in the file: the runtime did not fuse them."""
    between = stored_as(evidence.variant, "qdq", "activations")
    return [
        op for op in ops_of(evidence.variant)
        if op.layer in between and op.time.precision in {"f32", "f16", "bf16"} and WEIGHTED.search(op.time.op_type)
    ]  # fmt: skip


def _quantizes_all(side: Side) -> bool:
    inside = len(stored_as(side, "qdq", "activations"))
    return sum(side.file.light.values()) >= max(2, inside / 4)


def _slower_in_float(evidence: Evidence, ops: list[Op]) -> float:
    before = reference_seconds(evidence, {op.layer for op in ops if op.layer}) if ops else None
    return 0.0 if before is None else max(0.0, seconds_of(ops) - before)


def per_tensor(evidence: Evidence) -> Iterator[Cause]:
    """Accuracy lost to channels that share a scale with much larger ones."""
    side, change = evidence.variant, evidence.accuracy_change
    if change is None or change > -LARGE_DROP:
        return
    weak = [
        layer for layer in side.file.layers if layer.weakest_levels is not None and layer.weakest_levels <= FEW_LEVELS
    ]
    if not weak:
        return
    worst = min(weak, key=lambda layer: layer.weakest_levels or 0)
    yield Cause(
        "per-tensor-collapse", "one scale per tensor: channels with small weights are rounded away", "quality", "fact", None,
        "it costs accuracy, not time",
        (f"accuracy changed by {100 * change:+.1f} points against the reference",
         (f"{len(weak)} layers have channels that use at most {FEW_LEVELS} of 127 int8 levels; the worst is {worst.name} "
         f"with {worst.weakest_levels}")),
        (f"one scale per channel: {profile_command(evidence, 'int8-static{per_channel=true}')}",), decisive=True,
    )  # fmt: skip


def precision_not_realised(evidence: Evidence) -> Iterator[Cause]:
    """Half precision or float8 that was asked for or stored, and that no op ran in."""
    side, facts = evidence.variant, evidence.variant.facts
    precision = dict(facts.precision or {}) if facts else {}
    if not precision and side.ops:
        precision = dict(Counter(op.time.precision for op in side.ops))
    wanted, seen = None, ""
    half, eighth = stored_as(side, "f16"), stored_as(side, "f8")
    advice = "a CPU without fp16 arithmetic computes float16 models in float32, with casts around: use fp32 there, fp16 on GPUs"
    if eighth:
        wanted, seen = "f8", f"the file stores {len(eighth)} layers in float8"
        advice = (
            "float8 gains where the processor multiplies in it: NVIDIA GPUs from compute capability 8.9 on, by TensorRT"
        )
    elif half:
        wanted, seen = "f16", f"the file stores {len(half)} layers in float16"
    elif side.options.get("precision") in {"bf16", "f16"}:
        wanted = side.options["precision"]
        seen = f"precision={wanted} was asked for"
    if wanted is None or not precision or precision.get(wanted, 0) + precision.get("undetermined", 0) > 0:
        return
    added = conversion_time(evidence)
    other = _others_slower(evidence)
    yield Cause(
        "precision-not-realised", f"{wanted} was asked for and nothing ran in it", "speed", "fact", added + other,
        "time in casts and reorders, and of ops that were not fused any more, beyond the reference's",
        (seen, "ops that ran: " + ", ".join(f"{count} {name}" for name, count in sorted(precision.items())),
         f"casts and reorders added: {shown(added)}"),
        (advice, f"int8 instead: {profile_command(evidence, 'int8-static{per_channel=true}')}"),
    )  # fmt: skip


def _others_slower(evidence: Evidence) -> float:
    """Time of ops that are neither weighted nor conversions, beyond the reference's."""

    def plain(side: Side) -> float:
        return seconds_of(
            op for op in ops_of(side) if op.time.precision != "conversion" and not WEIGHTED.search(op.time.op_type)
        )

    return max(0.0, plain(evidence.variant) - plain(evidence.reference))


def left_float(evidence: Evidence) -> Iterator[Cause]:
    """Layers that the file leaves in float beside quantized ones."""
    side, machine = evidence.variant, evidence.machine
    quantized = stored_as(side, "qdq", "f8", "dynamic", "operator", "weight-only")
    plain = stored_as(side, "float")
    mine = [op for op in ops_of(side) if op.layer in plain and not is_int8(op)]
    if not quantized or not mine or machine is None:
        return
    peak = int8_peak(machine.isa)
    types = Counter(plain[op.layer].op_type for op in mine if op.layer)
    yield Cause(
        "left-float", f"{len(mine)} layers with weights were left in float", "speed", "estimate",
        seconds_of(mine) * (1 - 1 / peak), f"at most: their time, were int8 a factor of {peak:.3g} faster there",
        (f"float layers: {counted(types)}, {shown(seconds_of(mine))}", f"{len(quantized)} layers are quantized"),
        (f"quantize them too: {profile_command(evidence, 'int8-static{per_channel=true}')}",),
    )  # fmt: skip
