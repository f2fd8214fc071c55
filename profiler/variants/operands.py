"""Weights and biases as ONNX Runtime's quantizers need them: each kind of reader its own tensor, one bias value per channel."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from profiler.models.naming import Names
from profiler.onnx_io import walk_graphs

BIASED = ("Conv", "ConvTranspose", "Gemm")
"""Ops whose third input is added to each output channel."""
_FLOAT_READER = ("float",)


def separate(model: ModelProto, nodes: Collection[str]) -> int:
    """Store tensors that are read in several ways once for each, in place; returns how many copies were added.

    `nodes` names the nodes of the main graph that will be quantized. A quantized weight has one scale per channel along one
    axis, so readers of a tied weight that multiply along different axes each need their own; readers that stay float keep
    the float values, and so do bodies. Biases are quantized with the scales of their own layer: none is shared.
    """
    names = Names(model)
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    readers: dict[str, dict[tuple[Any, ...], list[tuple[NodeProto, int]]]] = {}
    for node, place, main in _reads(model):
        name = node.input[place]
        if name in stored:
            kind = _kind(node, place) if main and node.name in nodes else _FLOAT_READER
            readers.setdefault(name, {}).setdefault(kind, []).append((node, place))
    # What a graph gives out, of this graph or a body, is float.
    for name in {value.name for graph in walk_graphs(model) if hasattr(graph, "initializer") for value in graph.output}:
        if name in readers:
            readers[name].setdefault(_FLOAT_READER, [])
    copies = 0
    for name, kinds in readers.items():
        for kind in sorted(kinds, key=lambda kind: kind != _FLOAT_READER)[1:]:
            copy = model.graph.initializer.add()
            copy.CopyFrom(stored[name])
            copy.name = names.fresh(f"{name}_of_{kinds[kind][0][0].name}")
            for node, place in kinds[kind]:
                node.input[place] = copy.name
            copies += 1
    return copies


def _reads(model: ModelProto) -> Iterator[tuple[NodeProto, int, bool]]:
    """Every read of a value: node, place among its inputs, and whether the node is of the main graph."""
    for graph in walk_graphs(model):
        for node in graph.node:
            for place in range(len(node.input)):
                yield node, place, graph is model.graph


def _kind(node: NodeProto, place: int) -> tuple[Any, ...]:
    if node.op_type in BIASED and place == 2:
        return "bias", node.name
    if node.op_type == "LSTM":
        # Its quantizer changes the shape of what it reads.
        return "LSTM", place, node.name
    turned = any(attribute.name in ("transA", "transB") and attribute.i for attribute in node.attribute)
    return node.op_type, place, turned


def vector_biases(model: ModelProto, nodes: Collection[str]) -> None:
    """Give each Gemm of `nodes` that has a stored bias one value per output channel, or an Add behind it, in place.

    ONNX broadcasts what it adds; the quantizer takes any stored bias for a vector. A scalar and a row are written out, a matrix
    or column is no bias of channels and is added in float. Call it when `beta` is folded and operands are separate.
    """
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in list(model.graph.node):
        bias = stored.get(node.input[2]) if len(node.input) > 2 else None
        weight = stored.get(node.input[1]) if len(node.input) > 1 else None
        if node.op_type != "Gemm" or node.name not in nodes or bias is None or weight is None:
            continue
        channels = weight.dims[0 if _flag(node, "transB") else 1]
        array = numpy_helper.to_array(bias)
        if (array.ndim > 1 and array.shape[0] > 1) or array.shape[-1:] not in ((), (1,), (channels,)):
            _add_behind(model, node)
        elif array.shape != (channels,):
            vector = np.broadcast_to(array.reshape(-1), (channels,)).copy()
            bias.CopyFrom(numpy_helper.from_array(vector, bias.name))


def _add_behind(model: ModelProto, node: NodeProto) -> None:
    names = Names(model)
    inner, result = names.fresh(f"{node.output[0]}_unbiased"), node.output[0]
    add = helper.make_node("Add", [inner, node.input[2]], [result], names.fresh(f"{node.name}_bias"))
    node.output[0] = inner
    del node.input[2:]
    place = next(index for index, other in enumerate(model.graph.node) if other.name == node.name)
    model.graph.node.insert(place + 1, add)


def whole_tensors(model: ModelProto, nodes: set[str]) -> dict[str, list[dict[str, Any]]]:
    """Overrides that give one scale to weights for which the quantizer would place several along a wrong axis.

    It takes axis 1 of any MatMul operand: of batched weights [B, K, N], and of weights on the left [M, K], that is the axis which
    is summed, and kernels then read scales that are not there.
    """
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    found: dict[str, list[dict[str, Any]]] = {}
    for node in model.graph.node:
        if node.name in nodes and node.op_type == "MatMul":
            for place, name in enumerate(node.input):
                if name in stored and (place == 0 or len(stored[name].dims) != 2):
                    found[name] = [{"symmetric": True}]
    return found


def channel_axis(node: NodeProto, rank: int) -> int:
    """Axis of the output channels of a weight, where the quantizer puts one scale each."""
    if node.op_type == "Conv" or any(a.name == "transB" and a.i for a in node.attribute):
        return 0
    return 1 if rank > 1 else 0


def fold_betas(model: ModelProto) -> None:
    """Multiply stored biases of Gemm by its `beta`, in place: ONNX Runtime's quantizer sets beta to 1 and forgets to."""
    names = Names(model)
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        beta = next((item for item in node.attribute if item.name == "beta"), None)
        if node.op_type != "Gemm" or beta is None or beta.f == 1 or len(node.input) < 3 or node.input[2] not in stored:
            continue
        array = numpy_helper.to_array(stored[node.input[2]])
        name = names.fresh(f"{node.output[0]}.beta")
        scaled = numpy_helper.from_array(np.asarray(array * beta.f).astype(array.dtype), name)
        model.graph.initializer.append(scaled)
        node.input[2], beta.f = name, 1.0


ELEMENTWISE = frozenset(
    (
        "Abs", "Add", "Celu", "Clip", "Div", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish", "Identity", "LeakyRelu",
        "Mish", "Mul", "Neg", "PRelu", "Pow", "Relu", "Selu", "Sigmoid", "Softplus", "Softsign", "Sqrt", "Sub", "Tanh",
        "ThresholdedRelu",
    )
)  # fmt: skip


def chained_products(model: ModelProto, nodes: Collection[str]) -> list[NodeProto]:
    """Those of `nodes` that multiply a matrix by stored weights, with nothing but elementwise ops between one and the next.

    Only where the ranks are known to be two: what shape inference wrote into `model` tells.
    """
    ranks = {
        value.name: len(value.type.tensor_type.shape.dim)
        for value in (*model.graph.input, *model.graph.value_info, *model.graph.output)
        if value.type.tensor_type.HasField("shape")
    }
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    makers = {name: node for node in model.graph.node for name in node.output}

    def product(node: NodeProto | None) -> bool:
        if node is None or node.op_type not in ("Gemm", "MatMul") or node.name not in nodes:
            return False
        weight = stored.get(node.input[1])
        return (
            weight is not None and len(weight.dims) == 2 and (node.op_type == "Gemm" or ranks.get(node.input[0]) == 2)
        )

    found: dict[str, NodeProto] = {}
    for node in model.graph.node:
        if not product(node):
            continue
        before = makers.get(node.input[0])
        while before is not None and before.op_type in ELEMENTWISE:
            name = next((name for name in before.input if name and name not in stored), "")
            before = makers.get(name)
        if before is not None and product(before):
            found |= {before.name: before, node.name: node}
    return list(found.values())


def give_chain_biases(model: ModelProto, nodes: Collection[str]) -> int:
    """Make chained products without a bias Gemms with a bias of zeros, in place; returns how many were given one.

    OpenVINO (2026.4) fuses such a chain for fixed shapes and then computes noise when products have no bias in int8, or the same
    one for all channels (zeros it takes out before, equal values it makes one of). With another it is right: see `wake_biases`.
    """
    names = Names(model)
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    given = 0
    for node in chained_products(model, nodes):
        if len(node.input) > 2 and node.input[2]:
            continue
        weight = stored[node.input[1]]
        zeros: NDArray[Any] = np.zeros(weight.dims[0 if _flag(node, "transB") else 1], np.float32)
        name = names.fresh(f"{node.name}_zero_bias")
        model.graph.initializer.append(numpy_helper.from_array(zeros, name))
        del node.input[2:]
        node.input.append(name)
        node.op_type = "Gemm"
        given += 1
    return given


def wake_biases(model: ModelProto, nodes: Collection[str]) -> int:
    """Add one step of the accumulator to the first channel of int32 biases that are zero or the same everywhere, in place.

    Returns how many.

    A step is the product of the scales of input and weight, some thousand times finer than int8's: nothing that can be seen.
    """
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    makers = {name: node for node in model.graph.node for name in node.output}
    woken = 0
    for node in model.graph.node:
        if node.name not in nodes or node.op_type != "Gemm" or len(node.input) < 3:
            continue
        maker = makers.get(node.input[2])
        tensor = stored.get(maker.input[0]) if maker is not None and maker.op_type == "DequantizeLinear" else None
        if tensor is None or tensor.data_type != TensorProto.INT32:
            continue
        array = numpy_helper.to_array(tensor).copy()
        if array.size and (not array.any() or (array.size > 1 and (array == array[0]).all())):
            array[:1] += 1 if array[0] < np.iinfo(np.int32).max else -1
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
            woken += 1
    return woken


def _flag(node: NodeProto, name: str) -> bool:
    return any(attribute.name == name and attribute.i for attribute in node.attribute)
