"""akiki: a recurrent state as input and output, a fixed batch, If nodes, and AUC over recordings."""

from __future__ import annotations

import numpy as np
import pytest

from profiler.records import Estimate

pytestmark = [pytest.mark.real_models, pytest.mark.process, pytest.mark.runtime]


def test_a_streaming_model_with_state_is_profiled(prepared, profiled):
    """T3, T10: two inputs, one of them state; what each runtime does with the If nodes is measured or a failure record."""
    job = prepared("akiki")
    result = profiled(job, variants=("int8-static",), limit=400)
    cases = {case.key: case for case in result.cases}
    reference, static = cases["fp32@ort/b1/t1"], cases["int8-static@ort/b1/t1"]

    assert (reference.status, static.status) == ("measured", "measured")
    assert all(case.status in ("measured", "failed") for case in cases.values())
    assert all(case.failure.message for case in cases.values() if case.status == "failed")
    assert 0.98 < reference.accuracy.value <= 1
    assert isinstance(static.accuracy_change, Estimate)
    assert static.accuracy_change.value > -0.02
    facts = next(record.facts for record in result.run.artifacts if record.variant == "int8-static")
    assert facts["ops_quantized"] > 0


def test_calibration_and_evaluation_share_no_recording(prepared):
    """Leak-free: frames of one recording stand on one side only."""
    job = prepared("akiki")
    evaluation, calibration = np.load(job.data), np.load(job.settings["calibration"])

    assert not set(evaluation["ids"]) & set(calibration["ids"])
    assert {0, 1} == set(evaluation["labels"].tolist())
