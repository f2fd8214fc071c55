"""Before anything is measured: names are known, rows are chosen, and what is equal is measured once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.base import TensorInfo
from profiler import prepare
from profiler.artifacts import ArtifactStore
from profiler.errors import ModelError, StudyError
from profiler.prepare import Prepared, plan_cases, timing_feeds
from profiler.records import ArtifactRecord
from profiler.study import Case, make_study


def prepared_for(study, tmp_path, **options):
    return prepare.prepare(study, prepare.check_names(study), tmp_path, **options)


def test_the_reference_is_always_made_first(fake_study):
    """Also when nobody named it, or named it last."""
    for texts in (("graph",), ("graph", "fp32"), ("fp32", "graph")):
        assert [variant.text for variant in prepare.check_names(fake_study(variants=texts))] == ["fp32", "graph"]


def test_without_variants_the_usual_ones_are_made(fake_study):
    """More than one."""
    texts = [variant.text for variant in prepare.check_names(fake_study(variants=()))]

    assert texts[0] == "fp32"
    assert len(texts) > 3


@pytest.mark.parametrize("backend", ["ov:GPU.1", "ov:gpu", "trt:0", "ort:cpu", "fake:cpu"])
def test_devices_of_a_backend_are_known_in_any_case_and_with_numbers(fake_study, backend):
    """As the runtimes write them."""
    prepare.check_names(fake_study(backends=(backend,)))


def test_calibration_rows_are_never_evaluated_on(fake_study, tmp_path):
    """Cut from the data: disjoint, and never more than half."""
    study = fake_study(variants=("int8-static",), calibration_samples=1000)
    prepared = prepared_for(study, tmp_path)
    rows = [{row.tobytes() for row in part.inputs["x"]} for part in (prepared.evaluation, prepared.calibration)]

    assert len(rows[0]) + len(rows[1]) == 64
    assert set() == rows[0] & rows[1]
    assert len(rows[1]) == 32


def test_without_a_variant_that_needs_it_nothing_is_cut(fake_study, tmp_path):
    """All rows are evaluated."""
    prepared = prepared_for(fake_study(), tmp_path)

    assert (len(prepared.evaluation), prepared.calibration) == (64, None)


def test_calibration_data_that_is_also_evaluated_is_dropped(fake_study, tmp_path, small_data):
    """The same file for both would flatter every quantized variant."""
    rows = np.load(small_data)
    np.savez(tmp_path / "c.npz", x=np.concatenate([rows["x"][:5], rows["x"][:3] + 1]))
    prepared = prepared_for(fake_study(variants=("int8-static",), calibration=str(tmp_path / "c.npz")), tmp_path)

    assert (len(prepared.evaluation), len(prepared.calibration)) == (64, 3)


def test_without_data_random_rows_stand_in_and_it_is_said(fake_study, tmp_path):
    """The same ones for the same seed."""
    one, two, other = (prepared_for(fake_study(data=None, seed=seed), tmp_path) for seed in (0, 0, 1))

    np.testing.assert_array_equal(one.rows["x"], two.rows["x"])
    assert not np.array_equal(one.rows["x"], other.rows["x"])
    assert any("random" in note for note in one.notes)
    assert one.evaluation is None


def test_open_sizes_need_a_shape(tmp_path, fake_study):
    """The message shows the option."""
    import onnx
    from onnx import TensorProto, helper

    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])], "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", "L", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", "L", 3])],
    )  # fmt: skip
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(tmp_path / "m.onnx")
    )
    with pytest.raises(StudyError, match=r"--shape x="):
        prepared_for(fake_study(model=str(tmp_path / "m.onnx"), data=None), tmp_path)
    prepared = prepared_for(fake_study(model=str(tmp_path / "m.onnx"), data=None, input_shapes={"x": (7, 3)}), tmp_path)

    assert prepared.rows["x"].shape[1:] == (7, 3)


def test_a_model_without_inputs_is_refused(tmp_path, fake_study):
    """There is nothing to feed it."""
    import onnx
    from onnx import TensorProto, helper

    node = helper.make_node("Constant", [], ["y"], value=helper.make_tensor("v", TensorProto.FLOAT, [1], [1.0]))
    graph = helper.make_graph([node], "g", [], [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(tmp_path / "m.onnx")
    )

    with pytest.raises((StudyError, ModelError), match="no inputs"):
        prepared_for(fake_study(model=str(tmp_path / "m.onnx"), data=None), tmp_path)


def test_a_variant_that_cannot_be_made_is_a_failure_and_the_others_go_on(fake_study, tmp_path, listener, monkeypatch):
    """It is noted at once."""
    from profiler.errors import VariantError
    from profiler.variants.graph import Graph

    def fail(self, model, calibration):
        raise VariantError("graph cannot do that")

    monkeypatch.setattr(Graph, "apply", fail)
    study = fake_study(variants=("graph", "bf16"))
    heard = listener()
    made, failures = prepare.make_artifacts(
        prepared_for(study, tmp_path), prepare.check_names(study), ArtifactStore(tmp_path / "c"), heard
    )

    assert [record.variant for record in made] == ["fp32", "bf16"]
    assert [(f.case, f.stage, f.message) for f in failures] == [("graph", "variant", "graph cannot do that")]
    assert heard.notes


def record(variant: str, **facts) -> ArtifactRecord:
    return ArtifactRecord(variant, "a" * 64, 10, None, True, facts)


def test_equal_files_are_measured_once_and_variants_only_where_they_run():
    """The others are left out with the reason."""
    from dataclasses import replace

    study = make_study(model="m", backends=("ort", "ov"))
    made = [record("fp32"), replace(record("graph"), equal_to="fp32"), record("bf16", only_backends="ov|trt")]
    cases, left_out = plan_cases(study, made)

    assert {"fp32@ort/b1/t1", "fp32@ov/b1/t1", "bf16@ov/b1/t1"} == {case.key for case in cases}
    assert {
        "graph@ort/b1/t1": "equals that of fp32",
        "graph@ov/b1/t1": "equals that of fp32",
        "bf16@ort/b1/t1": "ov, trt",
    }.keys() == {f.case for f in left_out}
    assert {"skipped"} == {failure.kind for failure in left_out}


@given(batch=st.integers(1, 40), seed=st.integers(0, 99))
def test_timing_takes_real_rows_the_same_for_every_case(batch, seed):
    """Several different batches of the right size, from the rows given, whatever variant or backend."""
    rows = {"x": np.arange(30, dtype=np.float32).reshape(10, 3), "ids": np.arange(10)}
    infos = (TensorInfo("x", "float32", ("N", 3)), TensorInfo("ids", "int64", ("N",)))
    prepared = Prepared(None, infos, None, None, rows, ())
    feeds, other = (
        timing_feeds(prepared, Case(v, b, "local", batch, t), seed)
        for v, b, t in (("fp32", "ort", 1), ("graph", "ov", 4))
    )

    assert len(feeds) == 2 * prepare.TIMING_TURNS
    for turn in range(prepare.TIMING_TURNS):
        x, ids = feeds[f"{turn}/x"], feeds[f"{turn}/ids"]
        assert (batch, 3) == x.shape
        np.testing.assert_array_equal(rows["x"][ids], x)
        assert len(set(ids)) == batch or batch > 10
        np.testing.assert_array_equal(x, other[f"{turn}/x"])
