"""What one model of the suite is, and the list of them."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from scripts.real_models_lib.fetch import CACHE, Source

MODELS: Mapping[str, str] = {
    "magika": "magika",
    "random-forest": "forest",
    "akiki": "akiki",
    "efficientnet-lite0": "efficientnet",
    "minilm-sentiment": "minilm",
    "ppocr-det": "ppocr",
    "mtcnn-rnet": "faces",
    "silero-vad": "silero",
    "upscaler": "upscaler",
    "romanizer": "romanizer",
    "aecmos": "echo",
}
"""Module of each model, the quick ones first."""


@dataclass(frozen=True)
class Job:
    """A model with data, ready for `profiler.profile(job.model, job.data, **job.settings)`."""

    model: str
    data: Path
    settings: Mapping[str, Any]
    sources: tuple[Source, ...]
    facts: tuple[str, ...]
    """What was made of the sources, with counts: rows, classes, how calibration is kept apart."""
    packages: Mapping[str, str] = field(default_factory=dict)
    """Versions of packages that took part beside those of the environment record."""


class Model(Protocol):
    """A module of the suite."""

    TITLE: str
    ABOUT: str
    """What the model is, and what makes it worth profiling, without figures."""

    def prepare(self, folder: Path, *, quick: bool) -> Job:
        """Fetch, write the data under `folder`, and say how to profile it."""
        ...


def load(name: str) -> Model:
    """The module of a model of the suite."""
    return cast("Model", importlib.import_module(f"scripts.real_models_lib.{MODELS[name]}"))


def work_folder(name: str) -> Path:
    """Where a model's prepared data and runs lie."""
    folder = CACHE / "work" / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def save(path: Path, **arrays: NDArray[Any]) -> Path:
    """Write an npz."""
    np.savez(path, **arrays)  # type: ignore[arg-type]  # numpy's stub takes allow_pickle for one of the arrays
    return path


def run_file(model: Path, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """One inference by ONNX Runtime itself, outputs by name: what the product's answers are held against."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    found = session.run(None, dict(feeds))
    return {info.name: value for info, value in zip(session.get_outputs(), found, strict=True)}


def run_rows(
    model: Path, rows: Mapping[str, NDArray[Any]], same: Mapping[str, NDArray[Any]] | None = None
) -> dict[str, NDArray[Any]]:
    """Outputs by name, first axis the rows: one inference a row, as the product's cases of batch 1 are.

    `same` are inputs that are equal for all rows. Batches would do for most files, but a dynamic int8 one takes its scales from
    all that it is given at once.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    names = [info.name for info in session.get_outputs()]
    count = len(next(iter(rows.values())))
    parts = [
        session.run(names, {**{name: array[row : row + 1] for name, array in rows.items()}, **(same or {})})
        for row in range(count)
    ]
    return {name: np.concatenate([part[place] for part in parts]) for place, name in enumerate(names)}
