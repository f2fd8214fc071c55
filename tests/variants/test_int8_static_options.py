"""What int8-static's options for accuracy do to small models, run in ONNX Runtime."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from profiler import onnx_io
from profiler.errors import StudyError
from profiler.variants import registry
from profiler.variants.calibration import drawn
from profiler.variants.equalise import equalise
from profiler.variants.int8_static import Int8Static
from profiler.variants.preparing import dequantized_nodes
from profiler.variants.running import outputs
from profiler.variants.selection import aliases, node_texts, resolve
from profiler.variants.smoothing import smooth

pytestmark = pytest.mark.runtime

RNG = np.random.default_rng


def apply(text, model, calibration):
    return registry.make(text).apply(model, calibration)


def answers(model, rows):
    return outputs(model, rows)[0]


def error(model, other, rows):
    """Mean squared error over the variance, written down independently."""
    wanted, got = answers(model, rows).astype(np.float64), answers(other, rows).astype(np.float64)
    return float(((wanted - got) ** 2).mean() / wanted.var())


def quantized_names(model):
    return {node.name for node in dequantized_nodes(model, ("Conv", "Gemm", "MatMul"))}


def tensor(name, array):
    return numpy_helper.from_array(np.asarray(array, np.float32), name)


def value(name, shape):
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def stored(model, name):
    return next(numpy_helper.to_array(t) for t in model.graph.initializer if t.name == name)


def chain(builders, between="Relu", group=1, uneven=True):
    """Conv → between → Conv whose channels differ by three orders of magnitude."""
    rng = RNG(3)
    scale = np.geomspace(0.03, 30, 8) if uneven else np.ones(8)
    middle = {
        "Relu": [helper.make_node("Relu", ["c1"], ["m"])],
        "Clip": [helper.make_node("Clip", ["c1", "zero", "six"], ["m"])],
        "Sigmoid": [helper.make_node("Sigmoid", ["c1"], ["m"])],
    }[between]
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], name="one", pads=[1, 1, 1, 1]),
        *middle,
        helper.make_node("Conv", ["m", "w2", "b2"], ["y"], name="two", group=group),
    ]
    initializers = [
        tensor("w1", rng.standard_normal((8, 3, 3, 3)) * scale[:, None, None, None]),
        tensor("b1", rng.standard_normal(8) * scale),
        tensor(
            "w2",
            rng.standard_normal((8, 8 // group, 1, 1)) / scale[: 8 // group].reshape(1, -1, 1, 1),
        ),
        tensor("b2", rng.standard_normal(8)),
        *([tensor("zero", 0.0), tensor("six", 6.0)] if between == "Clip" else []),
    ]
    return builders["model_of"](nodes, [value("x", ["N", 3, 12, 12])], [value("y", ["N", 8, 12, 12])], initializers)


def transformer(builders, residual=False):
    """LayerNormalization → two products (→ their sum), with outliers in two channels."""
    rng = RNG(5)
    gamma = np.ones(64)
    gamma[[3, 40]] = 60.0
    nodes = [
        helper.make_node("LayerNormalization", ["x", "gamma", "beta"], ["n"], axis=-1),
        helper.make_node("MatMul", ["n", "w1"], ["q"], name="query"),
        helper.make_node("MatMul", ["n", "w2"], ["k"], name="key"),
        helper.make_node("Add", ["q", "k"], ["s"]),
        helper.make_node("Add", ["s", "n"] if residual else ["s", "beta2"], ["y"]),
    ]
    initializers = [
        tensor("gamma", gamma),
        tensor("beta", rng.standard_normal(64) * 0.1),
        tensor("beta2", rng.standard_normal(64)),
        tensor("w1", rng.standard_normal((64, 64)) / 8),
        tensor("w2", rng.standard_normal((64, 64)) / 8),
    ]
    return builders["model_of"](nodes, [value("x", ["N", 64])], [value("y", ["N", 64])], initializers)


def feeds_of(rows):
    return lambda: ({name: array[i : i + 1] for name, array in rows.items()} for i in range(len(rows["x"])))


def test_new_options_leave_texts_and_results_as_they_were(cnn, images):
    """A text without the new options means what it meant, and its file has the ranges it had: the extremes."""
    assert Int8Static().text == "int8-static"
    result = apply("int8-static", cnn, images).model
    scale = stored(result, "x_scale")
    low, high = images["x"].min(), images["x"].max()
    assert scale == pytest.approx((high - low) / 255, rel=1e-5)


@pytest.mark.parametrize("options", ["calibration=mse", "weight_range=mse", "bias_correction=true", "equalise=true"])
@pytest.mark.parametrize("per_channel", ["false", "true"])
def test_each_option_gives_a_model_that_answers_alike(options, per_channel, cnn, images, builders):
    """On rows that were not calibrated on."""
    rows = builders["image_rows"](16, seed=9)

    result = apply(f"int8-static{{{options},per_channel={per_channel}}}", cnn, images)

    assert result.facts["ops_quantized"] == 3
    assert error(cnn, result.model, rows) < 0.02


def test_skip_leaves_the_named_nodes_in_float_and_only_the_others(cnn, images):
    """By name as in the prepared model, and by the alias that counts in topological order."""
    names = {"skip": quantized_names(apply("int8-static{skip=Conv:1}", cnn, images).model)}
    names["only"] = quantized_names(apply("int8-static{only=Conv:1}", cnn, images).model)
    everything = quantized_names(apply("int8-static", cnn, images).model)

    assert len(everything) == 3
    assert len(names["skip"]) == 2
    assert len(names["only"]) == 1
    assert names["skip"] | names["only"] == everything
    by_name = next(iter(names["only"]))
    assert quantized_names(apply(f"int8-static{{only={by_name}}}", cnn, images).model) == names["only"]


def test_a_node_that_does_not_exist_is_answered_with_near_ones(cnn, images):
    """The message names the text, the option and what is close."""
    for node in cnn.graph.node:
        node.name = f"block/{node.op_type}/{node.output[0]}"

    with pytest.raises(StudyError, match=r"option 'skip' 'block/Conv/c3'.*block/Conv/c[12]"):
        apply("int8-static{skip=block/Conv/c3}", cnn, images)


def test_names_that_an_option_cannot_carry_have_an_alias_that_parses_back(cnn, images):
    """Exporters write names with commas, braces and bars."""
    for place, node in enumerate(cnn.graph.node):
        node.name = f"a,b|{{{place}}} {node.op_type}"

    texts = node_texts(cnn)

    assert list(texts)[:3] == ["Conv:0", "Relu:0", "Conv:1"]
    variant = registry.make(Int8Static(skip=("Conv:1", "Gemm:0")).text)
    assert variant == Int8Static(skip=("Conv:1", "Gemm:0"))
    assert resolve(cnn, variant.skip, "skip") == {texts["Conv:1"], texts["Gemm:0"]}
    assert len(quantized_names(variant.apply(cnn, images).model)) == 1


def test_an_alias_never_hides_a_node_of_that_name(cnn):
    """A node that is really called Conv:1 keeps its name; the second Conv gets another alias."""
    cnn.graph.node[0].name, cnn.graph.node[2].name = "Conv:1", "bad name"

    assert resolve(cnn, ["Conv:1"], "skip") == {"Conv:1"}
    assert aliases(cnn)["Conv:1:"] == "bad name"
    assert node_texts(cnn)["Conv:1:"] == "bad name"


def test_a_seed_draws_other_rows_and_the_same_ones_again(images):
    """0 leaves the order; arrays keep belonging together."""
    rows = {"x": images["x"], "y": images["x"][:, 0, 0, 0] * 2}

    one, again, other = drawn(rows, 1), drawn(rows, 1), drawn(rows, 2)

    assert drawn(rows, 0) is rows
    assert np.array_equal(one["x"], again["x"])
    assert not np.array_equal(one["x"], other["x"])
    assert np.array_equal(one["y"], one["x"][:, 0, 0, 0] * 2)
    assert set(one["y"]) < set(rows["y"]), "with replacement: some rows twice, others not at all"


def test_seeds_calibrate_on_their_own_rows(cnn, images):
    """With 4 of 16 rows, not all of five draws hold the same extremes."""
    scales = {
        seed: float(stored(apply(f"int8-static{{samples=4,seed={seed}}}", cnn, images).model, "x_scale"))
        for seed in range(5)
    }

    assert len(set(scales.values())) > 1


@pytest.mark.parametrize("group", [1, 2, 8])
def test_equalisation_keeps_the_answers_and_evens_the_channels(group, builders, images):
    """Plain, grouped and depthwise second convolutions; exact up to float rounding."""
    model = chain(builders, group=group)
    changed = onnx_io.clone(model)

    assert equalise(changed) == (1, 0)

    wanted = answers(model, images)
    assert np.allclose(answers(changed, images), wanted, atol=1e-4 * np.abs(wanted).max())
    spread = [np.abs(stored(m, "w1")).reshape(8, -1).max(1) for m in (model, changed)]
    assert spread[1].max() / spread[1].min() < 0.2 * spread[0].max() / spread[0].min()


def test_equalisation_helps_weights_that_share_one_scale(builders, images):
    """Channels a thousand times apart lose most of their bits per tensor; evened out they keep them."""
    model = chain(builders)

    plain, even = (apply(f"int8-static{options}", model, images).model for options in ("", "{equalise=true}"))

    assert error(model, even, images) < 0.2 * error(model, plain, images)


@pytest.mark.parametrize("between", ["Clip", "Sigmoid"])
def test_equalisation_leaves_pairs_that_are_not_scale_invariant(between, builders, images):
    """Relu6 is said to be in the way; a sigmoid is no pair at all."""
    model = chain(builders, between)
    changed = onnx_io.clone(model)

    assert equalise(changed) == (0, 1 if between == "Clip" else 0)
    assert changed == model
    if between == "Clip":
        notes = apply("int8-static{equalise=true}", model, images).notes
        assert any("1 pairs of convolutions were not equalised" in note for note in notes)


def test_equalisation_leaves_what_others_read(builders, images):
    """A residual branch would see scaled values."""
    model = chain(builders)
    model.graph.node.append(helper.make_node("Identity", ["m"], ["z"]))
    model.graph.output.append(value("z", ["N", 8, 12, 12]))

    assert equalise(model) == (0, 0)


@pytest.mark.parametrize("residual", [False, True])
def test_smoothing_keeps_the_answers(residual, builders, vectors):
    """Folded into the normalization when only products read it, else by a Mul that the residual does not pass."""
    model = transformer(builders, residual)
    changed = onnx_io.clone(model)

    assert smooth(changed, 0.5, feeds_of(vectors), ["query", "key"]) == ((0, 1) if residual else (1, 0))

    wanted = answers(model, vectors)
    assert np.allclose(answers(changed, vectors), wanted, atol=1e-4 * np.abs(wanted).max())
    assert onnx_io.count_ops(changed)["Mul"] == int(residual)
    assert not np.allclose(stored(changed, "w1"), stored(model, "w1"))


def test_smoothing_makes_outliers_harmless(builders, vectors):
    """Two channels sixty times larger take the steps of all others; SmoothQuant gives them back."""
    model = transformer(builders)

    plain, smoothed = (
        apply(f"int8-static{{float_outputs=MatMul,per_channel=true{more}}}", model, vectors).model
        for more in ("", ",smooth=0.5")
    )

    assert error(model, smoothed, vectors) < 0.5 * error(model, plain, vectors)


def test_smoothing_nothing_is_said(cnn, images):
    """A convolutional model has no product behind a normalization."""
    result = apply("int8-static{smooth=0.5}", cnn, images)

    assert result.facts["activations_smoothed"] == 0
    assert any("nothing was smoothed" in note for note in result.notes)


def test_float_outputs_keep_products_and_residuals_unrounded(builders, vectors):
    """Only inputs of products are quantized; the residual reads the normalization itself, not its rounded copy."""
    model = transformer(builders, residual=True)

    plain = apply("int8-static{per_channel=true}", model, vectors).model
    lean = apply("int8-static{float_outputs=Gemm|MatMul,per_channel=true}", model, vectors).model

    inputs = {node.input[0] for node in lean.graph.node if node.op_type == "QuantizeLinear"}
    assert inputs == {"n"}
    made = {name for node in lean.graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    assert all(not made & set(node.input) for node in lean.graph.node if node.op_type == "Add")
    assert error(model, lean, vectors) < error(model, plain, vectors)


def test_float_outputs_do_not_split_the_kernels_of_other_ops(cnn, images):
    """A convolution's own pair stays where a float op reads it: its int8 kernel ends there."""
    plain = apply("int8-static", cnn, images).model
    other = apply("int8-static{float_outputs=Gemm}", cnn, images).model

    counts = [onnx_io.count_ops(model)["QuantizeLinear"] for model in (plain, other)]
    assert counts[1] == counts[0] - 1


@pytest.mark.parametrize("op_types", ["Conv", "MatMul"])
def test_reduced_weights_of_least_error_still_fit_seven_bits(op_types, cnn, mlp, images, vectors):
    """weight_range=mse and reduce_range work together."""
    model, rows = (cnn, images) if op_types == "Conv" else (mlp, vectors)

    result = apply("int8-static{per_channel=true,reduce_range=true,weight_range=mse}", model, rows).model

    weights = [numpy_helper.to_array(t) for t in result.graph.initializer if t.data_type == TensorProto.INT8]
    assert max(int(np.abs(w.astype(int)).max()) for w in weights if w.ndim >= 2) <= 64
