"""ONNX's reference evaluator as a backend: it can be asked about the files whose runtimes differ, quantized ones too."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from backends import registry
from backends.base import LoadOptions


def pairs(opset, *, per_channel=False, zero=True, kind=np.int8):
    """x through QuantizeLinear and DequantizeLinear, plus a stored int8 weight and an int32 bias."""
    rng = np.random.default_rng(0)
    scales = np.float32([0.02, 0.5, 0.004]) if per_channel else np.float32(0.02)
    zeros = np.zeros(np.shape(scales), kind) if per_channel else kind(7)
    axis = {"axis": 1} if opset >= 13 else {}
    ends = ["zx"] if zero else []
    stored = {
        "sx": scales, "zx": zeros, "w": rng.integers(-128, 128, (3, 2)).astype(np.int8),
        "sw": np.float32(0.01), "zw": np.int8(-3),
        "b": np.int32([1000, -250]), "sb": np.float32(0.001),
    }  # fmt: skip
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "sx", *ends], ["q"], **axis),
        helper.make_node("DequantizeLinear", ["q", "sx", *ends], ["d"], **axis),
        helper.make_node("DequantizeLinear", ["w", "sw", "zw"], ["wd"]),
        helper.make_node("DequantizeLinear", ["b", "sb"], ["bd"]),
        helper.make_node("MatMul", ["d", "wd"], ["p"]),
        helper.make_node("Add", ["p", "bd"], ["y"]),
    ]
    used = [numpy_helper.from_array(np.asarray(value), name) for name, value in stored.items() if zero or name != "zx"]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", size]) for name, size in (("y", 2), ("d", 3))], used,
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.checker.check_model(model)
    return model


@pytest.mark.runtime
@pytest.mark.parametrize(
    ("opset", "options"),
    [
        (10, {}),
        (13, {}),
        (16, {"kind": np.uint8}),
        (17, {"zero": False}),
        (17, {"per_channel": True}),
        (18, {"per_channel": True, "kind": np.uint8}),
        (21, {"per_channel": True}),
    ],
)
def test_quantized_files_of_every_opset_are_answered_as_onnxruntime_computes_them(opset, options, tmp_path):
    """Ties, saturation at both ends and the zero point included."""
    onnx.save(pairs(opset, **options), tmp_path / "m.onnx")
    x = np.float32([[0.01, 0.25, 0.002], [0.03, 100, -9], [-50, -0.75, 0.3], [0.37, 1.2, -0.09]])
    ours = registry.get("onnx-reference").load(tmp_path / "m.onnx", LoadOptions()).infer({"x": x})
    plain = LoadOptions(options={"opt": "off"})
    theirs = registry.get("ort").load(tmp_path / "m.onnx", plain).infer({"x": x})
    np.testing.assert_array_equal(ours["d"], theirs["d"])
    np.testing.assert_allclose(ours["y"], theirs["y"], rtol=1e-5, atol=1e-5)
