"""What pruning needs to know about a graph: stored arrays, static shapes, who reads and makes what, attributes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, numpy_helper

Shape = tuple[int | None, ...]


def attribute(node: NodeProto, name: str, default: Any = None) -> Any:
    """An attribute's value, bytes as text; `default` when the node does not have it."""
    for entry in node.attribute:
        if entry.name == name:
            value = onnx.helper.get_attribute_value(entry)
            return value.decode() if isinstance(value, bytes) else value
    return default


class GraphView:
    """The main graph of a model, indexed. The model is read, never changed, and must not be changed meanwhile."""

    def __init__(self, model: ModelProto) -> None:
        """Index the graph and infer shapes; what cannot be inferred is unknown."""
        self.model = model
        self.nodes: list[NodeProto] = list(model.graph.node)
        self.tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        self.inputs = [value.name for value in model.graph.input]
        self.outputs = [value.name for value in model.graph.output]
        self.maker: dict[str, int] = {}
        self.readers: dict[str, list[tuple[int, int]]] = defaultdict(list)
        """(node, position among its inputs) of each read of a name."""
        self.captured: set[str] = set()
        """Names of this graph that bodies of If, Loop and Scan may read."""
        for index, node in enumerate(self.nodes):
            for name in node.output:
                if name:
                    self.maker[name] = index
            for position, name in enumerate(node.input):
                if name:
                    self.readers[name].append((index, position))
            for entry in node.attribute:
                for body in (*([entry.g] if entry.type == onnx.AttributeProto.GRAPH else []), *entry.graphs):
                    self.captured |= set(_names_read(body))
        self.opset = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=1)
        self.shapes = _shapes(model)
        self._arrays: dict[str, NDArray[Any]] = {}

    def array(self, name: str) -> NDArray[Any] | None:
        """A stored tensor's values; None for anything else. A tensor that is an input too can be fed, so it does not count."""
        if name not in self.tensors or name in self.inputs:
            return None
        if name not in self._arrays:
            self._arrays[name] = np.array(numpy_helper.to_array(self.tensors[name]))
        return self._arrays[name]

    def stored(self, name: str) -> bool:
        """Whether `array` has it."""
        return name in self.tensors and name not in self.inputs

    def vector(self, node: NodeProto, position: int, attribute_name: str | None = None) -> list[int] | None:
        """Integers of a small stored input, or of the attribute that older opsets had instead; None when unknown."""
        if attribute_name is not None:
            value = attribute(node, attribute_name)
            if value is not None:
                return [int(number) for number in np.atleast_1d(value)]
        if position >= len(node.input) or not node.input[position]:
            return None
        array = self.array(node.input[position])
        return None if array is None else [int(number) for number in array.ravel()]

    def given(self, node: NodeProto, position: int) -> bool:
        """Whether the optional input is there."""
        return position < len(node.input) and bool(node.input[position])


def _names_read(graph: GraphProto) -> Iterator[str]:
    for node in graph.node:
        yield from node.input
        for entry in node.attribute:
            for body in (*([entry.g] if entry.type == onnx.AttributeProto.GRAPH else []), *entry.graphs):
                yield from _names_read(body)
    yield from (value.name for value in graph.output)


def _shapes(model: ModelProto) -> dict[str, Shape]:
    """Static sizes by name; None for a dynamic axis; names of unknown rank are missing."""
    try:
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except Exception:  # noqa: BLE001 (above 2 GB, or an op onnx does not know: what the file itself says has to do)
        inferred = model
    shapes: dict[str, Shape] = {}
    for value in (*inferred.graph.value_info, *inferred.graph.output, *inferred.graph.input):
        if value.type.HasField("tensor_type") and value.type.tensor_type.HasField("shape"):
            shapes[value.name] = tuple(
                dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else None
                for dim in value.type.tensor_type.shape.dim
            )
    shapes.update({tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer})
    return shapes
