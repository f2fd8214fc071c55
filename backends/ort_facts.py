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

CONVERSION = "conversion"
"""Ops that only change the representation; many of them in an int8 model mean that fusion did not happen."""

_CONVERSIONS = {"Cast", "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "ReorderInput", "ReorderOutput"}
_FLOATS = {"float": "f32", "float16": "f16", "bfloat16": "bf16", "double": "f64"}
_INT8_OP = re.compile(r"QLinear|Integer|^QGemm$|^QAttention$|^QEmbed|^QOrdered|^DynamicQuantize(MatMul|LSTM)$")
_WEIGHT_ONLY_OP = re.compile(r"NBits|^MatMulBnb4$|^GatherBlockQuantized$|^QMoE$")
_ROUTING = {"If", "Loop", "Scan"}


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
        args = event.get("args", {})
        if event.get("cat") != "Node" or "op_name" not in args or not event.get("name", "").endswith("_kernel_time"):
            continue
        if args["op_name"] in _ROUTING:
            continue
        precision[_precision(args["op_name"], args.get("input_type_shape", ()), args.get("output_type_shape", ()))] += 1
        providers[args.get("provider", "unknown")] += 1
    return Executed(dict(sorted(precision.items())), dict(sorted(providers.items())))


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
