"""Names are made by asking the whole model, and a value that is renamed is renamed everywhere."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from profiler.models.initializers import as_constants
from profiler.models.naming import Names, distinct_names, rename_values, value_names


def model_with_body(ir_version=8):
    """`y = If(flag) { h · w } else { h }` with names in every place that can hold one."""

    def value(name, shape=("N", 4), kind=TensorProto.FLOAT):
        return helper.make_tensor_value_info(name, kind, shape)

    weights = numpy_helper.from_array(np.eye(4, dtype=np.float32), "w")
    product = helper.make_node("MatMul", ["h", "w"], ["then"], "then_node")
    then = helper.make_graph([product], "t", [], [value("then")], value_info=[value("only_declared")])
    other = helper.make_graph([helper.make_node("Identity", ["h"], ["else"])], "e", [], [value("else")])
    nodes = [
        helper.make_node("Relu", ["x"], ["h"]),
        helper.make_node("If", ["flag"], ["y"], then_branch=then, else_branch=other),
    ]
    graph = helper.make_graph(nodes, "g", [value("x"), value("flag", (), TensorProto.BOOL)], [value("y")], [weights])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=ir_version)


@pytest.mark.parametrize("taken", ["x", "y", "h", "w", "then", "else", "only_declared", "then_node", "flag"])
def test_a_fresh_name_is_nowhere_in_the_model(taken):
    names = Names(model_with_body())

    assert taken in names
    assert names.fresh(taken) == f"{taken}_1"


def test_a_free_name_is_given_once():
    names = Names(model_with_body())

    assert [names.fresh("new"), names.fresh("new"), names.fresh("new")] == ["new", "new_1", "new_2"]


def test_renamed_values_are_renamed_in_bodies_and_declarations():
    model = model_with_body()

    rename_values(model, {"h": "hidden", "w": "weights", "y": "out", "then": "inner", "only_declared": "declared"})

    onnx.checker.check_model(model)
    assert value_names(model) == {"x", "flag", "hidden", "weights", "out", "inner", "else", "declared"}


def test_initializers_of_old_models_become_constants():
    model = model_with_body(ir_version=3)
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, (4, 4)))

    assert as_constants(model)

    onnx.checker.check_model(model)
    assert model.ir_version == 4
    assert [value.name for value in model.graph.input] == ["x", "flag"]


def test_constants_stay_as_they_are():
    model = model_with_body()
    before = model.SerializeToString()

    assert not as_constants(model)
    assert model.SerializeToString() == before


def test_names_that_two_bodies_share_are_told_apart_and_nothing_else():
    model = model_with_body()
    flow = model.graph.node[1]
    inner = numpy_helper.from_array(np.full((4, 4), 2, np.float32), "own")
    for attribute in flow.attribute:
        body = attribute.g
        body.initializer.append(inner)
        body.node[0].input[:] = ["h", "own"]
        body.node[0].op_type = "MatMul" if attribute.name == "then_branch" else "Add"
        body.node[0].output[0] = body.output[0].name = "same"

    assert distinct_names(model) == 2

    onnx.checker.check_model(model)
    first, second = (attribute.g for attribute in flow.attribute)
    assert {*first.node[0].input} & {*second.node[0].input} == {"h"}
    assert first.output[0].name == first.node[0].output[0] != second.node[0].output[0] == second.output[0].name
    assert [first.initializer[-1].name, second.initializer[-1].name] == [
        n.input[1] for n in (first.node[0], second.node[0])
    ]
    assert distinct_names(model) == 0
