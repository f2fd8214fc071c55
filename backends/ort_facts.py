"""What ONNX Runtime really executed, read from the profile that it writes itself.

Source of the format: onnxruntime's "Profiling tools" documentation; events of category `Node` carry `op_name`, `provider`,
`input_type_shape` and `output_type_shape`. Reading the profile needs no `onnx` package (devices have none), counts the
branch of an If that ran and not the one that did not, and names the provider of each op.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from backends.base import OpTime, middle_mean

CONVERSION = "conversion"
"""Ops that only change the representation; many of them in an int8 model mean that fusion did not happen."""

_CONVERSIONS = {"Cast", "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "ReorderInput", "ReorderOutput"}
_FLOATS = {"float": "f32", "float16": "f16", "bfloat16": "bf16", "double": "f64"}
_INT8_OP = re.compile(r"QLinear|Integer|^QGemm$|^QAttention$|^QEmbed|^QOrdered|^DynamicQuantize(MatMul|LSTM)$")
_WEIGHT_ONLY_OP = re.compile(r"NBits|^MatMulBnb4$|^GatherBlockQuantized$|^QMoE$")
_ROUTING = {"If", "Loop", "Scan"}
_KERNEL = "_kernel_time"


@dataclass(frozen=True)
class Executed:
    """Number of executed ops by realised precision and by execution provider."""

    precision: Mapping[str, int]
    providers: Mapping[str, int]


def executed(events: Iterable[Mapping[str, Any]]) -> Executed:
    """Count the node events of a profile of one inference.

    Control-flow ops are left out: the ops of their branch stand beside them in the profile.
    """
    precision: Counter[str] = Counter()
    providers: Counter[str] = Counter()
    for event in events:
        if not _is_kernel(event):
            continue
        args = event["args"]
        precision[_precision(args["op_name"], args.get("input_type_shape", ()), args.get("output_type_shape", ()))] += 1
        providers[args.get("provider", "unknown")] += 1
    return Executed(dict(sorted(precision.items())), dict(sorted(providers.items())))


def timed(events: Iterable[Mapping[str, Any]], warm: int) -> tuple[OpTime, ...]:
    """Times per op from a profile of several inferences, the first `warm` of them left out, in the order of execution.

    Onnxruntime writes a `model_run` after the ops of each inference. Control-flow ops are left out: their time is their body's.
    """
    runs: list[dict[str, list[Mapping[str, Any]]]] = [{}]
    for event in events:
        if event.get("cat") == "Session" and event.get("name") == "model_run":
            runs.append({})
        elif _is_kernel(event):
            runs[-1].setdefault(event["name"].removesuffix(_KERNEL), []).append(event)
    counted = runs[warm:-1]
    names = dict.fromkeys(name for run in counted for name in run)
    return tuple(_op_time(name, [run.get(name, []) for run in counted]) for name in names)


def _op_time(name: str, runs: Sequence[Sequence[Mapping[str, Any]]]) -> OpTime:
    args = next(event["args"] for run in runs for event in run)
    kind = args["op_name"]
    return OpTime(
        name=name,
        op_type=kind,
        precision=_precision(kind, args.get("input_type_shape", ()), args.get("output_type_shape", ())),
        provider=args.get("provider", "unknown"),
        duration_s=middle_mean([sum(event["dur"] for event in run) / 1e6 for run in runs]),
        calls=sum(map(len, runs)) / len(runs),
    )


def _is_kernel(event: Mapping[str, Any]) -> bool:
    named = "op_name" in event.get("args", {}) and str(event.get("name", "")).endswith(_KERNEL)
    return event.get("cat") == "Node" and named and event["args"]["op_name"] not in _ROUTING


def _precision(op: str, inputs: Sequence[Mapping[str, list[int]]], outputs: Sequence[Mapping[str, list[int]]]) -> str:
    if op in _CONVERSIONS:
        return CONVERSION
    if _WEIGHT_ONLY_OP.search(op):
        return _weight_only(inputs)
    if _INT8_OP.search(op):
        return "i8"
    # The result's type decides: MaxPool or Reshape between quantized convolutions runs on int8.
    types = [name for tensor in (*outputs, *inputs) for name in tensor]
    if types and types[0] in {"int8", "uint8"}:
        return "i8"
    return next((_FLOATS[name] for name in types if name in _FLOATS), "other")


def _weight_only(inputs: Sequence[Mapping[str, list[int]]]) -> str:
    # MatMulNBits has no bit width in the profile, but its weight B is uint8 [N, blocks, bytes per block] for a
    # float input A of [..., K], so the bytes per weight tell it.
    weight = next(
        (shape for tensor in inputs for name, shape in tensor.items() if name == "uint8" and len(shape) == 3), None
    )
    features = next((shape[-1] for tensor in inputs for name, shape in tensor.items() if name in _FLOATS and shape), 0)
    if weight is None or features <= 0:
        return "int4-weight"
    return f"int{min((2, 4, 8), key=lambda bits: abs(bits - 8 * weight[1] * weight[2] / features))}-weight"
