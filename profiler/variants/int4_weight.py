"""4-bit weights of matrix products in blocks, each with its own scale; activations stay float."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from onnx import ModelProto

from profiler.errors import ModelError, VariantError
from profiler.models.initializers import as_constants, drop_unread
from profiler.models.naming import distinct_names
from profiler.models.opsets import declare_domains
from profiler.onnx_io import clone, count_ops, opset_of, upgrade_opset, walk_nodes
from profiler.variants.base import Calibration, Fact, Recipe, VariantResult, expect
from profiler.variants.folding import about_weights
from profiler.variants.loading import loading_facts
from profiler.variants.preparing import (
    forget_declared,
    judged,
    lift_constants,
    name_nodes,
    quiet,
    sort_nodes,
    unchanged,
)
from profiler.variants.running import ensure_loads, ensure_runs, short
from profiler.variants.taken_names import with_free_names

INT4_OPSET = 21
"""First opset with int4 tensors, for the standard form."""


@dataclass(frozen=True)
class Int4Weight(Recipe):
    """Weight-only int4 (round to nearest, no calibration). Made for memory-bound language models; small models rarely gain.

    `format=contrib` writes ONNX Runtime's MatMulNBits, `format=standard` int4 DequantizeLinear + MatMul (opset 21).
    """

    name: ClassVar[str] = "int4-weight"

    block_size: int = 32
    symmetric: bool = False
    format: Literal["contrib", "standard"] = "contrib"

    def __post_init__(self) -> None:
        """Check the options; raises StudyError."""
        power = self.block_size >= 16 and self.block_size & (self.block_size - 1) == 0
        expect(self, "block_size", power and self.block_size <= 256, "a power of two from 16 to 256")

    def apply(self, model: ModelProto, calibration: Calibration | None) -> VariantResult:
        """Quantize; calibration rows, when given, are only used to compare outputs."""
        before = count_ops(model)
        if not before["MatMul"] + before["Gemm"]:
            return unchanged(model, "the model has no MatMul or Gemm, and int4 kernels exist for nothing else")
        work, notes = clone(model), list[str]()
        as_constants(work)
        distinct_names(work)
        forget_declared(work)
        if self.format == "standard":
            try:
                work, changed, note = upgrade_opset(work, INT4_OPSET)
            except ModelError as error:
                raise VariantError(f"{self.text} cannot be made: {error}") from error
            notes += [note] if changed else []
        lift_constants(work)
        name_nodes(work)
        inner = self._inside_bodies(work)
        if inner:
            notes.append(f"{len(inner)} products inside subgraphs stay float32: format=contrib takes them.")
        result = with_free_names(work, lambda free, _: self._run_quantizer(free, inner))
        declare_domains(result)
        after = count_ops(result)
        done = after["com.microsoft::MatMulNBits"] or after["DequantizeLinear"] - before["DequantizeLinear"]
        if not done:
            why = (
                f"no MatMul or Gemm has stored two-dimensional float32 weights{about_weights(work, ('Gemm', 'MatMul'))}"
            )
            return unchanged(model, why)
        facts: dict[str, Fact] = {
            "ops_quantized": done,
            "ops_left_float": after["MatMul"] - (done if self.format == "standard" else 0) + after["Gemm"],
            "quantized": f"MatMul {done}",
            "opset": opset_of(result),
        }
        if self.format == "standard":
            facts.update(loading_facts(result, self.text, notes))
        elif (loading := ensure_loads(result, self.text)) is not None:
            notes.append(loading)
        notes += ensure_runs(model, result, calibration, self.text)
        convs = after["Conv"] + after["ConvTranspose"]
        if convs:
            notes.append(f"{convs} convolutions stay float32: there are no int4 kernels for them.")
        judged(model, result, calibration, facts, notes)
        return VariantResult(result, facts, tuple(notes), changed=True)

    def _inside_bodies(self, model: ModelProto) -> list[str]:
        """Names of products in bodies, in the standard form: ONNX Runtime 1.32 loses their weights when it fuses them."""
        if self.format != "standard":
            return []
        outside = {node.name for node in model.graph.node}
        return [
            node.name for node in walk_nodes(model) if node.op_type in ("Gemm", "MatMul") and node.name not in outside
        ]

    def _run_quantizer(self, work: ModelProto, inner: list[str]) -> ModelProto:
        from onnxruntime.quantization import QuantFormat
        from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
        from onnxruntime.quantization.onnx_model import ONNXModel

        try:
            with quiet():
                wrapped = ONNXModel(work)
                wrapped.replace_gemm_with_matmul()
                quantizer = MatMulNBitsQuantizer(
                    wrapped.model,
                    block_size=self.block_size,
                    is_symmetric=self.symmetric,
                    quant_format=QuantFormat.QOperator if self.format == "contrib" else QuantFormat.QDQ,
                    op_types_to_quantize=("MatMul",),
                    # A Gemm is split into `…_MatMul` and `…_Add`.
                    nodes_to_exclude=[*inner, *(f"{name}_MatMul" for name in inner)],
                )
                quantizer.process()
        except Exception as error:
            raise VariantError(f"{self.text} cannot be made: {short(error)}.") from error
        result: ModelProto = quantizer.model.model
        drop_unread(result)
        sort_nodes(result.graph)
        return result
