"""Bias correction: what quantization shifts an output channel by on average is taken off its bias.

M. Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV 2019, section 4.2, in the
empirical form: means are taken on calibration rows, from input to output, each with everything before it already corrected.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from profiler.onnx_io import reads, walk_nodes, write_model
from profiler.variants.running import scratch, session

Feeds = Callable[[], Iterable[Mapping[str, NDArray[Any]]]]

CORRECTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_INT32 = np.iinfo(np.int32)


def give_biases(model: ModelProto, nodes: Iterable[NodeProto]) -> int:
    """Give the Conv, Gemm and MatMul of `nodes` that have none a bias of zeros, in place; returns how many got one.

    A MatMul whose only reader adds a stored vector has one; any other gets an Add of its own.
    """
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    outputs = {value.name for value in model.graph.output}
    added = 0
    for node in list(nodes):
        weight = stored.get(node.input[1]) if len(node.input) > 1 else None
        if weight is None:
            continue
        if node.op_type == "MatMul":
            if len(weight.dims) == 2 and _bias_add(model, node, stored) is None and node.output[0] not in outputs:
                _add_after(model, node, weight.dims[1])
                added += 1
        elif node.op_type in ("Conv", "Gemm") and (len(node.input) < 3 or not node.input[2]) and _beta(node) == 1:
            bias = _zeros(model, node, _channels(node, weight))
            del node.input[2:]
            node.input.append(bias)
            added += 1
    return added


def correct_biases(reference: ModelProto, quantized: ModelProto, names: Iterable[str], feeds: Feeds) -> int:
    """Shift biases of `quantized` (in place) so that each named node's output has the mean it has in `reference`.

    Nodes are found by name in both; a MatMul is measured behind the Add that holds its bias. Where a Relu or Clip follows,
    only positions count at which either model's value passes it: values that both cut off would decide most shifts, and
    moved the outputs of a real model away from float. Returns how many biases moved. Memory holds one row's activations. It
    takes two inferences per row and node, of the models up to there; nodes that do not depend on each other share theirs.
    """
    places = {node.name: node for node in quantized.graph.node}
    originals = {node.name: node for node in reference.graph.node if node.name in places}
    wanted = {name for name in names if name in originals and originals[name].op_type in CORRECTED}
    watched = {name: (_biased(reference, originals[name]), _biased(quantized, places[name])) for name in wanted}
    limits = {name: _limits(reference, watched[name][0]) for name in wanted}
    moved = 0
    for wave in _waves(quantized, wanted):
        before = _Part(reference, {name: watched[name][0] for name in wave})
        after = _Part(quantized, {name: watched[name][1] for name in wave})
        shifts = _mean_errors(before, after, limits, {name: _axis(places[name]) for name in wave}, feeds)
        moved += sum(_shift(quantized, places[name], shifts[name]) for name in wave if name in shifts)
    return moved


class _Part:
    """The part of a model that computes some tensors, ready to run."""

    def __init__(self, model: ModelProto, watched: Mapping[str, str]) -> None:
        self.watched = watched
        part = _upto(model, watched.values())
        self._inputs = {value.name for value in part.graph.input}
        with scratch() as folder:
            self._runner = session(write_model(part, folder))

    def __call__(self, row: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float64]]:
        feeds = {name: array for name, array in row.items() if name in self._inputs}
        found = self._runner.run(list(self.watched.values()), feeds)
        return {name: np.asarray(array, np.float64) for name, array in zip(self.watched, found, strict=True)}


def _mean_errors(
    before: _Part, after: _Part, limits: Mapping[str, tuple[float, float]], axes: Mapping[str, int], feeds: Feeds
) -> dict[str, NDArray[np.float64]]:
    """Mean of float minus quantized per output channel, over rows and the positions at which either is within limits."""
    sums: dict[str, NDArray[np.float64]] = {}
    counts: dict[str, NDArray[np.float64]] = {}
    for row in feeds():
        wanted, got = before(row), after(row)
        for name, array in wanted.items():
            low, high = limits[name]
            inside = (array > low) & (array < high) | (got[name] > low) & (got[name] < high)
            others = tuple(axis for axis in range(array.ndim) if axis != axes[name] % array.ndim)
            sums[name] = sums.get(name, 0) + np.where(inside, array - got[name], 0).sum(axis=others)
            counts[name] = counts.get(name, 0) + inside.sum(axis=others)
    return {name: np.where(counts[name] > 0, total / np.maximum(counts[name], 1), 0) for name, total in sums.items()}


def _biased(model: ModelProto, node: NodeProto) -> str:
    """The tensor that holds the node's result with its bias."""
    if node.op_type != "MatMul":
        return str(node.output[0])
    add = _bias_add(model, node, {tensor.name: tensor for tensor in model.graph.initializer})
    return str(node.output[0] if add is None else add[0].output[0])


def _limits(model: ModelProto, name: str) -> tuple[float, float]:
    """What the Relu or Clip that alone reads the tensor lets through; everything when there is none."""
    readers = [other for other in walk_nodes(model) if name in other.input]
    if len(readers) != 1 or readers[0].op_type not in ("Clip", "Relu"):
        return -np.inf, np.inf
    if readers[0].op_type == "Relu":
        return 0.0, np.inf
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    bounds = [stored.get(name) for name in [*readers[0].input[1:3], "", ""][:2]]
    low, high = (None if bound is None else float(numpy_helper.to_array(bound).item()) for bound in bounds)
    return -np.inf if low is None else low, np.inf if high is None else high


def _axis(node: NodeProto) -> int:
    """Axis of the output channels."""
    return 1 if node.op_type in ("Conv", "ConvTranspose") else -1


def _upto(model: ModelProto, tensors: Iterable[str]) -> ModelProto:
    """The part of `model` that computes `tensors`, with only the inputs and stored tensors it needs."""
    wanted, kept = set(tensors), list[NodeProto]()
    outputs = sorted(wanted)
    for node in reversed(model.graph.node):
        if wanted & set(node.output):
            kept.append(node)
            wanted |= reads(node)
    part = ModelProto(ir_version=model.ir_version)
    part.opset_import.extend(model.opset_import)
    part.functions.extend(model.functions)
    graph = part.graph
    graph.name = model.graph.name
    graph.node.extend(reversed(kept))
    graph.initializer.extend(tensor for tensor in model.graph.initializer if tensor.name in wanted)
    graph.input.extend(value for value in model.graph.input if value.name in wanted)
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
    return part


def _waves(model: ModelProto, names: set[str]) -> list[list[str]]:
    """The named nodes in groups: no node depends on another of its group, and all it depends on came before."""
    depth: dict[str, int] = {}
    waves: dict[int, list[str]] = {}
    for node in model.graph.node:
        level = max((depth.get(name, 0) for name in reads(node)), default=0)
        if node.name in names:
            waves.setdefault(level, []).append(node.name)
            level += 1
        depth.update(dict.fromkeys(node.output, level))
    return [waves[level] for level in sorted(waves)]


def _shift(model: ModelProto, node: NodeProto, by: NDArray[np.float64]) -> bool:
    """Add `by` to the bias of `node`: float, or int32 with its own scale."""
    if not np.isfinite(by).all() or _beta(node) != 1:
        return False
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    target, index = node, 2
    if node.op_type == "MatMul":
        add = _bias_add(model, node, stored)
        if add is None:
            return False
        target, index = add
    if len(target.input) <= index:
        return False
    name = target.input[index]
    if name in stored:
        tensor = _own(model, target, index, stored[name])
        array = numpy_helper.to_array(tensor)
        tensor.CopyFrom(numpy_helper.from_array((array + by).astype(array.dtype), tensor.name))
        return True
    maker = next((other for other in model.graph.node if name in other.output), None)
    if maker is None or maker.op_type != "DequantizeLinear" or maker.input[0] not in stored:
        return False
    tensor = stored[maker.input[0]]
    if tensor.data_type != TensorProto.INT32:
        return False
    scale = np.asarray(numpy_helper.to_array(stored[maker.input[1]]), np.float64)
    array = np.asarray(numpy_helper.to_array(tensor), np.float64)
    moved = np.clip(np.rint(array + by / np.where(scale > 0, scale, 1)), _INT32.min, _INT32.max).astype(np.int32)
    tensor.CopyFrom(numpy_helper.from_array(moved, tensor.name))
    return True


def _own(model: ModelProto, node: NodeProto, index: int, tensor: TensorProto) -> TensorProto:
    """`tensor`, or a copy of it when others read it too."""
    if sum(list(other.input).count(tensor.name) for other in walk_nodes(model)) == 1:
        return tensor
    copy: TensorProto = model.graph.initializer.add()
    copy.CopyFrom(tensor)
    copy.name = f"{tensor.name}_of_{node.name}"
    node.input[index] = copy.name
    return copy


def _bias_add(model: ModelProto, node: NodeProto, stored: Mapping[str, TensorProto]) -> tuple[NodeProto, int] | None:
    """The Add that only `node` feeds beside a stored float vector, and that vector's place; Q/DQ between them are passed."""
    name = node.output[0]
    while True:
        readers = [other for other in walk_nodes(model) if name in other.input]
        if len(readers) != 1:
            return None
        if readers[0].op_type in ("QuantizeLinear", "DequantizeLinear") and readers[0].input[0] == name:
            name = readers[0].output[0]
            continue
        add = readers[0]
        if add.op_type != "Add":
            return None
        index = 1 - list(add.input).index(name)
        vector = stored.get(add.input[index])
        plain = vector is not None and vector.data_type == TensorProto.FLOAT and len(vector.dims) == 1
        return (add, index) if plain else None


def _channels(node: NodeProto, weight: TensorProto) -> int:
    if node.op_type == "Conv":
        return int(weight.dims[0])
    turned = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
    return int(weight.dims[0 if turned else 1])


def _beta(node: NodeProto) -> float:
    return next((float(attribute.f) for attribute in node.attribute if attribute.name == "beta"), 1.0)


def _zeros(model: ModelProto, node: NodeProto, channels: int) -> str:
    name = f"{node.name}_zero_bias"
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(channels, np.float32), name))
    return name


def _add_after(model: ModelProto, node: NodeProto, channels: int) -> None:
    before, after = f"{node.output[0]}_unbiased", node.output[0]
    add = onnx.helper.make_node("Add", [before, _zeros(model, node, channels)], [after], f"{node.name}_bias")
    node.output[0] = before
    index = next(place for place, other in enumerate(model.graph.node) if other.name == node.name)
    model.graph.node.insert(index + 1, add)
