"""Metrics of classifiers. A row whose outputs hold NaN is a wrong answer, not a missing one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from profiler.data.dataset import check_labels
from profiler.errors import DataError, unknown
from profiler.quality.candidates import Candidate, class_codes, is_text
from profiler.quality.choice import Purpose, Unclear
from profiler.quality.metrics import BaseMetric
from profiler.quality.outputs import NO_CLASS, Array

# Probabilities that went through 8 bits no longer add up to 1; logits rarely come this close to it by chance.
_SUM_OF_PROBABILITIES = (0.8, 1.25)


@dataclass(frozen=True)
class ClassMetric(BaseMetric):
    """Predicted and true class of each row, also from a single column."""

    threshold: float | None = None
    """For a single output column: class 1 at this value and above. Default 0.5, for probabilities."""

    def _classes(
        self, outputs: Mapping[str, Array], labels: Array | None
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        labels = self.checked(labels, _rows(outputs))
        candidate = self.chosen(outputs, labels)
        predicted = self.answers(candidate)
        true = _as_classes(self.name, labels, text=is_text(candidate.array))
        # A model that says the class itself may have classes beyond its columns; sklearn keeps the values it was trained with.
        if candidate.form in ("columns", "column"):
            check_labels(true, 2 if candidate.form == "column" else candidate.array.shape[1])
        return predicted, true

    def answers(self, candidate: Candidate) -> NDArray[np.int64]:
        """The class that each row says, shape (n,). Raises `Unclear` for a column that needs a threshold."""
        if candidate.form in ("class", "ranked", "columns"):
            return candidate.classes
        return self._thresholded(candidate.array)

    def settled(self, candidate: Candidate) -> ClassMetric:
        """The same with its threshold told, so that it's the reference's outputs that decide whether 0.5 is meant."""
        if candidate.form != "column" or self.threshold is not None:
            return self
        self._thresholded(candidate.array)
        return replace(self, threshold=0.5)

    def _thresholded(self, column: Array) -> NDArray[np.int64]:
        if column.ndim == 0 or column.size != len(column) or column.dtype.kind != "f":
            raise DataError(
                f"metric {self.name} needs an output of shape [n, classes], this one is {column.dtype.name} {column.shape}: "
                "choose another output with {output=name}, or give your own metric as package.module:function."
            )
        values = column.reshape(-1).astype(np.float64)
        outside = (values < 0) | (values > 1)
        if self.threshold is None and outside.any():
            raise Unclear(
                f"metric {self.name} takes a single output column for a probability, "
                f"and it has values from {np.nanmin(values):.3g} to {np.nanmax(values):.3g}: "
                f"for logits use {self.label}{{threshold=0}}."
            )
        threshold = 0.5 if self.threshold is None else self.threshold
        return np.where(np.isnan(values), NO_CLASS, values >= threshold).astype(np.int64)


@dataclass(frozen=True)
class Top1(ClassMetric):
    """Share of rows whose most likely class is the label. Keeps 1 or 0, shape (n,)."""

    label: ClassVar[str] = "top1"

    def per_sample(
        self, outputs: Mapping[str, Array], labels: Array | None, reference: Mapping[str, Array] | None = None
    ) -> NDArray[np.float64]:
        """1 where right, 0 where wrong, shape (n,)."""
        del reference
        predicted, true = self._classes(outputs, labels)
        return np.asarray(predicted == true, np.float64)


@dataclass(frozen=True)
class Top5(BaseMetric):
    """Share of rows whose label is among the five most likely classes; ties go to the lower class. Keeps 1 or 0."""

    label: ClassVar[str] = "top5"
    reads: ClassVar[Purpose] = "top"

    def per_sample(
        self, outputs: Mapping[str, Array], labels: Array | None, reference: Mapping[str, Array] | None = None
    ) -> NDArray[np.float64]:
        """1 where the label is among the five, shape (n,)."""
        del reference
        labels = self.checked(labels, _rows(outputs))
        candidate = self.chosen(outputs, labels)
        columns = candidate.array
        # Whole numbers are the classes themselves, the best first (TopK in the model).
        ranked = columns.dtype.kind in "iu" and columns.ndim == 2
        if not (candidate.form == "columns" or ranked) or columns.shape[1] < (5 if ranked else 6):
            shapes = {name: array.shape for name, array in outputs.items()}
            raise DataError(
                f"metric {self.name} needs a column for each of more than 5 classes, the outputs are {shapes}: use top1."
            )
        true = _as_classes(self.name, labels)
        if ranked:
            return np.asarray((columns[:, :5].astype(np.int64) == true[:, np.newaxis]).any(axis=1), np.float64)
        check_labels(true, columns.shape[1])
        own = columns[np.arange(len(columns)), true][:, np.newaxis]
        earlier = np.arange(columns.shape[1]) < true[:, np.newaxis]
        # Generic until here; their form says that they are floats.
        numbers, mine = columns.astype(np.float64), own.astype(np.float64)
        rank = ((numbers > mine) | ((numbers == mine) & earlier)).sum(axis=1)
        right = (rank < 5) & ~np.isnan(numbers).any(axis=1)
        return np.asarray(right, np.float64)


@dataclass(frozen=True)
class MacroF1(ClassMetric):
    """Unweighted mean of each class's F1 over the classes that occur as label or answer. Keeps (label, answer), shape (n, 2)."""

    label: ClassVar[str] = "f1"
    mean_reduced: ClassVar[bool] = False

    def per_sample(
        self, outputs: Mapping[str, Array], labels: Array | None, reference: Mapping[str, Array] | None = None
    ) -> NDArray[np.float64]:
        """Label and answer of each row, shape (n, 2)."""
        del reference
        predicted, true = self._classes(outputs, labels)
        return np.stack([true, predicted], axis=1).astype(np.float64)

    def value(self, per_sample: NDArray[np.float64]) -> float:
        """2 TP / (labels + answers) for each class, averaged; a NaN answer is no class of its own."""
        true, predicted = per_sample.astype(np.int64).T
        classes, codes = np.unique(np.concatenate([true, predicted]), return_inverse=True)
        true, predicted = codes[: len(true)], codes[len(true) :]
        counts = np.bincount(true, minlength=len(classes)) + np.bincount(predicted, minlength=len(classes))
        hits = np.bincount(true[true == predicted], minlength=len(classes))
        real = classes != NO_CLASS
        return float((2 * hits[real] / counts[real]).mean())

    def row_losses(self, reference: NDArray[np.float64], variant: NDArray[np.float64]) -> NDArray[np.float64]:
        """What the metric would lose if this row alone had changed, times n."""
        true, answers = _codes(reference, variant)
        classes = int(max(true.max(), answers.max())) + 1
        labels = np.bincount(true, minlength=classes)
        said, hits = (np.bincount(part, minlength=classes) for part in (answers[0], true[answers[0] == true]))
        present = max(1, int(((labels + said) > 0).sum()))
        before, after = answers
        rows = np.flatnonzero(before != after)
        losses = np.zeros(len(true))
        # A row moves its answer from one class to another: only the F1 of these two changes.
        for index in rows:
            old, new, own = int(before[index]), int(after[index]), int(true[index])
            change = 0.0
            for code, step in ((old, -1), (new, 1)):
                count, hit = labels[code] + said[code], hits[code]
                was = 2 * hit / count if count else 0.0
                now = count + step
                change += (2 * (hit + step * (code == own)) / now if now else 0.0) - was
            losses[index] = -change * len(true) / present
        return losses

    def largest_row_loss(self, reference: NDArray[np.float64]) -> float | None:
        """A right answer of the rarest class that moves to the next rarest."""
        true, answers = _codes(reference, reference)
        classes = int(max(true.max(), answers.max())) + 1
        counts = np.bincount(true, minlength=classes) + np.bincount(answers[0], minlength=classes)
        least = int(counts[counts > 0].min())
        return len(true) * 3.0 / (int((counts > 0).sum()) * max(1, least - 1))

    def rarest(self, per_sample: NDArray[np.float64]) -> int | None:
        """Of the classes that occur as label or answer: one that is only answered has no rows at all, and weighs the same."""
        classes = np.unique(per_sample)
        return min(int((per_sample[:, 0] == name).sum()) for name in classes[classes != NO_CLASS])


@dataclass(frozen=True)
class Auc(BaseMetric):
    """Area under the ROC curve by ranks (ties count half); for more classes the mean over one class against the rest.

    Keeps the label and the columns, shape (n, 2) for two classes, (n, 1 + classes) otherwise. Columns of more than two classes
    are compared between rows, so logits become probabilities first, row by row.
    """

    label: ClassVar[str] = "auc"
    reads: ClassVar[Purpose] = "scores"
    mean_reduced: ClassVar[bool] = False
    scale: str = "auto"
    """`probabilities`, `logits`, or `auto`: a row of values in 0 … 1 that add up to about 1 holds probabilities."""

    def __post_init__(self) -> None:
        """Refuse an unknown scale."""
        if self.scale not in ("auto", "logits", "probabilities"):
            raise unknown("scale of metric auc", self.scale, ("auto", "logits", "probabilities"))

    def per_sample(
        self, outputs: Mapping[str, Array], labels: Array | None, reference: Mapping[str, Array] | None = None
    ) -> NDArray[np.float64]:
        """Label, then one column (two classes) or one for each class."""
        del reference
        labels = self.checked(labels, _rows(outputs))
        candidate = self.chosen(outputs, labels)
        found = candidate.array
        if candidate.form not in ("columns", "column"):
            raise DataError(
                f"metric {self.name} needs an output of shape [n] or [n, classes], "
                f"this one has shape {found.shape}: choose another with {{output=name}}."
            )
        columns = found.reshape(len(found), -1).astype(np.float64)
        if bad := int((~np.isfinite(columns)).any(axis=1).sum()):
            raise DataError(
                f"metric {self.name} cannot rank {bad} of {len(columns)} rows: their outputs are NaN or infinite."
            )
        true = _as_classes(self.name, labels)
        check_labels(true, max(2, columns.shape[1]))
        if columns.shape[1] == 2:
            # Grows with the probability of class 1, whether these are logits or probabilities.
            columns = columns[:, 1:] - columns[:, :1]
        elif columns.shape[1] > 2:
            columns = self._probabilities(columns)
        return np.column_stack([true.astype(np.float64), columns])

    def value(self, per_sample: NDArray[np.float64]) -> float:
        """The area. Raises DataError when all labels are of one class."""
        true, columns = per_sample[:, 0].astype(np.int64), per_sample[:, 1:]
        targets = [1] if columns.shape[1] == 1 else np.unique(true).tolist()
        areas = [_area(true == target, columns[:, 0 if columns.shape[1] == 1 else target]) for target in targets]
        defined = [area for area in areas if area is not None]
        if not defined:
            raise DataError(
                f"metric {self.name} is undefined: all {len(true)} labels are of one class. Give data with two classes or more."
            )
        return float(np.mean(defined))

    def ranked(self, per_sample: NDArray[np.float64]) -> NDArray[np.float64]:
        """Rows with each column replaced by its dense ranks: the same area, and a bootstrap need not sort again."""
        columns = [np.unique(column, return_inverse=True)[1] for column in per_sample[:, 1:].T]
        return np.column_stack([per_sample[:, 0], *columns]).astype(np.float64)

    def row_losses(self, reference: NDArray[np.float64], variant: NDArray[np.float64]) -> NDArray[np.float64]:
        """How much less of the other kind each row stands on the right side of, times n over its kind and over the classes."""
        true = reference[:, 0].astype(np.int64)
        columns = reference.shape[1] - 1
        targets = [1] if columns == 1 else np.unique(true).tolist()
        losses, defined = np.zeros(len(true)), 0
        for target in targets:
            positive = true == target
            place = 1 if columns == 1 else 1 + target
            if not positive.any() or positive.all():
                continue
            defined += 1
            change = _placements(positive, reference[:, place]) - _placements(positive, variant[:, place])
            # Both kinds of rows tell of the same area: half of it each.
            share = np.where(positive, positive.sum(), (~positive).sum())
            losses += len(true) * change / share / 2
        return losses / max(1, defined)

    def largest_row_loss(self, reference: NDArray[np.float64]) -> float | None:
        """A row of the rarest kind that falls behind all of the other."""
        rarest = self.rarest(reference)
        return None if not rarest else len(reference) / rarest

    def rarest(self, per_sample: NDArray[np.float64]) -> int | None:
        """Of the classes that occur as labels."""
        return int(np.unique(per_sample[:, 0], return_counts=True)[1].min())

    def _probabilities(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        if self.scale == "probabilities":
            return rows
        low, high = _SUM_OF_PROBABILITIES
        total = rows.sum(axis=1)
        already = (rows >= 0).all(axis=1) & (rows <= 1.001).all(axis=1) & (total >= low) & (total <= high)
        exponents = np.exp(rows - rows.max(axis=1, keepdims=True))
        softmax = exponents / exponents.sum(axis=1, keepdims=True)
        return softmax if self.scale == "logits" else np.where(already[:, np.newaxis], rows, softmax)


def _area(positive: NDArray[np.bool_], columns: NDArray[np.float64]) -> float | None:
    """Mann–Whitney: the share of (positive, negative) pairs in the right order, ties half. None without both kinds."""
    n_positive = int(positive.sum())
    n_negative = len(positive) - n_positive
    if not n_positive or not n_negative:
        return None
    ranks = columns.astype(np.intp) if _are_ranks(columns) else np.unique(columns, return_inverse=True)[1]
    levels = int(ranks.max()) + 1
    positives = np.bincount(ranks[positive], minlength=levels)
    negatives = np.bincount(ranks[~positive], minlength=levels)
    below = np.cumsum(negatives) - negatives / 2
    return float((positives * below).sum() / (n_positive * n_negative))


def _placements(positive: NDArray[np.bool_], column: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of each row the share of the other kind that it stands on the right side of, ties half, shape (n,)."""
    placed = np.empty(len(column))
    for kind, sign in ((positive, 1.0), (~positive, -1.0)):
        others = np.sort(sign * column[~kind])
        mine = sign * column[kind]
        below, upto = np.searchsorted(others, mine, "left"), np.searchsorted(others, mine, "right")
        placed[kind] = (below + upto) / 2 / len(others)
    return placed


def _codes(reference: NDArray[np.float64], variant: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Labels, shape (n,), and answers of both, shape (2, n), as small numbers."""
    table = np.stack([reference[:, 0], reference[:, 1], variant[:, 1]]).astype(np.int64)
    codes = np.unique(table, return_inverse=True)[1].reshape(table.shape)
    return codes[0], codes[1:]


def _are_ranks(columns: NDArray[np.float64]) -> bool:
    """Small whole numbers can be counted without sorting."""
    return bool(columns.min() >= 0 and columns.max() <= 4 * len(columns) and (columns == np.floor(columns)).all())


def _rows(outputs: Mapping[str, Array]) -> int:
    first = next(iter(outputs.values()), None)
    return 0 if first is None or first.ndim == 0 else len(first)


def _as_classes(metric: str, labels: Array, *, text: bool = False) -> NDArray[np.int64]:
    """Class indexes, also from floats that are whole numbers; with `text` the codes of classes that are named."""
    if labels.ndim != 1:
        raise DataError(
            f"metric {metric} needs class indexes of shape (n,), the labels have shape {labels.shape}: "
            "take the argmax of one-hot labels."
        )
    if is_text(labels) != text:
        kinds = ("texts", "numbers") if text else ("numbers", "texts")
        raise DataError(
            f"metric {metric} got an output whose classes are {kinds[0]}, and labels that are {kinds[1]}: "
            "give labels as the model says them, or another output with {output=name}."
        )
    if text:
        return class_codes(labels)
    numbers = labels.astype(np.float64)
    if labels.dtype.kind == "f" and not bool((numbers == np.floor(numbers)).all()):
        raise DataError(
            f"metric {metric} needs class indexes, the labels are fractions such "
            f"as {numbers[numbers % 1 != 0][0]:.4g}: use rmse or mae."
        )
    return labels.astype(np.int64)
