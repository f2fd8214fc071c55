"""The reference, and bf16: the same bytes, another arithmetic."""

from __future__ import annotations

import pytest

from profiler import artifacts, onnx_io
from profiler.artifacts import ArtifactStore
from profiler.variants.plain import Bf16, Fp32


@pytest.mark.parametrize("recipe", [Fp32(), Bf16()])
def test_the_file_stays_what_it_was(recipe, cnn):
    result = recipe.apply(cnn, None)
    assert result.model is not cnn
    assert result.model.SerializeToString() == cnn.SerializeToString()
    assert result.facts["weights"] == onnx_io.weights_count(cnn)
    assert not result.changed


def test_bf16_is_not_taken_for_the_reference_although_its_bytes_are_equal(cnn, tmp_path):
    store = ArtifactStore(tmp_path / "store")
    source = onnx_io.write_model(cnn, tmp_path)
    reference, bf16 = (store.make(source, recipe, None, None) for recipe in (Fp32(), Bf16()))
    assert reference.sha256 == bf16.sha256
    assert artifacts.merged(bf16, [reference]).equal_to is None
    assert artifacts.backend_options(bf16, "ov") == {"precision": "bf16"}
    assert artifacts.runs_on(bf16, "ov")
    assert not artifacts.runs_on(bf16, "ort")


@pytest.mark.runtime
def test_openvino_really_computes_in_bf16_where_the_processor_can(cnn, images, tmp_path):
    from backends.base import LoadOptions
    from backends.ov import OvBackend

    path = onnx_io.write_model(Bf16().apply(cnn, None).model, tmp_path)
    options = LoadOptions(options=Bf16.backend_options["ov"], sample_shapes={"x": (16, 3, 12, 12)}, batch=16)
    try:
        session = OvBackend().load(path, options)
    except Exception as error:
        pytest.skip(f"no bf16 here: {error}")
    realised = session.facts.precision
    session.close()
    assert realised is not None
    assert realised.get("bf16", 0) >= 3
