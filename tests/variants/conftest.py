"""Small models built with onnx.helper, so that no exporter is needed; weights are random but fixed."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper


def tensor(name, array):
    return numpy_helper.from_array(np.asarray(array), name)


def model_of(nodes, inputs, outputs, initializers, opset=17, **imports):
    graph = helper.make_graph(nodes, "g", inputs, outputs, initializers)
    opsets = [
        helper.make_opsetid("", opset),
        *(helper.make_opsetid(k.replace("_", "."), v) for k, v in imports.items()),
    ]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    onnx.checker.check_model(model)
    return model


def value(name, shape, kind=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def build_cnn(opset=17, seed=0, output="logits"):
    """Conv-Relu-Conv-Relu-pool-Gemm on [N, 3, 12, 12], five classes."""
    rng = np.random.default_rng(seed)

    def weights(*shape):
        return (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)

    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "w2", "b2"], ["c2"], pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("Relu", ["c2"], ["r2"]),
        helper.make_node("GlobalAveragePool", ["r2"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "w3", "b3"], [output], transB=1),
    ]
    initializers = [
        tensor("w1", weights(16, 3, 3, 3)),
        tensor("b1", weights(16, 1).ravel()),
        tensor("w2", weights(32, 16, 3, 3)),
        tensor("b2", weights(32, 1).ravel()),
        tensor("w3", weights(5, 32)),
        tensor("b3", weights(5, 1).ravel()),
    ]
    return model_of(nodes, [value("x", ["N", 3, 12, 12])], [value(output, ["N", 5])], initializers, opset)


def build_mlp(opset=17, seed=0):
    """MatMul+Add, Relu, MatMul+Add on [N, 64]: what a transformer's feed-forward looks like."""
    rng = np.random.default_rng(seed)
    first, second = (rng.standard_normal(s).astype(np.float32) / 8 for s in ((64, 128), (128, 10)))
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["m1"]),
        helper.make_node("Add", ["m1", "b1"], ["a1"]),
        helper.make_node("Relu", ["a1"], ["r1"]),
        helper.make_node("MatMul", ["r1", "w2"], ["m2"]),
        helper.make_node("Add", ["m2", "b2"], ["y"]),
    ]
    initializers = [
        tensor("w1", first),
        tensor("w2", second),
        tensor("b1", rng.standard_normal(128).astype(np.float32) * 0.1),
        tensor("b2", rng.standard_normal(10).astype(np.float32) * 0.1),
    ]
    return model_of(nodes, [value("x", ["N", 64])], [value("y", ["N", 10])], initializers, opset)


def build_branches():
    """An If whose two branches each hold a MatMul with a stored weight."""
    rng = np.random.default_rng(0)

    def branch(name):
        weight = tensor(f"w_{name}", rng.standard_normal((64, 64)).astype(np.float32))
        node = helper.make_node("MatMul", ["x", f"w_{name}"], [f"y_{name}"])
        return helper.make_graph([node], name, [], [value(f"y_{name}", ["N", 64])], [weight])

    nodes = [
        helper.make_node("ReduceSum", ["x"], ["s"], keepdims=0),
        helper.make_node("Greater", ["s", "zero"], ["positive"]),
        helper.make_node("If", ["positive"], ["y"], then_branch=branch("then"), else_branch=branch("else")),
    ]
    zero = tensor("zero", np.float32(0))
    return model_of(nodes, [value("x", ["N", 64])], [value("y", ["N", 64])], [zero])


def build_elementwise():
    """Nothing here multiplies by stored weights."""
    nodes = [helper.make_node("Sigmoid", ["x"], ["s"]), helper.make_node("Mul", ["s", "x"], ["y"])]
    return model_of(nodes, [value("x", ["N", 8])], [value("y", ["N", 8])], [])


def image_rows(count, seed=1):
    return {"x": np.random.default_rng(seed).standard_normal((count, 3, 12, 12)).astype(np.float32)}


def vector_rows(count, width=64, seed=1):
    return {"x": np.random.default_rng(seed).standard_normal((count, width)).astype(np.float32)}


@pytest.fixture
def cnn():
    return build_cnn()


@pytest.fixture
def mlp():
    return build_mlp()


@pytest.fixture
def branches():
    return build_branches()


@pytest.fixture
def elementwise():
    return build_elementwise()


@pytest.fixture
def builders():
    """The functions behind the fixtures, for tests that need another opset or seed."""
    return {
        "cnn": build_cnn,
        "mlp": build_mlp,
        "image_rows": image_rows,
        "vector_rows": vector_rows,
        "model_of": model_of,
    }


@pytest.fixture
def images():
    return image_rows(16)


@pytest.fixture
def vectors():
    return vector_rows(16)
