"""Quantizing recipes on models as people have them: files are right on every runtime here, or refused with the reason."""

from __future__ import annotations

import contextlib
import functools

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from backends import registry as backends
from backends.base import LoadOptions
from profiler.errors import EdgeprofError, StudyError, VariantError
from profiler.onnx_io import model_inputs, model_outputs, write_model
from profiler.variants import registry
from profiler.variants.openvino_judge import OTHERWISE
from tests.variants.people_models import MODELS

pytestmark = pytest.mark.runtime

ERRORS = {
    "int8-static": 0.06, "int8-static{per_channel=true}": 0.06,
    "int8-static{bias_correction=true,calibration=mse,equalise=true,per_channel=true,smooth=0.5}": 0.12,
    "int8-static{float_outputs=Conv|Gemm|MatMul,per_channel=true,symmetric_activations=true}": 0.06,
    "int8-dynamic": 0.06, "int8-dynamic{per_channel=true}": 0.06, "int8-weight": 0.03, "int8-weight{block_size=16}": 0.03,
    "int4-weight": 0.35, "int4-weight{format=standard}": 0.35, "fp8": 0.12, "int8-static{per_channel=true}+fp16": 0.06,
    "int8-weight+fp16": 0.03, "int8-dynamic+fp16": 0.06,
}  # fmt: skip
"""Largest relative error by recipe."""
RUNTIMES = {
    "ort, optimiser off": ("ort", {"opt": "off"}), "ort": ("ort", {}),
    "ov, any shape": ("ov", {"shape": "dynamic"}), "ov, fixed shapes": ("ov", {}),
}  # fmt: skip
OWN_ERROR = 1e-4
TOLD = {"ov": OTHERWISE, "ort": "optimiser changes the answers"}
WRONG_BUT_TOLD = {
    ("taken_scale", "int8-static{per_channel=true}+fp16"),
    ("taken_values", "int8-static{per_channel=true}+fp16"),
    ("twin_branches", "int8-weight+fp16"),
}
"""Files that are right and that one runtime of today computes wrongly; a note says so."""
REFUSED = {("twin_branches", "int8-dynamic+fp16"): "fp16 cannot be made from this model"}


def rows_for(model, count=64):
    info = model_inputs(model)[0]
    shape = tuple(size if isinstance(size, int) else 4 for size in info.shape[1:])
    return {info.name: np.random.default_rng(7).standard_normal((count, *shape)).astype(np.float32)}


def answers(path, feeds, runtime):
    backend, options = RUNTIMES[runtime]
    shapes = {name: array.shape for name, array in feeds.items()}
    session = backends.get(backend).load(path, LoadOptions(sample_shapes=shapes, options=options))
    try:
        return {name: np.array(array) for name, array in session.infer(feeds).items()}
    finally:
        session.close()


def error(wanted, got):
    worst = 0.0
    assert wanted.keys() == got.keys()
    for name, array in wanted.items():
        assert (got[name].shape, got[name].dtype) == (array.shape, array.dtype)
        worst = max(worst, float(np.linalg.norm(got[name] - array) / np.linalg.norm(array)))
    return worst


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """`expected(name)`: model, rows, what onnx's reference answers to eight of them, and the runtimes that agree with it."""

    @functools.cache
    def of(name):
        model = MODELS[name]()
        rows = rows_for(model)
        feeds = {key: array[:8] for key, array in rows.items()}
        names = [info.name for info in model_outputs(model)]
        wanted = dict(zip(names, ReferenceEvaluator(model).run(None, feeds), strict=True))
        source = write_model(model, tmp_path_factory.mktemp(name))
        right = []
        for runtime in RUNTIMES:
            with contextlib.suppress(EdgeprofError):
                if error(wanted, answers(source, feeds, runtime)) <= OWN_ERROR:
                    right.append(runtime)
        assert {"ort, optimiser off", "ort"} <= {*right}
        return model, rows, wanted, right

    return of


def _pairs():
    """Every pair is a test; a third of them runs in `scripts/test --all`, one in twelve without it, each model and recipe in both."""
    for row, name in enumerate(MODELS):
        for column, recipe in enumerate(ERRORS):
            place = 5 * row + column
            marks = [] if place % 12 == 0 else [pytest.mark.slow] if place % 3 == 0 else [pytest.mark.exhaustive]
            yield pytest.param(name, recipe, marks=marks, id=f"{name}-{recipe}")


@pytest.mark.parametrize(("name", "recipe"), _pairs())
def test_every_file_is_right_on_every_runtime(name, recipe, expected, tmp_path):
    model, rows, wanted, runtimes = expected(name)
    if (name, recipe) in REFUSED:
        with pytest.raises(VariantError, match=REFUSED[name, recipe]):
            registry.make(recipe).apply(model, rows)
        return
    made = registry.make(recipe).apply(model, rows)

    path = write_model(made.model, tmp_path)
    onnx.checker.check_model(str(path), full_check=True)
    assert model_inputs(made.model) == model_inputs(model)
    assert [(info.name, info.dtype) for info in model_outputs(made.model)] == [
        (info.name, info.dtype) for info in model_outputs(model)
    ]
    for runtime in runtimes:
        if runtime.partition(",")[0] in str(made.facts.get("refused_by")):
            continue
        off = error(wanted, answers(path, {key: array[:8] for key, array in rows.items()}, runtime))
        warned = any(TOLD[runtime.partition(",")[0]] in note for note in made.notes)
        assert off <= ERRORS[recipe] or (warned and (name, recipe) in WRONG_BUT_TOLD), (runtime, off, made.notes)


def told(made):
    return any(OTHERWISE in note for note in made.notes)


QUANTIZED = {
    "tied_square": 2, "tied_oblong": 2, "tied_products": 2, "shared_bias": 3, "taken_scale": 2, "taken_values": 2,
    "taken_output": 2, "relu_for_bodies": 1, "clip_for_bodies": 1, "clip_away_from_zero": 2, "twin_branches": 1, "old_ir": 2,
    "bias_of_one": 2, "bias_scalar": 2, "bias_row": 2, "bias_matrix": 2, "bias_column": 2, "constant_output": 1,
    "batched_weights": 2, "vector_weights": 2, "weights_on_the_left": 2, "chain_of_two": 2, "chain_of_three": 3,
    "mean_of_norm": 2, "stale_shapes": 2, "adding_scatter": 2, "shared_lstm": 1,
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_static_int8_leaves_no_product_with_stored_weights_out(name):
    """Right answers are no proof: a recipe that does nothing gives them too."""
    model = MODELS[name]()
    made = registry.make("int8-static{per_channel=true}").apply(model, rows_for(model))

    assert made.facts["ops_quantized"] == QUANTIZED[name]
    assert not told(made)


def test_block_sizes_that_no_kernel_knows_are_refused_by_name():
    with pytest.raises(
        StudyError, match="'block_size' of variant 'int4-weight' is 512, expected a power of two from 16 to 256"
    ):
        registry.make("int4-weight{block_size=512}")


@pytest.mark.parametrize("recipe", ["int8-static", "int8-dynamic", "int8-weight", "fp8"])
def test_weights_of_another_type_are_named(recipe):
    model = MODELS["chain_of_two"]()
    for tensor in model.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor).astype(np.float64)
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    for item in (*model.graph.input, *model.graph.output):
        item.type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
    rows = {name: array.astype(np.float64) for name, array in rows_for(MODELS["chain_of_two"]()).items()}

    made = registry.make(recipe).apply(model, rows)

    assert not made.changed
    assert "theirs are double" in made.notes[0]
