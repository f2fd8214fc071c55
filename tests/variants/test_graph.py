"""What simplifiers break, on small models that they really break: the result is that of the model, and the note says why."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from profiler.models.interface import restore_interface
from profiler.onnx_io import count_ops
from profiler.variants import registry
from profiler.variants.running import outputs

pytestmark = pytest.mark.runtime

RNG = np.random.default_rng(0)


def value(name, shape, kind=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def stored(name, *shape):
    return numpy_helper.from_array((RNG.standard_normal(shape) * 0.3).astype(np.float32), name)


def built(nodes, inputs, outs, tensors, opset=17, ir_version=8):
    graph = helper.make_graph(nodes, "g", inputs, outs, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)
    onnx.checker.check_model(model)
    return model


def scaled_rows():
    """A convolution times one factor per *column*, as many as it has channels: onnxslim 0.1.98 folds them into the channels."""
    nodes = [helper.make_node("Conv", ["x", "w"], ["a"]), helper.make_node("Mul", ["a", "k"], ["y"])]
    return built(
        nodes, [value("x", ["N", 3, 9, 9])], [value("y", ["N", 7, 7, 7])], [stored("w", 7, 3, 3, 3), stored("k", 7)]
    )


def unread_input():
    """`mask` is fed by everybody and read by nobody; it stands between two inputs that are read."""
    nodes = [helper.make_node("Add", ["x", "z"], ["y"]), helper.make_node("Sub", ["x", "z"], ["d"])]
    return built(
        nodes,
        [value("x", ["N", 4]), value("mask", ["N", 4], TensorProto.INT64), value("z", ["N", 4])],
        [value("y", ["N", 4]), value("d", ["N", 4])],
        [],
    )


def constant_output():
    nodes = [helper.make_node("Identity", ["k"], ["c"]), helper.make_node("Relu", ["x"], ["y"])]
    return built(nodes, [value("x", ["N", 4])], [value("c", [2, 3]), value("y", ["N", 4])], [stored("k", 2, 3)])


def version_3():
    nodes = [helper.make_node("Conv", ["x", "w"], ["a"]), helper.make_node("Identity", ["a"], ["y"])]
    inputs = [value("x", ["N", 3, 8, 8]), value("w", [4, 3, 3, 3])]
    return built(nodes, inputs, [value("y", ["N", 4, 6, 6])], [stored("w", 4, 3, 3, 3)], opset=9, ir_version=3)


def rows_for(model, count=6):
    feeds = {}
    held = {tensor.name for tensor in model.graph.initializer}
    for info in model.graph.input:
        if info.name not in held:
            shape = [count, *(dim.dim_value for dim in info.type.tensor_type.shape.dim[1:])]
            dtype = helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type)
            feeds[info.name] = RNG.standard_normal(shape).astype(dtype)
    return feeds


@pytest.mark.parametrize("text", ["graph", "graph{level=ort}"])
@pytest.mark.parametrize("with_rows", [True, False])
@pytest.mark.parametrize("build", [scaled_rows, unread_input, constant_output, version_3])
def test_the_result_is_valid_takes_the_same_inputs_and_answers_the_same(build, with_rows, text):
    model = build()
    rows = rows_for(model)
    made = registry.make(text).apply(model, rows if with_rows else None).model

    onnx.checker.check_model(made)
    held = {tensor.name for tensor in model.graph.initializer}
    assert [put.name for put in made.graph.input] == [put.name for put in model.graph.input if put.name not in held]
    assert [put.type for put in made.graph.output] == [put.type for put in model.graph.output]
    for before, after in zip(outputs(model, rows), outputs(made, rows), strict=True):
        np.testing.assert_allclose(before, after, rtol=1e-4, atol=1e-5)


def test_only_the_pass_that_breaks_the_model_is_left_out():
    model = scaled_rows()
    made = registry.make("graph").apply(model, rows_for(model))
    note = next(note for note in made.notes if note.startswith("onnxslim went without"))
    assert "graph_fusion" in note
    assert "of output 'y' is" in note
    assert count_ops(made.model) == {"Conv": 1, "Mul": 1}


def test_without_rows_that_fit_only_what_the_runtime_does_anyway_is_done():
    """Each size guessed for the unnamed axis is wrong, so nobody can say that onnxslim's result is right."""
    nodes = [
        helper.make_node("Identity", ["x"], ["same"]),
        helper.make_node("Reshape", ["same", "shape"], ["a"]),
        helper.make_node("MatMul", ["a", "w"], ["y"]),
    ]
    shape = numpy_helper.from_array(np.array([-1, 7], np.int64), "shape")
    model = built(nodes, [value("x", ["N", "S"])], [value("y", ["M", 2])], [shape, stored("w", 7, 2)])
    made = registry.make("graph").apply(model, None)
    assert any("onnxslim was left out" in note and "give --data" in note for note in made.notes)
    assert count_ops(made.model)["Identity"] == 0
    rows = {"x": RNG.standard_normal((3, 14)).astype(np.float32)}
    np.testing.assert_allclose(outputs(model, rows)[0], outputs(made.model, rows)[0], rtol=1e-5)


def test_half_precision_is_not_cast_around_for_good():
    """ONNX Runtime's optimiser casts where its CPU provider has no float16 kernel; another runtime has one."""
    x, y = (value(name, ["N", 8], TensorProto.FLOAT16) for name in "xy")
    weight = numpy_helper.from_array(np.eye(8, dtype=np.float16), "w")
    nodes = [helper.make_node("MatMul", ["x", "w"], ["a"]), helper.make_node("Relu", ["a"], ["y"])]
    model = built(nodes, [x], [y], [weight])
    made = registry.make("graph").apply(model, {"x": RNG.standard_normal((8, 8)).astype(np.float16)})
    assert count_ops(made.model)["Cast"] == 0


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda m: m.graph.input[0].type.tensor_type.__setattr__("elem_type", TensorProto.DOUBLE), "another type"),
        (lambda m: m.graph.output.pop(), "lost the output 'd'"),
        (lambda m: m.graph.input.append(value("new", [1])), "an input 'new'"),
        (lambda m: m.graph.output[0].type.tensor_type.shape.dim.add(), "another type or rank"),
        (lambda m: (m.graph.input.reverse(), m.graph.input.pop(1)), None),
    ],
)
def test_what_callers_see_is_restored_or_refused(change, reason):
    original, changed = unread_input(), unread_input()
    change(changed)
    found = restore_interface(changed, original)
    if reason is None:
        assert found is None
        assert changed.SerializeToString(deterministic=True) == original.SerializeToString(deterministic=True)
    else:
        assert reason in found
