"""What a model file holds, and how executed ops are found again in the model they came from."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from profiler import demo
from profiler.explain.layers import Names, file_facts
from profiler.onnx_io import read_model
from profiler.variants.preparing import name_nodes


@pytest.fixture(scope="module")
def model():
    return read_model(demo.model_path())


@pytest.fixture(scope="module")
def names(model):
    return Names(model, file_facts(model, 1).layers)


def test_the_demo_model_has_eight_layers_with_their_multiplications(model):
    """3×3 convolutions: outputs × weights of one channel; batch multiplies."""
    layers = {layer.name: layer for layer in file_facts(model, 1).layers}
    assert len(layers) == 8
    first = layers["node_Conv_107"]
    assert (first.stored, first.in_channels, first.out_channels, first.macs) == ("float", 1, 16, 28 * 28 * 16 * 9)
    assert (layers["node_linear"].op_type, layers["node_linear"].macs) == ("Gemm", 640)
    assert file_facts(model, 4).layers[0].macs == 4 * 28 * 28 * 16 * 9


@pytest.mark.parametrize(
    ("executed", "layer"),
    [
        ("relu_nchwc", "node_Conv_107"),  # onnxruntime: the fused ReLU's result names the op
        ("getitem_9_nchwc", "node_Conv_113"),  # … and an addition's
        ("node_Conv_107_token_1", "node_Conv_107"),
        ("InsertedPrecisionFreeCast_getitem_3_nchwc", "node_Conv_109"),
        ("node_linear_MatMul_quant", "node_linear"),  # its quantizer
        ("node_linear_MatMul_Q4", "node_linear"),
        ("node_Conv_109/WithoutBiases", "node_Conv_109"),  # OpenVINO
        ("node_linear/WithoutBiases/DequantizationMultiply", "node_linear"),
        ("ReorderOutput", None),
        ("node_mean", None),
        ("", None),
    ],
)
def test_executed_ops_are_found_by_what_runtimes_keep_of_names(names, executed, layer):
    """All seen in profiles of onnxruntime 1.32 and OpenVINO 2026.4."""
    assert names.layer([executed]) == layer


def test_layers_of_nameless_nodes_are_found_again_in_variants(model):
    """Recipes name them as they are called here, else nothing of a variant would belong to a layer."""
    bare, named = onnx.ModelProto(), onnx.ModelProto()
    bare.CopyFrom(model)
    for node in bare.graph.node:
        node.ClearField("name")
    named.CopyFrom(bare)
    name_nodes(named)
    expected = [layer.name for layer in file_facts(bare, 1).layers]

    assert len(set(expected)) == 8
    assert [layer.name for layer in file_facts(named, 1).layers] == expected


def test_a_later_candidate_counts_when_the_first_says_nothing(names):
    """OpenVINO lists what it fused."""
    assert names.layer(["Multiply_14388", "node_Conv_107"]) == "node_Conv_107"


def quantized(weight_scale, *, light: bool = False, float_weights: bool = False):
    """x → Q → DQ → Conv → [Sigmoid between Q/DQ] → Q → DQ → y."""
    weights = np.zeros((2, 1, 3, 3), np.int8)
    weights[0], weights[1] = 127, 3
    constants = {
        "s": np.float32(0.1), "z": np.uint8(0), "ws": np.asarray(weight_scale, np.float32),
        "wz": np.zeros(np.shape(weight_scale), np.int8), "wq": weights, "wf": weights.astype(np.float32),
    }  # fmt: skip
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"], name="xq"),
        helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"], name="xd"),
        helper.make_node("DequantizeLinear", ["wq", "ws", "wz"], ["wd"], name="wd", axis=0),
        helper.make_node("Conv", ["xd", "wf" if float_weights else "wd"], ["c"], name="conv"),
        helper.make_node("QuantizeLinear", ["c", "s", "z"], ["cq"], name="cq"),
        helper.make_node("DequantizeLinear", ["cq", "s", "z"], ["cd"], name="cd"),
        helper.make_node("Sigmoid", ["cd"], ["g"], name="gate"),
    ]
    if light:
        nodes.append(helper.make_node("QuantizeLinear", ["g", "s", "z"], ["gq"], name="gq"))
        nodes.append(helper.make_node("DequantizeLinear", ["gq", "s", "z"], ["y"], name="gd"))
    else:
        nodes.append(helper.make_node("Identity", ["g"], ["y"], name="end"))
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 1, 5, 5])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_one_scale_for_all_channels_shows_the_weakest():
    """The second channel uses 3 of 127 levels; with a scale of its own nothing is to be said."""
    (layer,) = file_facts(quantized(0.01), 1).layers
    assert (layer.stored, layer.weakest_levels, layer.macs) == ("qdq", 3, 3 * 3 * 18)
    assert file_facts(quantized([0.01, 0.0002]), 1).layers[0].weakest_levels is None


def test_float_weights_between_quantized_activations_are_told_apart():
    """Some runtimes fuse them, some do not."""
    assert file_facts(quantized(0.01, float_weights=True), 1).layers[0].stored == "activations"


def test_ops_without_weights_count_when_they_stand_between_the_pairs():
    """A Sigmoid whose result stays float is none of them."""
    assert file_facts(quantized(0.01, light=True), 1).light == {"Sigmoid": 1}
    assert file_facts(quantized(0.01), 1).light == {}


def test_unknown_shapes_leave_the_multiplications_unknown():
    """None, not zero."""
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"])], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 1, "H", "W"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.ones((2, 1, 3, 3), np.float32), "w")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    (layer,) = file_facts(model, 1).layers
    assert (layer.name, layer.macs, layer.weights) == ("y", None, 18)
    assert isinstance(model, onnx.ModelProto)


def test_weights_inside_branches_are_layers_too():
    """Both branches call their values alike; one reads a weight of its own, the other a quantized one of the main graph."""

    def branch(nodes, tensors):
        out = helper.make_tensor_value_info("b", TensorProto.FLOAT, ["N", 4])
        return helper.make_graph(nodes, "body", [], [out], tensors)

    own = numpy_helper.from_array(np.ones((8, 4), np.float32), "own")
    then = branch([helper.make_node("MatMul", ["x", "own"], ["b"], name="first")], [own])
    other = branch(
        [
            helper.make_node("DequantizeLinear", ["w", "s"], ["own"]),
            helper.make_node("MatMul", ["x", "own"], ["b"], name="second"),
        ],
        [],
    )
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["r"], keepdims=0),
        helper.make_node("Cast", ["r"], ["c"], to=TensorProto.BOOL),
        helper.make_node("If", ["c"], ["y"], then_branch=then, else_branch=other),
    ]
    tensors = [
        numpy_helper.from_array(np.full((8, 4), 3, np.int8), "w"),
        numpy_helper.from_array(np.float32(0.1), "s"),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])
    graph = helper.make_graph(nodes, "g", [x], [y], tensors)
    built = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(built)

    layers = {layer.name: layer for layer in file_facts(built, 1).layers}
    assert {name: (layer.stored, layer.weights) for name, layer in layers.items()} == {
        "first": ("float", 32),
        "second": ("weights", 32),
    }
    assert layers["first"].macs is None
