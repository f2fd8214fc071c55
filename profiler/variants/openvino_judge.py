"""Whether OpenVINO computes what a quantized file says: compiled for fixed shapes, as it is run by default, and without."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from backends import registry
from backends.base import EdgeprofError, LoadOptions
from profiler.onnx_io import model_outputs, write_model
from profiler.variants.base import Calibration, Fact
from profiler.variants.running import answers, probe, scratch, similarity

SAME = 0.99
"""Least similarity of runtimes that compute the same integers: where they round apart, values move by a step or two of 255."""
OTHERWISE = "OpenVINO answers otherwise than this file says"


def judge_openvino(
    original: ModelProto, result: ModelProto, calibration: Calibration | None, facts: dict[str, Fact], notes: list[str]
) -> None:
    """Add a fact and a note where OpenVINO answers otherwise than the file says on a few calibration rows.

    OpenVINO 2026.4 fuses products in a row for fixed shapes, and its fusion errs for some files in int8 that its own plain
    kernels, with dynamic shapes, compute rightly. A model that OpenVINO does not load is no finding here.
    """
    if not calibration:
        return
    feeds = probe(original, calibration)
    wanted = answers(result, feeds)
    if wanted is None:
        return
    fixed = _alike(result, feeds, wanted, "static")
    if fixed is None:
        return
    facts["ov_similarity"] = round(fixed, 6)
    if fixed >= SAME:
        return
    free = _alike(result, feeds, wanted, "dynamic")
    way_out = "measure it with ov{shape=dynamic}, or on ort" if free is not None and free >= SAME else "ort is right"
    notes.append(f"{OTHERWISE} (similarity {fixed:.3f} with fixed shapes): {way_out}.")


def _alike(
    model: ModelProto, feeds: list[dict[str, NDArray[Any]]], wanted: list[list[NDArray[Any]]], shape: str
) -> float | None:
    """Lowest similarity between OpenVINO's answers and the wanted ones; None when it does not run the model."""
    names = [info.name for info in model_outputs(model)]
    found = []
    try:
        with scratch() as folder:
            shapes = {name: array.shape for name, array in feeds[0].items()}
            loading = LoadOptions(sample_shapes=shapes, options={"shape": shape})
            session = registry.get("ov").load(write_model(model, folder), loading)
            try:
                for row in feeds:
                    outputs = session.infer(row)
                    found.append([np.asarray(outputs[name]).copy() for name in names])
            finally:
                session.close()
    except (EdgeprofError, KeyError):
        return None
    return similarity(wanted, found)
