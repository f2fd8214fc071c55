"""Facts of a model file that decide what quantization can gain, and how executed ops are found again in it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper
from pydantic import TypeAdapter

from profiler.errors import ModelError
from profiler.explain.evidence import FileFacts, Layer, Stored
from profiler.onnx_io import count_ops, walk_nodes
from profiler.roofline.graph import packed_bytes, read_graph
from profiler.targets.maker import Maker

_PLAIN = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
_DYNAMIC = {"ConvInteger", "MatMulInteger", "DynamicQuantizeMatMul", "MatMulIntegerToFloat"}
_OPERATOR = {"QLinearConv", "QLinearMatMul", "QGemm"}
_WEIGHT_AT = {"MatMulNBits": 1, "QLinearConv": 3, "QLinearMatMul": 3, "QGemm": 3}
_CARRIED = {
    "Clip", "Concat", "Expand", "Flatten", "Gather", "Identity", "MaxPool", "Pad", "Relu", "Reshape", "Resize", "Slice", "Split",
    "Squeeze", "Transpose", "Unsqueeze",
}  # fmt: skip
"""Ops that move or clip values and run on int8 at the scale of their input: Q/DQ around them cost nothing once fused."""
_PASSED = {"Cast", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"}
_Q, _DQ = "QuantizeLinear", "DequantizeLinear"
_HOPS = 4
_ADDED = re.compile(
    r"(_token_\d+|_nchwc|_nhwc|_quant|_quantized|_Q\d|_QuantizeLinear|_DequantizeLinear|/duplicated|/WithoutBiases"
    r"|/fq_\w+|/Dequantization\w+|_MatMul|_Add|_scales_mul|_cast|_bias_add|_kernel)+$"
)
"""What onnxruntime, its quantizer and OpenVINO append to the names of the model's own nodes and values."""
_BEFORE = re.compile(r"^(InsertedPrecisionFreeCast_|InsertedCast_|fused )")


@dataclass(frozen=True)
class _Graph:
    constants: Mapping[str, TensorProto]
    producers: Mapping[str, NodeProto]
    consumers: Mapping[str, list[NodeProto]]
    shapes: Mapping[str, tuple[int, ...]]


def file_facts(model: ModelProto, batch: int) -> FileFacts:
    """Read a model file for inferences of `batch` rows. Pure; needs its weights loaded."""
    # Bodies of If, Loop and Scan hold weights like the main graph; how often a body runs, and on what sizes, no file says.
    scopes = list(_scopes(model.graph, _read(model, batch)))
    layers = [layer for nodes, graph in scopes for node in nodes if (layer := _layer(node, graph)) is not None]
    light = Counter(node.op_type for nodes, graph in scopes for node in nodes if _is_light(node, graph))
    nodes = frozenset(node.name for node in walk_nodes(model) if node.name)
    return FileFacts(dict(sorted(count_ops(model).items())), tuple(layers), dict(sorted(light.items())), nodes)


@dataclass(frozen=True)
class BareNode:
    """A node without what it holds: enough to find ops again."""

    name: str
    op_type: str
    input: tuple[str, ...]
    output: tuple[str, ...]


def bare_nodes(model: ModelProto) -> list[BareNode]:
    """The nodes of the main graph."""
    return [BareNode(node.name, node.op_type, tuple(node.input), tuple(node.output)) for node in model.graph.node]


def read_layers(maker: Maker, path: Path, batch: int) -> tuple[FileFacts, list[BareNode]]:
    """`file_facts` and `bare_nodes` of a model file, in a maker process. Raises WorkerFailure, ModelError."""
    found = maker.do("layers", f"reading the layers of '{path}'", path=path, batch=batch)
    return TypeAdapter(FileFacts).validate_python(found["facts"]), TypeAdapter(list[BareNode]).validate_python(
        found["nodes"]
    )


class Names:
    """Finds the layer of a model that an executed op came from, by what runtimes keep of names."""

    def __init__(self, model: ModelProto | list[BareNode], layers: Iterable[Layer]) -> None:
        """`model` is the unmodified one, or its nodes, whose layers give the rows of a comparison."""
        nodes = model if isinstance(model, list) else bare_nodes(model)
        self._layers = {layer.name for layer in layers}
        self._producers = {name: node for node in nodes for name in node.output}
        self._of_node = {node.name: node for node in nodes if node.name}

    def layer(self, candidates: Iterable[str]) -> str | None:
        """The layer named by one of `candidates`: itself, or the one whose result the named value is after fused ops."""
        for text in candidates:
            for name in _forms(text):
                if name in self._layers:
                    return name
                node = self._of_node.get(name) or self._producers.get(name)
                found = None if node is None else self._above(node)
                if found is not None:
                    return found
        return None

    def _above(self, node: BareNode, hops: int = _HOPS) -> str | None:
        """The layer that `node` is, or is fused into: activations and additions after it."""
        if layer_name(node) in self._layers:
            return layer_name(node)
        if not hops or node.op_type not in _FUSED:
            return None
        for name in node.input:
            producer = self._producers.get(name)
            found = None if producer is None else self._above(producer, hops - 1)
            if found is not None:
                return found
        return None


_FUSED = {"Add", "BatchNormalization", "Clip", "HardSigmoid", "HardSwish", "LeakyRelu", "Mul", "Relu", "Sigmoid"}


def layer_name(node: NodeProto | BareNode) -> str:
    """The node's name; nameless nodes are known by their first result."""
    return node.name or (node.output[0] if node.output else "")


def _forms(text: str) -> Iterable[str]:
    """The name itself, then with what runtimes add taken off piece by piece."""
    yield text
    short = _BEFORE.sub("", text)
    while short:
        yield short
        less = _ADDED.sub("", short)
        if less == short:
            break
        # One piece at a time: a model's own names may end like what is added.
        last = _ADDED.search(short)
        short = less if last is None else short[: last.start()] or less


def _read(model: ModelProto, batch: int) -> _Graph:
    try:
        known = read_graph(model, batch).tensors
    except ModelError:  # another batch is fixed: the numbers of multiplications are then unknown
        known = {}
    return _indexed(model.graph, {name: tensor.shape for name, tensor in known.items()})


def _indexed(graph: GraphProto, shapes: Mapping[str, tuple[int, ...]]) -> _Graph:
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
            constants[node.output[0]] = node.attribute[0].t
    consumers: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            consumers.setdefault(name, []).append(node)
    producers = {name: node for node in graph.node for name in node.output}
    return _Graph(constants, producers, consumers, shapes)


def _scopes(graph: GraphProto, scope: _Graph) -> Iterator[tuple[Sequence[NodeProto], _Graph]]:
    """The nodes of a graph with what they see, then those of each body: its own values, and those of the graphs around it."""
    yield graph.node, scope
    for node in graph.node:
        for item in node.attribute:
            for body in (*([item.g] if item.type == AttributeProto.GRAPH else []), *item.graphs):
                own = _indexed(body, {})
                # Two branches may use one name for different values, and a body's value may be called as none around it is.
                inside = _Graph(
                    {**scope.constants, **own.constants},
                    {**scope.producers, **own.producers},
                    own.consumers,
                    {name: shape for name, shape in scope.shapes.items() if name not in own.producers},
                )
                yield from _scopes(body, inside)


def _layer(node: NodeProto, graph: _Graph) -> Layer | None:
    places = [_WEIGHT_AT[node.op_type]] if node.op_type in _WEIGHT_AT else [1, 0] if node.op_type == "MatMul" else [1]
    if node.op_type not in _PLAIN | _DYNAMIC | _OPERATOR | {"MatMulNBits"}:
        return None
    for place in places:
        if place >= len(node.input):
            continue
        found = _constant(node.input[place], graph)
        if found is None:
            continue
        tensor, dequantizer = found
        other = node.input[0 if place else 1]
        return _described(node, tensor, dequantizer, quantized_input=_from(other, graph, _DQ), graph=graph)
    return None


def _described(
    node: NodeProto, tensor: TensorProto, dequantizer: NodeProto | None, *, quantized_input: bool, graph: _Graph
) -> Layer:
    shape = tuple(tensor.dims)
    weights = int(np.prod(shape))
    size = packed_bytes(weights, tensor.data_type)
    group = next((int(item.i) for item in node.attribute if item.name == "group"), 1)
    last = node.op_type not in {"Conv", "ConvInteger", "QLinearConv"}
    transposed = any(item.name == "transB" and item.i for item in node.attribute)
    axis = (len(shape) - 1 if last and not transposed else 0) if shape else 0
    out_channels = shape[axis] if shape else 1
    if node.op_type == "MatMulNBits":
        sizes = {item.name: int(item.i) for item in node.attribute}
        out_channels, weights = sizes.get("N", out_channels), sizes.get("N", 1) * sizes.get("K", weights)
    out = graph.shapes.get(node.output[0])
    macs = None if out is None or not out_channels else int(np.prod(out)) // out_channels * weights
    stored = _stored(node, tensor, dequantizer, quantized_input=quantized_input)
    return Layer(
        layer_name(node), node.op_type, stored, weights, size, macs,
        _in_channels(node, shape, weights, out_channels, group), out_channels, group, _weakest(tensor, dequantizer, axis, graph),
    )  # fmt: skip


def _in_channels(node: NodeProto, shape: tuple[int, ...], weights: int, out_channels: int, group: int) -> int:
    if "Conv" in node.op_type and len(shape) > 1:
        return shape[0] if node.op_type == "ConvTranspose" else shape[1] * group
    return max(1, weights // max(1, out_channels))


def _stored(node: NodeProto, tensor: TensorProto, dequantizer: NodeProto | None, *, quantized_input: bool) -> Stored:
    if node.op_type in _DYNAMIC:
        return "dynamic"
    if node.op_type in _OPERATOR:
        return "operator"
    if node.op_type == "MatMulNBits":
        return "weight-only"
    if tensor.data_type in (TensorProto.FLOAT8E4M3FN, TensorProto.FLOAT8E5M2):
        return "f8"
    if dequantizer is not None:
        return "qdq" if quantized_input else "weights"
    if tensor.data_type in (TensorProto.FLOAT16, TensorProto.BFLOAT16):
        return "f16"
    return "activations" if quantized_input else "float"


def _weakest(tensor: TensorProto, dequantizer: NodeProto | None, axis: int, graph: _Graph) -> int | None:
    """See `Layer.weakest_levels`; channels that are all zero before quantization cannot be told and count as weak."""
    if dequantizer is None or len(tensor.dims) < 2 or tensor.data_type not in (TensorProto.INT8, TensorProto.UINT8):
        return None
    scale = graph.constants.get(dequantizer.input[1])
    if scale is None or int(np.prod(scale.dims)) != 1:
        return None
    values: NDArray[np.int64] = numpy_helper.to_array(tensor).astype(np.int64)
    zero = graph.constants.get(dequantizer.input[2]) if len(dequantizer.input) > 2 else None
    if zero is not None:
        values = values - int(numpy_helper.to_array(zero).reshape(-1)[0])
    used = np.abs(values).max(axis=tuple(place for place in range(values.ndim) if place != axis))
    return int(used.min())


def _constant(name: str, graph: _Graph) -> tuple[TensorProto, NodeProto | None] | None:
    """The stored tensor that a weight input comes from, through DequantizeLinear and what only moves it."""
    dequantizer = None
    for _ in range(_HOPS):
        if name in graph.constants:
            return graph.constants[name], dequantizer
        node = graph.producers.get(name)
        if node is None or not node.input or node.op_type not in _PASSED | {_DQ}:
            return None
        if node.op_type == _DQ:
            dequantizer = node
        name = node.input[0]
    return None


def _from(name: str, graph: _Graph, op_type: str) -> bool:
    node = graph.producers.get(name)
    return node is not None and node.op_type == op_type


def _is_light(node: NodeProto, graph: _Graph) -> bool:
    if node.op_type in _CARRIED | _PLAIN | _DYNAMIC | _OPERATOR | {_Q, _DQ, "Constant", "Cast"} or not node.output:
        return False
    inputs = [name for name in node.input if name and name not in graph.constants]
    after = graph.consumers.get(node.output[0], [])
    return bool(inputs and after) and _from(inputs[0], graph, _DQ) and all(item.op_type == _Q for item in after)
