"""Weight-only int8: what is stored, what is computed, what is left alone."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from profiler import onnx_io
from profiler.errors import StudyError
from profiler.variants.int8_weight import Int8Weight
from profiler.variants.running import outputs

pytestmark = pytest.mark.runtime


def answers(model, rows):
    return outputs(model, rows)[0]


def error(model, other, rows):
    wanted, got = answers(model, rows).astype(np.float64), answers(other, rows).astype(np.float64)
    return float(((wanted - got) ** 2).mean() / wanted.var())


def tensors(model, kind):
    return {t.name: numpy_helper.to_array(t) for t in onnx_io.walk_tensors(model) if t.data_type == kind}


@pytest.mark.parametrize("block_size", [0, 16, 32])
def test_weights_become_int8_and_answers_stay(block_size, mlp, vectors):
    """Per output channel and per block; nothing of the weights is left in float."""
    result = Int8Weight(block_size=block_size).apply(mlp, vectors)

    assert result.facts["ops_quantized"] == 2
    assert result.facts["ops_left_float"] == 0
    assert result.facts["opset"] == (21 if block_size else 17)
    assert {name: a.shape for name, a in tensors(result.model, TensorProto.INT8).items()} == {
        "w1_int8": (64, 128),
        "w2_int8": (128, 10),
    }
    assert not {"w1", "w2"} & set(tensors(result.model, TensorProto.FLOAT))
    assert error(mlp, result.model, vectors) < 1e-3
    onnx.checker.check_model(result.model)


def test_small_blocks_keep_what_one_scale_per_channel_loses(mlp, vectors):
    """An outlier costs its block, not its whole channel."""
    tensor = next(t for t in mlp.graph.initializer if t.name == "w1")
    array = numpy_helper.to_array(tensor).copy()
    array[0] *= 100
    tensor.CopyFrom(numpy_helper.from_array(array, "w1"))
    rows = {"x": vectors["x"].copy()}
    rows["x"][:, 0] = 0

    channel, block = (Int8Weight(block_size=size).apply(mlp, rows).model for size in (0, 16))

    assert error(mlp, block, rows) < 0.5 * error(mlp, channel, rows)


def test_each_value_is_off_by_half_a_step_at_most(mlp, vectors):
    """Checked against the stored integers and scales."""
    result = Int8Weight().apply(mlp, vectors).model
    weight = numpy_helper.to_array(next(t for t in mlp.graph.initializer if t.name == "w1"))
    scale = tensors(result, TensorProto.FLOAT)["w1_scale"]

    off = np.abs(tensors(result, TensorProto.INT8)["w1_int8"] * scale - weight)

    assert scale.shape == (128,)
    assert (off <= scale / 2 * (1 + 1e-5)).all()


def test_onnx_runtime_computes_with_the_int8_weights(mlp, vectors, tmp_path):
    """It fuses the pair into MatMulNBits instead of making float weights again; not where a Relu follows the bias."""
    import onnxruntime as ort

    relu = next(node for node in mlp.graph.node if node.op_type == "Relu")
    relu.op_type = "Tanh"
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    path = onnx_io.write_model(Int8Weight().apply(mlp, vectors).model, tmp_path)

    ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    assert onnx_io.count_ops(onnx.load(tmp_path / "optimized.onnx"))["com.microsoft::MatMulNBits"] == 2


def test_openvino_loads_both_forms(mlp, vectors, tmp_path):
    """And answers alike."""
    openvino = pytest.importorskip("openvino")
    for size in (0, 32):
        path = onnx_io.write_model(Int8Weight(block_size=size).apply(mlp, vectors).model, tmp_path, f"{size}.onnx")
        compiled = openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        got = compiled([vectors["x"]])[0]
        assert np.allclose(got, answers(mlp, vectors), atol=0.15)


def test_gemm_becomes_a_product_that_can_be_fused(cnn, images):
    """With its bias behind; convolutions stay and that is said."""
    result = Int8Weight().apply(cnn, images)

    assert result.facts["quantized"] == "MatMul 1"
    assert onnx_io.count_ops(result.model)["Gemm"] == 0
    assert any("2 convolutions stay float32" in note for note in result.notes)
    assert error(cnn, result.model, images) < 1e-3


def turned(builders):
    """A Gemm as exporters write it, its weights stored outputs first."""
    rng = np.random.default_rng(0)
    weights = numpy_helper.from_array(rng.standard_normal((128, 64)).astype(np.float32), "w")
    bias = numpy_helper.from_array(np.zeros(128, np.float32), "b")
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 64])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 128])
    return builders["model_of"](
        [helper.make_node("Gemm", ["x", "w", "b"], ["y"], name="g", transB=1)], [x], [y], [weights, bias]
    )


def test_nothing_of_the_old_weights_is_left_in_the_file(builders, vectors):
    """They are turned over on the way: without looking, the float ones stay and the file grows instead of shrinking."""
    model = turned(builders)
    result = Int8Weight().apply(model, vectors)

    assert result.facts["ops_quantized"] == 1
    assert result.model.ByteSize() < 0.4 * model.ByteSize()
    assert error(model, result.model, vectors) < 1e-3


def test_bodies_of_if_are_entered(branches, vectors):
    """Both branches hold a product with weights of their own."""
    result = Int8Weight().apply(branches, vectors)

    assert result.facts["ops_quantized"] == 2
    assert set(tensors(result.model, TensorProto.INT8)) == {"w_then_int8", "w_else_int8"}
    for sign in (1, -1):
        rows = {"x": np.abs(vectors["x"]) * np.float32(sign)}
        assert error(branches, result.model, rows) < 1e-3


def embedding(builders):
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"], name="look"),
        helper.make_node("ReduceMean", ["rows"], ["y"], axes=[1], keepdims=0),
    ]
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["N", 6])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 16])
    table = numpy_helper.from_array(rng.standard_normal((500, 16)).astype(np.float32), "table")
    return builders["model_of"](nodes, [ids], [y], [table])


def test_embedding_tables_are_read_in_int8(builders):
    """Rows are looked up first and made float afterwards, so the table is never float in memory."""
    model = embedding(builders)
    rows = {"ids": np.random.default_rng(1).integers(0, 500, (32, 6))}

    result = Int8Weight().apply(model, rows)

    assert result.facts["quantized"] == "Gather 1"
    assert [node.op_type for node in result.model.graph.node] == ["Gather", "DequantizeLinear", "ReduceMean"]
    assert error(model, result.model, rows) < 1e-3
    assert not Int8Weight(embeddings=False).apply(model, rows).changed


def test_weights_that_something_else_reads_stay(mlp, vectors):
    """The other reader would get integers."""
    mlp.graph.node.append(helper.make_node("Identity", ["w1"], ["z"]))
    mlp.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [64, 128]))

    result = Int8Weight().apply(mlp, vectors)

    assert result.facts["ops_quantized"] == 1
    assert "w1" in tensors(result.model, TensorProto.FLOAT)


def test_the_input_is_not_modified_and_equal_input_gives_equal_files(mlp, vectors, tmp_path):
    """Like every variant."""
    before = mlp.SerializeToString(deterministic=True)

    paths = [onnx_io.write_model(Int8Weight().apply(mlp, vectors).model, tmp_path / name) for name in "ab"]

    assert before == mlp.SerializeToString(deterministic=True)
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_without_products_nothing_happens(elementwise):
    """A result, not an error."""
    result = Int8Weight().apply(elementwise, None)

    assert not result.changed
    assert result.notes[0].startswith("nothing was quantized")


@pytest.mark.parametrize("size", [-1, 8, 48, 2048])
def test_block_sizes_that_no_kernel_has_are_refused(size):
    """Powers of two from 16 to 1024, or 0."""
    with pytest.raises(StudyError, match=f"'block_size' of variant 'int8-weight' is {size}"):
        Int8Weight(block_size=size)
