"""Traps that real models set, met by the whole pipeline: a runtime that cannot, zeros that save nothing, luck in small data.

The others are tested where they are handled: T1, T2, T3, T4, T6, T7, T8 in tests/variants, T4, T5 in tests/export,
T5 in tests/test_onnx_io.py; on real models in tests/real_models.
"""

from __future__ import annotations

from datetime import date

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from profiler import profile
from profiler.analysis import analyse
from profiler.decide import recommend, view

EFFORT = {
    "processes": 1,
    "rounds": 2,
    "block_s": 0.002,
    "block_samples": 5,
    "warmup_s": 0.002,
    "warmup_max_s": 0.02,
    "requeue_share": 0.0,
}


@pytest.fixture
def one_sided(tmp_path):
    """A model that onnxruntime runs and OpenVINO has no rule for: an operator of ai.onnx.ml."""
    node = helper.make_node("Scaler", ["x"], ["y"], domain="ai.onnx.ml", offset=[0.0] * 4, scale=[1.0] * 4)
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 4]) for name in "xy")
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    model = helper.make_model(helper.make_graph([node], "g", [x], [y]), opset_imports=opsets, ir_version=8)
    path = tmp_path / "one_sided.onnx"
    onnx.save(model, str(path))
    rows = np.random.default_rng(0).standard_normal((24, 4)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=rows, labels=rows.argmax(1))
    return path


@pytest.mark.runtime
@pytest.mark.process
@pytest.mark.parametrize("backends", [("ort", "ov"), ("ov", "ort")])
def test_what_one_runtime_cannot_load_is_a_failure_and_the_other_is_measured(one_sided, tmp_path, backends):
    """T10: also when the runtime that fails stands first, and would have been the reference."""
    result = profile(
        one_sided,
        one_sided.with_name("data.npz"),
        out=tmp_path / "runs",
        backends=backends,
        variants=("fp32",),
        effort=EFFORT,
    )
    cases = {case.case.backend: case for case in result.cases}

    assert (cases["ort"].status, cases["ov"].status) == ("measured", "failed")
    assert (cases["ov"].failure.stage, cases["ov"].failure.kind) == ("quality", "unsupported")
    assert "Scaler" in cases["ov"].failure.message
    assert result.analysis.reference == "fp32@ort/b1/t1"
    assert result.run.status == "finished"
    assert cases["ort"].accuracy.value == 1.0


@pytest.mark.runtime
@pytest.mark.process
def test_zeros_save_neither_bytes_nor_are_they_sold_as_faster(small_model, small_data, tmp_path):
    """T9: pruning by magnitude keeps the file's size; what shrinks is only the compressed size, and a note says it."""
    result = profile(
        small_model,
        small_data,
        out=tmp_path / "runs",
        backends=("ort",),
        effort=EFFORT,
        variants=("prune-magnitude{sparsity=0.5}",),
    )
    plain, pruned = (
        result.analysis.case("fp32@ort/b1/t1"),
        result.analysis.case("prune-magnitude{sparsity=0.5}@ort/b1/t1"),
    )

    assert plain.size_bytes.value == pytest.approx(pruned.size_bytes.value, rel=0.1)
    assert pruned.compressed_bytes.value < 0.9 * plain.compressed_bytes.value
    assert any(note.startswith("no faster") for note in pruned.notes)


def _lucky(made_run, *, bad, good, n, max_drop):
    """A variant four times as fast with `bad` answers lost and `good` ones won of `n`, three quarters right before."""
    right = np.arange(n) % 4 != 0
    changed = right.copy()
    changed[np.flatnonzero(right)[:bad]] = False
    changed[np.flatnonzero(~right)[:good]] = True
    run = made_run()
    reference, variant = run.case("fp32"), run.case("int8-static")
    run.timed(reference, 4e-3).timed(variant, 1e-3)
    run.answered(reference, right).answered(variant, changed, agreement=(right == changed))
    analysis = analyse(run.data(constraints={"max_drop": max_drop}), today=date(2026, 1, 1))
    return analysis, analysis.case("int8-static@ort/b1/t1")


def test_a_rise_in_a_small_test_set_is_no_pass(made_run):
    """T11: 2 points up on 146 samples while a tenth of the answers changed proves nothing within one point."""
    analysis, lucky = _lucky(made_run, bad=6, good=9, n=146, max_drop=0.01)

    assert lucky.accuracy_change.value > 0.02
    assert lucky.accuracy_change.low < -0.01
    assert lucky.verdict == "INCONCLUSIVE"
    assert pytest.approx(131 / 146) == lucky.agreement.value
    assert recommend(analysis, view(analysis)).case.case.variant == "fp32"


def test_the_same_rise_in_a_large_test_set_is_a_pass(made_run):
    """T11: the verdict follows the evidence; forty times the samples decide."""
    analysis, proven = _lucky(made_run, bad=240, good=360, n=5840, max_drop=0.01)

    assert proven.verdict == "PASS"
    assert recommend(analysis, view(analysis)).case.case.variant == "int8-static"


def test_only_right_and_wrong_answers_are_counted_as_such(made_run):
    """An AUC is a proportion, but of no answers: the recommendation words its change in points."""
    random = np.random.default_rng(0)
    labels = np.arange(400) % 2
    rows = np.column_stack([labels, labels + random.normal(0, 0.5, 400)]).astype(np.float64)
    run = made_run()
    reference, variant = run.case("fp32"), run.case("int8-static")
    run.timed(reference, 4e-3).timed(variant, 1e-3)
    run.answered(reference, rows, metric="auc")
    run.answered(variant, rows + np.array([0, 1e-9]) * random.normal(0, 1, (400, 1)), metric="auc")
    analysis = analyse(run.data(), today=date(2026, 1, 1))

    said = " ".join(recommend(analysis, view(analysis)).sentences)

    assert "wrong answers" not in said
    assert "points" in said


def test_a_run_is_read_where_its_metric_function_is_missing(made_run):
    """Records outlive the user's code, and reading somebody's run runs none of it: the stored rows are enough."""
    right = np.arange(100) % 4 != 0
    run = made_run()
    reference, variant = run.case("fp32"), run.case("int8-static")
    run.timed(reference, 4e-3).timed(variant, 1e-3)
    for case in (reference, variant):
        run.answered(case, right, metric="nowhere_to_be_found.module:function")
    analysis = analyse(run.data(), today=date(2026, 1, 1))
    read = analysis.case("int8-static@ort/b1/t1")

    assert read.accuracy.value == pytest.approx(0.75)
    assert read.latency_p50_s.value < 2e-3
    assert view(analysis).y == "accuracy"


def test_a_metric_of_another_version_leaves_the_rest_readable(made_run):
    """Only what needs the unknown metric is missing, with the reason."""
    run = made_run()
    reference = run.case("fp32")
    run.timed(reference, 4e-3).answered(reference, np.arange(100) % 4 != 0, metric="top17")
    analysis = analyse(run.data(), today=date(2026, 1, 1))
    read = analysis.case("fp32@ort/b1/t1")

    assert "unknown metric 'top17'" in read.accuracy.reason
    assert read.agreement.value == 1.0
    assert read.latency_p50_s.value < 5e-3
    assert view(analysis).y == "agreement"
