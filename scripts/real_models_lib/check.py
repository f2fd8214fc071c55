"""The product's accuracy beside one worked out apart from it: plain loops over the same files, by the model's own rule."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from profiler.api import Result
from profiler.artifacts import ArtifactStore
from profiler.records import Estimate
from profiler.run import CACHE_NAME
from scripts.real_models_lib.suite import Job, Model

_EQUAL = 2e-3
"""Runtimes sum in other orders: an answer in a thousand may turn, a last digit of a value too."""


@dataclass(frozen=True)
class Row:
    """One variant in ONNX Runtime."""

    variant: str
    product: float | None
    right: float
    reason: str = ""

    @property
    def differs(self) -> bool:
        """Whether the product says something else, or nothing."""
        return self.product is None or not math.isclose(self.product, self.right, rel_tol=_EQUAL, abs_tol=_EQUAL)

    def __str__(self) -> str:
        """A line for people."""
        said = f"not measured, {self.reason}" if self.product is None else f"{self.product:.6g}"
        return f"{'DIFFERS' if self.differs else 'the same'}: {self.variant}: edgeprof {said}, apart from it {self.right:.6g}"


def compared(model: Model, job: Job, result: Result, out: Path) -> list[Row]:
    """Every variant that ONNX Runtime ran, on one row at a time; none for a model that has no rule of its own."""
    rule = getattr(model, "right", None)
    if rule is None:
        return []
    store, rows = ArtifactStore(out / CACHE_NAME), []
    artifacts = {record.variant: record for record in result.run.artifacts}
    for case in result.cases:
        record = artifacts.get(case.case.variant)
        if case.case.backend != "ort" or case.status != "measured" or record is None:
            continue
        accuracy = case.accuracy
        value, why = (accuracy.value, "") if isinstance(accuracy, Estimate) else (None, accuracy.reason)
        rows.append(Row(case.key, value, rule(job, store.path(record.sha256)), why))
    return rows
