"""Which nodes a quantizer works on, and the texts that name them in a variant's options."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping

from onnx import ModelProto, NodeProto

from backends import spec
from profiler.errors import unknown


def node_texts(model: ModelProto) -> dict[str, str]:
    """Node name by the text that options name it with, in topological order; main graph only.

    A name whose characters an option can carry is its own text. Any other node is `Conv:12`: the Conv that comes 13th in
    the prepared model, counted from 0 among the nodes of its type.
    """
    return {name if spec.listable(name) else alias: name for alias, name in aliases(model).items()}


def aliases(model: ModelProto) -> dict[str, str]:
    """Node name by `Conv:12`, for every node: the short form is accepted for plain names too."""
    names = {node.name for node in model.graph.node}
    seen: Counter[str] = Counter()
    found: dict[str, str] = {}
    for node in model.graph.node:
        alias = f"{node.op_type}:{seen[node.op_type]}"
        seen[node.op_type] += 1
        while alias in names:
            alias += ":"
        found[alias] = node.name
    return found


def resolve(model: ModelProto, texts: Iterable[str], option: str) -> set[str]:
    """Names of the nodes that `texts` stand for. Raises StudyError with the near ones for a text that fits no node."""
    known: Mapping[str, str] = {**aliases(model), **{node.name: node.name for node in model.graph.node}}
    found = set()
    for text in texts:
        if text not in known:
            near = [key for key, name in node_texts(model).items() if _weighs(model, name)]
            raise unknown(f"node in option '{option}'", text, near, hint="A node is also Conv:12, the 13th Conv.")
        found.add(known[text])
    return found


def text_of(model: ModelProto, node: NodeProto) -> str:
    """The text that names `node` in an option."""
    return next(text for text, name in node_texts(model).items() if name == node.name)


def _weighs(model: ModelProto, name: str) -> bool:
    """Whether naming the node makes sense: constants and shape arithmetic would bury the rest."""
    node = next(node for node in model.graph.node if node.name == name)
    return node.op_type not in ("Cast", "Concat", "Constant", "Gather", "Reshape", "Shape", "Slice", "Unsqueeze")


def named_by(message: str, model: ModelProto, nodes: Iterable[str]) -> str | None:
    """The node of `nodes` that a message most likely speaks of: by its own name, or that of a value it makes or reads."""
    words = set(re.findall(r"[^\s'\"()\[\],]+", message))
    derived = {re.sub(r"_(Quantize|Dequantize)Linear.*$|_quantized.*$", "", word) for word in words}
    wanted = set(nodes)
    places = [node for node in model.graph.node if node.name in wanted]
    for names in (words, derived):
        for node in places:
            if node.name in names or {*node.output} & names:
                return str(node.name)
        for node in places:
            if {*node.input} & names:
                return str(node.name)
    return None
