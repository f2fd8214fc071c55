"""Metrics of models that answer with values or vectors, and of any model without labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from profiler.errors import DataError, unknown
from profiler.quality.choice import Purpose, agreement, pick
from profiler.quality.metrics import BaseMetric, Unit
from profiler.quality.outputs import Array, named_output
from profiler.quality.similarity import cosine


@dataclass(frozen=True)
class _Errors(BaseMetric):
    """Differences from target values."""

    unit: ClassVar[Unit] = "native"
    reads: ClassVar[Purpose] = "values"
    higher_is_better: ClassVar[bool] = False

    def _differences(self, outputs: Mapping[str, Array], labels: Array | None) -> NDArray[np.float64]:
        """Output minus label, flattened to shape (n, values)."""
        values, targets = self.paired(outputs, labels, "values")
        rows = values.reshape(len(values), -1).astype(np.float64)
        if bad := int((~np.isfinite(rows)).any(axis=1).sum()):
            raise DataError(
                f"metric {self.name} has no error for NaN or infinite outputs, {bad} of {len(rows)} rows have them."
            )
        return rows - targets.reshape(len(rows), -1).astype(np.float64)


@dataclass(frozen=True)
class RootMeanSquareError(_Errors):
    """Root of the mean squared error. Keeps each row's mean squared error, shape (n,)."""

    label: ClassVar[str] = "rmse"
    mean_reduced: ClassVar[bool] = False

    def per_sample(
        self, outputs: Mapping[str, Array], labels: Array | None, reference: Mapping[str, Array] | None = None
    ) -> NDArray[np.float64]:
        """Mean squared error of each row."""
        del reference
        return np.asarray((self._differences(outputs, labels) ** 2).mean(axis=1), np.float64)

    def value(self, per_sample: NDArray[np.float64]) -> float:
        """Root of the mean."""
        return float(np.sqrt(per_sample.mean()))

    def row_losses(self, reference: NDArray[np.float64], variant: NDArray[np.float64]) -> NDArray[np.float64]:
        """Differences of the squares over the sum of the two roots: their mean is exactly the difference of the roots."""
        both = self.value(reference) + self.value(variant)
        return np.zeros(len(reference)) if both == 0 else (variant - reference) / both

    def largest_row_loss(self, reference: NDArray[np.float64]) -> float | None:
        """An error has no upper end."""
        del reference
        return None

    def rarest(self, per_sample: NDArray[np.float64]) -> int | None:
        """There are no classes."""
        del per_sample
        return None


@dataclass(frozen=True)
class MeanAbsoluteError(_Errors):
    """Mean absolute error. Keeps each row's, shape (n,)."""

    label: ClassVar[str] = "mae"

    def per_sample(
        self, outputs: Mapping[str, Array], labels: Array | None, reference: Mapping[str, Array] | None = None
    ) -> NDArray[np.float64]:
        """Mean absolute error of each row."""
        del reference
        return np.asarray(np.abs(self._differences(outputs, labels)).mean(axis=1), np.float64)


@dataclass(frozen=True)
class Cosine(BaseMetric):
    """Mean cosine similarity (see `similarity.cosine`) with the reference's vectors, or with label vectors (`against=labels`)."""

    label: ClassVar[str] = "cosine"
    unit: ClassVar[Unit] = "native"
    reads: ClassVar[Purpose] = "values"
    against: str = "reference"

    def __post_init__(self) -> None:
        """Refuse anything to compare with that does not exist."""
        if self.against not in ("labels", "reference"):
            raise unknown("comparison of metric cosine", self.against, ("labels", "reference"))

    @property
    def needs_labels(self) -> bool:
        """True when compared against labels."""
        return self.against == "labels"

    def per_sample(
        self, outputs: Mapping[str, Array], labels: Array | None, reference: Mapping[str, Array] | None = None
    ) -> NDArray[np.float64]:
        """Similarity of each row, in [−1, 1]."""
        if self.needs_labels:
            values = self.chosen(outputs, labels).array
            return cosine(values, self.checked(labels, len(values)))
        base = _given(self.name, reference)
        chosen = pick(base, None, self.reads, metric=self.label, output=self.output)
        return cosine(named_output(outputs, chosen.name), chosen.array)


@dataclass(frozen=True)
class Agreement(BaseMetric):
    """Mean agreement with the reference: the share of equal answers for classifiers, similarity otherwise. Needs no labels."""

    label: ClassVar[str] = "agreement"
    reads: ClassVar[Purpose] = "answers"

    @property
    def needs_labels(self) -> bool:
        """Never."""
        return False

    def per_sample(
        self, outputs: Mapping[str, Array], labels: Array | None, reference: Mapping[str, Array] | None = None
    ) -> NDArray[np.float64]:
        """1 or 0 for classes, similarity otherwise."""
        del labels
        return agreement(outputs, _given(self.name, reference), output=self.output)


def _given(metric: str, reference: Mapping[str, Array] | None) -> Mapping[str, Array]:
    if reference is None:
        raise DataError(
            f"metric {metric} compares with the reference, whose outputs are missing: evaluate the reference first."
        )
    return reference
