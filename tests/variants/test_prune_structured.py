"""Channels that leave small graphs and the built-in model, run in ONNX Runtime."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from profiler import demo, onnx_io
from profiler.errors import StudyError, VariantError
from profiler.variants.base import from_options
from profiler.variants.prune_structured import PruneChannels
from profiler.variants.running import outputs

pytestmark = pytest.mark.runtime

NO_DATA = {"importance": "magnitude", "refit": False}


def shapes(model):
    return {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}


def value(name, shape, kind=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def weight(name, *shape, seed=0):
    rng = np.random.default_rng([seed, len(name), *shape])
    return numpy_helper.from_array((rng.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32), name)


def attention(heads=4, width=8, hidden=32, reshape=("N", "T")):
    """One transformer layer without normalization on [N, T, 16]: Q, K, V, heads, output projection, Gelu feed-forward."""
    size = heads * width
    ints = lambda name, values: numpy_helper.from_array(np.array(values, np.int64), name)  # noqa: E731
    nodes, initializers = [], [ints("apart", [0, 0, heads, width]), ints("together", [0, 0, size])]
    for part in "qkv":
        initializers += [weight(f"w{part}", 16, size), weight(f"b{part}", size)]
        nodes += [
            helper.make_node("MatMul", ["x", f"w{part}"], [f"{part}0"]),
            helper.make_node("Add", [f"{part}0", f"b{part}"], [f"{part}1"]),
            helper.make_node("Reshape", [f"{part}1", "apart"], [f"{part}2"]),
            helper.make_node("Transpose", [f"{part}2"], [part], perm=[0, 2, 3, 1] if part == "k" else [0, 2, 1, 3]),
        ]
    initializers += [weight("wo", size, 16), weight("w1", 16, hidden), weight("b1", hidden), weight("w2", hidden, 16)]
    initializers += [
        numpy_helper.from_array(np.float32(v), n) for n, v in (("half", 0.5), ("one", 1), ("root", 1.4142135))
    ]
    nodes += [
        helper.make_node("MatMul", ["q", "k"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["p"], axis=-1),
        helper.make_node("MatMul", ["p", "v"], ["mixed"]),
        helper.make_node("Transpose", ["mixed"], ["back"], perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", ["back", "together"], ["flat"]),
        helper.make_node("MatMul", ["flat", "wo"], ["o"]),
        helper.make_node("Add", ["x", "o"], ["r"]),
        helper.make_node("MatMul", ["r", "w1"], ["h0"]),
        helper.make_node("Add", ["h0", "b1"], ["h"]),
        helper.make_node("Div", ["h", "root"], ["h1"]),
        helper.make_node("Erf", ["h1"], ["h2"]),
        helper.make_node("Add", ["h2", "one"], ["h3"]),
        helper.make_node("Mul", ["h", "h3"], ["h4"]),
        helper.make_node("Mul", ["h4", "half"], ["h5"]),
        helper.make_node("MatMul", ["h5", "w2"], ["y0"]),
        helper.make_node("Add", ["r", "y0"], ["y"]),
    ]
    graph = helper.make_graph(nodes, "g", [value("x", [*reshape, 16])], [value("y", [*reshape, 16])], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


def test_both_hidden_layers_of_a_network_shrink(cnn):
    """16 and 32 filters become 8 and 16, in every tensor that has them; the classes stay."""
    result = PruneChannels(**NO_DATA).apply(cnn, None)

    got = shapes(result.model)
    assert got["w1"] == (8, 3, 3, 3)
    assert got["b1"] == (8,)
    assert got["w2"] == (16, 8, 3, 3)
    assert got["w3"] == (5, 16)
    assert got["b3"] == (5,)
    assert result.changed
    assert (result.facts["channels_before"], result.facts["channels_after"]) == (48, 24)
    assert result.facts["weights_after"] == onnx_io.weights_count(result.model)


def test_attention_loses_whole_heads_and_the_feed_forward_its_width():
    """Two of four heads from Q, K, V, their biases and the projection's rows; the width of 16 is an output and stays."""
    model = attention()

    result = PruneChannels(**NO_DATA).apply(model, None)

    got = shapes(result.model)
    assert got["wq"] == got["wk"] == got["wv"] == (16, 16)
    assert got["bq"] == (16,)
    assert got["wo"] == (16, 16)
    assert (got["w1"], got["b1"], got["w2"]) == ((16, 16), (16,), (16, 16))
    for shape in ((1, 3, 16), (2, 7, 16)):
        assert outputs(result.model, {"x": np.ones(shape, np.float32)})[0].shape == shape


def test_a_shape_put_together_in_the_graph_follows_piece_by_piece():
    """Exporters write [Shape(x)[0], Shape(x)[1], heads, width] with Concat; another reader of the same shape keeps it."""
    model = attention()
    ints = lambda name, values: numpy_helper.from_array(np.array(values, np.int64), name)  # noqa: E731
    made = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "first"], ["n"]),
        helper.make_node("Gather", ["s", "second"], ["t"]),
        helper.make_node("Concat", ["n", "t", "heads", "width"], ["apart"], axis=0, name="put_together"),
    ]
    nodes = [*made, *model.graph.node]
    stored = [tensor for tensor in model.graph.initializer if tensor.name != "apart"]
    stored += [ints("first", [0]), ints("second", [1]), ints("heads", [4]), ints("width", [8])]
    outs = [*model.graph.output, value("shape", [4], TensorProto.INT64)]
    nodes.append(helper.make_node("Identity", ["apart"], ["shape"]))
    graph = helper.make_graph(nodes, "g", model.graph.input, outs, stored)
    built = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(built, full_check=True)

    result = PruneChannels(**NO_DATA).apply(built, None)

    assert shapes(result.model)["wq"] == (16, 16)
    answer, shape = outputs(result.model, {"x": np.ones((2, 5, 16), np.float32)})
    assert answer.shape == (2, 5, 16)
    assert shape.tolist() == [2, 5, 4, 8]


def test_heads_that_write_nothing_can_go_unnoticed():
    """With zero rows in the projection for heads 0 and 2, exactly these go and the outputs stay."""
    model = attention()
    for tensor in model.graph.initializer:
        array = np.array(numpy_helper.to_array(tensor))
        if tensor.name == "wo":
            array[0:8] = array[16:24] = 0
        if tensor.name == "bq":
            array[0:8] = array[16:24] = 0
        if tensor.name in ("wq", "wk", "wv"):
            array[:, 0:8] *= 0.1
            array[:, 16:24] *= 0.1
        if tensor.name == "w2":
            array[::2] = 0
        if tensor.name == "w1":
            array[:, ::2] *= 0.1
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    rows = {"x": np.random.default_rng(2).standard_normal((2, 5, 16)).astype(np.float32)}

    result = PruneChannels(**NO_DATA).apply(model, None)

    assert np.abs(outputs(model, rows)[0] - outputs(result.model, rows)[0]).max() < 1e-5


def test_a_layer_normalization_keeps_its_width_and_says_so():
    """The normalized width stays, the hidden width behind it goes."""
    nodes = [
        helper.make_node("MatMul", ["x", "w0"], ["a"]),
        helper.make_node("LayerNormalization", ["a", "scale"], ["n"]),
        helper.make_node("MatMul", ["n", "w1"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "w2"], ["y"]),
    ]
    initializers = [weight("w0", 8, 32), weight("scale", 32), weight("w1", 32, 64), weight("w2", 64, 4)]
    graph = helper.make_graph(nodes, "g", [value("x", ["N", 8])], [value("y", ["N", 4])], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)

    result = PruneChannels(**NO_DATA).apply(model, None)

    assert shapes(result.model)["w0"] == (8, 32)
    assert shapes(result.model)["w1"] == (32, 32)
    assert any("LayerNormalization" in note for note in result.notes)


@pytest.mark.parametrize("kind", ["shared", "subgraph", "unknown"])
def test_what_is_not_understood_is_left_alone(kind):
    """A hidden layer that an If body reads, or an op without a rule, stays; two readers of one weight are cut alike."""
    middle = {
        "shared": [helper.make_node("MatMul", ["h", "w1"], ["k"]), helper.make_node("MatMul", ["k", "w1"], ["m"])],
        "unknown": [helper.make_node("CumSum", ["h", "axis"], ["m"])],
        "subgraph": [
            helper.make_node(
                "If",
                ["flag"],
                ["m"],
                then_branch=helper.make_graph(
                    [helper.make_node("Neg", ["h"], ["t"])], "t", [], [value("t", ["N", 32])]
                ),
                else_branch=helper.make_graph(
                    [helper.make_node("Abs", ["h"], ["e"])], "e", [], [value("e", ["N", 32])]
                ),
            )
        ],
    }[kind]
    nodes = [helper.make_node("MatMul", ["x", "w0"], ["h"]), *middle, helper.make_node("MatMul", ["m", "w2"], ["y"])]
    initializers = [weight("w0", 8, 32), weight("w2", 32, 4)]
    if kind == "shared":
        initializers.append(weight("w1", 32, 32))
    if kind == "unknown":
        initializers.append(numpy_helper.from_array(np.array(1, np.int64), "axis"))
    if kind == "subgraph":
        initializers.append(numpy_helper.from_array(np.array(True), "flag"))
    graph = helper.make_graph(nodes, "g", [value("x", ["N", 8])], [value("y", ["N", 4])], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)

    result = PruneChannels(**NO_DATA).apply(model, None)

    assert outputs(result.model, {"x": np.ones((2, 8), np.float32)})[0].shape == (2, 4)
    if kind == "shared":
        # Both axes of the shared weight hold the same channels.
        assert shapes(result.model)["w1"] == (16, 16)
    else:
        assert not result.changed
        assert "no channels can be removed soundly" in result.notes[0]
        assert result.model.SerializeToString() == onnx_io.clone(model).SerializeToString()


def test_a_quantized_model_is_refused(cnn, images):
    """Scales and zero points belong to channels, so pruning comes first."""
    from profiler.variants import registry

    quantized = registry.make("int8-static").apply(cnn, images).model

    with pytest.raises(VariantError, match=r"quantized already .*prune first, prune-channels\+int8-static"):
        PruneChannels().apply(quantized, images)


def test_calibration_rows_are_asked_for_where_they_are_needed(cnn):
    """The message names the way without."""
    with pytest.raises(VariantError, match="importance=magnitude,refit=false"):
        PruneChannels(importance="magnitude").apply(cnn, None)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"ratio": "1"}, "below 1"), ({"round_to": "0"}, "at least 1"), ({"scope": "outer"}, "all, inner")],
)
def test_wrong_options_are_answered(options, words):
    """With what was expected."""
    with pytest.raises(StudyError, match=words):
        from_options(PruneChannels, options)


def test_refitting_saves_the_built_in_model():
    """Half of the inner channels: near chance as cut, within 4 points of the original after re-fitting on 128 images. 1,000
    held-out images; the study's figures (docs/pruning.md) are better, with more rows.
    """
    model = onnx.load(str(demo.model_path()))
    rows = {"image": demo.calibration()["image"]}
    held = demo.evaluation()
    images, labels = {"image": held["image"][:1000]}, held["labels"][:1000]

    def correct(result):
        return float((outputs(result, images)[0].argmax(axis=1) == labels).mean())

    cut = PruneChannels(scope="inner", refit=False, samples=128).apply(model, rows)
    fitted = PruneChannels(scope="inner", samples=128).apply(model, rows)

    assert shapes(cut.model) == shapes(fitted.model)
    assert correct(fitted.model) > correct(model) - 0.04
    assert correct(cut.model) < correct(fitted.model) - 0.2
    assert fitted.facts["multiply_adds_kept"] == pytest.approx(0.5494, abs=1e-4)
    assert fitted.facts["refit_residual_share"] < 0.8


def test_allocation_by_cost_takes_the_asked_share_of_multiply_adds(cnn, images):
    """At least what was asked, and channel counts in whole blocks."""
    result = PruneChannels(ratio=0.4, allocation="cost", round_to=4).apply(cnn, images)

    assert result.facts["multiply_adds_kept"] <= 0.6
    got = shapes(result.model)
    assert got["w1"][0] % 4 == got["w2"][0] % 4 == 0


def test_pruned_and_then_quantized(cnn, images):
    """The result is a plain model for the quantizer."""
    from profiler.variants import registry

    pruned = PruneChannels().apply(cnn, images).model

    assert registry.make("int8-static{per_channel=true}").apply(pruned, images).facts["ops_quantized"] == 3
