"""The product's accuracy is what a plain loop over the same file says: outputs in another order, states, scalars, dB."""

from __future__ import annotations

import numpy as np
import pytest

pytestmark = [pytest.mark.real_models, pytest.mark.process, pytest.mark.runtime]


@pytest.mark.parametrize("name", ["mtcnn-rnet", "silero-vad", "upscaler", "romanizer", "aecmos"])
def test_accuracy_is_what_a_plain_loop_says(prepared, profiled, tmp_path, name):
    """Of the unmodified model and of one with int8: the two answers have nothing in common but the files."""
    from scripts.real_models_lib import check, suite

    job = prepared(name)
    variant = "int8-static" if name == "upscaler" else "int8-dynamic"
    rows = check.compared(
        suite.load(name), job, profiled(job, variants=(variant,), backends=("ort",)), tmp_path / "runs"
    )

    assert len(rows) == 2
    assert not [str(row) for row in rows if row.differs]


def test_recordings_stand_on_one_side_only(prepared):
    """Silero's recordings are numbered over both files: two that were numbered from 0 looked like the same ones."""
    job = prepared("silero-vad")
    evaluation, calibration = np.load(job.data), np.load(job.settings["calibration"])

    assert not set(evaluation["ids"]) & set(calibration["ids"])
    assert set(evaluation["labels"]) == {0, 1}
