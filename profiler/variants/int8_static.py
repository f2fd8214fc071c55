"""int8 weights and activations with ranges from calibration rows, as QuantizeLinear/DequantizeLinear pairs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto

from profiler.errors import VariantError
from profiler.onnx_io import clone, count_ops, opset_of, write_model
from profiler.variants.base import Calibration, Fact, Recipe, VariantResult, expect
from profiler.variants.calibration import Range, activation_ranges
from profiler.variants.preparing import (
    QDQ_OPSET,
    constant_names,
    dequantized_nodes,
    flatten_biases,
    judged,
    prepare,
    quiet,
    sort_nodes,
    tally,
    unchanged,
)
from profiler.variants.running import batches, ensure_loads, scratch, session, short

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Ops that multiply by stored weights: all the gain is there. Asked for by default except ConvTranspose."""
CARRIED = ("Clip", "MaxPool", "Relu", "Reshape", "Transpose")
"""Ops between them that work on int8 as it is, at the same scale: quantized only where their input is already."""


@dataclass(frozen=True)
class Int8Static(Recipe):
    """Static int8: U8 activations (S8 when symmetric) and S8 weights, QDQ form, which ONNX Runtime and OpenVINO both run.

    By default only ops with stored weights are quantized, and ops that pass int8 through. Quantizing every op the
    library can destroys real models: magika fell from 95 to 11 % correct, a MiniLM classifier from 78 to 64 %.
    """

    name: ClassVar[str] = "int8-static"
    needs_calibration: ClassVar[bool] = True

    calibration: Literal["minmax", "entropy", "percentile"] = "minmax"
    per_channel: bool = False
    op_types: tuple[str, ...] = ("Conv", "Gemm", "MatMul")
    symmetric_activations: bool = False
    """S8 activations with zero point 0, which TensorRT asks for; it also wants quantize_bias=false."""
    quantize_bias: bool = True
    reduce_range: bool = False
    """7-bit weights: on x86 without VNNI, sums of two products can saturate 16 bits."""
    percentile: float = 99.999
    samples: int = 256
    """Most calibration rows that are run."""

    def __post_init__(self) -> None:
        """Check the options; raises StudyError."""
        expect(self, "percentile", 50 < self.percentile <= 100, "a number above 50, up to 100")
        expect(self, "samples", self.samples >= 1, "at least 1")
        fits = self.calibration == "percentile" or self.percentile == type(self).percentile
        expect(self, "percentile", fits, "calibration=percentile beside it")

    def apply(self, model: ModelProto, calibration: Calibration | None) -> VariantResult:
        """Quantize; raises VariantError without calibration rows or when no runtime loads the result."""
        if not calibration:
            raise VariantError(f"{self.text} needs calibration data: give --data or --calibration.")
        if not any(count_ops(model)[op] for op in self.op_types):
            return unchanged(model, f"the model has no {', '.join(self.op_types)}")
        prepared, notes = prepare(model, calibration)
        if self.per_channel and opset_of(prepared) < QDQ_OPSET:
            raise VariantError(
                f"{self.text} needs opset {QDQ_OPSET}, the model has {opset_of(prepared)}: {notes[0]}. "
                "Export the model again with a newer opset, or use per_channel=false."
            )
        flatten_biases(prepared)
        chosen = self._choose(prepared)
        if not any(node.op_type in self.op_types for node in chosen):
            return unchanged(model, f"no {', '.join(self.op_types)} of the main graph has stored weights")
        ranges, rows = self._calibrate(prepared, calibration, chosen)
        result = self._quantize(prepared, chosen, ranges, notes)
        done = dequantized_nodes(result, {*self.op_types, *WEIGHTED})
        counts = count_ops(result)
        if not counts["DequantizeLinear"]:
            return unchanged(model, "the quantizer left every op as it was")
        ensure_loads(result, self.text)
        left = sum(counts[op] for op in self.op_types) - sum(node.op_type in self.op_types for node in done)
        facts: dict[str, Fact] = {
            "ops_quantized": len(done),
            "ops_left_float": left,
            "quantized": tally(done),
            "calibration_rows": rows,
            "opset": opset_of(result),
        }
        if left:
            notes.append(f"{left} ops of the chosen types stay float: no stored weights, or inside a subgraph.")
        judged(model, result, calibration, facts, notes)
        return VariantResult(result, facts, tuple(notes), changed=True)

    def _choose(self, model: ModelProto) -> list[NodeProto]:
        """Nodes to quantize: of weighted types only those with a stored weight, because products of two activations
        (attention) lose much and gain little.
        """
        constants = constant_names(model)
        types = {*self.op_types, *CARRIED}
        return [
            node
            for node in model.graph.node
            if node.op_type in types
            and (node.op_type not in WEIGHTED or constants & {*node.input[1:2], *node.input[:1]})
        ]

    def _calibrate(
        self, model: ModelProto, calibration: Calibration, chosen: list[NodeProto]
    ) -> tuple[dict[str, Range], int]:
        constants = constant_names(model)
        outputs = {value.name for value in model.graph.output}
        names = {name for node in chosen for name in (*node.input, *node.output) if name and name not in constants}
        watched = clone(model)
        # ONNX Runtime fills in the type of an output that is only named.
        watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in sorted(names - outputs))
        rows = 0

        def feeds() -> Iterator[Mapping[str, NDArray[Any]]]:
            nonlocal rows
            rows = 0
            for batch in batches(model, calibration, self.samples):
                rows += max((len(array) for array in batch.values() if array.ndim), default=1)
                yield batch

        with scratch() as folder:
            runner = session(write_model(watched, folder))
            float_names = [
                out.name for out in runner.get_outputs() if out.type == "tensor(float)" and out.name in names
            ]
            float_inputs = [
                put.name for put in runner.get_inputs() if put.type == "tensor(float)" and put.name in names
            ]

            def run(batch: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
                found = dict(zip(float_names, runner.run(float_names, dict(batch)), strict=True)) if float_names else {}
                return {**found, **{name: batch[name] for name in float_inputs}}

            try:
                return activation_ranges(run, feeds, self.calibration, self.percentile), rows
            except Exception as error:
                if type(error).__module__.startswith("onnxruntime"):
                    raise VariantError(f"{self.text}: a calibration row fails in the model: {short(error)}.") from error
                raise

    def _quantize(
        self, prepared: ModelProto, chosen: list[NodeProto], ranges: Mapping[str, Range], notes: list[str]
    ) -> ModelProto:
        options: dict[str, Any] = {
            "ActivationSymmetric": self.symmetric_activations,
            "WeightSymmetric": True,
            "QuantizeBias": self.quantize_bias,
        }
        try:
            return self._run_quantizer(prepared, chosen, ranges, options)
        except ValueError as error:
            # https://github.com/microsoft/onnxruntime/issues/24815: adjusting weights to a tiny bias scale fails for biases
            # of unusual shape. Without the adjustment it works; it is not the default because dead channels need it.
            notes.append(
                f"weights were not adjusted to bias scales, which ONNX Runtime failed at ({short(error, 120)})"
            )
            return self._run_quantizer(
                prepared, chosen, ranges, {**options, "QDQDisableWeightAdjustForInt32Bias": True}
            )

    def _run_quantizer(
        self, prepared: ModelProto, chosen: list[NodeProto], ranges: Mapping[str, Range], options: dict[str, Any]
    ) -> ModelProto:
        import numpy as np
        from onnxruntime.quantization import CalibrationMethod, QuantType
        from onnxruntime.quantization.calibrate import TensorData, TensorsData
        from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

        data = {
            name: TensorData(lowest=np.float32(low), highest=np.float32(high)) for name, (low, high) in ranges.items()
        }
        # Nodes whose activations never appeared have no range and stay float.
        usable = [node for node in chosen if all(name in data for name in self._ranged(node, prepared))]
        with quiet():
            quantizer = QDQQuantizer(
                clone(prepared),
                self.per_channel,
                self.reduce_range,
                QuantType.QInt8,
                QuantType.QInt8 if self.symmetric_activations else QuantType.QUInt8,
                TensorsData(CalibrationMethod.MinMax, data),
                [node.name for node in usable],
                [],
                [*self.op_types, *CARRIED],
                options,
            )
            quantizer.quantize_model()
        result: ModelProto = quantizer.model.model
        sort_nodes(result.graph)
        return result

    @staticmethod
    def _ranged(node: NodeProto, model: ModelProto) -> list[str]:
        """Tensors of a weighted node that need a range: its activations in and out."""
        if node.op_type not in WEIGHTED:
            return []
        constants = {tensor.name for tensor in model.graph.initializer}
        return [name for name in (*node.input[:2], node.output[0]) if name not in constants]
