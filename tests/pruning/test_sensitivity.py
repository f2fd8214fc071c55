"""How much of an error arrives: right before the output all of it, before a hard switch more than before a linear activation."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from profiler.pruning.axes import Axes
from profiler.pruning.graph import GraphView
from profiler.pruning.sensitivity import sensitivities
from profiler.variants.prune_structured import open_session

pytestmark = pytest.mark.runtime


def network(gain):
    rng = np.random.default_rng(0)
    value = helper.make_tensor_value_info
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h"]),
        helper.make_node("Tanh", ["h"], ["t"]),
        helper.make_node("MatMul", ["t", "b"], ["y"]),
    ]
    stored = [
        numpy_helper.from_array((gain * rng.standard_normal((8, 16))).astype(np.float32), "a"),
        numpy_helper.from_array(rng.standard_normal((16, 4)).astype(np.float32), "b"),
    ]
    inputs, outputs = [value("x", TensorProto.FLOAT, ["N", 8])], [value("y", TensorProto.FLOAT, ["N", 4])]
    graph = helper.make_graph(nodes, "g", inputs, outputs, stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    axes = Axes(GraphView(model))
    rows = [{"x": rng.standard_normal((1, 8)).astype(np.float32)} for _ in range(64)]
    found = sensitivities(axes, axes.uses, open_session, rows)
    return {use.weight: value for use, value in found.items()}


def test_the_last_layer_passes_all_of_its_error():
    """The tensor behind it is the output."""
    assert network(0.1)["b"] == pytest.approx(1.0)


def test_a_linear_activation_passes_what_a_hard_switch_amplifies():
    """Small inputs of tanh arrive about as they are; where it is a sign, a small relative error flips answers."""
    assert 0.5 < network(0.01)["a"] < 2
    assert network(10.0)["a"] > 2 * network(0.01)["a"]


def test_the_answer_is_repeatable():
    """The disturbance is seeded."""
    assert network(1.0) == network(1.0)
