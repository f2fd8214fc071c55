"""What other tools make of the same model, called as their documentation shows, with their defaults.

ONNX Runtime: onnxruntime.ai/docs/performance/model-optimizations/quantization.html. NNCF: docs.openvino.ai, "Basic
Quantization Flow" and "Quantizing with Accuracy Control", on OpenVINO's own model form and saved in it. Its default also on
ONNX: it places other quantizers there, with which OpenVINO runs other ops in int8, and fails on other models.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from profiler.data.npz import read_npz
from profiler.onnx_io import model_outputs, read_model
from profiler.quality.metrics import get_metric
from profiler.variants.nncf import NO_TELEMETRY
from profiler.variants.running import inside, short
from scripts.bench_variants_lib.candidates import TRANSFORMERS
from scripts.bench_variants_lib.subjects import Arrays, Subject
from scripts.real_models_lib.fetch import ROOT

MAX_DROP = 0.01
RANKING_ROWS = 64
"""NNCF ranks layers on up to 300 rows by default; on one or two cores that takes hours for the larger models."""

LIMIT_S = 1800.0
"""Longest that one tool may work on one model."""
_MADE = "made: "


@dataclass(frozen=True)
class Peer:
    """A file that another tool wrote, or why it wrote none."""

    label: str
    about: str
    path: Path | None
    seconds: float
    why: str | None = None


@dataclass(frozen=True)
class Tool:
    """How a peer is made: `make(subject, folder)` returns the file."""

    label: str
    about: str
    make: Callable[[Subject, Path], Path]


def tools(subject: Subject) -> tuple[Tool, ...]:
    """The peers of a model."""
    found = [
        Tool("ort-static", "`quant_pre_process`, then `quantize_static(model, output, reader)`", ort_static),
        Tool("ort-dynamic", "`quantize_dynamic(model, output)`", ort_dynamic),
        Tool("nncf", "`nncf.quantize(model, dataset)` on OpenVINO's form of the model", nncf_default),
        Tool("nncf-onnx", "`nncf.quantize(model, dataset)` on the ONNX model", nncf_onnx),
        Tool(
            "nncf-accuracy",
            f"`nncf.quantize_with_accuracy_control(…, max_drop={MAX_DROP})`, layers ranked on {RANKING_ROWS} rows",
            nncf_accuracy,
        ),
    ]
    if subject.name in TRANSFORMERS:
        found.append(Tool("nncf-transformer", "`nncf.quantize(…, model_type=TRANSFORMER)`", nncf_transformer))
    return tuple(found)


def make(tool: Tool, subject: Subject, folder: Path) -> Peer:
    """Run a tool in a process of its own. That it fails or does not end is a result: it has no variant of this model."""
    folder.mkdir(parents=True, exist_ok=True)
    order = json.dumps({key: str(value) for key, value in asdict(subject).items() if key != "facts"})
    # NNCF would report each call to its makers.
    environment = {**os.environ, NO_TELEMETRY: "1"}
    command = [sys.executable, "-m", "scripts.bench_variants_lib.peers", tool.label, str(folder), order]
    started = time.perf_counter()
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return Peer(
            tool.label, tool.about, None, time.perf_counter() - started, f"not done after {LIMIT_S / 60:.0f} minutes"
        )
    seconds = time.perf_counter() - started
    said = done.stdout.strip().splitlines()[-1:] or [""]
    if done.returncode == 0 and said[0].startswith(_MADE):
        return Peer(tool.label, tool.about, Path(said[0].removeprefix(_MADE)), seconds)
    lines = done.stderr.strip().splitlines()[-1:] or [f"ended with exit code {done.returncode}"]
    return Peer(tool.label, tool.about, None, seconds, short(RuntimeError(lines[0])))


def _main() -> None:
    """One tool on one model, both named on the command line: the file's path is the last line of the output."""
    label, folder, order = sys.argv[1:]
    fields = json.loads(order)
    paths = {key: Path(fields[key]) for key in ("model", "calibration", "validation", "evaluation")}
    subject = Subject(**{**fields, **paths, "facts": ()})
    tool = next(tool for tool in tools(subject) if tool.label == label)
    with inside(Path(folder)):  # some leave files in the working directory
        path = tool.make(subject, Path(folder))
    print(f"{_MADE}{path}")


def ort_static(subject: Subject, folder: Path) -> Path:
    """The documentation's way, with the way out that its FAQ gives when symbolic shape inference fails."""
    from onnxruntime.quantization import CalibrationDataReader, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc,unused-ignore]  # onnxruntime is not typed
        def __init__(self) -> None:
            self._rows = iter(subject.inputs("calibration"))

        def get_next(self) -> Arrays | None:
            return next(self._rows, None)

    prepared, out = folder / "ort-prepared.onnx", folder / "ort-static.onnx"
    try:
        quant_pre_process(str(subject.model), str(prepared))
    except Exception:  # noqa: BLE001 (sympy and onnx raise their own)
        quant_pre_process(str(subject.model), str(prepared), skip_symbolic_shape=True)
    quantize_static(str(prepared), str(out), Reader())
    return out


def ort_dynamic(subject: Subject, folder: Path) -> Path:
    """One line, no data."""
    from onnxruntime.quantization import quantize_dynamic

    out = folder / "ort-dynamic.onnx"
    quantize_dynamic(str(subject.model), str(out))
    return out


def nncf_default(subject: Subject, folder: Path) -> Path:
    """NNCF's post-training quantization."""
    return _nncf(subject, folder / "nncf.xml")


def nncf_onnx(subject: Subject, folder: Path) -> Path:
    """The same on ONNX, which ONNX Runtime loads too."""
    import nncf
    import onnx

    out = folder / "nncf-onnx.onnx"
    onnx.save(nncf.quantize(onnx.load(str(subject.model)), nncf.Dataset(subject.inputs("calibration"))), str(out))
    return out


def nncf_transformer(subject: Subject, folder: Path) -> Path:
    """The same, told that the model is a transformer."""
    import nncf

    return _nncf(subject, folder / "nncf-transformer.xml", model_type=nncf.ModelType.TRANSFORMER)


def _nncf(subject: Subject, out: Path, **options: Any) -> Path:
    import nncf
    import openvino

    model = openvino.Core().read_model(str(subject.model))
    quantized = nncf.quantize(model, nncf.Dataset(subject.inputs("calibration")), **options)
    openvino.save_model(quantized, str(out))
    return out


def nncf_accuracy(subject: Subject, folder: Path) -> Path:
    """NNCF looks at the metric of the validation rows and takes layers back to float until the drop is small enough."""
    import nncf
    import openvino

    out = folder / "nncf-accuracy.xml"
    metric = get_metric(subject.metric)
    names = [info.name for info in model_outputs(read_model(subject.model))]
    labels = read_npz(subject.validation)["labels"]
    rows = list(zip(subject.inputs("validation"), labels, strict=True))

    def validate(compiled: Any, items: Iterable[tuple[Arrays, Any]]) -> tuple[float, list[float]]:
        kept = []
        for feeds, label in items:
            results = dict(zip(names, (np.array(value) for value in compiled(feeds).values()), strict=True))
            kept.append(metric.per_sample(results, np.asarray(label)[np.newaxis]))
        values = np.concatenate(kept)
        return metric.value(values), [float(value) for value in values]

    options = {"model_type": nncf.ModelType.TRANSFORMER} if subject.name in TRANSFORMERS else {}
    quantized = nncf.quantize_with_accuracy_control(
        openvino.Core().read_model(str(subject.model)),
        calibration_dataset=nncf.Dataset(subject.inputs("calibration")),
        validation_dataset=nncf.Dataset(rows, lambda item: item[0]),
        validation_fn=validate,
        max_drop=MAX_DROP,
        advanced_accuracy_restorer_parameters=nncf.AdvancedAccuracyRestorerParameters(ranking_subset_size=RANKING_ROWS),
        **options,
    )
    openvino.save_model(quantized, str(out))
    return out


if __name__ == "__main__":
    _main()
