"""Evidence with chosen numbers, for tests of the rules. The figures of a plain case are those of a recorded one, rounded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from backends.base import OpTime, SessionFacts
from profiler.explain.evidence import Evidence, FileFacts, Layer, Machine, Op, Side

US = 1e-6
VNNI = ("sse4_2", "avx", "fma", "avx2", "avx512f", "avx512bw", "avx512_vnni")


def op(name: str, kind: str, precision: str, us: float, layer: str | None = None, **more: Any) -> Op:
    time = OpTime(name, kind, precision, more.pop("provider", "CPUExecutionProvider"), us * US, 1.0, **more)
    return Op(time, us * US, layer)


def layer(name: str, stored: Any = "float", **more: Any) -> Layer:
    fields = {
        "op_type": "Conv", "weights": 36_864, "weight_bytes": 147_456, "macs": 100_000_000, "in_channels": 64, "out_channels": 64,
    }  # fmt: skip
    return Layer(name=name, stored=stored, **{**fields, **more})


def side(
    variant: str, ops: Sequence[Op] | None, layers: Sequence[Layer], wall_us: float, *,
    light: dict[str, int] | None = None, **more: Any
) -> Side:  # fmt: skip
    facts = SessionFacts("onnxruntime", "1", more.pop("provider", "CPUExecutionProvider"), 1, None, "not told")
    facts = more.pop("facts", facts)
    backend = more.pop("backend", "ort")
    return Side(
        f"{variant}@{backend}/b1/t1", variant, backend, 1, more.pop("threads", 1), (wall_us * US,) * 3,
        None if ops is None else tuple(ops), None if ops is not None else "not told", facts,
        FileFacts({item.op_type: 1 for item in layers}, tuple(layers), light or {}), **more,
    )  # fmt: skip


def machine(isa: Sequence[str] = VNNI, **more: Any) -> Machine:
    fields: dict[str, Any] = {
        "usable_cores": 2, "switches": {}, "cache_bytes": 32 << 20, "bandwidth_bytes_per_s": 2e10,
    }  # fmt: skip
    return Machine(tuple(isa), **{**fields, **more})


REFERENCE_OPS = (op("a", "Conv", "f32", 40, "a"), op("b", "Conv", "f32", 40, "b"), op("r", "Reshape", "f32", 2))


def evidence(variant: Side, reference: Side | None = None, **more: Any) -> Evidence:
    reference = reference or side("fp32", REFERENCE_OPS, [layer("a"), layer("b")], 85)
    fields = {"machine": machine(), "accuracy_change": None}
    return Evidence("m.onnx", "d.npz", variant, reference, **{**fields, **more})
