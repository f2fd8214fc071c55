"""Stored tensors as every tool expects them: constants of the graph, not inputs with a default."""

from __future__ import annotations

from onnx import GraphProto, ModelProto, ValueInfoProto

from profiler.onnx_io import walk_graphs, walk_nodes

CONSTANTS_IR_VERSION = 4
"""From here on an initializer need not be an input; before, every one had to be listed as an input."""


def as_constants(model: ModelProto) -> bool:
    """Make stored tensors constants, in place; returns whether anything had to change.

    Old exporters (IR version 3) list them among the inputs, where a caller could replace them: runtimes and converters then
    neither fold nor quantize them. They are never fed here (`profiler.onnx_io.model_inputs`), so nothing is lost. The IR version
    is raised to 4 at least, without which tensors that a converter adds would have to be inputs.
    """
    graph = model.graph
    stored = {tensor.name for tensor in graph.initializer}
    stored |= {sparse.values.name for sparse in graph.sparse_initializer}
    fed = [value for value in graph.input if value.name not in stored]
    changed = len(fed) < len(graph.input) or model.ir_version < CONSTANTS_IR_VERSION
    if len(fed) < len(graph.input):
        copies = [ValueInfoProto.FromString(value.SerializeToString()) for value in fed]
        graph.ClearField("input")
        graph.input.extend(copies)
    model.ir_version = max(model.ir_version, CONSTANTS_IR_VERSION)
    return changed


def drop_unread(model: ModelProto) -> int:
    """Take out stored tensors that nothing reads, in place, in bodies too; returns how many.

    Rewriting tools leave the tensor behind that they made another one of: runtimes pass over it, and the file is larger for it.
    """
    read = {name for node in walk_nodes(model) for name in node.input}
    graphs = [graph for graph in walk_graphs(model) if isinstance(graph, GraphProto)]
    read |= {value.name for graph in graphs for value in (*graph.output, *graph.input)}
    dropped = 0
    for graph in graphs:
        for place in reversed(range(len(graph.initializer))):
            if graph.initializer[place].name not in read:
                del graph.initializer[place]
                dropped += 1
    return dropped
