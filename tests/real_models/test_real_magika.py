"""magika: int32 input, 214 classes, clusters of files; which int8 recipe keeps it and which one destroys it."""

from __future__ import annotations

import pytest

from profiler.records import Estimate

pytestmark = [pytest.mark.real_models, pytest.mark.process, pytest.mark.runtime]

STATIC = "int8-static{per_channel=true}"


def test_features_pad_inside_and_strip_outside():
    """Small files: white space goes from the outer sides, 256 fills the inner ones."""
    from scripts.real_models_lib.magika import features

    row = features(b"  ab ", b"  ab ")

    assert row[:4].tolist() == [97, 98, 32, 256]
    assert row[-5:].tolist() == [256, 32, 32, 97, 98]
    assert row.shape == (2048,)


def test_products_in_int8_keep_the_answers_and_everything_in_int8_does_not(prepared, profiled):
    """T1, T8: per channel on MatMul with bias works; quantizing every op that can be ruins the model, and it is seen."""
    from scripts.real_models_lib.magika import EVERYTHING

    job = prepared("magika")
    result = profiled(job, variants=(STATIC, EVERYTHING), backends=("ort",), limit=150)
    cases = {case.case.variant: case for case in result.cases}
    fp32, static, everything = cases["fp32"], cases[STATIC], cases[EVERYTHING]

    assert [case.status for case in (fp32, static, everything)] == ["measured"] * 3
    assert fp32.accuracy.value > 0.85
    assert static.agreement.value > 0.93
    assert static.accuracy_change.value > -0.05
    assert static.size_bytes.value / fp32.size_bytes.value < 0.35
    assert everything.accuracy_change.high < -0.05
    assert everything.verdict == "FAIL"
    assert isinstance(fp32.accuracy, Estimate)
    assert "clusters" in (fp32.accuracy.note or "")
    assert everything is not result.recommendation.case
