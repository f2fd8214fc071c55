"""The five models, each with rows to calibrate on, rows for tools that look at accuracy, and rows that nobody sees before."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from profiler import demo
from profiler.data.npz import read_npz
from profiler.errors import DataError
from profiler.export import export_model
from profiler.onnx_io import model_inputs, read_model
from scripts.real_models_lib import suite
from scripts.real_models_lib.fetch import CACHE, ROOT

Arrays = dict[str, NDArray[Any]]

BUILT_IN = "mini-resnet"
MODELS = (BUILT_IN, "magika", "efficientnet-lite0", "minilm-sentiment", "ppocr-det")
CALIBRATION_ROWS = 256
"""The same for all: `int8-static` takes 256 by default and NNCF 300, ONNX Runtime whatever its reader gives."""
VALIDATION_SHARE = 4
"""One source in four is for tools that look at accuracy while they work, and for no figure here."""
VALIDATION_ROWS = 256
QUICK_ROWS = 600


@dataclass(frozen=True)
class Subject:
    """One model, and its rows cut in three."""

    name: str
    title: str
    model: Path
    """An ONNX file; models that come as code are exported first."""
    calibration: Path
    """Inputs only."""
    validation: Path
    """With labels; disjoint from calibration and evaluation, also by source."""
    evaluation: Path
    metric: str
    facts: tuple[str, ...]

    def inputs(self, part: str) -> list[Arrays]:
        """Rows of `calibration`, `validation` or `evaluation`, one feed of batch 1 each."""
        names = [info.name for info in model_inputs(read_model(self.model))]
        arrays = read_npz(getattr(self, part))
        return [{name: arrays[name][at : at + 1] for name in names} for at in range(len(arrays[names[0]]))]


def prepare(name: str, *, quick: bool) -> Subject:
    """Fetch or make what the model needs. Raises FetchError, EdgeprofError."""
    folder = CACHE / "bench" / name
    folder.mkdir(parents=True, exist_ok=True)
    if name == BUILT_IN:
        model, title, metric = demo.model_path(), "mini-ResNet on Fashion-MNIST (built in)", "top1"
        data: Mapping[str, NDArray[Any]] = demo.evaluation()
        calibration: Mapping[str, NDArray[Any]] = demo.calibration()
        facts: tuple[str, ...] = ("Test images of Fashion-MNIST; calibration on training images.",)
    else:
        module = suite.load(name)
        job = module.prepare(suite.work_folder(name), quick=quick)
        data, calibration = read_npz(Path(job.data)), read_npz(Path(job.settings["calibration"]))
        model, title, metric = Path(job.model), module.TITLE, job.settings["metric"]
        facts = job.facts
        if not job.model.endswith(".onnx"):
            model = folder / "model.onnx"
            # Pinned weights give the same export; a kept one spares the torch extra.
            if not model.is_file():
                rows = {key: array[:8] for key, array in data.items() if key not in ("labels", "ids", "groups")}
                export_model(job.model, rows, model)
    for_tools = _held_out(data)
    limit = QUICK_ROWS if quick else None
    names = [info.name for info in model_inputs(read_model(model))]
    parts = {
        "calibration": {key: calibration[key][:CALIBRATION_ROWS] for key in names},
        "validation": {key: array[for_tools][:VALIDATION_ROWS] for key, array in data.items() if key != "ids"},
        "evaluation": {key: array[~for_tools][:limit] for key, array in data.items()},
    }
    counts = {part: len(next(iter(arrays.values()))) for part, arrays in parts.items()}
    if short := [part for part, count in counts.items() if count == 0]:
        raise DataError(f"{name}: no rows are left for {', '.join(short)}.")
    said = (
        f"{counts['evaluation']} rows evaluate, {counts['calibration']} calibrate, {counts['validation']} others were shown "
        "to tools that look at accuracy while they quantize; no source has rows on two sides."
    )
    paths = {part: suite.save(folder / f"{part}.npz", **arrays) for part, arrays in parts.items()}
    return Subject(
        name,
        title,
        model,
        paths["calibration"],
        paths["validation"],
        paths["evaluation"],
        metric,
        (*facts, said),
    )


def short_path(path: Path) -> str:
    """A path as it stands in a variant's text: from the repository, where the run starts."""
    return os.path.relpath(path, ROOT)


def _held_out(data: Mapping[str, NDArray[Any]]) -> NDArray[np.bool_]:
    """Rows of every fourth source, drawn by the hash of its name; rows without a source are their own."""
    count = len(next(iter(data.values())))
    names = data["ids"].astype(str) if "ids" in data else np.arange(count).astype(str)
    # Salted: magika's preparation has drawn by the plain hash of the same names before.
    drawn = np.array([hashlib.sha256(f"validation {name}".encode()).digest()[0] for name in names])
    return drawn % VALIDATION_SHARE == 0
