"""The metric of models that give each row several tags, and of masks: flags that each are right or wrong."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from profiler.errors import DataError
from profiler.quality.candidates import Candidate
from profiler.quality.choice import Purpose, Unclear
from profiler.quality.metrics import BaseMetric
from profiler.quality.outputs import Array


@dataclass(frozen=True)
class MicroF1(BaseMetric):
    """F1 over all tags of all rows together: 2 · right / (given + true). Keeps (right, given, true) of each row, shape (n, 3).

    A tag is given where its value is at `threshold` or above, without one at 0.5 for probabilities; NaN gives none. Labels are 0
    and 1, as many for each row as the output has values. For masks this is the Dice coefficient over all pixels.
    """

    label: ClassVar[str] = "micro-f1"
    mean_reduced: ClassVar[bool] = False
    reads: ClassVar[Purpose] = "values"

    threshold: float | None = None
    """Value from which a tag counts as given. Default 0.5, for probabilities; 0 for logits."""

    def per_sample(
        self, outputs: Mapping[str, Array], labels: Array | None, reference: Mapping[str, Array] | None = None
    ) -> NDArray[np.float64]:
        """Right, given and true tags of each row, shape (n, 3)."""
        del reference
        values, true = self.paired(outputs, labels, "tags")
        flags = true.reshape(len(true), -1).astype(np.float64)
        if not ((flags == 0) | (flags == 1)).all():
            raise DataError(
                f"metric {self.name} needs labels of 0 and 1, one for each tag: for target values use rmse or mae."
            )
        given = self.given(values)
        return np.stack([(given & (flags == 1)).sum(axis=1), given.sum(axis=1), flags.sum(axis=1)], axis=1).astype(
            np.float64
        )

    def value(self, per_sample: NDArray[np.float64]) -> float:
        """2 · right / (given + true). Raises DataError where no tag is given or true."""
        right, given, true = per_sample.sum(axis=0)
        if given + true == 0:
            raise DataError(f"metric {self.name} is undefined: no tag is true and none was given. Give rows with tags.")
        return float(2 * right / (given + true))

    def given(self, values: Array) -> NDArray[np.bool_]:
        """The tags that an output of shape (n, …) gives, shape (n, tags). Raises `Unclear` where the threshold has to be told."""
        rows = values.reshape(len(values), -1).astype(np.float64)
        if self.threshold is None and bool(((rows < 0) | (rows > 1)).any()):
            raise Unclear(
                f"metric {self.name} takes values for probabilities of tags, and they go from {np.nanmin(rows):.3g} to "
                f"{np.nanmax(rows):.3g}: for logits use {self.label}{{threshold=0}}."
            )
        threshold = 0.5 if self.threshold is None else self.threshold
        with np.errstate(invalid="ignore"):
            return np.asarray(rows >= threshold)

    def settled(self, candidate: Candidate) -> MicroF1:
        """The same with its threshold told, so that it's the reference's outputs that decide whether 0.5 is meant."""
        if self.threshold is not None:
            return self
        self.given(candidate.array)
        return replace(self, threshold=0.5)
