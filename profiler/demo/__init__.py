"""The built-in model and its labelled data: a small residual network on Fashion-MNIST. Origin and licence: PROVENANCE.md here."""

from __future__ import annotations

from importlib.resources import as_file, files
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from profiler.errors import DataError, ModelError

CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
"""Class names; a label is an index into them."""


def model_path() -> Path:
    """The ONNX file: `image` float32 [N, 1, 28, 28] in 0..1 → `logits` float32 [N, 10]. Raises ModelError when it is gone."""
    resource = files(__name__).joinpath("fashion_mnist_resnet.onnx")
    # Workers open the model by path after this call: a temporary copy out of a zip would be gone by then.
    if not isinstance(resource, Path) or not resource.is_file():
        raise ModelError(f"the demo model is not a file at '{resource}': install edgeprof unzipped (pip does).")
    return resource


def evaluation() -> dict[str, NDArray[np.generic]]:
    """4,000 test images, 400 of each class: `image` float32 [4000, 1, 28, 28] in 0..1, `labels` int64, `ids` text, [4000].

    Raises DataError when the file is gone or damaged.
    """
    return _load("fashion_mnist_evaluation.npz", "t10k")


def calibration() -> dict[str, NDArray[np.generic]]:
    """512 training images for quantizers, the arrays of `evaluation`; none of them is a test image. Raises DataError."""
    return _load("fashion_mnist_calibration.npz", "train")


def _load(name: str, split: str) -> dict[str, NDArray[np.generic]]:
    try:
        with as_file(files(__name__).joinpath(name)) as path, np.load(path, allow_pickle=False) as archive:
            images, labels, index = archive["image"], archive["labels"], archive["index"]
    except (OSError, KeyError, ValueError) as error:
        raise DataError(f"the demo data '{name}' cannot be read ({error}): install edgeprof again.") from error
    return {
        "image": images[:, None].astype(np.float32) / np.float32(255),
        "labels": labels.astype(np.int64),
        "ids": np.array([f"{split}-{row:05d}" for row in index]),
    }
