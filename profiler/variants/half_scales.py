"""Quantized models that are to become float16: what must be raised for that, and what has no float16 form."""

from __future__ import annotations

from onnx import ModelProto

from profiler.errors import ModelError
from profiler.onnx_io import count_ops, opset_of, upgrade_opset

SCALES_OPSET = 19
"""First opset whose QuantizeLinear and DequantizeLinear take float16 scales."""
FLOAT32_ONLY = ("DynamicQuantizeLSTM", "DynamicQuantizeLinear", "DynamicQuantizeMatMul", "MatMulIntegerToFloat")
"""Ops that quantizers write and that compute in float32 alone; `fp16` casts around them."""
PAIRS = ("DequantizeLinear", "QuantizeLinear")


def with_half_scales(model: ModelProto, notes: list[str]) -> tuple[ModelProto, tuple[str, ...]]:
    """`(model, op types that stay float32)`: pairs below opset 19 are raised to it, or stay float32 where that cannot be done."""
    counts = count_ops(model)
    kept = tuple(op for op in FLOAT32_ONLY if counts[op] or counts[f"com.microsoft::{op}"])
    if not any(counts[op] for op in PAIRS) or opset_of(model) >= SCALES_OPSET:
        return model, kept
    try:
        raised, _, note = upgrade_opset(model, SCALES_OPSET)
    except ModelError as error:
        notes.append(f"scales of Q/DQ pairs stay float32: {error}")
        return model, (*kept, *PAIRS)
    notes.append(f"{note}: float16 scales need it.")
    return raised, kept
