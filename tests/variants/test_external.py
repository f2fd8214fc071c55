"""`external`: a model from elsewhere joins when it fits, and is refused with the difference when it doesn't."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from profiler.errors import StudyError, VariantError
from profiler.onnx_io import write_model
from profiler.variants.base import from_options
from profiler.variants.external import External

pytestmark = pytest.mark.runtime


@pytest.fixture
def other(tmp_path, builders):
    """Another training of the `cnn` fixture's network, written."""
    return write_model(builders["cnn"](seed=7), tmp_path / "other")


def edited(path, change):
    model = onnx.load(str(path))
    change(model.graph)
    onnx.save(model, str(path))
    return path


def test_a_fitting_model_is_taken_as_it_is_with_its_stated_cost(cnn, other, images):
    recipe = External(path=str(other), cost_usd=120.5, label="qat")
    result = recipe.apply(cnn, images)
    assert result.changed
    assert result.model.SerializeToString() == onnx.load(str(other)).SerializeToString()
    assert result.facts["training_cost_usd"] == 120.5
    assert result.facts["label"] == "qat"
    assert result.facts["content_sha256"] == recipe.content_key()
    # Another training answers differently: the comparison looked at this model and not at the original.
    assert result.facts["calibration_cosine"] < 0.999
    assert any("120.50 USD" in note for note in result.notes)


def test_no_stated_cost_is_unknown_and_not_zero(cnn, other):
    result = External(path=str(other)).apply(cnn, None)
    assert result.facts["training_cost_usd"] is None
    assert any("no training cost was stated" in note for note in result.notes)


def test_the_text_parses_back_and_the_input_is_not_modified(cnn, other):
    before = cnn.SerializeToString()
    recipe = from_options(External, {"path": str(other), "cost_usd": "120", "label": "qat"})
    recipe.apply(cnn, None)
    assert cnn.SerializeToString() == before
    assert recipe.text.startswith("external{cost_usd=120")
    assert dataclasses.replace(recipe, cost_usd=120) == recipe


def test_the_content_decides_the_key_and_not_the_name(other, tmp_path, builders):
    key = External(path=str(other)).content_key()
    copy = write_model(builders["cnn"](seed=7), tmp_path / "elsewhere", "renamed.onnx")
    assert External(path=str(copy)).content_key() == key
    write_model(builders["cnn"](seed=8), other.parent)
    assert External(path=str(other)).content_key() != key


def test_external_data_count_too(cnn, other, tmp_path):
    path = tmp_path / "apart.onnx"
    onnx.save(onnx.load(str(other)), str(path), save_as_external_data=True, location="apart.data", size_threshold=0)
    recipe = External(path=str(path))
    key = recipe.content_key()
    assert recipe.apply(cnn, None).facts["weights"] == External(path=str(other)).apply(cnn, None).facts["weights"]
    data = bytearray((tmp_path / "apart.data").read_bytes())
    data[100] ^= 1
    (tmp_path / "apart.data").write_bytes(bytes(data))
    assert recipe.content_key() != key


def test_another_batch_axis_is_no_difference(cnn, other):
    def fix(graph):
        for value in (*graph.input, *graph.output):
            value.type.tensor_type.shape.dim[0].dim_value = 1

    assert External(path=str(edited(other, fix))).apply(cnn, None).changed


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            lambda g: setattr(g.input[0].type.tensor_type.shape.dim[2], "dim_value", 24),
            r"input 'x' is \[N, 3, 24, 12\]",
        ),
        (lambda g: setattr(g.output[0].type.tensor_type.shape.dim[1], "dim_value", 6), r"output 'logits' is \[N, 6\]"),
    ],
    ids=["input size", "output size"],
)
def test_another_shape_is_refused_with_both_shapes(cnn, other, change, told, monkeypatch):
    # The checker would find the contradiction too; what counts is that ours names it.
    with pytest.raises(VariantError, match=told) as caught:
        External(path=str(edited(other, change))).apply(cnn, None)
    assert "expected" in str(caught.value)


def test_another_output_name_is_refused_with_both_names(cnn, tmp_path, builders):
    path = write_model(builders["cnn"](output="scores"), tmp_path / "other")
    with pytest.raises(VariantError, match="outputs are 'scores', expected 'logits'"):
        External(path=str(path)).apply(cnn, None)


def test_another_type_is_refused_with_both_types(tmp_path, builders):
    def identity(kind):
        values = [helper.make_tensor_value_info(name, kind, ["N", 4]) for name in ("x", "y")]
        return builders["model_of"]([helper.make_node("Identity", ["x"], ["y"])], values[:1], values[1:], [])

    path = write_model(identity(TensorProto.INT32), tmp_path / "other")
    with pytest.raises(VariantError, match="input 'x' is int32, expected float32"):
        External(path=str(path)).apply(identity(TensorProto.FLOAT), None)


def test_an_input_more_is_refused(cnn, other):
    def add(graph):
        graph.input.append(helper.make_tensor_value_info("mask", TensorProto.FLOAT, ["N"]))

    with pytest.raises(VariantError, match="inputs are 'mask', 'x', expected 'x'"):
        External(path=str(edited(other, add))).apply(cnn, None)


def test_what_is_no_model_is_refused(cnn, tmp_path):
    with pytest.raises(VariantError, match="there is no model file"):
        External(path=str(tmp_path / "absent.onnx")).apply(cnn, None)
    np.savez(tmp_path / "weights.npz", w=np.zeros(3))
    with pytest.raises(VariantError, match="not an ONNX model but a zip archive"):
        External(path=str(tmp_path / "weights.npz")).apply(cnn, None)


def test_a_model_that_no_runtime_knows_is_refused_in_their_words(cnn, other):
    def strange(graph):
        graph.node[0].domain = "nobody.knows"

    model = onnx.load(str(other))
    strange(model.graph)
    model.opset_import.append(helper.make_opsetid("nobody.knows", 1))
    onnx.save(model, str(other))
    with pytest.raises(VariantError, match="no runtime here loads it") as caught:
        External(path=str(other)).apply(cnn, None)
    assert "OpenVINO" in str(caught.value)
    assert "ONNX Runtime" in str(caught.value)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({}, r"needs option 'path', e.g. external\{path=retrained.onnx\}"),
        ({"path": "a.onnx", "cost_usd": "-1"}, "expected 0 or more US dollars"),
        ({"path": "a.onnx", "label": "a|b"}, "e.g. qat"),
    ],
)
def test_wrong_options_are_told(options, told):
    with pytest.raises(StudyError, match=told):
        from_options(External, options)


def test_a_path_with_spaces_and_commas_is_percent_encoded(tmp_path):
    """What the text form cannot hold still can be named, in a study file relative to it."""
    from profiler.study import read_study
    from profiler.variants import registry

    folder = tmp_path / "my models, new"
    folder.mkdir()
    (folder / "study.toml").write_text('model = "m.onnx"\nvariants = ["external{path=my%20qat.onnx}"]\n')
    (text,) = read_study(folder / "study.toml").variants
    recipe = registry.make(text)

    assert recipe.path.endswith("/my%20models%2C%20new/my%20qat.onnx")
    with pytest.raises(VariantError, match=r"my models, new/my qat\.onnx"):
        recipe.content_key()
