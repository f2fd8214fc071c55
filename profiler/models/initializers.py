"""Stored tensors as every tool expects them: constants of the graph, not inputs with a default."""

from __future__ import annotations

from onnx import ModelProto, ValueInfoProto

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
