"""What each variant does to small models, run in ONNX Runtime."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from profiler import onnx_io
from profiler.errors import DataError, VariantError
from profiler.quality.similarity import Unlike
from profiler.variants import registry
from profiler.variants.preparing import lift_constants, prepare, sort_nodes
from profiler.variants.prune import zero_smallest
from profiler.variants.running import answers as run_answers
from profiler.variants.running import batches, compared, cosine, outputs, similarity

pytestmark = pytest.mark.runtime

ALL = (*registry.default_variants("thorough"), "graph{level=ort}", "int4-weight{format=standard}")


def apply(text, model, calibration=None):
    return registry.make(text).apply(model, calibration)


def answers(model, rows):
    return outputs(model, rows)[0]


def cosine_of(a, b):
    return float(np.sum(a * b) / np.linalg.norm(a) / np.linalg.norm(b))


@pytest.mark.parametrize("text", ALL)
def test_no_variant_modifies_its_input(text, cnn, images):
    """The model that came in is byte for byte the same afterwards, and shares nothing with the result."""
    before = cnn.SerializeToString(deterministic=True)
    rows = images["x"].copy()

    result = apply(text, cnn, images).model
    for tensor in result.graph.initializer:
        tensor.name = "overwritten"

    assert before == cnn.SerializeToString(deterministic=True)
    assert np.array_equal(rows, images["x"])


@pytest.mark.parametrize("text", ALL)
@pytest.mark.parametrize("kind", ["cnn", "mlp"])
def test_every_variant_still_answers_much_like_the_model(text, kind, cnn, mlp, images, vectors):
    """Inputs and outputs keep names, types and shapes, and on fresh rows the outputs point the same way."""
    model, calibration = (cnn, images) if kind == "cnn" else (mlp, vectors)
    rows = {"x": np.random.default_rng(9).standard_normal((8, *calibration["x"].shape[1:])).astype(np.float32)}

    result = apply(text, model, calibration)

    assert onnx_io.model_inputs(model) == onnx_io.model_inputs(result.model)
    assert [out.name for out in onnx_io.model_outputs(model)] == [
        out.name for out in onnx_io.model_outputs(result.model)
    ]
    onnx.checker.check_model(result.model)
    assert cosine_of(answers(model, rows), answers(result.model, rows)) > (0.8 if "prune" in text else 0.98)


@pytest.mark.parametrize("text", ALL)
def test_a_variant_made_twice_is_the_same_file(text, cnn, images, tmp_path):
    """Equal recipes on equal models give equal bytes, or the cache could not tell equal artifacts."""
    one, two = (onnx_io.write_model(apply(text, cnn, images).model, tmp_path / name) for name in "ab")

    assert one.read_bytes() == two.read_bytes()


def test_static_quantization_counts_what_runs_in_int8(cnn, images):
    """Both convolutions and the Gemm, with int8 weights in a smaller file."""
    result = apply("int8-static", cnn, images)

    assert result.changed
    assert result.facts["ops_quantized"] == 3
    assert result.facts["ops_left_float"] == 0
    assert result.facts["quantized"] == "Conv 2, Gemm 1"
    assert result.facts["calibration_rows"] == 16
    stored = {t.data_type for t in result.model.graph.initializer if len(t.dims) >= 2}
    assert {TensorProto.INT8} == stored


def test_static_quantization_without_rows_says_what_to_give(cnn):
    """Static ranges come from data; there is no default for them."""
    with pytest.raises(VariantError, match="--calibration"):
        apply("int8-static", cnn, None)


def test_static_quantization_uses_no_more_rows_than_asked(cnn, images):
    """`samples` bounds the work."""
    assert apply("int8-static{samples=5}", cnn, images).facts["calibration_rows"] == 5


def test_symmetric_activations_are_signed_around_zero(cnn, images):
    """What TensorRT asks for: S8 everywhere, zero points of zero, bias in float."""
    model = apply("int8-static{symmetric_activations=true,quantize_bias=false}", cnn, images).model

    points = [numpy_helper.to_array(t) for t in model.graph.initializer if t.name.endswith("_zero_point")]
    assert points
    assert all(point.dtype == np.int8 and not point.any() for point in points)


def test_reduced_range_keeps_weights_in_seven_bits(cnn, images):
    """On x86 without VNNI, 8-bit products can saturate; 7-bit weights cannot."""
    model = apply("int8-static{reduce_range=true}", cnn, images).model

    largest = max(
        int(np.abs(numpy_helper.to_array(t).astype(int)).max())
        for t in model.graph.initializer
        if t.data_type == TensorProto.INT8 and len(t.dims) >= 2
    )
    assert 60 <= largest <= 64


def test_per_channel_on_matmul_with_bias_works(mlp, builders):
    """T1 (microsoft/onnxruntime#24815): tiny input ranges beside a large bias make the weight adjustment fail."""
    rows = {name: array * 1e-7 for name, array in builders["vector_rows"](16).items()}

    result = apply("int8-static{per_channel=true}", mlp, rows)

    assert result.facts["ops_quantized"] == 2
    assert np.isfinite(answers(result.model, rows)).all()


def test_per_channel_gemm_with_a_bias_of_rank_two_is_valid_in_every_runtime(builders):
    """T1: fused MatMul + Add leaves [1, N] biases, which ORT's adjustment fails on and OpenVINO cannot dequantize."""
    rng = np.random.default_rng(0)
    weight = numpy_helper.from_array(rng.standard_normal((64, 8)).astype(np.float32), "w")
    bias = numpy_helper.from_array(np.linspace(1, 2, 8, dtype=np.float32)[None], "b")
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 64])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 8])
    model = builders["model_of"]([helper.make_node("Gemm", ["x", "w", "b"], ["y"])], [x], [y], [weight, bias])
    rows = builders["vector_rows"](8)

    result = apply("int8-static{per_channel=true}", model, rows)

    assert result.facts["ops_quantized"] == 1
    assert not any("not adjusted" in note for note in result.notes)
    shapes = {tensor.name: tuple(tensor.dims) for tensor in result.model.graph.initializer}
    for node in result.model.graph.node:
        if node.op_type == "DequantizeLinear" and shapes[node.input[1]] == (8,):
            axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
            assert shapes[node.input[0]][axis] == 8
    assert cosine_of(answers(model, rows), answers(result.model, rows)) > 0.99


def test_a_failing_weight_adjustment_is_switched_off_and_said(cnn, images, monkeypatch):
    """T1: whatever else makes the adjustment fail, the variant is made without it."""
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    def fail(*args, **kwargs):
        raise ValueError("The truth value of an array with more than one element is ambiguous")

    monkeypatch.setattr(QDQQuantizer, "_adjust_weight_scale_for_int32_bias", fail)

    result = apply("int8-static{per_channel=true}", cnn, images)

    assert result.facts["ops_quantized"] == 3
    assert any("not adjusted" in note for note in result.notes)


def test_an_old_opset_is_upgraded_before_quantizing_per_channel(builders, images):
    """T2: at opset 11 the quantizer writes per-channel scales that no runtime loads."""
    old = builders["cnn"](opset=11)

    result = apply("int8-static{per_channel=true}", old, images)

    assert result.facts["opset"] == 13
    assert any("from 11 to 13, outputs compared equal" in note for note in result.notes)
    assert cosine_of(answers(old, images), answers(result.model, images)) > 0.98


def test_an_upgrade_that_changes_the_answers_is_undone(builders, images, monkeypatch):
    """T2: the converter is not trusted; a difference keeps the old opset, and per channel is then refused."""
    old = builders["cnn"](opset=11)

    def wrong(model, target):
        other = onnx.version_converter.convert_version(builders["cnn"](opset=11, seed=5), target)
        return other, True, f"opset upgraded from 11 to {target}"

    monkeypatch.setattr("profiler.variants.preparing.upgrade_opset", wrong)

    prepared, notes = prepare(old, images)
    assert onnx_io.opset_of(prepared) == 11
    assert any("was undone" in note for note in notes)
    with pytest.raises(VariantError, match="needs opset 13, the model has 11"):
        apply("int8-static{per_channel=true}", old, images)
    assert apply("int8-static", old, images).facts["ops_quantized"] == 3


def test_what_no_runtime_loads_is_not_accepted(cnn, images, monkeypatch):
    """T2: a written file is loaded before it counts."""
    from profiler.variants.int8_static import Int8Static

    real = Int8Static._quantize

    def broken(self, *args):
        model = real(self, *args)
        next(node for node in model.graph.node if node.op_type == "Conv").input[0] = "nobody"
        return model

    monkeypatch.setattr(Int8Static, "_quantize", broken)

    with pytest.raises(VariantError, match="ONNX Runtime cannot load it"):
        apply("int8-static", cnn, images)


def test_branches_are_counted_and_nothing_quantized_is_said(branches, vectors):
    """T3 (microsoft/onnxruntime#8488): the static quantizer skips If bodies; that is a result, and the model stays."""
    result = apply("int8-static", branches, vectors)

    assert not result.changed
    assert result.facts["ops_quantized"] == 0
    assert result.notes[0].startswith("nothing was quantized")
    assert {k: v for k, v in onnx_io.count_ops(result.model).items() if k in ("MatMul", "If")} == {"MatMul": 2, "If": 1}


@pytest.mark.parametrize("text", ["int8-dynamic", "int4-weight"])
def test_weights_inside_branches_are_quantized_and_counted(text, branches, vectors):
    """T3: two products in the bodies of one If are two ops, not none."""
    result = apply(text, branches, None)

    assert result.facts["ops_quantized"] == 2
    assert cosine_of(answers(branches, vectors), answers(result.model, vectors)) > 0.97


@pytest.mark.parametrize("text", ["int8-static", "int8-dynamic", "int4-weight", "prune-magnitude{sparsity=0.5}"])
def test_a_model_without_weights_is_left_as_it_is(text, elementwise, tmp_path):
    """T3: the result says that nothing was done, and is the very model, so that it merges with fp32."""
    result = apply(text, elementwise, {"x": np.ones((4, 8), np.float32)})

    assert not result.changed
    assert result.notes[0].startswith(("nothing was quantized", "nothing was pruned"))
    paths = [onnx_io.write_model(model, tmp_path / str(i)) for i, model in enumerate((elementwise, result.model))]
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_a_model_without_the_default_domain_is_left_as_it_is():
    """Tree ensembles live in ai.onnx.ml; the library's "Failed to find proper ai.onnx domain" is not an answer."""
    node = helper.make_node("Normalizer", ["x"], ["y"], domain="ai.onnx.ml", norm="L2")
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])
    model = helper.make_model(
        helper.make_graph([node], "g", [x], [y]), opset_imports=[helper.make_opsetid("ai.onnx.ml", 3)], ir_version=8
    )
    rows = {"x": np.ones((4, 4), np.float32)}

    for text in ("int8-static", "int8-dynamic", "int4-weight", "prune-magnitude{sparsity=0.5}", "fp16"):
        result = apply(text, model, rows)
        assert not result.changed, text
        assert result.notes[0].startswith("nothing was"), text


def test_an_output_named_like_an_op_is_no_obstacle(builders, images):
    """T4: names that equal an op type broke an exporter; they must not break a variant."""
    model = builders["cnn"](output="Conv")

    for text in ALL:
        assert [out.name for out in onnx_io.model_outputs(apply(text, model, images).model)] == ["Conv"], text


def test_when_symbolic_shapes_fail_the_rest_is_done_and_said(cnn, images, monkeypatch):
    """T6: symbolic shape inference stops on many real models; quantization goes on without it and records that."""
    from onnxruntime.tools.symbolic_shape_infer import SymbolicShapeInference

    def fail(*args, **kwargs):
        raise RuntimeError("Incomplete symbolic shape inference")

    monkeypatch.setattr(SymbolicShapeInference, "infer_shapes", staticmethod(fail))

    result = apply("int8-static", cnn, images)

    assert result.facts["ops_quantized"] == 3
    assert any("symbolic shape inference failed (Incomplete" in note for note in result.notes)


def test_dynamic_int8_leaves_convolutions_alone_unless_asked(cnn, images):
    """T7: ConvInteger is 3 to 20 times slower; it needs asking for, and then the note says it."""
    result = apply("int8-dynamic", cnn, images)
    assert {key: result.facts[key] for key in ("ops_quantized", "quantized")} == {
        "ops_quantized": 1,
        "quantized": "MatMulInteger 1",
    }
    assert any("2 Conv stay float32" in note and "3 to 20 times slower" in note for note in result.notes)

    asked = apply("int8-dynamic{op_types=Conv|Gemm}", cnn, images)
    assert onnx_io.count_ops(asked.model)["ConvInteger"] == 2
    assert asked.facts["ops_quantized"] == 3
    assert any("2 Conv became ConvInteger" in note for note in asked.notes)


def test_the_default_op_types_leave_products_of_activations_and_other_ops_in_float(builders, vectors):
    """T8: quantizing every op ruins real models; x·xᵀ, Softmax and Add stay, the product with weights is quantized."""
    weight = numpy_helper.from_array(np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32) / 8, "w")
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["q"]),
        helper.make_node("Transpose", ["q"], ["t"], perm=[1, 0]),
        helper.make_node("MatMul", ["q", "t"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["p"], axis=-1),
        helper.make_node("MatMul", ["p", "q"], ["attended"]),
        helper.make_node("Add", ["attended", "x"], ["y"]),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [16, 64]) for name in "xy")
    model = builders["model_of"](nodes, [x], [y], [weight])

    result = apply("int8-static", model, vectors)

    quantized = {node.input[0] for node in result.model.graph.node if node.op_type == "QuantizeLinear"}
    assert {"x"} < quantized
    assert not quantized & {"scores", "p", "attended", "y"}
    made = {name for node in result.model.graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    for node in result.model.graph.node:
        if node.op_type in ("Softmax", "Add"):
            assert not made & {*node.input}
    assert cosine_of(answers(model, vectors), answers(result.model, vectors)) > 0.98


def test_a_destroyed_model_is_noted(cnn, images, monkeypatch):
    """T8: when outputs on calibration rows no longer resemble the model's, the notes warn before anything is measured."""
    wild = {"x": images["x"] * 1e-3}
    wild["x"][0] *= 1e7  # one absurd row sets the scale for all others

    result = apply("int8-static", cnn, {"x": wild["x"][::-1].copy()})

    assert result.facts["calibration_cosine"] < 0.95
    assert any("differ strongly from fp32" in note for note in result.notes)


def test_pruning_zeroes_exactly_the_share_that_was_asked(cnn):
    """T9: counts are exact, the size on disk stays, and the note says that nothing gets faster."""
    result = apply("prune-magnitude{sparsity=0.3}", cnn)

    total = 16 * 27 + 32 * 16 * 9 + 5 * 32
    assert total == result.facts["weights_total"]
    assert round(0.3 * total) == result.facts["weights_zeroed"]
    assert result.facts["sparsity_realised"] == pytest.approx(0.3, abs=1 / total)
    assert result.notes[0].startswith("no faster")
    stored = sum(int((numpy_helper.to_array(t) == 0).sum()) for t in result.model.graph.initializer if len(t.dims) >= 2)
    assert round(0.3 * total) == stored
    biases = [t for t in result.model.graph.initializer if len(t.dims) == 1]
    assert all(numpy_helper.to_array(t).all() for t in biases)


def test_pruning_by_layer_takes_the_same_share_from_each(cnn):
    """`scope=layer` is even; `scope=global` takes more where weights are small."""
    shares = {}
    for scope in ("layer", "global"):
        model = apply(f"prune-magnitude{{sparsity=0.5,scope={scope}}}", cnn).model
        shares[scope] = [
            float((numpy_helper.to_array(t) == 0).mean()) for t in model.graph.initializer if len(t.dims) >= 2
        ]

    assert pytest.approx(shares["layer"], abs=0.01) == [0.5, 0.5, 0.5]
    assert max(shares["global"]) - min(shares["global"]) > 0.1


def test_pruning_takes_the_smallest_and_breaks_ties_by_position():
    """The zeroed magnitudes are never above a kept one, and ties do not overshoot the count."""
    rng = np.random.default_rng(0)
    arrays = [rng.integers(1, 5, (10, 10)).astype(np.float32), rng.integers(1, 5, 33).astype(np.float32)]
    before = [array.copy() for array in arrays]

    zero_smallest(arrays, 0.4)

    gone = np.concatenate([b[a == 0] for a, b in zip(arrays, before, strict=True)])
    kept = np.concatenate([a[a != 0] for a in arrays])
    assert round(0.4 * 133) == gone.size
    assert gone.max() <= kept.min()


def test_pruning_what_is_zero_already_is_no_change(cnn):
    """A model that is sparse enough before says so instead of claiming zeros it did not make."""
    sparse = apply("prune-magnitude{sparsity=0.6}", cnn).model

    again = apply("prune-magnitude{sparsity=0.5}", sparse)

    assert not again.changed
    assert again.facts["weights_zeroed"] == 0


def test_fp16_halves_the_weights_and_keeps_the_interface(cnn, images):
    """Every weight becomes float16; inputs and outputs stay float32 and close."""
    result = apply("fp16", cnn, images)

    assert result.facts["weights_converted"] == onnx_io.weights_count(cnn)
    assert [info.dtype for info in onnx_io.model_inputs(result.model)] == ["float32"]
    assert np.allclose(answers(cnn, images), answers(result.model, images), atol=5e-3)
    assert any("casts around" in note for note in result.notes)


def test_fp16_keeps_nodes_whose_values_do_not_fit(builders):
    """A batch norm with a variance of 1e9 would be ruined by clipping it to 65504; it stays float32."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 4]) for name in "xy")
    constants = {
        "w": np.eye(4) * 30,
        "scale": np.full(4, 1e4),
        "shift": np.zeros(4),
        "mean": np.zeros(4),
        "var": np.full(4, 1e9),
    }
    weights = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in constants.items()]
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"]),
        helper.make_node("BatchNormalization", ["m", "scale", "shift", "mean", "var"], ["y"]),
    ]
    model = builders["model_of"](nodes, [x], [y], weights)
    rows = builders["vector_rows"](4, width=4)

    result = apply("fp16", model, rows)

    assert result.facts["ops_left_float"] == 1
    assert np.allclose(answers(model, rows), answers(result.model, rows), rtol=5e-3, atol=1e-3)


def test_fp16_of_a_model_with_branches_loads(branches, vectors):
    """Control flow is where converters err; the result is loaded and answers."""
    result = apply("fp16", branches, vectors)

    assert np.allclose(answers(branches, vectors), answers(result.model, vectors), rtol=2e-2, atol=0.1)


def test_nodes_are_sorted_so_that_each_follows_what_it_reads(cnn):
    """Any order of nodes comes back as a valid one."""
    order = np.random.default_rng(0).permutation(len(cnn.graph.node))
    nodes = [onnx.NodeProto.FromString(cnn.graph.node[i].SerializeToString()) for i in order]
    cnn.graph.ClearField("node")
    cnn.graph.node.extend(nodes)
    with pytest.raises(onnx.checker.ValidationError, match="sorted"):
        onnx.checker.check_model(cnn)

    sort_nodes(cnn.graph)

    onnx.checker.check_model(cnn)


def test_int4_replaces_products_including_gemm(cnn, mlp):
    """MatMulNBits for every product with stored weights; convolutions stay and are mentioned."""
    result = apply("int4-weight", mlp)
    assert 2 == result.facts["ops_quantized"] == onnx_io.count_ops(result.model)["com.microsoft::MatMulNBits"]

    conv = apply("int4-weight", cnn)
    assert conv.facts["ops_quantized"] == 1
    assert any("2 convolutions stay float32" in note for note in conv.notes)


def test_int4_in_standard_form_needs_no_foreign_op(mlp, vectors):
    """The standard form is int4 DequantizeLinear at opset 21, loadable outside ONNX Runtime."""
    result = apply("int4-weight{format=standard}", mlp, vectors)

    assert {""} == {node.domain for node in onnx_io.walk_nodes(result.model)}
    assert tuple(result.facts[key] for key in ("ops_quantized", "ops_left_float", "opset")) == (2, 0, 21)


def test_weights_in_constant_nodes_are_found(mlp):
    """Some exporters keep weights in Constant nodes; they count as stored weights."""
    stored = {tensor.name: tensor for tensor in mlp.graph.initializer}
    nodes = [helper.make_node("Constant", [], [name], value=tensor) for name, tensor in stored.items()]
    nodes += [onnx.NodeProto.FromString(node.SerializeToString()) for node in mlp.graph.node]
    model = onnx_io.clone(mlp)
    model.graph.ClearField("initializer")
    model.graph.ClearField("node")
    model.graph.node.extend(nodes)
    onnx.checker.check_model(model)

    assert apply("int4-weight", model).facts["ops_quantized"] == 2
    assert apply("prune-magnitude{sparsity=0.5}", model).facts["weights_total"] == 64 * 128 + 1280
    lift_constants(model)
    assert {*stored} == {tensor.name for tensor in model.graph.initializer}


def test_graph_folds_what_is_constant_and_answers_the_same(builders, vectors):
    """Two constants added at run time become one; ops of other domains do not come in."""
    one, two = (numpy_helper.from_array(np.full(64, v, np.float32), n) for n, v in (("one", 1), ("two", 2)))
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 64]) for name in "xy")
    nodes = [
        helper.make_node("Add", ["one", "two"], ["three"]),
        helper.make_node("Identity", ["x"], ["same"]),
        helper.make_node("Mul", ["same", "three"], ["y"]),
    ]
    model = builders["model_of"](nodes, [x], [y], [one, two])

    result = apply("graph", model, vectors)

    assert result.changed
    assert (result.facts["ops_before"], result.facts["ops_after"]) == (3, 1)
    assert np.array_equal(answers(model, vectors), answers(result.model, vectors))
    assert {""} == {entry.domain for entry in result.model.opset_import}


def test_an_optimizer_that_changes_the_answers_is_left_out(cnn, builders, images, monkeypatch):
    """Simplifying must not change results; what does is dropped, and said."""
    monkeypatch.setattr("onnxslim.slim", lambda model, *args, **kwargs: builders["cnn"](seed=7))

    result = apply("graph", cnn, images)

    assert any("onnxslim was left out: column" in note for note in result.notes)
    assert np.allclose(answers(cnn, images), answers(result.model, images), atol=1e-5)


def test_an_optimizer_that_fails_is_left_out(cnn, images, monkeypatch):
    """A crash inside onnxslim costs the variant only that step."""

    def fail(*args, **kwargs):
        raise KeyError("some op")

    monkeypatch.setattr("onnxslim.slim", fail)

    result = apply("graph", cnn, images)

    assert any("onnxslim was left out: it failed" in note and "some op" in note for note in result.notes)


def test_bf16_is_the_same_file_loaded_differently(cnn):
    """Nothing is rewritten, and the notes say where the difference is."""
    result = apply("bf16", cnn)

    assert cnn.SerializeToString(deterministic=True) == result.model.SerializeToString(deterministic=True)
    assert not result.changed
    assert any("when it loads" in note for note in result.notes)


def test_rows_are_fed_in_the_model_s_own_batch(builders):
    """A model exported with a fixed batch of four gets four rows at a time, and too few rows are an error."""
    model = builders["mlp"]()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
    rows = builders["vector_rows"](10)

    assert [len(feeds["x"]) for feeds in batches(model, rows, 256)] == [4, 4]
    with pytest.raises(DataError, match="has 3 rows, the model needs at least 4"):
        list(batches(model, builders["vector_rows"](3), 256))


def test_outputs_that_became_nan_count_as_opposite(cnn, images):
    """A variant that answers NaN must not look like one that could not be compared."""
    broken = onnx_io.clone(cnn)
    weight = next(t for t in broken.graph.initializer if t.name == "b3")
    weight.CopyFrom(numpy_helper.from_array(np.full(5, np.nan, np.float32), "b3"))

    before, after = run_answers(cnn, [images]), run_answers(broken, [images])
    assert cosine(cnn, broken, [images]) == similarity(before, after) == -1.0
    (found,) = compared(cnn, before, after)
    assert (found.output, found.unlike) == ("logits", Unlike.NOT_FINITE)
    assert cosine(cnn, cnn, [images]) == 1.0
    assert cosine(cnn, broken, [{"x": np.zeros((1, 2), np.float32)}]) is None


def test_failing_shape_inference_leaves_nothing_in_the_working_directory(tmp_path, monkeypatch):
    """ONNX Runtime drops a copy of the model where it stands when its shape inference gives up (T6)."""
    from onnxruntime.tools import symbolic_shape_infer

    monkeypatch.setattr(symbolic_shape_infer.SymbolicShapeInference, "_infer_impl", _gives_up)
    monkeypatch.chdir(tmp_path)
    weights = onnx.numpy_helper.from_array(np.ones((4, 3), np.float32), "w")
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["x", "w"], ["y"])], "g",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", 4])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["N", 3])], [weights],
    )  # fmt: skip

    _, notes = prepare(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)]), None)

    assert any("symbolic shape inference failed" in note for note in notes)
    assert list(tmp_path.iterdir()) == []


def _gives_up(self):
    self.run_ = False
    return False
