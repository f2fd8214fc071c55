"""Names in a model: who has which, new ones that nobody has, and values that give theirs up.

Whoever adds a value asks here for its name. A name that is merely unlikely is one that some model has: two values of one name
make a file that a runtime refuses at best, and that computes something else at worst.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from onnx import GraphProto, ModelProto, NodeProto, ValueInfoProto

from profiler.onnx_io import walk_graphs, walk_nodes


class Names:
    """All names of a model when it was asked, and those handed out since; of values and of nodes alike."""

    def __init__(self, model: ModelProto) -> None:
        """Note every name of `model`: bodies, functions, declared types and nodes included."""
        self._taken = value_names(model) | {node.name for node in walk_nodes(model)}

    def __contains__(self, name: str) -> bool:
        """Whether a value or a node is called so."""
        return name in self._taken

    def fresh(self, wanted: str) -> str:
        """`wanted` when it is free, else `wanted_1`, `wanted_2`, …; taken from now on."""
        name, number = wanted, 0
        while not name or name in self._taken:
            number += 1
            name = f"{wanted}_{number}"
        self._taken.add(name)
        return name


def value_names(model: ModelProto) -> set[str]:
    """Names of all values: read, made, stored, declared as input, output or with a type; also in bodies and functions."""
    names: set[str] = set()
    for graph in walk_graphs(model):
        for node in graph.node:
            names.update(node.input)
            names.update(node.output)
        names.update(value.name for value in graph.value_info)
        if isinstance(graph, GraphProto):
            names.update(value.name for value in (*graph.input, *graph.output))
            names.update(tensor.name for tensor in graph.initializer)
            names.update(sparse.values.name for sparse in graph.sparse_initializer)
        else:
            names.update((*graph.input, *graph.output))
    return names - {""}


def rename_values(model: ModelProto, names: Mapping[str, str]) -> None:
    """Call values `names[old]` wherever they are stored, made, read or declared, in place; also in bodies.

    Functions keep their names: they have a scope of their own.
    """
    if not names:
        return
    for graph in walk_graphs(model):
        if isinstance(graph, GraphProto):
            _rename_in(graph, names)


def _rename_in(graph: GraphProto, names: Mapping[str, str]) -> None:
    """In this graph alone, not in the bodies of its nodes."""
    for node in graph.node:
        _rename(node, names)
    for value in _declared(graph):
        value.name = names.get(value.name, value.name)
    for tensor in (*graph.initializer, *(sparse.values for sparse in graph.sparse_initializer)):
        tensor.name = names.get(tensor.name, tensor.name)


def _rename(node: NodeProto, names: Mapping[str, str]) -> None:
    for field in (node.input, node.output):
        for index, name in enumerate(field):
            if name in names:
                field[index] = names[name]


def _declared(graph: GraphProto) -> Iterator[ValueInfoProto]:
    yield from graph.input
    yield from graph.output
    yield from graph.value_info


def distinct_names(model: ModelProto) -> int:
    """Give each value of a body a name that nothing else in the model has, in place; returns how many were renamed.

    Both branches of an If may use one name for different things. Converters keep one table of names for the whole model and
    mix them up. Inputs and outputs of the model keep their names.
    """
    names, seen = Names(model), set(_defined(model.graph))
    renamed = 0

    def enter(graph: GraphProto, outer: Mapping[str, str]) -> None:
        nonlocal renamed
        here = dict(outer)
        for name in _defined(graph):
            here.pop(name, None)
            if name in seen:
                here[name] = names.fresh(name)
                renamed += 1
            seen.add(name)
        _rename_in(graph, here)
        descend(graph, here)

    def descend(graph: GraphProto, here: Mapping[str, str]) -> None:
        for node in graph.node:
            for attribute in node.attribute:
                for body in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                    enter(body, here)

    descend(model.graph, {})
    return renamed


def _defined(graph: GraphProto) -> list[str]:
    """Names that a graph gives to values of its own, each once."""
    stored = (*graph.initializer, *(sparse.values for sparse in graph.sparse_initializer))
    made = (name for node in graph.node for name in node.output if name)
    return list(dict.fromkeys((*(value.name for value in graph.input), *(tensor.name for tensor in stored), *made)))
