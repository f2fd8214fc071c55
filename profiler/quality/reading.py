"""How the outputs of a run are read: decided once, on the reference's, and then the same for each variant and batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypedDict, cast

import numpy as np
from numpy.typing import NDArray

from profiler.data.dataset import check_labels
from profiler.quality import chance
from profiler.quality.candidates import Candidate, class_codes, compared, read, same_classes, values_alike
from profiler.quality.choice import Unclear, answering
from profiler.quality.classes import Auc, ClassMetric, Top5
from profiler.quality.metrics import BaseMetric, LabelKind, Metric, default_metric, get_metric, label_kind
from profiler.quality.outputs import Array
from profiler.quality.tags import MicroF1
from profiler.quality.values import Agreement
from profiler.records import Chance

Outputs = Mapping[str, Array]


class Reduced(TypedDict):
    """What a `QualityRecord` keeps of an evaluation, by its fields."""

    metric: str
    metric_unit: Literal["proportion", "native"]
    higher_is_better: bool
    per_sample: NDArray[np.float64]
    predictions: NDArray[np.int64] | None
    agreement: NDArray[np.float64]
    output: str | None
    chance: Chance | None


@dataclass(frozen=True)
class Reading:
    """A metric, the output it's over, and what there is to say of that. Made by `choose`."""

    metric: Metric
    """As it was asked for or chosen; its unit and direction are known before anything else is evaluated."""
    output: str | None
    """The output that metric, agreement and predictions are over; None: all that have a row for each sample.

    A metric that is the user's own code sees all of them in any case."""
    notes: tuple[str, ...]
    """What was decided on the user's behalf, in words."""
    candidate: Candidate | None
    """That output of the reference, with the form in which it's read."""
    settled: Metric
    """The metric with everything told that the reference decides."""
    one_hot: bool = False
    """Whether the labels' rows hold a one at the class."""

    def reduced(self, outputs: Outputs, labels: Array | None, reference: Outputs) -> Reduced:
        """Reduce outputs, labels and the reference's outputs, all of the same n rows, to what is stored.

        Raises DataError when these outputs cannot be read as the reference's are.
        """
        mine, base = self._own(outputs), self._own(reference)
        rows = np.asarray(self.per_sample(outputs, labels, reference), np.float64)
        answers = self._answers(mine)
        return Reduced(
            metric=self.metric.name, metric_unit=self.metric.unit, higher_is_better=self.metric.higher_is_better, per_sample=rows,
            predictions=answers, agreement=self._agreement(mine, base), output=self.output,
            chance=self.chance(rows, answers, labels),
        )  # fmt: skip

    def per_sample(self, outputs: Outputs, labels: Array | None, reference: Outputs) -> NDArray[np.float64]:
        """What the metric keeps of each row, shape (n,) or (n, k)."""
        if isinstance(self.settled, Agreement):
            return self._agreement(self._own(outputs), self._own(reference))
        if _built_in(self.settled) is None:
            return self.settled.per_sample(outputs, labels, reference=reference)
        labels = labels.argmax(axis=1) if self.one_hot and labels is not None else labels
        return self.settled.per_sample(self._for_metric(outputs), labels, reference=self._for_metric(reference))

    def check(self, labels: Array) -> None:
        """Raise DataError when any of all the labels lies outside the classes of the output that was chosen."""
        if (
            isinstance(self.settled, (ClassMetric, Top5, Auc))
            and self.candidate is not None
            and labels.dtype.kind in "biuf"
        ):
            classes = {"columns": self.candidate.array.shape[-1], "column": 2}.get(self.candidate.form)
            if classes is not None and not self.one_hot and labels.ndim == 1:
                check_labels(labels.astype(np.int64), classes)

    def chance(
        self, rows: NDArray[np.float64], answers: NDArray[np.int64] | None, labels: Array | None
    ) -> Chance | None:
        """Whether the answers have to do with the labels, from the stored rows and all labels; None where that isn't asked."""
        if labels is None or not len(rows):
            return None
        if isinstance(self.settled, MicroF1):
            right, given, true = rows.sum(axis=0)
            level = float(true / labels.size)
            return Chance(
                float(right / given) if given else 0.0, level, chance.share_above(int(right), int(given), level)
            )
        if isinstance(self.settled, Auc) and rows.shape[1] == 2:
            codes = rows[:, 0].astype(np.int64)
            if len(np.unique(codes)) < 2:
                return None
            return Chance(self.settled.value(rows), 0.5, chance.trend_above(rows[:, 1], codes))
        if answers is None or _built_in(self.metric) is None or isinstance(self.metric, Agreement):
            return None
        return chance.of_classes(answers, class_codes(labels.argmax(axis=1) if self.one_hot else labels))

    def _own(self, outputs: Outputs) -> Outputs:
        return outputs if self.output is None else {self.output: read(outputs, self.output, self._form).array}

    def _for_metric(self, outputs: Outputs) -> Outputs:
        """What the metric sees: the chosen output alone, of the best classes only the first where it asks for one."""
        own = self._own(outputs)
        if self.candidate is not None and self.candidate.form == "ranked" and isinstance(self.settled, ClassMetric):
            return {name: array[:, 0] for name, array in own.items()}
        return own

    @property
    def _form(self) -> Any:
        return "values" if self.candidate is None else self.candidate.form

    def _answers(self, mine: Outputs) -> NDArray[np.int64] | None:
        if self.candidate is None or self.output is None or self.candidate.form == "values" or _of_values(self.settled):
            return None
        found = read(mine, self.output, self.candidate.form)
        if self.candidate.form == "column":
            return self.settled.answers(found) if isinstance(self.settled, ClassMetric) else None
        return found.classes

    def _agreement(self, mine: Outputs, base: Outputs) -> NDArray[np.float64]:
        if isinstance(self.settled, MicroF1) and self.output is not None:
            given = [self.settled.given(arrays[self.output]) for arrays in (mine, base)]
            return np.asarray((given[0] == given[1]).all(axis=1), np.float64)
        if self.output is None or self.candidate is None or self.candidate.form == "values":
            names = compared(base) if self.output is None else [self.output]
            return values_alike(mine, base, names)
        if _of_values(self.settled) or (self.candidate.form == "column" and not isinstance(self.settled, ClassMetric)):
            return values_alike(mine, base, [self.output])
        if self.candidate.form == "column":
            answers = [self._answers(arrays) for arrays in (mine, base)]
            return np.asarray(answers[0] == answers[1], np.float64)
        return same_classes(mine, base, self.candidate)


def choose(asked: str | None, labels: Array | None, outputs: Outputs, *, kind: LabelKind | None = None) -> Reading:
    """How a run reads its outputs: `outputs` are the reference's, of n rows each, `labels` are of the same rows.

    `asked` is the study's metric, None chooses one; `kind` is that of all labels where these are only some of them. Raises
    DataError when metric, labels and outputs don't fit, `Unclear` when only the user knows which output or threshold is meant.
    """
    kind = kind if kind is not None or labels is None else label_kind(labels)
    if not outputs:
        raise Unclear(
            "no output of the model has one row for each sample, so only times are measured. To evaluate it, export it with an "
            "output whose first axis is the batch; or, where one sample is a whole inference (batch 1), say so of every "
            "input that is no constant: --input 'NAME{batch_axis=none}'."
        )
    any_metric = default_metric(labels, outputs, kind=kind) if asked is None else get_metric(asked)
    metric = _built_in(any_metric)
    if metric is None:
        return _of_function(any_metric, outputs)
    if isinstance(metric, Agreement):
        return _of_agreement(metric, outputs)
    notes: tuple[str, ...] = ()
    one_hot = labels is not None and metric.reads in ("class", "top", "scores") and kind == "one-hot"
    if one_hot and labels is not None:
        labels = labels.argmax(axis=1)
        notes += ("the labels are one-hot: the place of the one is taken for the class",)
    if metric.needs_labels:
        labels = metric.checked(labels, len(next(iter(outputs.values()), ())))
    chosen = metric.chosen(outputs, labels)
    settled = replace(metric, output=chosen.name)
    if isinstance(settled, (ClassMetric, MicroF1)):
        settled = settled.settled(chosen)
    told = metric.output is None and len(outputs) > 1
    notes += (f"{metric.name} is over output '{chosen.name}': {chosen.fits}",) if told else ()
    if asked is None and isinstance(metric, MicroF1):
        notes += (
            "the labels hold a flag for each tag: micro-f1 with a threshold of 0.5 (--metric rmse for the values themselves)",
        )
    return Reading(any_metric, chosen.name, notes, chosen, cast("Metric", settled), one_hot)


def _of_function(metric: Metric, outputs: Outputs) -> Reading:
    """The user's own metric sees all outputs. Agreement beside it is of classes only where there is no doubt."""
    try:
        chosen = answering(outputs)
    except Unclear:
        chosen = None
    return Reading(metric, None if chosen is None else chosen.name, (), chosen, metric)


def _of_agreement(metric: Agreement, outputs: Outputs) -> Reading:
    chosen = answering(outputs, output=metric.output)
    if chosen is None:
        names = compared(outputs)
        output = metric.output or (names[0] if len(names) == 1 else None)
        candidate = None if output is None else Candidate(output, "values", outputs[output], "its values are compared")
        notes = (
            ()
            if output is not None
            else (f"no output says a class: {', '.join(names)} are compared, the least alike counts",)
        )
        return Reading(metric, output, notes, candidate, metric)
    told = metric.output is None and len(outputs) > 1
    notes = (f"agreement is over output '{chosen.name}': {chosen.fits}",) if told else ()
    return Reading(metric, chosen.name, notes, chosen, metric)


def _built_in(metric: Metric) -> BaseMetric | None:
    return metric if isinstance(metric, BaseMetric) else None


def _of_values(metric: Metric) -> bool:
    built_in = _built_in(metric)
    return built_in is not None and built_in.reads == "values"
