"""Ways to damage a model: structure, bytes, what lies beside it. Each takes a random generator; models change in place."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto

from profiler.onnx_io import walk_graphs, walk_nodes, walk_tensors

Structural = Callable[[random.Random, ModelProto], None]
Bytes = Callable[[random.Random, bytes], bytes]

HUGE = (0, -1, 2**31, 2**40, 2**62, 2**63 - 1)
KINDS = (*range(24), 33, 99)


def _graph(rng: random.Random, model: ModelProto) -> GraphProto:
    return rng.choice([graph for graph in walk_graphs(model) if isinstance(graph, GraphProto) and graph.node])


def _some_node(rng: random.Random, model: ModelProto) -> NodeProto:
    return rng.choice(list(walk_nodes(model)))


def drop_node(rng: random.Random, model: ModelProto) -> None:
    """Somebody's input is made by nobody."""
    graph = _graph(rng, model)
    del graph.node[rng.randrange(len(graph.node))]


def retype_value(rng: random.Random, model: ModelProto) -> None:
    """A declared or stored type becomes another, known or not."""
    values = [*model.graph.input, *model.graph.output, *model.graph.value_info]
    if rng.random() < 0.4 and model.graph.initializer:
        rng.choice(model.graph.initializer).data_type = rng.choice(KINDS)
    else:
        rng.choice(values).type.tensor_type.elem_type = rng.choice(KINDS)


def reorder_inputs(rng: random.Random, model: ModelProto) -> None:
    """A node's inputs in another order, or the graph's."""
    nodes = [node for node in walk_nodes(model) if len(node.input) > 1]
    if nodes and rng.random() < 0.8:
        node = rng.choice(nodes)
        names = list(node.input)
        rng.shuffle(names)
        node.input[:] = names
    else:
        values = list(model.graph.input)
        rng.shuffle(values)
        copies = [onnx.ValueInfoProto.FromString(value.SerializeToString()) for value in values]
        model.graph.ClearField("input")
        model.graph.input.extend(copies)


def duplicate_name(rng: random.Random, model: ModelProto) -> None:
    """Two values or two nodes of one name, or one named as quantizers name theirs."""
    node, other = _some_node(rng, model), _some_node(rng, model)
    if rng.random() < 0.5 and node.output and other.output:
        node.output[0] = other.output[0]
    elif rng.random() < 0.5:
        node.name = other.name = "same"
    else:
        name = node.output[0] if node.output else ""
        wanted = rng.choice((f"{name}_quantized", "w_scale", "graph_input_cast_0", "\x1b[31m", "x" * 5000, ""))
        for one in walk_nodes(model):
            for field in (one.input, one.output):
                field[:] = [wanted if entry == name else entry for entry in field]


def huge_dim(rng: random.Random, model: ModelProto) -> None:
    """An axis of an input or a stored tensor has no sane size."""
    if rng.random() < 0.5 and model.graph.initializer:
        tensor = rng.choice(model.graph.initializer)
        if tensor.dims:
            tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice(HUGE)
            return
    dims = [dim for value in model.graph.input for dim in value.type.tensor_type.shape.dim]
    if dims:
        rng.choice(dims).dim_value = rng.choice(HUGE)


def swap_attributes(rng: random.Random, model: ModelProto) -> None:
    """Two nodes' attributes are swapped, or one's number becomes extreme."""
    nodes = [node for node in walk_nodes(model) if node.attribute] or list(walk_nodes(model))
    one, two = rng.choice(nodes), rng.choice(nodes)
    if rng.random() < 0.5 and one is not two:
        kept = [onnx.AttributeProto.FromString(entry.SerializeToString()) for entry in one.attribute]
        other = [onnx.AttributeProto.FromString(entry.SerializeToString()) for entry in two.attribute]
        one.ClearField("attribute")
        one.attribute.extend(other)
        two.ClearField("attribute")
        two.attribute.extend(kept)
    elif one.attribute:
        entry = rng.choice(one.attribute)
        entry.i = rng.choice(HUGE)
        if entry.ints:
            entry.ints[rng.randrange(len(entry.ints))] = rng.choice(HUGE)
        entry.f = rng.choice((0.0, -1.0, float("nan"), float("inf"), 1e38))


def random_opset(rng: random.Random, model: ModelProto) -> None:
    """The file claims another version of the operators, or of the format."""
    if rng.random() < 0.7 and model.opset_import:
        rng.choice(model.opset_import).version = rng.choice((0, 1, 6, 7, 9, 11, 12, 13, 18, 21, 23, 99, 2**31))
    else:
        model.ir_version = rng.choice((0, 1, 3, 4, 8, 11, 99))


def other_op(rng: random.Random, model: ModelProto) -> None:
    """A node becomes an op of another kind or domain."""
    node = _some_node(rng, model)
    node.op_type = rng.choice(
        ("Add", "Conv", "MatMul", "Relu", "Loop", "Scan", "GRU", "Resize", "NonMaxSuppression", "Nope")
    )
    if rng.random() < 0.2:
        node.domain = rng.choice(("com.microsoft", "my.own", "\x1b[2J"))


def extreme_values(rng: random.Random, model: ModelProto) -> None:
    """Stored values become NaN, infinite, or the smallest there are."""
    tensors = [tensor for tensor in walk_tensors(model) if len(tensor.raw_data) >= 8]
    if tensors:
        tensor = rng.choice(tensors)
        pattern = rng.choice(
            (b"\xff" * 8, b"\x00" * 8, b"\x00\x00\x80\x7f" * 2, b"\x01\x00\x00\x00" * 2, b"\x00" * 7 + b"\x80")
        )
        size = len(tensor.raw_data)
        tensor.raw_data = (pattern * (size // 8 + 1))[:size] if rng.random() < 0.5 else pattern + tensor.raw_data[8:]


def short_data(rng: random.Random, model: ModelProto) -> None:
    """A stored tensor has fewer bytes than its shape says, or more."""
    tensors = [tensor for tensor in walk_tensors(model) if tensor.raw_data]
    if tensors:
        tensor = rng.choice(tensors)
        tensor.raw_data = rng.choice((b"", tensor.raw_data[:-1], tensor.raw_data + b"1234", tensor.raw_data[:4]))


def endless(rng: random.Random, model: ModelProto) -> None:
    """A node reads its own result, or the graph is itself all over again inside."""
    node = _some_node(rng, model)
    if node.input and node.output:
        node.input[rng.randrange(len(node.input))] = rng.choice(
            list(_some_node(rng, model).output) or list(node.output)
        )


STRUCTURAL: tuple[Structural, ...] = (
    drop_node, retype_value, reorder_inputs, duplicate_name, huge_dim, swap_attributes, random_opset, other_op, extreme_values,
    short_data, endless,
)  # fmt: skip


def flip_bytes(rng: random.Random, content: bytes) -> bytes:
    """One to sixteen bytes are others."""
    changed = bytearray(content)
    for _ in range(rng.randint(1, 16)):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


def cut(rng: random.Random, content: bytes) -> bytes:
    """The end is missing, or a piece in the middle."""
    start = rng.randrange(len(content))
    return content[:start] if rng.random() < 0.5 else content[:start] + content[start + rng.randint(1, 64) :]


def repeat(rng: random.Random, content: bytes) -> bytes:
    """A piece stands twice."""
    start = rng.randrange(len(content))
    end = min(len(content), start + rng.randint(1, 256))
    return content[:end] + content[start:end] + content[end:]


BYTES: tuple[Bytes, ...] = (flip_bytes, cut, repeat)


def external(rng: random.Random, model: ModelProto, folder: Path) -> bytes:
    """The model's bytes with its tensors in a file beside it, which is cut, gone, elsewhere, or said to be longer than it is."""
    copy = ModelProto()
    copy.CopyFrom(model)
    onnx.save(
        copy, str(folder / "model.onnx"), save_as_external_data=True, location="weights.bin", size_threshold=0,
    )  # fmt: skip
    data = folder / "weights.bin"
    damage = rng.choice(("cut", "gone", "elsewhere", "length", "empty"))
    if damage == "gone":
        data.unlink(missing_ok=True)
    elif damage in ("cut", "empty") and data.is_file():
        data.write_bytes(data.read_bytes()[: rng.randrange(1, 40) if damage == "cut" else 0])
    else:
        raw = onnx.load(str(folder / "model.onnx"), load_external_data=False)
        for tensor in walk_tensors(raw):
            if tensor.data_location == TensorProto.EXTERNAL:
                for entry in tensor.external_data:
                    if damage == "elsewhere" and entry.key == "location":
                        entry.value = rng.choice(("../../etc/passwd", "/etc/passwd", "weights.bin\0", ".", ""))
                    if damage == "length" and entry.key in ("length", "offset"):
                        entry.value = rng.choice(("-1", str(2**62), "many", "0"))
        (folder / "model.onnx").write_bytes(raw.SerializeToString())
    return (folder / "model.onnx").read_bytes()
