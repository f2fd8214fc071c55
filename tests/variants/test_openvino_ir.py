"""OpenVINO IR travels inside an ONNX file and comes out as it went in."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from backends import ov_embedded
from profiler.errors import VariantError
from profiler.onnx_io import external_files, model_inputs, model_outputs, read_model, write_model
from profiler.variants.external import External
from profiler.variants.openvino_ir import read_ir
from profiler.variants.running import outputs


def saved(model, folder):
    """`model` as IR: the path of its `.xml`."""
    import openvino

    core = openvino.Core()
    path = folder / "model.xml"
    openvino.save_model(core.read_model(str(write_model(model, folder))), str(path), compress_to_fp16=False)
    return path


def answered(path, feeds):
    import openvino

    core = openvino.Core()
    compiled = core.compile_model(ov_embedded.read_model(core, path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return next(iter(compiled(feeds).values()))


@pytest.mark.runtime
def test_it_answers_as_the_model_it_was_made_from(cnn, images, tmp_path):
    result = External(path=str(saved(cnn, tmp_path)), cost_usd=5).apply(cnn, images)
    assert result.facts["only_backends"] == "ov"
    assert result.facts["training_cost_usd"] == 5
    assert [(info.name, info.dtype) for info in model_inputs(result.model)] == [("x", "float32")]
    assert [info.name for info in model_outputs(result.model)] == ["logits"]
    path = write_model(result.model, tmp_path / "artifact")
    # What the product reads at its border reads this file too.
    assert read_model(path).graph.node[0].op_type == "EPContext"
    assert external_files(path) == ()
    assert np.allclose(answered(path, images), outputs(cnn, images)[0], atol=1e-4)


@pytest.mark.runtime
def test_the_weights_count_for_the_key(cnn, tmp_path):
    path = saved(cnn, tmp_path)
    key = External(path=str(path)).content_key()
    weights = bytearray(path.with_suffix(".bin").read_bytes())
    weights[10] ^= 1
    path.with_suffix(".bin").write_bytes(bytes(weights))
    assert External(path=str(path)).content_key() != key


@pytest.mark.runtime
def test_another_model_is_refused(cnn, mlp, tmp_path):
    with pytest.raises(VariantError, match="outputs are 'y', expected 'logits'"):
        External(path=str(saved(mlp, tmp_path))).apply(cnn, None)


@pytest.mark.runtime
def test_what_openvino_cannot_read_is_told(cnn, tmp_path):
    (tmp_path / "broken.xml").write_text("<net name='x' version='11'><layers></layers>")
    with pytest.raises(VariantError, match="OpenVINO cannot load"):
        External(path=str(tmp_path / "broken.xml")).apply(cnn, None)
    with pytest.raises(VariantError, match="there is no OpenVINO model"):
        External(path=str(tmp_path / "absent.xml")).apply(cnn, None)


@pytest.mark.runtime
def test_an_ordinary_model_is_read_as_ever(cnn, images, tmp_path):
    path = write_model(cnn, tmp_path)
    assert ov_embedded.embedded(path) is None
    assert np.allclose(answered(path, images), outputs(cnn, images)[0], atol=1e-4)


@pytest.mark.runtime
def test_a_name_among_several_is_the_one_that_was_asked_for(cnn, tmp_path):
    path = saved(cnn, tmp_path)
    text = path.read_text()
    assert 'names="logits"' in text
    path.write_text(text.replace('names="logits"', 'names="another,logits"'))
    assert [info.name for info in model_outputs(read_ir(path, ("x", "logits")))] == ["logits"]


@pytest.mark.parametrize("content", [b"", b"<?xml", b"\x08\x08\x3a\x7f", b"PK\x03\x04" * 8, b"\xff" * 40])
def test_what_is_no_model_holds_none(content, tmp_path):
    (tmp_path / "file.onnx").write_bytes(content)
    assert ov_embedded.embedded(tmp_path / "file.onnx") is None


def test_packing_is_undone_and_a_cut_is_noticed():
    packed = ov_embedded.pack(b"<net/>", b"\0\1\2")
    assert ov_embedded.unpack(packed) == (b"<net/>", b"\0\1\2")
    with pytest.raises(ValueError, match="cut short"):
        ov_embedded.unpack(packed[:10])


def test_a_context_of_another_engine_is_left_to_the_runtime(tmp_path):
    from onnx import TensorProto, helper

    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    node = helper.make_node(
        "EPContext", ["x"], ["y"], domain="com.microsoft", source="QNN", ep_cache_context=b"\0" * 20
    )
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(
        helper.make_model(helper.make_graph([node], "g", values[:1], values[1:]), opset_imports=imports),
        str(tmp_path / "qnn.onnx"),
    )
    assert ov_embedded.embedded(tmp_path / "qnn.onnx") is None
