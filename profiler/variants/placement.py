"""Where Q/DQ pairs stand: float readers of a value that exists in float need not see it rounded."""

from __future__ import annotations

from collections.abc import Collection

from onnx import ModelProto


def bypass(model: ModelProto, quantized: Collection[str], float_outputs: Collection[str]) -> int:
    """Give ops that are not in `quantized` (names) the float value before a Q/DQ pair, in place; returns the inputs moved.

    ONNX Runtime's quantizer lets every reader of a quantized value read it through the pair. That rounds residuals of
    transformers for nothing and costs a DequantizeLinear each. Values that a quantized op makes stay as they are (the pair is
    part of its int8 kernel, and reading before it would split the two), unless its type is in `float_outputs`.
    """
    makers = {name: node for node in model.graph.node for name in node.output}
    outputs = {value.name for value in model.graph.output}
    before: dict[str, str] = {}
    for node in model.graph.node:
        if node.op_type != "DequantizeLinear" or node.output[0] in outputs:
            continue
        quantize = makers.get(node.input[0])
        if quantize is None or quantize.op_type != "QuantizeLinear" or quantize.input[1] != node.input[1]:
            continue
        maker = makers.get(quantize.input[0])
        if maker is None or maker.name not in quantized or maker.op_type in float_outputs:
            before[node.output[0]] = quantize.input[0]
    moved = 0
    for node in model.graph.node:
        if node.name in quantized or node.op_type in ("DequantizeLinear", "QuantizeLinear"):
            continue
        for place, name in enumerate(node.input):
            if name in before:
                node.input[place] = before[name]
                moved += 1
    return moved
