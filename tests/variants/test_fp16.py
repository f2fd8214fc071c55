"""Half precision where it fits: what overflows on calibration rows stays float32."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from profiler import onnx_io
from profiler.errors import VariantError
from profiler.variants import registry
from profiler.variants.fp16 import Fp16
from profiler.variants.half_range import largest_values, overflows
from profiler.variants.half_types import convertible
from profiler.variants.running import outputs

pytestmark = pytest.mark.runtime


@pytest.fixture
def hot(builders):
    """x·w1 reaches 1e5 inside and comes back to order 1: stored values fit float16, the activation between doesn't."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 8]) for name in "xy")
    rng = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array((np.eye(8) * 4e4).astype(np.float32), "w1"),
        numpy_helper.from_array((np.eye(8) * 2e-5).astype(np.float32), "w2"),
        numpy_helper.from_array((rng.standard_normal((8, 8)) / 3).astype(np.float32), "w3"),
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["a"], name="up"),
        helper.make_node("Abs", ["a"], ["b"], name="between"),
        helper.make_node("MatMul", ["b", "w2"], ["c"], name="down"),
        helper.make_node("MatMul", ["c", "w3"], ["y"], name="rest"),
    ]
    return builders["model_of"](nodes, [x], [y], weights)


def rows(count=8, width=8, scale=1.0):
    return {"x": (np.random.default_rng(2).standard_normal((count, width)) * scale).astype(np.float32)}


def strictly(model, feeds):
    """The first output where every float16 tensor is one: ONNX Runtime's CPU provider computes many in float32."""
    from onnx.reference import ReferenceEvaluator

    with np.errstate(all="ignore"):
        return ReferenceEvaluator(model).run(None, feeds)[0]


def kinds(model, op="MatMul"):
    """Types of the stored weights by node name."""
    stored = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    return {node.name: stored.get(node.input[1]) for node in model.graph.node if node.op_type == op}


def test_an_activation_that_overflows_stays_float32(hot):
    result = Fp16().apply(hot, rows())
    assert result.facts["ops_overflowing"] == 3
    assert result.facts["ops_left_float"] == 3
    assert result.facts["largest_activation"] == pytest.approx(4e4 * np.abs(rows()["x"]).max())
    assert kinds(result.model) == {"up": TensorProto.FLOAT, "down": TensorProto.FLOAT, "rest": TensorProto.FLOAT16}
    note = next(note for note in result.notes if "on calibration rows" in note)
    assert "3 nodes (Abs, MatMul)" in note
    assert np.allclose(outputs(hot, rows())[0], strictly(result.model, rows()), rtol=5e-3, atol=5e-3)
    # Not even between the kept nodes does a value pass through float16.
    assert onnx_io.count_ops(result.model)["Cast"] == 2


def test_without_the_rows_the_same_model_is_ruined(hot):
    """What the rows are for: nothing stored tells that 4e4 · 2 leaves the range."""
    result = Fp16().apply(hot, None)
    assert "ops_overflowing" not in result.facts
    assert result.facts["ops_left_float"] == 0
    assert not np.isfinite(strictly(result.model, rows())).all()


def test_the_other_rows_decide_by_their_own_values(hot):
    result = Fp16().apply(hot, rows(scale=0.01))
    assert result.facts["ops_overflowing"] == 0
    assert set(kinds(result.model).values()) == {TensorProto.FLOAT16}


def test_largest_values_are_those_of_numpy(hot):
    feeds = rows(count=40)
    largest, used = largest_values(convertible(hot), feeds)
    assert used == 32
    assert largest["x"] == pytest.approx(np.abs(feeds["x"][:32]).max())
    assert largest["a"] == pytest.approx(np.abs(feeds["x"][:32]).max() * 4e4)
    assert set(largest) == {"x", "a", "b", "c", "y"}


def test_an_infinite_mask_is_no_overflow(builders):
    """-inf is -inf in float16 too: masks of attention are written so."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 4]) for name in "xy")
    mask = numpy_helper.from_array(np.array([0, 0, 0, -np.inf], np.float32), "mask")
    model = builders["model_of"](
        [helper.make_node("Add", ["x", "mask"], ["m"]), helper.make_node("Softmax", ["m"], ["y"])], [x], [y], [mask]
    )
    largest, _ = largest_values(convertible(model), rows(width=4))
    assert largest["m"] < 10
    result = Fp16().apply(model, rows(width=4))
    assert result.facts["ops_overflowing"] == 0


@pytest.mark.parametrize(
    ("op", "value", "expected"),
    [
        ("Relu", 3e4, False),
        ("Relu", 3.3e4, True),
        ("LayerNormalization", 300.0, True),
        ("LayerNormalization", 100.0, False),
    ],
)
def test_the_limit_has_headroom_and_squares_count(op, value, expected):
    node = helper.make_node(op, ["x", "scale"] if op != "Relu" else ["x"], ["y"])
    assert overflows(node, {"x": value, "y": 1.0}) is expected


def test_named_nodes_stay_float32_and_unknown_ones_are_told(hot):
    result = Fp16(keep_nodes=("rest",)).apply(hot, rows(scale=0.01))
    assert kinds(result.model)["rest"] == TensorProto.FLOAT
    assert kinds(result.model)["up"] == TensorProto.FLOAT16
    assert result.facts["ops_left_float"] == 1
    assert kinds(Fp16(keep_nodes=("MatMul:2",)).apply(hot, rows(scale=0.01)).model) == kinds(result.model)
    with pytest.raises(VariantError, match=r"no node 'rst'\. Did you mean rest\?"):
        Fp16(keep_nodes=("rst",)).apply(hot, None)


def test_an_output_that_overflows_keeps_its_name_and_its_value(builders):
    """The last node stays float32, so nothing is cast between it and the output."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 8]) for name in "xy")
    weight = numpy_helper.from_array((np.eye(8) * 5e4).astype(np.float32), "w")
    nodes = [helper.make_node("Relu", ["x"], ["r"]), helper.make_node("MatMul", ["r", "w"], ["y"])]
    model = builders["model_of"](nodes, [x], [y], [weight])
    result = Fp16().apply(model, rows())
    assert result.facts["ops_overflowing"] == 1
    assert [out.name for out in onnx_io.model_outputs(result.model)] == ["y"]
    assert np.allclose(strictly(result.model, rows()), outputs(model, rows())[0], rtol=2e-3)


def test_old_texts_mean_what_they_meant():
    assert registry.make("fp16").text == "fp16"
    assert registry.make("fp16{keep=Softmax|Gemm}") == Fp16(keep=("Softmax", "Gemm"))
    assert registry.make("fp16{keep_nodes=a/b|c}").text == "fp16{keep_nodes=a/b|c}"


def test_the_interface_stays_and_weights_are_halved(cnn, images):
    result = Fp16().apply(cnn, images)
    assert result.facts["weights_converted"] == onnx_io.weights_count(cnn)
    assert [info.dtype for info in onnx_io.model_inputs(result.model)] == ["float32"]
    assert result.facts["ops_overflowing"] == 0
    assert result.facts["overflow_rows"] == 16
