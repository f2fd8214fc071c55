"""Unstructured magnitude pruning: the smallest weights become zero."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, numpy_helper

from profiler.models.initializers import as_constants
from profiler.onnx_io import clone, opset_of, walk_graphs, walk_nodes
from profiler.variants.base import Calibration, Fact, Recipe, VariantResult, expect, required
from profiler.variants.preparing import judged, lift_constants

PRUNED_OPS = frozenset(("Conv", "ConvTranspose", "Gemm", "MatMul"))
FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)


@dataclass(frozen=True)
class PruneMagnitude(Recipe):
    """Zero a share of the weights of convolutions and matrix products, the smallest first, without repair.

    `scope=global` compares all weights with each other, `scope=layer` takes the same share from each tensor.
    The runtimes here compute zeros like any number, so latency and size stay; only the compressed size shrinks.
    """

    name: ClassVar[str] = "prune-magnitude"

    sparsity: float = required("0.5")
    """Share of the weights to zero, above 0 and below 1."""
    scope: Literal["global", "layer"] = "global"

    def __post_init__(self) -> None:
        """Check the options; raises StudyError."""
        expect(self, "sparsity", 0 < self.sparsity < 1, "a number above 0 and below 1")

    def apply(self, model: ModelProto, calibration: Calibration | None) -> VariantResult:
        """Prune; calibration rows, when given, are only used to compare outputs."""
        result = clone(model)
        as_constants(result)
        lift_constants(result)
        weights, shared = _weights(result)
        total = sum(int(np.prod(tensor.dims)) for tensor in weights)
        if not total:
            note = (
                "nothing was pruned: every stored weight is read by something else too."
                if shared
                else "nothing was pruned: no Conv, Gemm or MatMul has stored weights."
            )
            return VariantResult(clone(model), {"weights_zeroed": 0, "weights_total": 0}, (note,), changed=False)
        arrays = [np.array(numpy_helper.to_array(tensor)) for tensor in weights]
        already = sum(int((array == 0).sum()) for array in arrays)
        groups = [arrays] if self.scope == "global" else [[array] for array in arrays]
        for group in groups:
            zero_smallest(group, self.sparsity)
        zeros = sum(int((array == 0).sum()) for array in arrays)
        for tensor, array in zip(weights, arrays, strict=True):
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
        facts: dict[str, Fact] = {
            "weights_zeroed": zeros - already,
            "weights_total": total,
            "sparsity_realised": round(zeros / total, 6),
            "tensors": len(weights),
            "opset": opset_of(result),
        }
        notes = [
            "no faster and no smaller on disk: dense kernels multiply by zero too; only the compressed size shrinks.",
        ]
        if shared:
            notes.append(
                f"{shared} weights stay whole: something other than a convolution or a product reads them too."
            )
        if zeros == already:
            notes.append(f"nothing was pruned: {already} of {total} weights were zero before.")
        judged(model, result, calibration, facts, notes)
        return VariantResult(result if zeros > already else clone(model), facts, tuple(notes), changed=zeros > already)


def zero_smallest(arrays: list[NDArray[np.generic]], share: float) -> None:
    """Set exactly `round(share * n)` values of all `arrays` together to zero, the smallest magnitudes, in place.

    Equal magnitudes go in order of position, so the result is the same everywhere.
    """
    magnitudes = np.concatenate([np.abs(array).ravel() for array in arrays])
    count = round(share * magnitudes.size)
    if count == 0:
        return
    threshold = np.partition(magnitudes, count - 1)[count - 1]
    doomed = magnitudes < threshold
    ties = np.flatnonzero(magnitudes == threshold)
    doomed[ties[: count - int(doomed.sum())]] = True
    start = 0
    for array in arrays:
        array[doomed[start : start + array.size].reshape(array.shape)] = 0
        start += array.size


def _weights(model: ModelProto) -> tuple[list[TensorProto], int]:
    """Stored float weights of the pruned ops, in order of name, each once; and how many are left out.

    Left out is what somebody reads as something else: an embedding that is the output layer too, an output, a bias.
    """
    used: set[str] = set()
    otherwise = {
        value.name for graph in walk_graphs(model) if isinstance(graph, onnx.GraphProto) for value in graph.output
    }
    for node in walk_nodes(model):
        for position, name in enumerate(node.input):
            (used if node.op_type in PRUNED_OPS and position < 2 else otherwise).add(name)
    tensors = [
        tensor
        for graph in walk_graphs(model)
        if isinstance(graph, onnx.GraphProto)
        for tensor in graph.initializer
        if tensor.name in used and tensor.data_type in FLOATS and len(tensor.dims) >= 2
    ]
    own = [tensor for tensor in tensors if tensor.name not in otherwise]
    return sorted(own, key=lambda tensor: tensor.name), len(tensors) - len(own)
