"""Half precision weights and activations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, numpy_helper

from profiler.errors import VariantError
from profiler.onnx_io import clone, count_ops, opset_of, walk_nodes, walk_tensors, weights_count
from profiler.variants.base import Calibration, Fact, Recipe, VariantResult
from profiler.variants.preparing import judged, lift_constants, name_nodes, quiet, sort_nodes
from profiler.variants.running import ensure_loads, short

LARGEST = float(np.finfo(np.float16).max)
CONTROL_FLOW = ("If", "Loop", "Scan")


@dataclass(frozen=True)
class Fp16(Recipe):
    """float32 becomes float16 inside; inputs and outputs keep their types, so the same data fit.

    Rewritten in the file for every backend (and not as a load option) because strongly typed TensorRT and GPU providers
    take the file's types as they are.
    """

    name: ClassVar[str] = "fp16"

    keep: tuple[str, ...] = ()
    """Op types that stay float32, besides those with no float16 form."""

    def apply(self, model: ModelProto, calibration: Calibration | None) -> VariantResult:
        """Convert; calibration rows, when given, are only used to compare outputs."""
        floats = [tensor for tensor in walk_tensors(model) if tensor.data_type == TensorProto.FLOAT and tensor.dims]
        if not floats:
            note = "nothing was converted: the model stores no float32 tensor."
            return VariantResult(
                clone(model), {"weights_converted": 0, "opset": opset_of(model)}, (note,), changed=False
            )
        notes = [
            "the CPU provider of ONNX Runtime has few float16 kernels: it casts around the others, so expect no gain on CPUs."
        ]
        result = self._convert(model, notes)
        halves = sum(_size(t) for t in walk_tensors(result) if t.data_type == TensorProto.FLOAT16 and t.dims)
        before, after = count_ops(model), count_ops(result)
        facts: dict[str, Fact] = {
            "weights_converted": halves,
            "weights_total": weights_count(result),
            "ops_left_float": len(_too_large_for(lifted(model))),
            "casts_added": after["Cast"] - before["Cast"],
            "opset": opset_of(result),
        }
        judged(model, result, calibration, facts, notes)
        return VariantResult(result, facts, tuple(notes), changed=True)

    def _convert(self, model: ModelProto, notes: list[str]) -> ModelProto:
        from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

        blocked = [*DEFAULT_OP_BLOCK_LIST, *self.keep]
        source = lifted(model)
        large = _too_large_for(source)
        if large:
            ops = ", ".join(sorted({node.op_type for node in large}))
            notes.append(f"{len(large)} nodes ({ops}) stay float32: they hold values beyond {LARGEST:,.0f}.")
        flow = [op for op in CONTROL_FLOW if any(node.op_type == op for node in walk_nodes(model))]
        failures: list[Exception] = []
        # Types of tensors that cross into a branch are where the converter errs; leaving branches alone is the way out.
        for extra in ([], flow) if flow else ([],):
            try:
                with quiet():
                    converted: ModelProto = convert_float_to_float16(
                        clone(source),
                        keep_io_types=True,
                        op_block_list=[*blocked, *extra],
                        node_block_list=[node.name for node in large],
                    )
                sort_nodes(converted.graph)
                ensure_loads(converted, self.text)
            except Exception as error:  # noqa: BLE001 (the converter raises many unrelated types)
                failures.append(error)
                continue
            if failures:
                notes.append(f"{', '.join(extra)} stay float32: with them ONNX Runtime refused the model.")
            return converted
        raise VariantError(f"{self.text} cannot be made from this model: {short(failures[0])}.") from failures[0]


def lifted(model: ModelProto) -> ModelProto:
    """A copy with named nodes and with constants where the converter can follow who reads them."""
    copy = clone(model)
    lift_constants(copy)
    name_nodes(copy)
    return copy


def _too_large_for(model: ModelProto) -> list[onnx.NodeProto]:
    """Nodes that read a stored value beyond float16's range; clipping a batch norm's variance ruins a model."""
    large = {
        tensor.name
        for tensor in walk_tensors(model)
        if tensor.data_type == TensorProto.FLOAT and (np.abs(numpy_helper.to_array(tensor)) > LARGEST).any()
    }
    return [node for node in walk_nodes(model) if large & {*node.input}]


def _size(tensor: TensorProto) -> int:
    return int(np.prod(tensor.dims))
