"""Bias correction: what it moves, and that outputs come nearer to float."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from profiler import onnx_io
from profiler.variants import registry
from profiler.variants.repair import correct_biases, give_biases
from profiler.variants.running import outputs

pytestmark = pytest.mark.runtime


def apply(text, model, calibration):
    return registry.make(text).apply(model, calibration)


def answers(model, rows):
    return outputs(model, rows)[0].astype(np.float64)


def feeds_of(rows):
    return lambda: ({name: array[i : i + 1] for name, array in rows.items()} for i in range(len(rows["x"])))


def shifted(model, amounts):
    """A copy whose named tensors are off by a constant."""
    copy = onnx_io.clone(model)
    for tensor in copy.graph.initializer:
        if tensor.name in amounts:
            array = numpy_helper.to_array(tensor)
            tensor.CopyFrom(numpy_helper.from_array((array + amounts[tensor.name]).astype(array.dtype), tensor.name))
    return copy


def named(model):
    for place, node in enumerate(model.graph.node):
        node.name = f"{node.op_type}_{place}"
    return model


def stored(model, name):
    return next(numpy_helper.to_array(t) for t in model.graph.initializer if t.name == name)


@pytest.mark.parametrize("kind", ["cnn", "mlp"])
def test_a_known_shift_is_found_and_taken_back(kind, cnn, mlp, images, vectors):
    """Every bias off by its own amount, from input to output: all come back, not only the last."""
    model, rows = (named(cnn), images) if kind == "cnn" else (named(mlp), vectors)
    names = ("b1", "b2", "b3") if kind == "cnn" else ("b1", "b2")
    off = shifted(model, {name: 0.3 * (i + 1) for i, name in enumerate(names)})

    moved = correct_biases(model, off, [node.name for node in model.graph.node], feeds_of(rows))

    assert moved == len(names)
    if kind == "cnn":
        for name in names:
            assert np.allclose(stored(off, name), stored(model, name), atol=1e-4)
    assert np.allclose(answers(off, rows).mean(0), answers(model, rows).mean(0), atol=1e-4)


@pytest.mark.parametrize("text", ["int8-static", "int8-static{quantize_bias=false}"])
def test_means_of_the_outputs_come_nearer_to_float(text, cnn, images):
    """With biases in int32 and in float."""
    coarse = onnx_io.clone(cnn)
    for tensor in coarse.graph.initializer:  # one channel far larger than the others: the rest is rounded coarsely
        if tensor.name in ("w1", "w2"):
            array = numpy_helper.to_array(tensor).copy()
            array[0] *= 30
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    option = text.rstrip("}") + (",bias_correction=true}" if "{" in text else "{bias_correction=true}")

    plain, corrected = (apply(t, coarse, images) for t in (text, option))

    off = [np.abs(answers(r.model, images) - answers(coarse, images)).mean() for r in (plain, corrected)]
    mean = [np.abs((answers(r.model, images) - answers(coarse, images)).mean(0)).max() for r in (plain, corrected)]
    assert corrected.facts["biases_corrected"] == 3
    assert mean[1] < 0.5 * mean[0]
    assert off[1] < off[0]


def test_what_a_relu_cuts_off_does_not_decide(builders):
    """An error on values that the Relu cuts off anyway is no reason to shift those it lets through."""
    weight = numpy_helper.from_array(np.array([[1.0]], np.float32), "w")
    wrong = numpy_helper.from_array(np.array([[1.0]], np.float32), "w")
    bias = numpy_helper.from_array(np.zeros(1, np.float32), "b")
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 1]) for name in "xy")

    def model(tensor, extra):
        nodes = [
            helper.make_node("Clip", ["x", extra], ["c"], name="clip"),
            helper.make_node("Gemm", ["c", "w", "b"], ["g"], name="gemm"),
            helper.make_node("Relu", ["g"], ["y"], name="relu"),
        ]
        limits = [numpy_helper.from_array(np.float32(v), n) for n, v in (("far", -100.0), ("near", -1.0))]
        return builders["model_of"](nodes, [x], [y], [tensor, bias, *limits])

    reference, quantized = model(weight, "far"), model(wrong, "near")
    rows = {"x": np.array([[-50.0], [-20.0], [3.0], [5.0]], np.float32)}

    correct_biases(reference, quantized, ["gemm"], feeds_of(rows))

    assert np.allclose(answers(quantized, rows), answers(reference, rows), atol=1e-6)


def test_ops_without_a_bias_get_one(builders, images):
    """Conv, Gemm and a MatMul that no Add follows; a MatMul with its Add keeps that one."""
    rng = np.random.default_rng(0)

    def weight(name, *shape):
        return numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name)

    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["m"], name="bare"),
        helper.make_node("Tanh", ["m"], ["t"], name="tanh"),
        helper.make_node("Gemm", ["t", "w2"], ["g"], name="gemm"),
        helper.make_node("MatMul", ["g", "w3"], ["n"], name="biased"),
        helper.make_node("Add", ["n", "b"], ["y"], name="add"),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 64])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])
    initializers = [weight("w1", 64, 8), weight("w2", 8, 8), weight("w3", 8, 4), weight("b", 4)]
    model = builders["model_of"](nodes, [x], [y], initializers)
    changed = onnx_io.clone(model)
    rows = builders["vector_rows"](8)

    assert give_biases(changed, changed.graph.node) == 2

    assert onnx_io.count_ops(changed)["Add"] == 2
    assert np.array_equal(answers(changed, rows), answers(model, rows))
    assert apply("int8-static{bias_correction=true}", model, rows).facts["biases_corrected"] == 3
