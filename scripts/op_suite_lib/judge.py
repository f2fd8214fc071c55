"""What a file answers on the runtimes here, and how far that is from what it should."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backends import registry
from backends.base import LoadOptions

RUNTIMES: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "ort off": ("ort", {"opt": "off"}),
    "ort": ("ort", {}),
    "ov dynamic": ("ov", {"shape": "dynamic"}),
    "ov": ("ov", {}),
}
ERRORS: tuple[tuple[str, float], ...] = (
    ("int4", 0.4), ("int8-weight", 0.03), ("int8", 0.12), ("nncf", 0.12), ("fp8", 0.2), ("fp16", 0.01), ("graph", 1e-4),
)  # fmt: skip
"""Largest relative error that a recipe may show, by the first text that its own text holds; others are not judged by numbers."""
OWN_ERROR = 1e-3
"""A runtime that is further from the expected answers than this with the original model is not asked about variants."""

Arrays = dict[str, NDArray[Any]]


def answers(path: Path, feeds: Arrays, runtime: str, more: Mapping[str, str] | None = None) -> Arrays:
    """Outputs by name. Raises what the runtime raises."""
    backend, options = RUNTIMES[runtime]
    shapes = {name: array.shape for name, array in feeds.items()}
    loading = LoadOptions(sample_shapes=shapes, options={**options, **(more or {})})
    session = registry.get(backend).load(path, loading)
    try:
        return {name: np.asarray(array).copy() for name, array in session.infer(feeds).items()}
    finally:
        session.close()


def limit(recipe: str) -> float | None:
    """The error that `recipe` may make; None where its answers are meant to differ."""
    if "prune" in recipe:
        return None
    return next((most for text, most in ERRORS if text in recipe), None)


def error(wanted: Arrays, got: Arrays) -> float:
    """Largest relative L2 error over outputs; infinite where types, shapes or what is finite differ."""
    worst = 0.0
    for name, array in wanted.items():
        other = got.get(name)
        if other is None or other.shape != array.shape or other.dtype != array.dtype:
            return float("inf")
        if array.dtype.kind != "f" and array.dtype.name != "bfloat16":
            # Whole numbers come from comparisons and roundings, which an inexact variant may tip over.
            continue
        first, second = array.astype(np.float64), other.astype(np.float64)
        finite = np.isfinite(first)
        if not np.isfinite(second[finite]).all():
            return float("inf")
        norm = float(np.linalg.norm(first[finite]))
        off = float(np.linalg.norm(first[finite] - second[finite]))
        worst = max(worst, off / norm if norm > 0 else off)
    return worst
