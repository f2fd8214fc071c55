"""A random forest on the breast-cancer data that scikit-learn brings: the tabular negative control."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scripts.real_models_lib.suite import Job, save

TITLE = "Random forest on breast cancer (tabular)"
ABOUT = (
    "A scikit-learn estimator through `package.module:factory`. Trees have no weights to quantize and OpenVINO has no "
    "operator for them, so this is the control: the profiler has to say so and go on, and must not find a gain."
)


def _halves() -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.bool_]]:
    from sklearn.datasets import load_breast_cancer

    features, labels = load_breast_cancer(return_X_y=True)
    held_out = np.random.default_rng(0).permutation(len(labels)) < len(labels) // 2
    return features.astype(np.float32), labels.astype(np.int64), held_out


def factory() -> Any:
    """The forest, fitted on one half of the data. The same on every call."""
    from sklearn.ensemble import RandomForestClassifier

    features, labels, held_out = _halves()
    return RandomForestClassifier(n_estimators=100, random_state=0, n_jobs=1).fit(
        features[~held_out], labels[~held_out]
    )


def prepare(folder: Path, *, quick: bool) -> Job:
    """The other half, to evaluate on; calibration rows come from the half that the forest was fitted on."""
    del quick
    features, labels, held_out = _halves()
    calibration = save(folder / "calibration.npz", features=features[~held_out][:128])
    return Job(
        model="scripts.real_models_lib.forest:factory",
        data=save(folder / "evaluation.npz", features=features[held_out], labels=labels[held_out]),
        settings={
            "calibration": str(calibration),
            "variants": ("graph", "int8-dynamic", "int8-static"),
            "batches": (1, 16),
            "constraints": {"max_drop": 0.02},
        },
        sources=(),
        facts=(
            f"{int(held_out.sum())} patients to evaluate on, {int((~held_out).sum())} others to fit 100 trees and to calibrate.",
            "Data: Wisconsin Diagnostic Breast Cancer (Wolberg, Mangasarian, Street, UCI 1995), as bundled with scikit-learn.",
        ),
        packages={"skl2onnx": version("skl2onnx")},
    )
