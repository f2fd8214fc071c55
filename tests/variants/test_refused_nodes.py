"""What one runtime or its optimiser cannot do with a file costs what it must: a node, a note, not the variant."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from profiler.onnx_io import write_model
from profiler.variants import registry
from profiler.variants.int8_static import Int8Static
from profiler.variants.running import ONLY_UNOPTIMISED, answers, session, similarity

pytestmark = pytest.mark.runtime


def test_a_node_that_the_runtime_refuses_in_int8_stays_float(cnn, images, monkeypatch):
    """The second Conv's int8 form asks for seven groups, which no runtime loads."""
    real = Int8Static._quantize

    def refused(self, *args):
        model = real(self, *args)
        pairs = {name for node in model.graph.node if node.op_type == "DequantizeLinear" for name in node.output}
        conv = [node for node in model.graph.node if node.op_type == "Conv"][1]
        if conv.input[1] in pairs:
            conv.attribute.append(helper.make_attribute("group", 7))
        return model

    monkeypatch.setattr(Int8Static, "_quantize", refused)

    made = registry.make("int8-static{per_channel=true}").apply(cnn, images)

    convs = [node for node in made.model.graph.node if node.op_type == "Conv"]
    assert made.facts["refused_in_int8"] == convs[1].name
    assert made.facts["quantized"] == "Conv 1, Gemm 1"
    assert any(f"{convs[1].name} stay float" in note for note in made.notes)
    feeds = [{name: array[:4] for name, array in images.items()}]
    assert similarity(answers(cnn, feeds), answers(made.model, feeds)) > 0.99


def broken_by_the_optimiser():
    """`y = If(sum > 0) { h · int4 } else { -h · int4 }`, the int4 weight stored outside: valid, and lost when it is fused."""
    rng = np.random.default_rng(0)

    def body(name, nodes):
        weight = helper.make_node("DequantizeLinear", ["w4", "s4"], [f"{name}_w"], axis=0, block_size=16)
        product = helper.make_node("MatMul", [nodes[-1].output[0], f"{name}_w"], [f"{name}_y"])
        out = helper.make_tensor_value_info(f"{name}_y", TensorProto.FLOAT, ["N", 8])
        return helper.make_graph([*nodes, weight, product], name, [], [out])

    yes = body("yes", [helper.make_node("Identity", ["h"], ["same"])])
    no = body("no", [helper.make_node("Neg", ["h"], ["less"])])
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Sigmoid", ["a"], ["h"]),
        helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
        helper.make_node("Greater", ["sum", "zero"], ["c"]),
        helper.make_node("If", ["c"], ["y"], then_branch=yes, else_branch=no),
    ]
    stored = [
        numpy_helper.from_array(rng.standard_normal((16, 32)).astype(np.float32) / 4, "w"),
        numpy_helper.from_array(np.float32(0), "zero"),
        numpy_helper.from_array(np.full((2, 8), 0.05, np.float32), "s4"),
        helper.make_tensor("w4", TensorProto.INT4, (32, 8), rng.integers(-8, 8, 256).tolist()),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 16])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 8])]
    graph = helper.make_graph(nodes, "g", inputs, outputs, stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model)
    return model


@pytest.mark.parametrize("recipe", ["int8-static", "int8-static{per_channel=true}", "int8-dynamic", "int8-weight"])
def test_a_model_that_the_optimiser_breaks_is_quantized_all_the_same(recipe, tmp_path):
    model = broken_by_the_optimiser()
    path = write_model(model, tmp_path)
    try:
        session(path, as_users_do=True)
    except Exception:
        pass
    else:
        pytest.skip("this ONNX Runtime optimises the model")
    rows = {"x": np.random.default_rng(1).standard_normal((64, 16)).astype(np.float32)}

    made = registry.make(recipe).apply(model, rows)

    assert made.facts["ops_quantized"] >= 1
    assert any(ONLY_UNOPTIMISED in note for note in made.notes)
    feeds = [{"x": rows["x"][index : index + 1]} for index in range(8)]
    assert similarity(answers(model, feeds), answers(made.model, feeds)) > 0.99


@pytest.mark.parametrize("recipe", ["fp16", "graph"])
def test_what_only_loads_unoptimised_is_told(recipe, tmp_path):
    model = broken_by_the_optimiser()
    made = registry.make(recipe).apply(
        model, {"x": np.random.default_rng(1).standard_normal((16, 16)).astype(np.float32)}
    )
    assert made.changed
    try:
        session(write_model(made.model, tmp_path), as_users_do=True)
    except Exception:
        assert any(ONLY_UNOPTIMISED in note for note in made.notes)
    else:
        pytest.skip("this ONNX Runtime optimises the model")
