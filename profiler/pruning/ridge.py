"""Ridge least squares from running sums, the strength chosen on rows that were not fitted."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
STRENGTHS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Tried ridge strengths, as shares of the mean diagonal of XᵀX."""


@dataclass
class Sums:
    """XᵀX [B, K, K], XᵀR [B, K, O] and RᵀR summed, [B], for B independent problems; grows with rows, not in size."""

    gram: Array
    cross: Array
    power: Array
    count: int = 0

    @classmethod
    def empty(cls, problems: int, columns: int, targets: int) -> Sums:
        """Nothing seen."""
        return cls(
            np.zeros((problems, columns, columns)), np.zeros((problems, columns, targets)), np.zeros(problems)
        )  # fmt: skip

    def add(self, x: Array, r: Array) -> None:
        """Take in rows: x [B, n, K], r [B, n, O]."""
        turned = x.transpose(0, 2, 1)
        # What overflows is seen by `fit`.
        with np.errstate(all="ignore"):
            self.gram += turned @ x
            self.cross += turned @ r
            self.power += np.square(r).sum(axis=(1, 2))
        self.count += x.shape[1]

    def __add__(self, other: Sums) -> Sums:
        """Both together."""
        return Sums(
            self.gram + other.gram, self.cross + other.cross, self.power + other.power, self.count + other.count
        )


@dataclass(frozen=True)
class Fit:
    """A correction of the weights."""

    delta: Array
    """[B, K, O]."""
    strength: float
    before: float
    """Squared residual on held-out rows without the correction, both halves added."""
    after: float
    """The same with corrections fitted on the other half."""


def fit(first: Sums, second: Sums) -> Fit | None:
    """The correction Δ that minimises |R − XΔ|² + λ|Δ|² over all rows; None when it does not help.

    λ is the one of `STRENGTHS` with the smallest residual when fitting on one half and testing on the other, in turn. The
    penalty is on the correction, not on the weights: without evidence they stay what they were.
    """
    before = float(first.power.sum() + second.power.sum())
    if not np.isfinite(before) or before <= 0:
        return None
    try:
        halves = [(_factor(first.gram), first, second), (_factor(second.gram), second, first)]
        errors = [
            sum(_error(_solve(factor, seen.cross, strength), unseen) for factor, seen, unseen in halves)
            for strength in STRENGTHS
        ]
        best = int(np.argmin(errors))
        if not errors[best] < before:
            return None
        whole = first + second
        delta = _solve(_factor(whole.gram), whole.cross, STRENGTHS[best])
    except np.linalg.LinAlgError:
        return None
    if not np.isfinite(delta).all():
        return None
    return Fit(delta, STRENGTHS[best], before, errors[best])


def _factor(gram: Array) -> tuple[Array, Array]:
    values, vectors = np.linalg.eigh(gram)
    return np.maximum(values, 0.0), vectors


def _solve(factor: tuple[Array, Array], cross: Array, strength: float) -> Array:
    values, vectors = factor
    # The mean eigenvalue is the mean of the diagonal.
    penalty = strength * values.mean(axis=1, keepdims=True) + np.finfo(np.float64).tiny
    scaled = (vectors.transpose(0, 2, 1) @ cross) / (values + penalty)[:, :, None]
    return np.asarray(vectors @ scaled)


def _error(delta: Array, sums: Sums) -> float:
    fitted = (delta * (sums.gram @ delta)).sum() - 2 * (delta * sums.cross).sum()
    return float(sums.power.sum() + fitted)
