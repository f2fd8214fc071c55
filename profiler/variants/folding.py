"""Which activations a Q/DQ pair can stand for: the quantizer takes a Relu or Clip out where the pair clips as it does."""

from __future__ import annotations

from collections.abc import Collection

from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from profiler.onnx_io import reads, walk_nodes, walk_tensors

FOLDED = ("Clip", "Relu")


def read_in_bodies(model: ModelProto) -> set[str]:
    """Names of values of the main graph (and of bodies) that bodies of If, Loop, Scan and the like read."""
    return {name for node in model.graph.node for name in reads(node) - {*node.input}}


def folds(node: NodeProto, model: ModelProto, captured: set[str]) -> bool:
    """Whether a quantizer may take `node` (a Relu or Clip) out without changing what is computed.

    It looks at readers in the main graph alone: what a body reads would be the value before the clipping, or nothing. And a pair
    clips where calibration ended, so limits must be stored and hold zero between them, which every range does.
    """
    if captured & {*node.input, *node.output}:
        return False
    if node.op_type == "Relu":
        return True
    attributes = {item.name: item.f for item in node.attribute}
    limits = [attributes.get("min"), attributes.get("max")]
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    for place, name in enumerate(node.input[1:3]):
        if not name:
            continue
        if name not in stored or stored[name].data_type != TensorProto.FLOAT:
            return False
        limits[place] = float(numpy_helper.to_array(stored[name]).item())
    low, high = limits
    return (low is None or low <= 0) and (high is None or high >= 0)


def stored_floats(model: ModelProto) -> set[str]:
    """Names of stored float32 tensors, the only weights that are quantized; in bodies too."""
    return {tensor.name for tensor in walk_tensors(model) if tensor.data_type == TensorProto.FLOAT and tensor.name}


def about_weights(model: ModelProto, ops: Collection[str]) -> str:
    """What else the weights of `ops` are, as a clause with a semicolon before it: `; theirs are float16`; empty for none."""
    types = {tensor.name: tensor.data_type for tensor in walk_tensors(model) if tensor.name}
    found = {
        types[name] for node in walk_nodes(model) if node.op_type in ops for name in node.input[:2] if name in types
    } - {TensorProto.FLOAT, TensorProto.INT64}
    names = sorted(TensorProto.DataType.Name(kind).lower() for kind in found)
    return f"; theirs are {', '.join(names)}, which float32 would have to be made of first" if names else ""
