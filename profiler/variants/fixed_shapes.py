"""Whether OpenVINO, compiled for fixed shapes as it is run by default, computes what a quantized file says."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from backends import registry
from backends.base import EdgeprofError, LoadOptions
from profiler.onnx_io import model_outputs, write_model
from profiler.variants.base import Calibration, Fact
from profiler.variants.running import COSINE_WARNING, answers, probe, scratch, similarity


def judge_fixed_shapes(
    original: ModelProto, result: ModelProto, calibration: Calibration | None, facts: dict[str, Fact], notes: list[str]
) -> None:
    """Add a fact and a note where OpenVINO answers otherwise than the file says; only for files with chained products.

    OpenVINO 2026.4 fuses products in a row for fixed shapes, and its fusion errs for some files in int8 that its own plain
    kernels, with dynamic shapes, compute rightly.
    """
    products = {node.name for node in result.graph.node if node.op_type in ("Gemm", "MatMul")}
    if not calibration or len(products) < 2:
        return
    feeds = probe(original, calibration)
    wanted = answers(result, feeds)
    if wanted is None:
        return
    try:
        got = _openvino(result, feeds)
    except EdgeprofError:
        return
    alike = similarity(wanted, got)
    facts["ov_fixed_shape_cosine"] = None if alike is None else round(alike, 6)
    if alike is not None and alike < COSINE_WARNING:
        notes.append(
            f"OpenVINO with fixed shapes answers otherwise than this file says (lowest cosine {alike:.3f}): measure it with "
            "ov{shape=dynamic}, or on ort."
        )


def _openvino(model: ModelProto, feeds: list[dict[str, NDArray[Any]]]) -> list[list[NDArray[Any]]]:
    names = [info.name for info in model_outputs(model)]
    found = []
    with scratch() as folder:
        path = write_model(model, folder)
        shapes = {name: array.shape for name, array in feeds[0].items()}
        session = registry.get("ov").load(path, LoadOptions(sample_shapes=shapes))
        try:
            for row in feeds:
                outputs = session.infer(row)
                found.append([np.asarray(outputs[name]).copy() for name in names])
        finally:
            session.close()
    return found
