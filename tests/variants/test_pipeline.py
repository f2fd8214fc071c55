"""Recipes one after the other: their text, their order, and what of each step is kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx
import pytest

from backends.spec import split_steps
from profiler.errors import StudyError, VariantError
from profiler.onnx_io import clone, count_ops, walk_tensors
from profiler.variants.base import Recipe, VariantResult
from profiler.variants.pipeline import Pipeline, make_pipeline
from profiler.variants.registry import make

pytestmark = pytest.mark.runtime


@dataclass(frozen=True)
class Doubled(Recipe):
    """Doubles the first float tensor: what it made shows in the next step's input."""

    name: ClassVar[str] = "doubled"
    only_backends: ClassVar[tuple[str, ...] | None] = ("ov", "ort")
    backend_options: ClassVar = {"ov": {"precision": "f32"}}

    def apply(self, model, calibration):
        result = clone(model)
        tensor = next(t for t in walk_tensors(result) if t.data_type == onnx.TensorProto.FLOAT and t.dims)
        array = 2 * onnx.numpy_helper.to_array(tensor)
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
        return VariantResult(result, {"first": float(array.ravel()[0])}, ("doubled.",), changed=True)


def test_plus_signs_split_outside_braces_only():
    assert split_steps("a{x=1e+3}+b") == ["a{x=1e+3}", "b"]
    assert split_steps(" a + b{c=d|e} ") == ["a", "b{c=d|e}"]
    assert split_steps("a") == ["a"]


def test_text_parses_back_in_canonical_form():
    pipeline = make_pipeline("prune-magnitude{sparsity=0.5} + int8-static{per_channel=true,calibration=minmax}", make)
    assert pipeline.text == "prune-magnitude{sparsity=0.5}+int8-static{per_channel=true}"
    assert make_pipeline(pipeline.text, make) == pipeline
    assert make_pipeline("graph", make) == make("graph"), "one step is itself"
    assert pipeline.needs_calibration
    assert pipeline.looks_at_calibration
    assert pipeline.only_backends is None


def test_each_step_sees_what_the_one_before_made(mlp, vectors):
    before = mlp.SerializeToString()
    result = Pipeline((Doubled(), Doubled())).apply(mlp, vectors)
    first = float(next(onnx.numpy_helper.to_array(t).ravel()[0] for t in walk_tensors(mlp) if t.dims))
    assert result.facts["1.first"] == pytest.approx(2 * first)
    assert result.facts["2.first"] == pytest.approx(4 * first)
    assert result.notes[:2] == ("doubled: doubled.", "doubled: doubled.")
    assert "calibration_cosine" in result.facts, "compared with the model that was given"
    assert mlp.SerializeToString() == before


def test_pruned_and_quantized_has_both(mlp, vectors):
    made = make_pipeline("prune-magnitude{sparsity=0.5}+int8-static", make).apply(mlp, vectors)
    assert made.changed
    assert count_ops(made.model)["QuantizeLinear"] > 0
    stored = [onnx.numpy_helper.to_array(t) for t in walk_tensors(made.model) if t.data_type == onnx.TensorProto.INT8]
    assert stored
    assert all(np.mean(array == 0) >= 0.45 for array in stored if array.size > 64)


def test_a_step_that_changes_nothing_leaves_the_rest(mlp, elementwise, vectors):
    alone = make("int8-dynamic").apply(mlp, vectors)
    twice = make_pipeline("int8-dynamic+int8-dynamic", make).apply(mlp, vectors)
    assert count_ops(twice.model) == count_ops(alone.model), "nothing is left for the second one"
    nothing = make_pipeline("int8-dynamic+int8-dynamic", make).apply(elementwise, None)
    assert not nothing.changed
    assert nothing.model.SerializeToString() == elementwise.SerializeToString()


def test_restrictions_and_load_options_come_together():
    pipeline = make_pipeline("doubled+bf16", lambda text: Doubled() if text == "doubled" else make(text))
    assert set(pipeline.only_backends) == set(make("bf16").only_backends) & {"ov", "ort"}
    assert pipeline.backend_options["ov"]["precision"] == make("bf16").backend_options["ov"]["precision"]


def test_the_failing_step_speaks(mlp):
    with pytest.raises(VariantError, match=r"int8-static needs calibration data"):
        make_pipeline("prune-magnitude{sparsity=0.5}+int8-static", make).apply(mlp, None)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("graph+", "empty step"),
        ("fp32+graph", "changes nothing"),
        ("graph+graph+graph+graph+graph", "at most 4"),
        ("graph+nope", "unknown variant 'nope'"),
    ],
)
def test_what_is_no_pipeline_says_why(text, says):
    with pytest.raises(StudyError, match=says):
        make_pipeline(text, make)


def test_steps_for_different_backends_are_refused():
    @dataclass(frozen=True)
    class Elsewhere(Recipe):
        name: ClassVar[str] = "elsewhere"
        only_backends: ClassVar[tuple[str, ...] | None] = ("trt",)

    known = {"doubled": Doubled(), "elsewhere": Elsewhere()}
    with pytest.raises(StudyError, match=r"doubled: ov, ort; elsewhere: trt"):
        make_pipeline("doubled+elsewhere", known.__getitem__)
