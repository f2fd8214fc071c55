"""Models, variants, rows and the CPU's answers that a GPU is held against."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from profiler import demo
from profiler.errors import EdgeprofError
from profiler.export import export_model
from profiler.onnx_io import model_inputs, read_model
from profiler.variants import registry

MINI, MODELS = "mini-resnet", ("mini-resnet", "efficientnet-lite0", "minilm-sentiment")
VARIANTS = {
    "fp32": "fp32",
    "fp16": "fp16",
    "int8": "int8-static{per_channel=true,symmetric_activations=true}",
    "fp8": "fp8{bias_correction=true}+fp16",
}
ROWS, CALIBRATION_ROWS = 64, 128


def write(name: str, folder: Path) -> list[str]:
    """`VARIANT.onnx` of each recipe, `rows.npz` with inputs and the CPU's outputs; returns what could not be made."""
    folder.mkdir(parents=True, exist_ok=True)
    model, rows, calibration = _source(name, folder)
    missing = []
    for label, text in VARIANTS.items():
        try:
            made = registry.make(text).apply(model, calibration).model
        except EdgeprofError as error:
            missing.append(f"{name} {label}: {error}")
        else:
            onnx.save(made, folder / f"{label}.onnx")
    answers = _answers(folder / "fp32.onnx", rows)
    arrays: dict[str, Any] = {**{f"in/{key}": value for key, value in rows.items()}, **answers}
    np.savez_compressed(folder / "rows.npz", **arrays)
    return missing


def _source(name: str, folder: Path) -> tuple[onnx.ModelProto, Mapping[str, Any], Mapping[str, Any]]:
    """The model, rows to run, rows to calibrate with."""
    if name == MINI:
        model, data, calibration = read_model(demo.model_path()), demo.evaluation(), demo.calibration()
    else:
        from scripts.real_models_lib import suite

        job = suite.load(name).prepare(suite.work_folder(name), quick=True)
        with np.load(job.data) as opened:
            data = {key: opened[key] for key in opened.files}
        path = Path(job.model)
        if path.suffix != ".onnx":
            reserved = {"labels", "ids", "groups"}
            path = export_model(
                job.model, {k: v[:8] for k, v in data.items() if k not in reserved}, folder / "source.onnx"
            ).path
        model, calibration = read_model(path), data
        for left in folder.glob("source.onnx*"):
            left.unlink()
    names = [info.name for info in model_inputs(model)]
    return (
        model,
        {key: np.ascontiguousarray(data[key][-ROWS:]) for key in names},
        {key: np.ascontiguousarray(calibration[key][:CALIBRATION_ROWS]) for key in names},
    )


def _answers(path: Path, rows: Mapping[str, Any]) -> dict[str, Any]:
    import onnxruntime as ort

    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found = session.run(None, dict(rows))
    return {f"out/{info.name}": value for info, value in zip(session.get_outputs(), found, strict=True)}
