"""Cross-layer equalisation: channels of neighbouring layers are scaled so that one weight scale fits them all.

M. Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV 2019, section 4.1: whatever
lies between two layers and passes a positive factor through, f(s·x) = s·f(x), lets output channel i of the first be
divided by s and input channel i of the second be multiplied by it. Nothing changes in float.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from profiler.onnx_io import walk_nodes

HOMOGENEOUS = ("AveragePool", "GlobalAveragePool", "Identity", "LeakyRelu", "MaxPool", "Relu")
"""f(s·x) = s·f(x) for s > 0, channel by channel."""
SWEEPS = 20
_LARGEST = 256.0
"""Most that one channel is scaled by: nearly dead channels would run off."""

Array = NDArray[np.float64]


@dataclass(frozen=True)
class _Pair:
    first: NodeProto
    second: NodeProto


def equalise(model: ModelProto) -> tuple[int, int]:
    """Equalise `model` in place: `(pairs, clipped)`, the pairs scaled and those left because a Clip lies between.

    Pairs are Conv → Conv, depthwise and grouped too, with nothing else reading what lies between. Clip (Relu6) does not
    pass a factor through: its limit would have to differ by channel, which no Clip can say, and replacing it by Relu, as the
    paper does, changes the answers. So those pairs stay as they are.
    """
    pairs, clipped = _pairs(model)
    names = {name for pair in pairs for node in (pair.first, pair.second) for name in node.input[1:3] if name}
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    arrays = {name: np.asarray(numpy_helper.to_array(stored[name]), np.float64) for name in names}
    for _ in range(SWEEPS if pairs else 0):
        largest = 0.0
        for pair in pairs:
            factor = _factor(pair, arrays)
            _apply(pair, arrays, factor)
            largest = max(largest, float(np.abs(np.log(factor)).max()))
        if largest < 1e-3:
            break
    for name, array in arrays.items():
        stored[name].CopyFrom(numpy_helper.from_array(array.astype(np.float32), name))
    return len(pairs), clipped


def _factor(pair: _Pair, arrays: dict[str, Array]) -> Array:
    """What each channel between the two is divided by: the geometric mean makes both ranges equal."""
    first = arrays[pair.first.input[1]]
    out = np.abs(first).reshape(len(first), -1).max(axis=1)
    into = np.abs(_by_input(pair.second, arrays)).max(axis=(1, 3)).ravel()
    alive = (out > 0) & (into > 0)
    factor = np.sqrt(np.divide(out, into, out=np.ones_like(out), where=alive))
    return np.asarray(np.where(alive, np.clip(factor, 1 / _LARGEST, _LARGEST), 1.0))


def _apply(pair: _Pair, arrays: dict[str, Array], factor: Array) -> None:
    weight = arrays[pair.first.input[1]]
    arrays[pair.first.input[1]] = weight / factor.reshape(-1, *[1] * (weight.ndim - 1))
    if len(pair.first.input) > 2 and pair.first.input[2]:
        arrays[pair.first.input[2]] = arrays[pair.first.input[2]] / factor
    name = pair.second.input[1]
    grouped = _by_input(pair.second, arrays)
    scaled = grouped * factor.reshape(grouped.shape[0], 1, grouped.shape[2], 1)
    arrays[name] = scaled.reshape(arrays[name].shape)


def _by_input(node: NodeProto, arrays: dict[str, Array]) -> Array:
    """Weights as [groups, outputs per group, inputs per group, kernel]."""
    weight = arrays[node.input[1]]
    groups = _groups(node)
    return weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)


def _groups(node: NodeProto) -> int:
    return next((int(attribute.i) for attribute in node.attribute if attribute.name == "group"), 1)


def _pairs(model: ModelProto) -> tuple[list[_Pair], int]:
    uses = Counter(name for node in walk_nodes(model) for name in node.input)
    uses.update(value.name for value in model.graph.output)
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    reader = {name: node for node in model.graph.node for name in node.input}

    def own(node: NodeProto) -> bool:
        tensors = [stored.get(name) for name in node.input[1:3] if name]
        return node.op_type == "Conv" and all(
            t is not None and t.data_type == TensorProto.FLOAT and uses[t.name] == 1 for t in tensors
        )

    pairs, clipped = list[_Pair](), 0
    for node in model.graph.node:
        if not own(node):
            continue
        name, clip = node.output[0], False
        while uses[name] == 1 and name in reader and reader[name].op_type in (*HOMOGENEOUS, "Clip"):
            clip |= reader[name].op_type == "Clip"
            name = reader[name].output[0]
        second = reader.get(name)
        if uses[name] != 1 or second is None or second.input[0] != name or not own(second):
            continue
        if clip:
            clipped += 1
        else:
            pairs.append(_Pair(node, second))
    return pairs, clipped
