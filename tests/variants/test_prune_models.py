"""Pruning of models as people have them: old files, shared weights, bodies, constant and several outputs."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from profiler.onnx_io import model_inputs, model_outputs
from profiler.variants import registry
from profiler.variants.running import outputs

pytestmark = pytest.mark.runtime
RECIPES = (
    "prune-magnitude{sparsity=0.5}",
    "prune-nm",
    "prune-channels{importance=magnitude,refit=false,round_to=1}",
    "prune-channels{round_to=1}",
)


def value(name, shape, kind=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def weights(name, *shape):
    rng = np.random.default_rng(sum(shape))
    return numpy_helper.from_array((rng.standard_normal(shape) * 0.3).astype(np.float32), name)


def built(nodes, inputs, outs, tensors, opset=17, ir_version=8):
    graph = helper.make_graph(nodes, "g", inputs, outs, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)
    onnx.checker.check_model(model)
    return model


def stack(ir_version=8):
    """Two products; in old files their weights are inputs too."""
    tensors = [weights("w", 16, 32), weights("v", 32, 4)]
    inputs = [value("x", ["N", 16])]
    if ir_version == 3:
        inputs += [value(tensor.name, list(tensor.dims)) for tensor in tensors]
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("MatMul", ["r", "v"], ["y"]),
    ]
    return built(nodes, inputs, [value("y", ["N", 4])], tensors, 9 if ir_version == 3 else 17, ir_version)


def outputs_of_all_kinds():
    """A hidden activation and a stored weight are outputs beside the last one."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("MatMul", ["r", "v"], ["y"]),
        helper.make_node("MatMul", ["y", "k"], ["z"]),
    ]
    tensors = [weights("w", 16, 32), weights("v", 32, 4), weights("k", 4, 4)]
    outs = [value("r", ["N", 32]), value("k", [4, 4]), value("z", ["N", 4])]
    return built(nodes, [value("x", ["N", 16])], outs, tensors)


def tied():
    """One matrix is the embedding and, transposed by Gemm, the output layer; another one is read twice as a product."""
    nodes = [
        helper.make_node("Gather", ["e", "i"], ["g"]),
        helper.make_node("MatMul", ["g", "w"], ["a"]),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("MatMul", ["r", "w"], ["b"]),
        helper.make_node("Gemm", ["b", "e"], ["y"], transB=1),
    ]
    return built(
        nodes,
        [value("i", ["N"], TensorProto.INT64)],
        [value("y", ["N", 20])],
        [weights("e", 20, 16), weights("w", 16, 16)],
    )


def with_body():
    """A weight of the main graph that both branches read, one through a Relu of their own."""

    def branch(name, activation):
        nodes = [
            helper.make_node("MatMul", ["a", "v"], [f"m_{name}"]),
            helper.make_node(activation, [f"m_{name}"], [f"y_{name}"]),
        ]
        return helper.make_graph(nodes, name, [], [value(f"y_{name}", ["N", 4])], [])

    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("ReduceSum", ["x"], ["s"], keepdims=0),
        helper.make_node("Greater", ["s", "zero"], ["c"]),
        helper.make_node("If", ["c"], ["y"], then_branch=branch("one", "Relu"), else_branch=branch("two", "Neg")),
    ]
    zero = numpy_helper.from_array(np.float32(0), "zero")
    tensors = [weights("w", 16, 32), weights("v", 32, 4), zero]
    return built(nodes, [value("x", ["N", 16])], [value("y", ["N", 4])], tensors)


def rows_for(model):
    rng = np.random.default_rng(1)
    found = {}
    for info in model_inputs(model):
        shape = (40, *info.shape[1:])
        found[info.name] = (
            rng.integers(0, 20, shape) if info.dtype == "int64" else rng.standard_normal(shape).astype(np.float32)
        )
    return found


def stored(model, name):
    return next(numpy_helper.to_array(tensor) for tensor in model.graph.initializer if tensor.name == name)


@pytest.mark.parametrize("text", RECIPES)
@pytest.mark.parametrize("build", [stack, lambda: stack(3), outputs_of_all_kinds, tied, with_body])
def test_the_result_is_valid_and_keeps_its_inputs_and_outputs(build, text):
    model = build()
    rows = rows_for(model)
    made = registry.make(text).apply(model, rows)
    onnx.checker.check_model(made.model)
    assert model_inputs(made.model) == model_inputs(model)
    assert model_outputs(made.model) == model_outputs(model)
    for before, after in zip(outputs(model, rows), outputs(made.model, rows), strict=True):
        assert before.shape == after.shape
        assert np.isfinite(after).all()


@pytest.mark.parametrize("text", RECIPES)
def test_an_old_file_is_pruned_like_a_new_one(text):
    """What was listed as an input is a constant then: nobody feeds it here."""
    new, old = stack(), stack(3)
    first, second = (registry.make(text).apply(model, rows_for(model)) for model in (new, old))
    assert first.changed
    assert second.changed
    for name in ("w", "v"):
        assert np.allclose(stored(first.model, name), stored(second.model, name), atol=1e-6)
    assert [put.name for put in second.model.graph.input] == ["x"]


@pytest.mark.parametrize("text", RECIPES[:2])
def test_what_is_read_as_something_else_too_stays(text):
    """An embedding that is the output layer too; a weight that is an output itself."""
    model = tied()
    made = registry.make(text).apply(model, rows_for(model)).model
    assert np.array_equal(stored(made, "e"), stored(model, "e"))
    model = outputs_of_all_kinds()
    made = registry.make(text).apply(model, rows_for(model)).model
    assert np.array_equal(stored(made, "k"), stored(model, "k"))


def test_the_note_counts_them():
    made = registry.make(RECIPES[0]).apply(tied(), rows_for(tied()))
    assert made.facts["weights_total"] == 256
    assert any(note.startswith("1 weights stay whole") for note in made.notes)
