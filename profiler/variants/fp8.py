"""float8 (E4M3) weights and activations, as QuantizeLinear/DequantizeLinear pairs: for GPUs that multiply in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from profiler.errors import VariantError
from profiler.onnx_io import reads
from profiler.variants.base import Calibration, Recipe, VariantResult, expect
from profiler.variants.int8_static import WEIGHTED, Int8Static

LARGEST = 448.0
"""Largest finite E4M3 value (Micikevicius et al. 2022, "FP8 formats for deep learning")."""
INT8_LEVELS = 127
NO_CPU = (
    "processors have no float8 arithmetic that ONNX Runtime or OpenVINO would use: they compute in float32, with conversions "
    "around. A gain is possible on GPUs from compute capability 8.9 on, through TensorRT."
)
OPSET, IR_VERSION = 21, 10
"""First opset whose QuantizeLinear names its type by `output_dtype`, and the IR version that belongs to it.

Opset 19 has float8 too, but tells the type by a zero point only, and with one ONNX Runtime (1.32 seen here) removes a Relu before
the QuantizeLinear, as it may for uint8: the mini-ResNet's answers were noise then, without an error.
"""


@dataclass(frozen=True)
class Fp8(Recipe):
    """float8 inputs and weights of products, the rest in the model's own type: what TensorRT runs from Ada (8.9) on.

    Each activation has one scale, which puts the largest value seen on calibration rows at the end of float8's range; its steps
    are relative, so clipping outliers would gain nothing for the others. Biases and outputs stay float, as TensorRT's fusions
    take them. `fp8+fp16` computes the rest in half precision, which a strongly typed TensorRT wants for speed.
    """

    name: ClassVar[str] = "fp8"
    needs_calibration: ClassVar[bool] = True

    per_channel: bool = True
    """One weight scale per output channel."""
    op_types: tuple[str, ...] = ("Conv", "Gemm", "MatMul")
    samples: int = 256
    """Most calibration rows that are run."""
    seed: int = 0
    """Which calibration rows are run: 0 the first ones, any other number a draw with replacement of its own."""
    skip: tuple[str, ...] = ()
    """Nodes that stay float, by name in the prepared model or as `Conv:12` (the 13th Conv)."""
    only: tuple[str, ...] = ()
    """The only nodes of `op_types` that are quantized, named likewise."""
    bias_correction: bool = False
    """Take the mean shift of each op's result off its bias."""

    def __post_init__(self) -> None:
        """Check the options; raises StudyError."""
        strange = set(self.op_types) - set(WEIGHTED)
        expect(
            self, "op_types", bool(self.op_types) and not strange, f"some of {'|'.join(WEIGHTED)}: ops that multiply"
        )
        expect(self, "samples", self.samples >= 1, "at least 1")
        expect(self, "seed", self.seed >= 0, "0 or more")

    def apply(self, model: ModelProto, calibration: Calibration | None) -> VariantResult:
        """Quantize; raises VariantError without calibration rows, when the model cannot be raised to opset 21, or when no
        runtime loads the result, StudyError when a node of `skip` or `only` does not exist.
        """
        placed = _Placed(
            shown=self.text, per_channel=self.per_channel, op_types=self.op_types, samples=self.samples, seed=self.seed,
            skip=self.skip, only=self.only, symmetric_activations=True, quantize_bias=False, float_outputs=self.op_types,
            bias_correction=self.bias_correction,
        )  # fmt: skip
        made = placed.apply(model, calibration)
        return replace(made, notes=(NO_CPU, *made.notes)) if made.changed else made


@dataclass(frozen=True)
class _Placed(Int8Static):
    """int8's symmetric recipe, with its pairs turned into float8 ones."""

    opset: ClassVar[int] = OPSET
    carried: ClassVar[tuple[str, ...]] = ()

    shown: str = ""
    """Text of the recipe that uses it, for messages."""

    @property
    def text(self) -> str:
        return self.shown

    def _needs_opset(self) -> str:
        return ""

    def _finish(self, model: ModelProto, floats: ModelProto) -> None:
        weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in floats.graph.initializer}
        old = {name for node in floats.graph.node for name in node.output}
        _to_float8(model, weights, old, self.text)


def _to_float8(model: ModelProto, weights: Mapping[str, NDArray[np.generic]], old: set[str], what: str) -> None:
    """Turn int8 pairs into float8 ones, in place. `weights` are the float ones; nodes with a result in `old` are left alone."""
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    rescaled: set[str] = set()
    for node in model.graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear") or node.output[0] in old:
            continue
        value, scale = node.input[:2]
        if value in stored:
            source = weights.get(value.removesuffix("_quantized"))
            if source is None or source.shape != tuple(stored[value].dims):
                raise VariantError(f"{what}: the float weights behind '{value}' were not found.")
            _store(stored[value], stored[scale], source, _axis(node, len(stored[scale].dims)))
        elif scale not in rescaled:
            rescaled.add(scale)
            array = numpy_helper.to_array(stored[scale]) * (INT8_LEVELS / LARGEST)
            stored[scale].CopyFrom(numpy_helper.from_array(array.astype(np.float32), scale))
        del node.input[2:]
        if node.op_type == "QuantizeLinear":
            node.attribute.append(helper.make_attribute("output_dtype", TensorProto.FLOAT8E4M3FN))
    used = {name for node in model.graph.node for name in reads(node)} | {out.name for out in model.graph.output}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    copies = [TensorProto.FromString(tensor.SerializeToString()) for tensor in kept]
    model.graph.ClearField("initializer")
    model.graph.initializer.extend(copies)
    # Types of the int8 values stand there.
    model.graph.ClearField("value_info")
    model.ir_version = max(model.ir_version, IR_VERSION)


def _axis(node: NodeProto, scale_rank: int) -> int | None:
    return next((item.i for item in node.attribute if item.name == "axis"), 1) if scale_rank else None


def _store(tensor: TensorProto, scale: TensorProto, source: NDArray[np.generic], axis: int | None) -> None:
    """Write `source` into `tensor` as float8, and its scale (one, or one per index of `axis`) into `scale`."""
    array = source.astype(np.float32)
    others = None if axis is None else tuple(place for place in range(array.ndim) if place != axis)
    reach = np.abs(array).max(axis=others, keepdims=True, initial=0.0)
    steps = (reach / LARGEST).astype(np.float32)
    # Channels of zeros, and of values so small that float32 has no step for them.
    steps[steps == 0] = 1.0
    # Rounding of the quotient may leave the range by one step of float32, beyond which float8 knows no number.
    inside = np.clip(array / steps, -LARGEST, LARGEST)
    tensor.CopyFrom(helper.make_tensor(tensor.name, TensorProto.FLOAT8E4M3FN, array.shape, inside.reshape(-1).tolist()))
    # OpenVINO 2026.4 reads raw bytes only; of numbers, the other form that ONNX allows, it makes others without an error.
    tensor.raw_data = bytes(tensor.int32_data)
    tensor.ClearField("int32_data")
    scale.CopyFrom(numpy_helper.from_array(steps.reshape(() if axis is None else (-1,)), scale.name))
