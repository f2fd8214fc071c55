"""Operator sets that a model says it uses."""

from __future__ import annotations

from onnx import ModelProto, helper

from profiler.onnx_io import walk_nodes

MICROSOFT = "com.microsoft"


def declare_domains(model: ModelProto) -> None:
    """Import com.microsoft, in place, where a node uses it (also in a body) and the model does not say so.

    Quantizers forget it for ops that they put into bodies: ONNX Runtime loads such a file, checkers and other tools refuse it.
    """
    imported = {entry.domain for entry in model.opset_import}
    if MICROSOFT not in imported and any(node.domain == MICROSOFT for node in walk_nodes(model)):
        model.opset_import.append(helper.make_opsetid(MICROSOFT, 1))
