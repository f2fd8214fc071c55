"""Giving a graph's inputs and outputs the names people asked for, whatever an exporter called them.

torch's dynamo exporter has written files that no runtime loads when an output is named like one of its nodes
(pytorch/pytorch#158094), and renames an input that is also an output (#173076, #167848). So nothing is asked of the
exporter: it names as it likes, and the finished graph is renamed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from onnx import AttributeProto, GraphProto, ModelProto, helper

from profiler.export.base import BATCH_NAME
from profiler.onnx_io import walk_graphs


def name_interface(model: ModelProto, inputs: Sequence[str], outputs: Sequence[str], *, strip: str = "") -> None:
    """Rename the graph's inputs and outputs by position, in place; inner values in the way get another name.

    `strip` is a prefix taken off initializer names. An output that is an input, an initializer or another output gets an
    Identity node.
    """
    graph = model.graph
    taken = {*inputs, *outputs}
    mapping = dict(zip((value.name for value in graph.input), inputs, strict=True))
    for tensor in graph.initializer:
        short = tensor.name.removeprefix(strip)
        mapping.setdefault(tensor.name, _free(short, taken))
    fixed = set(mapping)
    final: dict[str, str] = {}
    for value, wanted in zip(graph.output, outputs, strict=True):
        if value.name in fixed or value.name in final:
            graph.node.append(
                helper.make_node("Identity", [value.name], [f"{wanted}/identity"], name=f"{wanted}/identity")
            )
            value.name = f"{wanted}/identity"
        final[value.name] = wanted
    mapping |= final
    for scope in _scopes(graph):
        inner = [name for node in scope.node for name in node.output if name]
        if scope is not graph:
            inner += [entry.name for entry in (*scope.input, *scope.initializer)]
        for name in inner:
            if name not in mapping:
                mapping[name] = _free(name, taken)
    _apply(graph, mapping)


def name_batch(model: ModelProto) -> None:
    """Call the symbolic first axis of the inputs `N` wherever the same symbol appears, in place."""
    symbols = {
        value.type.tensor_type.shape.dim[0].dim_param
        for value in model.graph.input
        if value.type.tensor_type.shape.dim and value.type.tensor_type.shape.dim[0].dim_param
    }
    values = [*model.graph.input, *model.graph.output, *model.graph.value_info]
    for value in values:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in symbols:
                dim.dim_param = BATCH_NAME


def forget_origin(model: ModelProto) -> None:
    """Drop stack traces and source lines, in place: exporters write the author's file paths into every node."""
    model.ClearField("metadata_props")
    for graph in walk_graphs(model):
        graph.ClearField("doc_string")
        graph.ClearField("metadata_props")
        for value in graph.value_info:
            value.ClearField("doc_string")
            value.ClearField("metadata_props")
        for node in graph.node:
            node.ClearField("doc_string")
            node.ClearField("metadata_props")
    for value in (*model.graph.input, *model.graph.output, *model.graph.initializer):
        value.ClearField("doc_string")
        value.ClearField("metadata_props")


def _free(name: str, taken: set[str]) -> str:
    """`name`, or a variation of it when it is taken; taken from now on."""
    candidate, count = name, 0
    while candidate in taken:
        count += 1
        candidate = f"{name}/inner{count}"
    taken.add(candidate)
    return candidate


def _scopes(graph: GraphProto) -> Iterator[GraphProto]:
    """The graph and the bodies of If, Loop and Scan in it; functions have names of their own and stay out."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for body in (*([attribute.g] if attribute.type == AttributeProto.GRAPH else []), *attribute.graphs):
                yield from _scopes(body)


def _apply(graph: GraphProto, mapping: dict[str, str]) -> None:
    for scope in _scopes(graph):
        for entry in (*scope.input, *scope.output, *scope.value_info, *scope.initializer):
            entry.name = mapping.get(entry.name, entry.name)
        for node in scope.node:
            for names in (node.input, node.output):
                for index, name in enumerate(names):
                    names[index] = mapping.get(name, name)
