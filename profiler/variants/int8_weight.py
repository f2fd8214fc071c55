"""8-bit weights of matrix products and embedding tables; activations stay float."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from profiler.errors import ModelError, VariantError
from profiler.models.initializers import as_constants, drop_unread
from profiler.models.naming import Names, distinct_names
from profiler.onnx_io import clone, count_ops, opset_of, upgrade_opset, walk_graphs, walk_nodes
from profiler.variants.base import Calibration, Fact, Recipe, VariantResult, expect
from profiler.variants.folding import about_weights
from profiler.variants.preparing import (
    QDQ_OPSET,
    forget_declared,
    judged,
    lift_constants,
    name_nodes,
    quiet,
    sort_nodes,
    unchanged,
)
from profiler.variants.running import ensure_loads, ensure_runs
from profiler.variants.taken_names import with_free_names

BLOCK_OPSET = 21
"""First opset whose DequantizeLinear takes one scale per block."""
SMALLEST_TABLE = 4096
"""Embedding tables below this many values stay float: a shape or position lookup gains nothing."""


@dataclass(frozen=True)
class Int8Weight(Recipe):
    """Weight-only int8, symmetric, no calibration: a quarter of the weights' memory at next to no loss.

    Written as DequantizeLinear before each MatMul or Gemm, which OpenVINO keeps compressed and ONNX Runtime fuses into
    MatMulNBits (from a stored int8 weight, one scale per output channel or per block). Bodies of If and Loop are entered.
    """

    name: ClassVar[str] = "int8-weight"

    block_size: int = 0
    """Input channels that share a scale; 0: all of them, one scale per output channel."""
    embeddings: bool = True
    """Also tables that Gather reads rows from, one scale per column."""

    def __post_init__(self) -> None:
        """Check the options; raises StudyError."""
        power = self.block_size >= 16 and self.block_size & (self.block_size - 1) == 0
        expect(
            self,
            "block_size",
            self.block_size == 0 or (power and self.block_size <= 1024),
            "0 or a power of two from 16 to 1024",
        )

    def apply(self, model: ModelProto, calibration: Calibration | None) -> VariantResult:
        """Quantize; calibration rows, when given, are only used to compare outputs."""
        ops = ("Gemm", "MatMul", "Gather") if self.embeddings else ("Gemm", "MatMul")
        before = count_ops(model)
        if not any(before[op] for op in ops):
            return unchanged(model, f"the model has no {', '.join(ops)}")
        work, notes = clone(model), list[str]()
        as_constants(work)
        distinct_names(work)
        forget_declared(work)
        try:
            work, changed, note = upgrade_opset(work, BLOCK_OPSET if self.block_size else QDQ_OPSET)
        except ModelError as error:
            raise VariantError(f"{self.text} cannot be made: {error}") from error
        notes += [note] if changed else []
        lift_constants(work)
        work = _products(work)
        name_nodes(work)
        done = _Writer(work, self.block_size, self.embeddings).write()
        if not done:
            why = f"no {', '.join(ops)} has stored two-dimensional float32 weights of its own{about_weights(work, ops)}"
            return unchanged(model, f"{why}{self._about_blocks()}")
        drop_unread(work)
        if (loading := ensure_loads(work, self.text)) is not None:
            notes.append(loading)
        else:
            notes += ensure_runs(model, work, calibration, self.text)
        after = count_ops(work)
        facts: dict[str, Fact] = {
            "ops_quantized": sum(done.values()),
            "ops_left_float": after["MatMul"] + after["Gemm"] - done["MatMul"] - done["Gemm"],
            "quantized": ", ".join(f"{op} {count}" for op, count in sorted(done.items(), key=lambda i: (-i[1], i[0]))),
            "opset": opset_of(work),
        }
        convs = after["Conv"] + after["ConvTranspose"]
        if convs:
            notes.append(f"{convs} convolutions stay float32: weight-only kernels exist for matrix products.")
        judged(model, work, calibration, facts, notes)
        return VariantResult(work, facts, tuple(notes), changed=True)

    def _about_blocks(self) -> str:
        return f" that {self.block_size} divides" if self.block_size else ""


@dataclass
class _Writer:
    """Puts int8 tensors and DequantizeLinear in the place of float weights, in place."""

    model: ModelProto
    block_size: int
    embeddings: bool

    def write(self) -> Counter[str]:
        """Quantize what qualifies; nodes done by op type."""
        self._names = Names(self.model)
        readers: dict[str, list[tuple[NodeProto, int]]] = {}
        for node in walk_nodes(self.model):
            for place, name in enumerate(node.input):
                readers.setdefault(name, []).append((node, place))
        outputs = {value.name for graph in _graphs(self.model) for value in graph.output}
        done: Counter[str] = Counter()
        for graph in list(_graphs(self.model)):
            for tensor in list(graph.initializer):
                uses = readers.get(tensor.name, [])
                if tensor.name in outputs or not self._fits(tensor, uses):
                    continue
                node = uses[0][0]
                if node.op_type == "Gather":
                    self._table(graph, tensor, [node for node, _ in uses])
                else:
                    self._weight(graph, tensor, _turned(node))
                done.update(node.op_type for node, _ in uses)
        return done

    def _fits(self, tensor: TensorProto, uses: list[tuple[NodeProto, int]]) -> bool:
        """Two-dimensional float weights, read only by products in the same way, or only as a table of rows."""
        if tensor.data_type != TensorProto.FLOAT or len(tensor.dims) != 2 or not uses:
            return False
        if all(node.op_type in ("Gemm", "MatMul") and place == 1 for node, place in uses):
            turned = {_turned(node) for node, _ in uses}
            inputs = tensor.dims[1 if True in turned else 0]
            return len(turned) == 1 and (self.block_size == 0 or inputs % self.block_size == 0)
        large = tensor.dims[0] * tensor.dims[1] >= SMALLEST_TABLE
        return (
            self.embeddings
            and large
            and all(n.op_type == "Gather" and place == 0 and _axis(n) == 0 for n, place in uses)
        )

    def _weight(self, graph: GraphProto, tensor: TensorProto, turned: bool) -> None:
        array = np.asarray(numpy_helper.to_array(tensor), np.float32)
        inputs, name = (1 if turned else 0), tensor.name
        if self.block_size:
            # [..., inputs, ...] as [..., blocks, block_size, ...]
            shape = list(array.shape)
            shape[inputs : inputs + 1] = [array.shape[inputs] // self.block_size, self.block_size]
            blocks = array.reshape(shape)
            scale = _scales(blocks, inputs + 1)
            values = _rounded(blocks, np.expand_dims(scale, inputs + 1)).reshape(array.shape)
            attributes: dict[str, Any] = {"axis": inputs, "block_size": self.block_size}
        else:
            scale = _scales(array, inputs)
            values = _rounded(array, np.expand_dims(scale, inputs))
            attributes = {"axis": 1 - inputs}
        scales = self._store(graph, tensor, values, scale)
        # First of its graph: it needs stored tensors only, and every reader comes later.
        node = helper.make_node(
            "DequantizeLinear", [tensor.name, scales], [name], self._names.fresh(f"{name}_dequantize"), **attributes
        )
        graph.node.insert(0, node)

    def _table(self, graph: GraphProto, tensor: TensorProto, gathers: list[NodeProto]) -> None:
        array = np.asarray(numpy_helper.to_array(tensor), np.float32)
        scale = _scales(array, 0)
        scales = self._store(graph, tensor, _rounded(array, scale), scale)
        wanted = {node.name for node in gathers}
        for inner in _graphs(self.model):
            for place in reversed([at for at, node in enumerate(inner.node) if node.name in wanted]):
                gather = inner.node[place]
                rows, result = self._names.fresh(f"{gather.output[0]}_int8"), gather.output[0]
                gather.input[0], gather.output[0] = tensor.name, rows
                node = helper.make_node(
                    "DequantizeLinear",
                    [rows, scales],
                    [result],
                    self._names.fresh(f"{gather.name}_dequantize"),
                    axis=-1,
                )
                inner.node.insert(place + 1, node)

    def _store(
        self, graph: GraphProto, tensor: TensorProto, values: NDArray[np.int8], scale: NDArray[np.float32]
    ) -> str:
        """Put `values` in the place of `tensor`, under a new name, and `scale` beside it; returns the scale's name."""
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(values, self._names.fresh(f"{name}_int8")))
        scales = self._names.fresh(f"{name}_scale")
        graph.initializer.append(numpy_helper.from_array(scale, scales))
        return scales


def _products(model: ModelProto) -> ModelProto:
    """`model` with MatMul + Add for each plain Gemm of the main graph: only MatMul is fused with int8 weights."""
    from onnxruntime.quantization.onnx_model import ONNXModel

    def replace(work: ModelProto, _: Mapping[str, str]) -> ModelProto:
        with quiet():
            wrapped = ONNXModel(work)
            wrapped.replace_gemm_with_matmul()
        result: ModelProto = wrapped.model
        sort_nodes(result.graph)
        return result

    return with_free_names(model, replace)


def _graphs(model: ModelProto) -> Iterator[GraphProto]:
    return (graph for graph in walk_graphs(model) if isinstance(graph, GraphProto))


def _scales(array: NDArray[np.float32], axis: int) -> NDArray[np.float32]:
    """Largest magnitude along `axis` over 127; 1 where all is zero."""
    largest = np.abs(array).max(axis=axis)
    return np.asarray(np.where(largest > 0, largest / 127, 1), np.float32)


def _rounded(array: NDArray[np.float32], scale: NDArray[np.float32]) -> NDArray[np.int8]:
    return np.asarray(np.clip(np.rint(array / scale), -127, 127), np.int8)


def _turned(node: NodeProto) -> bool:
    return node.op_type == "Gemm" and any(a.name == "transB" and a.i for a in node.attribute)


def _axis(node: NodeProto) -> int:
    return next((int(a.i) for a in node.attribute if a.name == "axis"), 0)
