"""scikit-learn estimator → ONNX through skl2onnx: float32 inputs, plain arrays out (no ZipMap)."""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from profiler.errors import ModelError
from profiler.export.base import (
    DEFAULT_OPSET,
    Arrays,
    Exported,
    Parity,
    brief,
    check_sample,
    compare,
    head,
    onnx_runner,
)

if TYPE_CHECKING:
    from sklearn.base import BaseEstimator

PARITY_ROWS = 1024
"""Trees disagree on few rows, and rows are cheap here: more of them than for networks."""
ML_OPSET = 3
"""Tree ensembles of ai.onnx.ml 3 load in every onnxruntime; 5 has another operator that few runtimes know."""


def export(estimator: BaseEstimator, sample: Arrays, out: Path, *, opset: int | None = None) -> Exported:
    """Export a fitted estimator that predicts or transforms; outputs `label` and `probabilities`, `prediction`, or `output`.

    The sample has one array [rows, features]; floating-point features become float32, integers int64. Parity is against
    the estimator on the sample as it came, so that what float32 rounding costs is seen. Raises ModelError when the
    sample doesn't fit, the estimator is not fitted, or skl2onnx cannot convert it.
    """
    from profiler import onnx_io
    from profiler.export.naming import forget_origin, name_batch, name_interface

    what = f"scikit-learn {type(estimator).__name__}"
    check_sample(sample)
    name, features = _features(sample, what)
    outputs = _reference(estimator, features[:2], what)
    narrow = features.astype(np.int64 if features.dtype.kind in "iub" else np.float32)
    model = _convert(estimator, name, narrow, opset or DEFAULT_OPSET, what)
    names = [*outputs, *(value.name for value in list(model.graph.output)[len(outputs) :])]
    name_interface(model, [name], names)
    name_batch(model)
    forget_origin(model)
    path = onnx_io.write_model(model, out.parent, out.name)
    run = onnx_runner(path)

    def original(feeds: Arrays) -> dict[str, NDArray[np.generic]]:
        return _reference(estimator, feeds[name], what)

    def exported(feeds: Arrays) -> dict[str, NDArray[np.generic]]:
        results = run({name: feeds[name].astype(narrow.dtype)})
        expected = original(head(feeds, 1))
        # A regressor's column vector [n, 1] is scikit-learn's flat [n].
        return {
            key: results[key].reshape(-1) if expected[key].ndim == 1 and results[key].ndim == 2 else results[key]
            for key in expected
        }

    numeric = {key for key, value in outputs.items() if key != "label"}
    parity, notes = compare(
        (lambda feeds: {k: v for k, v in original(feeds).items() if k in numeric}) if numeric else original,
        exported,
        {name: features},
        max_rows=PARITY_ROWS,
        what=what,
    )
    wrong, more = _disagreements(original, exported, name, features, narrow, parity)
    if wrong:
        parity = replace(parity, ok=False)
    notes = (*more, *notes)
    if narrow.dtype != features.dtype:
        notes = (
            *notes,
            f"the export takes {narrow.dtype.name}, the sample is {features.dtype.name}: convert the data.",
        )
    files = (path, *onnx_io.external_files(path))
    return Exported(path, f"skl2onnx {version('skl2onnx')}", notes, parity, onnx_io.opset_of(model), "sklearn", files)


def _features(sample: Arrays, what: str) -> tuple[str, NDArray[np.generic]]:
    if len(sample) != 1:
        raise ModelError(f"{what} takes one array [rows, features], the sample has {list(sample)}: stack the columns.")
    name, features = next(iter(sample.items()))
    if features.ndim != 2 or features.dtype.kind not in "fiub":
        raise ModelError(
            f"{what} takes numbers [rows, features], the sample's '{name}' is {features.dtype} {features.shape}. "
            "Encode text columns first."
        )
    return name, features


def _reference(estimator: Any, features: NDArray[np.generic], what: str) -> dict[str, NDArray[np.generic]]:
    """What the estimator itself answers, by the names the export gives these outputs."""
    from sklearn.base import is_classifier, is_regressor

    try:
        if is_classifier(estimator):
            results = {"label": np.asarray(estimator.predict(features))}
            probabilities = getattr(estimator, "predict_proba", None)
            if probabilities is not None:
                results["probabilities"] = np.asarray(probabilities(features))
            return results
        if is_regressor(estimator):
            return {"prediction": np.asarray(estimator.predict(features))}
        if hasattr(estimator, "transform"):
            return {"output": np.asarray(estimator.transform(features))}
    except Exception as error:  # estimators raise what they like, NotFittedError first of all
        raise ModelError(
            f"{what} cannot run on the sample: {brief(error)}. Fit it in the factory, on these features."
        ) from error
    raise ModelError(f"{what} is neither classifier nor regressor nor transformer: export it to .onnx yourself.")


def _convert(estimator: Any, name: str, features: NDArray[np.generic], opset: int, what: str) -> Any:
    from skl2onnx import to_onnx
    from skl2onnx.common.data_types import FloatTensorType, Int64TensorType
    from sklearn.base import is_classifier

    kind = Int64TensorType if features.dtype.kind == "i" else FloatTensorType
    try:
        return to_onnx(
            estimator,
            initial_types=[(name, kind([None, features.shape[1]]))],
            options={id(estimator): {"zipmap": False}} if is_classifier(estimator) else None,
            target_opset={"": opset, "ai.onnx.ml": ML_OPSET},
        )
    except Exception as error:  # skl2onnx raises many unrelated types
        raise ModelError(
            f"{what} cannot be exported by skl2onnx {version('skl2onnx')}: {brief(error)}. "
            "Use a supported estimator, or pass a finished .onnx file."
        ) from error


def _disagreements(
    original: Any, exported: Any, name: str, features: NDArray[np.generic], narrow: NDArray[np.generic], parity: Parity
) -> tuple[int, tuple[str, ...]]:
    """Rows whose label changed without being a tie, and whether rounding the inputs to float32 explains what differs."""
    expected, actual = original({name: features[: parity.rows]}), exported({name: features[: parity.rows]})
    wrong = 0
    notes: list[str] = []
    if "label" in expected:
        differ = ~_equal(expected["label"], actual["label"])
        ties = int(np.sum(differ & _tied(expected, parity.tolerance)))
        wrong = int(np.sum(differ)) - ties
        failed = "PARITY FAILED: " if wrong else ""
        notes.append(f"{failed}labels differ on {wrong + ties} of {parity.rows} sample rows.")
        if ties:
            notes.append(
                f"{ties} of these rows are ties: the two largest probabilities are equal within {parity.tolerance:g}, and "
                "rounding decides between them, perhaps otherwise with another number of threads."
            )
    if (wrong or not parity.ok) and narrow.dtype != features.dtype:
        rounded = original({name: narrow[: parity.rows]})
        same = all(
            np.allclose(value, actual[key], rtol=parity.tolerance, atol=parity.tolerance)
            if key != "label"
            else bool(_equal(value, actual[key]).all())
            for key, value in rounded.items()
        )
        notes.append(
            "the difference comes from rounding the inputs to float32: train on float32 features to be rid of it."
            if same
            else "rounding the inputs to float32 does not explain the difference."
        )
    return wrong, tuple(notes)


def _equal(expected: NDArray[np.generic], actual: NDArray[np.generic]) -> NDArray[np.bool_]:
    """Row by row. ONNX has booleans as 0 and 1 and text as objects, so kinds may differ where values don't."""
    if expected.dtype.kind in "OUS" or actual.dtype.kind in "OUS":
        equal: NDArray[np.bool_] = expected.astype(str) == actual.astype(str)
    else:
        equal = expected.astype(np.float64) == actual.astype(np.float64)
    return np.asarray(equal.reshape(len(expected), -1).all(axis=1))


def _tied(outputs: Arrays, tolerance: float) -> NDArray[np.bool_]:
    """Rows whose two largest probabilities are equal within the tolerance."""
    if "probabilities" not in outputs or outputs["probabilities"].ndim != 2 or outputs["probabilities"].shape[1] < 2:
        return np.zeros(len(outputs["label"]), dtype=np.bool_)
    ordered = np.sort(outputs["probabilities"].astype(np.float64), axis=1)
    return np.asarray(ordered[:, -1] - ordered[:, -2] <= tolerance)
