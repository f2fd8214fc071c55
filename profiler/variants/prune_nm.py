"""2:4 and other n:m sparsity by magnitude: for sparse tensor cores, and for nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper

from profiler.models.initializers import as_constants
from profiler.onnx_io import clone, opset_of, walk_graphs, walk_nodes
from profiler.pruning.sparse import nm_mask
from profiler.variants.base import Calibration, Fact, Recipe, VariantResult, expect
from profiler.variants.preparing import judged, lift_constants

FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)


@dataclass(frozen=True)
class PruneNM(Recipe):
    """Keep the `n` largest of each `m` weights along the axis that is summed over, as sparse tensor cores want them (2:4).

    Axis and pattern: NVIDIA TensorRT developer guide, "Sparsity". Inputs of a convolution are counted per filter position.
    """

    name: ClassVar[str] = "prune-nm"

    n: int = 2
    m: int = 4

    def __post_init__(self) -> None:
        """Check the options; raises StudyError."""
        expect(self, "m", self.m >= 2, "at least 2")
        expect(self, "n", 1 <= self.n < self.m, f"a whole number from 1, below m={self.m}")

    def apply(self, model: ModelProto, calibration: Calibration | None) -> VariantResult:
        """Zero weights; calibration rows, when given, are only used to compare outputs."""
        result = clone(model)
        as_constants(result)
        lift_constants(result)
        summed = _summed_axes(result)
        zeroed = total = tensors = odd = 0
        for graph in walk_graphs(result):
            for tensor in getattr(graph, "initializer", ()):
                axis = summed.get(tensor.name)
                if axis is None or tensor.data_type not in FLOATS or len(tensor.dims) < 2:
                    continue
                array = np.array(numpy_helper.to_array(tensor))
                total += array.size
                mask = nm_mask(array, axis, self.n, self.m)
                if mask is None:
                    odd += 1
                    continue
                zeroed += int((array[~mask] != 0).sum())
                array[~mask] = 0
                tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
                tensors += 1
        facts: dict[str, Fact] = {
            "weights_zeroed": zeroed,
            "weights_total": total,
            "tensors": tensors,
            "tensors_left": odd,
            "pattern": f"{self.n}:{self.m}",
            "opset": opset_of(result),
        }
        if not zeroed:
            why = (
                "has the pattern already"
                if tensors
                else f"has stored weights whose summed axis is a multiple of {self.m}"
            )
            note = f"nothing was pruned: {'every weight' if tensors else 'no Conv, Gemm or MatMul'} {why}."
            return VariantResult(clone(model), facts, (note,), changed=False)
        pattern = (
            "sparse tensor cores (NVIDIA Ampere and later), with TensorRT allowed to use them: --backends 'trt{sparse=true}'"
            if (self.n, self.m) == (2, 4)
            else None
        )
        notes = [
            "no faster and no smaller on disk with ONNX Runtime and OpenVINO on a CPU: their dense kernels multiply by zero too. "
            + (
                f"A gain is possible only on {pattern}."
                if pattern
                else "Hardware for this pattern is not known; 2:4 has it."
            )
        ]
        if odd:
            notes.append(f"{odd} weights stay dense: their summed axis is no multiple of {self.m}.")
        judged(model, result, calibration, facts, notes)
        return VariantResult(result, facts, tuple(notes), changed=True)


def _summed_axes(model: ModelProto) -> dict[str, int]:
    """Axis that is summed over, by name of the weight; names that nodes use differently, or elsewhere too, are left out."""
    # What is an output is read by whoever runs the model.
    graphs = [graph for graph in walk_graphs(model) if isinstance(graph, GraphProto)]
    found: dict[str, set[int]] = {value.name: {-3} for graph in graphs for value in graph.output}
    for node in walk_nodes(model):
        for position, name in enumerate(node.input):
            found.setdefault(name, set()).add(_axis(node, position))
    return {
        name: next(iter(axes)) for name, axes in found.items() if len(axes) == 1 and min(axes) >= -2 and axes != {-3}
    }


def _axis(node: NodeProto, position: int) -> int:
    """Summed axis of an input, −3 when it is no weight."""
    if node.op_type == "Conv" and position == 1:
        return 1
    if node.op_type == "MatMul" and position == 1:
        return -2
    if node.op_type == "Gemm" and position == 1:
        transposed = any(entry.name == "transB" and entry.i for entry in node.attribute)
        return 1 if transposed else 0
    return -3
