"""int8 weights; activations are quantized while the model runs, from each tensor's own extremes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx
from onnx import ModelProto, NodeProto, TensorProto

from profiler.errors import VariantError
from profiler.models.opsets import declare_domains
from profiler.onnx_io import PROTOBUF_LIMIT_BYTES, count_ops, opset_of, walk_nodes, walk_tensors, write_model
from profiler.variants.base import Calibration, Fact, Recipe, VariantResult
from profiler.variants.folding import about_weights
from profiler.variants.operands import separate
from profiler.variants.preparing import judged, prepare, quiet, sort_nodes, tally, unchanged
from profiler.variants.running import ensure_loads, ensure_runs, scratch, short
from profiler.variants.taken_names import with_free_names

INTEGER_OPS = frozenset(
    (
        "MatMulInteger",
        "ConvInteger",
        "DynamicQuantizeMatMul",
        "DynamicQuantizeLSTM",
        "QAttention",
        "MatMulIntegerToFloat",
    )
)


@dataclass(frozen=True)
class Int8Dynamic(Recipe):
    """Dynamic int8 for the ops where it pays: matrix products, recurrent layers, embedding tables.

    Convolutions are left out by default: ONNX Runtime's ConvInteger was 3 to 20 times slower than fp32 on every
    convolutional model we tried. `op_types=Conv|MatMul` asks for them anyway.
    """

    name: ClassVar[str] = "int8-dynamic"

    op_types: tuple[str, ...] = ("Attention", "Gather", "Gemm", "LSTM", "MatMul")
    per_channel: bool = False
    reduce_range: bool = False

    def apply(self, model: ModelProto, calibration: Calibration | None) -> VariantResult:
        """Quantize; calibration rows, when given, are only used to compare outputs."""
        before = count_ops(model)
        if not any(before[op] for op in self.op_types):
            return unchanged(model, f"the model has no {', '.join(self.op_types)}{self._about_conv(before['Conv'])}")
        prepared, notes = prepare(model, calibration)
        separate(prepared, {node.name for node in prepared.graph.node if node.op_type in self.op_types})
        result = self._quantize(prepared, notes)
        declare_domains(result)
        done = [node for node in walk_nodes(result) if node.op_type in INTEGER_OPS or _is_int8_gather(node, result)]
        if not done:
            return unchanged(
                model,
                f"no {', '.join(self.op_types)} has stored float32 weights{about_weights(prepared, self.op_types)}"
                f"{self._about_conv(before['Conv'])}",
            )
        if (note := ensure_loads(result, self.text)) is not None:
            notes.append(note)
        else:
            notes += ensure_runs(model, result, calibration, self.text)
        after = count_ops(result)
        facts: dict[str, Fact] = {
            "ops_quantized": len(done),
            "ops_left_float": sum(after[op] for op in self.op_types if op != "Gather"),
            "quantized": tally(done),
            "opset": opset_of(result),
        }
        if after["ConvInteger"]:
            notes.append(
                f"{after['ConvInteger']} Conv became ConvInteger, which ONNX Runtime runs 3 to 20 times slower than fp32."
            )
        elif after["Conv"]:
            notes.append(f"{after['Conv']} Conv stay float32{self._about_conv(after['Conv'])}.")
        judged(model, result, calibration, facts, notes)
        return VariantResult(result, facts, tuple(notes), changed=True)

    def _about_conv(self, convs: int) -> str:
        if not convs or "Conv" in self.op_types:
            return ""
        return "; Conv would become ConvInteger, 3 to 20 times slower in ONNX Runtime (op_types=Conv|… asks for it)"

    def _quantize(self, prepared: ModelProto, notes: list[str]) -> ModelProto:
        odd = self._no_channels(prepared) if self.per_channel else []
        if odd:
            notes.append(
                f"{len(odd)} MatMul stay float32: their weights are no matrices, and only those have one scale per channel "
                "(per_channel=false takes them)."
            )
        return with_free_names(prepared, lambda work, _: self._run_quantizer(work, odd, notes))

    @staticmethod
    def _no_channels(model: ModelProto) -> list[str]:
        """Names of products by stored weights that are no matrices: the quantizer takes a wrong axis for the channels."""
        ranks = {tensor.name: len(tensor.dims) for tensor in walk_tensors(model)}
        return [
            node.name
            for node in walk_nodes(model)
            if node.op_type == "MatMul" and len(node.input) == 2 and ranks.get(node.input[1], 2) != 2
        ]

    def _run_quantizer(self, prepared: ModelProto, odd: list[str], notes: list[str]) -> ModelProto:
        from onnxruntime.quantization import QuantType, quantize_dynamic

        # ConvInteger has signed-weight kernels on few machines; ONNX Runtime's documentation asks for U8 there.
        weights = QuantType.QUInt8 if "Conv" in self.op_types else QuantType.QInt8
        # The quantizer rewrites Gemm to MatMul + Add before it looks at types.
        split = "Gemm" in self.op_types and "MatMul" not in self.op_types
        types = [*self.op_types, *(["MatMul"] if split else [])]
        excluded = [*odd, *(node.name for node in walk_nodes(prepared) if split and node.op_type == "MatMul")]
        reason: Exception | None = None
        for subgraphs in (True, False):
            with scratch() as folder:
                source, target = write_model(prepared, folder / "in"), folder / "out.onnx"
                large = sum(file.stat().st_size for file in source.parent.iterdir()) > PROTOBUF_LIMIT_BYTES // 2
                try:
                    with quiet():
                        quantize_dynamic(
                            str(source),
                            str(target),
                            op_types_to_quantize=types,
                            nodes_to_exclude=excluded,
                            per_channel=self.per_channel,
                            reduce_range=self.reduce_range,
                            weight_type=weights,
                            use_external_data_format=large,
                            extra_options={"EnableSubgraph": subgraphs, "MatMulConstBOnly": True},
                        )
                    result = onnx.load(str(target))
                    sort_nodes(result.graph)
                except Exception as error:  # noqa: BLE001 (the quantizer raises many unrelated types)
                    reason = reason or error
                    continue
            if reason is not None:
                notes.append(f"subgraphs were left out: the quantizer failed inside them ({short(reason, 120)})")
            return result
        assert reason is not None
        raise VariantError(f"{self.text} cannot be made: {short(reason)}.") from reason


def _is_int8_gather(node: NodeProto, model: ModelProto) -> bool:
    if node.op_type != "Gather":
        return False
    small = {
        t.name for t in walk_tensors(model) if t.data_type in (TensorProto.INT8, TensorProto.UINT8) and len(t.dims) > 1
    }
    return node.input[0] in small
