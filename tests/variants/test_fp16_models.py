"""Half precision on models as people have them: tiny values, recurrent ops, old versions, taken names, quantized steps."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from profiler.onnx_io import count_ops, model_inputs, model_outputs, walk_nodes
from profiler.variants import registry
from profiler.variants.fp16 import Fp16
from profiler.variants.running import outputs, session, write_model

pytestmark = pytest.mark.runtime


def value(name, shape, kind=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def stored(name, array):
    return numpy_helper.from_array(np.asarray(array), name)


def weights(name, *shape, seed=0):
    return stored(name, (np.random.default_rng(seed).standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32))


def built(nodes, inputs, outs, tensors, opset=17, ir_version=8):
    graph = helper.make_graph(nodes, "g", inputs, outs, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)
    onnx.checker.check_model(model)
    return model


def rows(*shape, scale=1.0, seed=1):
    return {"x": (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)}


def mlp(opset=17, scale=None, names=("x", "a", "r", "y")):
    """Two products; with `scale` the last is multiplied by it."""
    x, a, r, y = names
    nodes = [helper.make_node("MatMul", [x, "w"], [a]), helper.make_node("Relu", [a], [r])]
    tensors = [weights("w", 16, 24), weights("v", 24, 3)]
    if scale is None:
        nodes.append(helper.make_node("MatMul", [r, "v"], [y]))
    else:
        nodes += [helper.make_node("MatMul", [r, "v"], ["m"]), helper.make_node("Mul", ["m", "k"], [y])]
        tensors.append(stored("k", np.float32([scale])))
    return built(nodes, [value(x, ["N", 16])], [value(y, ["N", 3])], tensors, opset, 8 if opset < 20 else 10)


def runs_like(model, made, feeds, tolerance=4e-3, *, everywhere=True):
    """`made` is valid, keeps inputs and outputs, and answers alike, optimised or not, and on OpenVINO."""
    onnx.checker.check_model(made)
    assert [(put.name, put.dtype) for put in model_inputs(made)] == [
        (put.name, put.dtype) for put in model_inputs(model)
    ]
    assert [(put.name, put.dtype) for put in model_outputs(made)] == [
        (put.name, put.dtype) for put in model_outputs(model)
    ]
    wanted = outputs(model, feeds)
    found = [outputs(made, feeds)]
    if everywhere:
        found.append(_openvino(made, feeds))
    for answers in found:
        for before, after in zip(wanted, answers, strict=True):
            assert np.abs(before - after).max() <= tolerance * np.abs(before).max()


def _openvino(model, feeds):
    import openvino

    core = openvino.Core()
    compiled = core.compile_model(
        core.read_model(model.SerializeToString()),
        "CPU",
        {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"},
    )
    found = compiled(feeds)
    return [found[index] for index in range(len(model.graph.output))]


@pytest.mark.parametrize("with_rows", [True, False])
def test_nanoseconds_made_seconds_keep_their_op_in_float(with_rows):
    """float16's smallest value is 6e-8: as a factor it would answer 60 times too large, and a cosine would not see it."""
    model = mlp(scale=1e-9)
    made = Fp16().apply(model, rows(20, 16) if with_rows else None)
    runs_like(model, made.model, rows(20, 16))
    assert any("1 nodes (Mul) stay float32" in note and "6e-05" in note for note in made.notes)
    assert made.facts["weights_converted"] == 16 * 24 + 24 * 3
    if with_rows:
        assert made.facts["calibration_similarity"] > 0.9999


def test_activations_that_are_tiny_throughout_keep_their_ops_in_float():
    """Nothing stored tells: the input itself is of order 1e-7."""
    model = mlp()
    feeds = rows(20, 16, scale=1e-7)
    made = Fp16().apply(model, feeds)
    assert made.facts["ops_underflowing"] == 3
    assert not made.changed
    assert "nothing was converted" in made.notes[0]
    runs_like(model, made.model, feeds)


def test_an_epsilon_and_small_weights_among_larger_ones_are_no_reason():
    model = built(
        [
            helper.make_node("Add", ["x", "eps"], ["a"]),
            helper.make_node("MatMul", ["a", "w"], ["y"]),
        ],
        [value("x", ["N", 4])],
        [value("y", ["N", 2])],
        [stored("eps", np.float32(1e-12)), stored("w", np.float32([[1, 1e-9], [1e-9, 1], [1, 1], [2e-8, 1]]))],
    )
    made = Fp16().apply(model, rows(8, 4))
    assert made.facts["ops_left_float"] == 0
    runs_like(model, made.model, rows(8, 4))


@pytest.mark.parametrize("op", ["GRU", "LSTM", "RNN"])
def test_recurrent_ops_stay_float(op):
    """ONNX Runtime's CPU provider has no float16 kernel for them."""
    gates = {"GRU": 3, "LSTM": 4, "RNN": 1}[op]
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[1, 0, 2]),
        helper.make_node(op, ["t", "w", "r"], ["", "h"], hidden_size=6),
        helper.make_node("Squeeze", ["h", "zero"], ["s"]),
        helper.make_node("MatMul", ["s", "v"], ["y"]),
    ]
    tensors = [
        weights("w", 1, gates * 6, 5), weights("r", 1, gates * 6, 6), weights("v", 6, 2), stored("zero", np.int64([0]))
    ]  # fmt: skip
    model = built(nodes, [value("x", ["N", 7, 5])], [value("y", ["N", 2])], tensors)
    made = Fp16().apply(model, rows(4, 7, 5))
    runs_like(model, made.model, rows(4, 7, 5))
    kinds = {tensor.name: tensor.data_type for tensor in made.model.graph.initializer}
    assert (kinds["w"], kinds["v"]) == (TensorProto.FLOAT, TensorProto.FLOAT16)
    assert any(op in note and "recurrent" in note for note in made.notes)


@pytest.mark.parametrize("opset", [13, 15, 17, 18, 19, 21])
@pytest.mark.parametrize("first", ["int8-static", "int8-weight", "int8-dynamic"])
def test_a_quantized_model_is_converted_at_every_opset(first, opset):
    feeds = rows(32, 16)
    model = mlp(opset)
    made = registry.make(f"{first}+fp16").apply(model, feeds)
    assert made.changed
    quantized = registry.make(first).apply(model, feeds).model
    runs_like(quantized, made.model, feeds, 0.03)
    assert made.facts["calibration_similarity"] > 0.999
    ops = count_ops(made.model)
    assert ops["QuantizeLinear"] + ops["DequantizeLinear"] + ops["MatMulInteger"] > 0
    if first != "int8-dynamic":
        assert made.facts["2.opset"] == max(opset, 19)


def test_integer_products_keep_float_sums_without_rows_too():
    """Sums of 8-bit products pass 65,504, and nothing but their kind tells so."""
    feeds = rows(32, 16, scale=30)
    quantized = registry.make("int8-dynamic").apply(mlp(), feeds).model
    made = Fp16().apply(quantized, None).model
    runs_like(quantized, made, feeds, 0.03)
    half = {node.output[0] for node in walk_nodes(made) if node.op_type == "MatMulInteger"}
    for node in walk_nodes(made):
        if node.op_type == "Cast" and half & {*node.input}:
            assert node.attribute[0].i == TensorProto.FLOAT


@pytest.mark.parametrize(
    "names",
    [
        ("graph_input_cast_0", "graph_output_cast_0", "x_cast_to_fp16", "y"),
        ("x", "graph_input_cast_0", "graph_output_cast_0", "y_cast_to_fp32"),
        ("x", "m_cast_to_fp32", "m_cast_to_fp16", "graph_output_cast_0"),
        ("graph_output_cast0", "graph_input_cast0", "x_cast_to_fp16_node", "graph_input_cast_0"),
    ],
)
def test_taken_names_are_kept(names):
    model = mlp(scale=1e-9, names=names)
    feeds = {names[0]: rows(20, 16)["x"]}
    runs_like(model, Fp16().apply(model, feeds).model, feeds)


def test_old_files_list_their_weights_as_inputs():
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"])]
    inputs = [value("x", ["N", 3, 8, 8]), value("w", [4, 3, 3, 3])]
    model = built(nodes, inputs, [value("y", ["N", 4, 6, 6])], [weights("w", 4, 3, 3, 3)], opset=9, ir_version=3)
    made = Fp16().apply(model, rows(4, 3, 8, 8))
    assert made.facts["weights_converted"] == 108
    runs_like(model, made.model, rows(4, 3, 8, 8))


def test_an_output_that_is_a_stored_tensor_stays_exactly_what_it_is():
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    anchors = stored("anchors", np.float32([[1e-9, 70000.0]]))
    model = built(
        nodes, [value("x", ["N", 4])], [value("anchors", [1, 2]), value("y", ["N", 3])], [weights("w", 4, 3), anchors]
    )
    made = Fp16().apply(model, rows(4, 4))
    runs_like(model, made.model, rows(4, 4))
    assert np.array_equal(outputs(made.model, rows(4, 4))[0], np.float32([[1e-9, 70000.0]]))


def test_bodies_and_shared_weights(branches):
    """Two branches, each with a weight of its own; and one weight read by a node that is kept and by one that is not."""
    feeds = rows(4, 64)
    runs_like(branches, Fp16().apply(branches, feeds).model, feeds)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="first"),
        helper.make_node("MatMul", ["a", "w"], ["y"], name="second"),
    ]
    shared = built(nodes, [value("x", ["N", 8])], [value("y", ["N", 8])], [weights("w", 8, 8)])
    made = Fp16(keep_nodes=("second",)).apply(shared, rows(8, 8))
    runs_like(shared, made.model, rows(8, 8))
    assert made.facts["ops_left_float"] == 1


def test_a_pair_of_the_models_own_that_takes_no_float16_at_its_opset(tmp_path):
    """The user's file loads optimised too, not only as this package checks it."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("QuantizeLinear", ["a", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    tensors = [weights("w", 8, 3), stored("s", np.float32(0.05)), stored("z", np.int8(0))]
    model = built(nodes, [value("x", ["N", 8])], [value("y", ["N", 3])], tensors, 13)
    made = Fp16().apply(model, rows(8, 8)).model
    runs_like(model, made, rows(8, 8), 0.05)
    session(write_model(made, tmp_path), as_users_do=True)
