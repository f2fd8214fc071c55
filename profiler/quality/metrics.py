"""What a metric is, and their names. One more metric: a class, its test, and a line in `METRICS`.

A metric keeps one row for each sample, so that every comparison is paired and nothing has to be inferred twice:
`per_sample` reduces outputs to rows (of any batch, one after the other), `value` reduces rows to the number.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NoReturn, Protocol, get_type_hints, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from backends.spec import Spec, parse
from profiler.data.functions import FUNCTION, import_function
from profiler.errors import DataError, StudyError, unknown
from profiler.quality.candidates import Candidate, class_codes, is_text
from profiler.quality.choice import SURELY, Purpose, by_chance, decide, matching, pick
from profiler.quality.outputs import Array

Unit = Literal["proportion", "native"]

METRICS = {
    "agreement": "profiler.quality.values:Agreement",
    "auc": "profiler.quality.classes:Auc",
    "cosine": "profiler.quality.values:Cosine",
    "f1": "profiler.quality.classes:MacroF1",
    "mae": "profiler.quality.values:MeanAbsoluteError",
    "micro-f1": "profiler.quality.tags:MicroF1",
    "rmse": "profiler.quality.values:RootMeanSquareError",
    "top1": "profiler.quality.classes:Top1",
    "top5": "profiler.quality.classes:Top5",
}
"""Class of each metric by name; its fields are the options of the text form (`top1{output=logits}`)."""


@runtime_checkable
class Metric(Protocol):
    """A task metric. Frozen; two metrics of one `name` do the same."""

    @property
    def name(self) -> str:
        """Canonical text; `get_metric(metric.name)` gives an equal metric."""
        ...

    @property
    def unit(self) -> Unit:
        """`proportion` is shown in percentage points, `native` in the metric's own unit."""
        ...

    @property
    def higher_is_better(self) -> bool:
        """False for errors."""
        ...

    @property
    def needs_labels(self) -> bool:
        """Whether `per_sample` uses labels; otherwise it uses the reference's outputs."""
        ...

    @property
    def mean_reduced(self) -> bool:
        """Whether `value` is the plain mean of `per_sample`, shape (n,)."""
        ...

    def per_sample(
        self, outputs: Mapping[str, Array], labels: Array | None, reference: Mapping[str, Array] | None = None
    ) -> NDArray[np.float64]:
        """What the metric keeps of each row, shape (n,) or (n, k). Raises DataError when outputs and labels do not fit it."""
        ...

    def value(self, per_sample: NDArray[np.float64]) -> float:
        """The metric over these rows. Raises DataError where it is undefined (an AUC of one class)."""
        ...


@runtime_checkable
class LosesByRow(Protocol):
    """A metric that is no plain mean, and tells what each row does to it. What is no such metric has unknown losses."""

    def row_losses(self, reference: NDArray[np.float64], variant: NDArray[np.float64]) -> NDArray[np.float64]:
        """What each row adds to the drop, times n, shape (n,): positive is worse. The mean is about the drop."""
        ...

    def largest_row_loss(self, reference: NDArray[np.float64]) -> float | None:
        """The most that one row could add to the drop, times n; None where nothing bounds it."""
        ...

    def rarest(self, per_sample: NDArray[np.float64]) -> int | None:
        """Rows of the rarest class, which the metric weighs as much as any other; None where it knows no classes."""
        ...


@dataclass(frozen=True)
class BaseMetric:
    """What the built-in metrics share: names from options, the mean, and the checks at the border."""

    label: ClassVar[str]
    unit: ClassVar[Unit] = "proportion"
    higher_is_better: ClassVar[bool] = True
    mean_reduced: ClassVar[bool] = True
    reads: ClassVar[Purpose] = "class"
    """What it needs of an output; decides with the labels which one is meant (`choice.pick`)."""

    output: str | None = None
    """Name of the output to use; None takes the one that fits, and asks where several do."""

    @property
    def name(self) -> str:
        """Canonical text with the options that differ from the default."""
        changed = {
            item.name: getattr(self, item.name)
            for item in dataclasses.fields(self)
            if getattr(self, item.name) != item.default
        }
        return str(Spec(self.label, options={key: str(value) for key, value in changed.items()}))

    @property
    def needs_labels(self) -> bool:
        """True unless a metric says otherwise."""
        return True

    def value(self, per_sample: NDArray[np.float64]) -> float:
        """Mean over samples."""
        if not len(per_sample):
            raise DataError(f"metric {self.name} has no samples to average: give data with at least one row.")
        return float(per_sample.mean())

    def chosen(self, outputs: Mapping[str, Array], labels: Array | None) -> Candidate:
        """The output this metric is over. Raises DataError when none fits, `choice.Unclear` when several do."""
        return pick(outputs, labels, self.reads, metric=self.label, output=self.output)

    def checked(self, labels: Array | None, n: int) -> Array:
        """The labels, or a DataError when there are none or not one for each of `n` rows."""
        if labels is None:
            raise DataError(
                f"metric {self.name} needs labels and the data has none: add an array 'labels', or use the metric agreement."
            )
        if labels.ndim == 0 or len(labels) != n:
            raise DataError(
                f"metric {self.name} got {n} output rows and labels of shape {labels.shape}: one label for each row is needed."
            )
        return labels

    def paired(self, outputs: Mapping[str, Array], labels: Array | None, compared: str) -> tuple[Array, Array]:
        """The chosen output and the labels, or a DataError unless they hold equally many values; `compared` says of what."""
        values = self.chosen(outputs, labels).array
        targets = self.checked(labels, len(values) if values.ndim else 0)
        if values.size != targets.size:
            raise DataError(
                f"metric {self.name} compares {compared}, the output has shape {values.shape}, the labels {targets.shape}: "
                "they need the same number of values for each row. Choose an output with {output=name}."
            )
        return values, targets


@dataclass(frozen=True)
class FunctionMetric:
    """The user's `package.module:function(outputs, labels) -> (n,)`; the metric is the mean.

    The function's own attributes `higher_is_better` (True), `unit` ("native") and `needs_labels` (True) are read when set.
    """

    name: str
    function: Callable[..., Any] = field(compare=False)
    mean_reduced: ClassVar[bool] = True

    @property
    def unit(self) -> Unit:
        """`native` unless the function says `proportion`."""
        return "proportion" if getattr(self.function, "unit", "native") == "proportion" else "native"

    @property
    def higher_is_better(self) -> bool:
        """True unless the function says otherwise."""
        return bool(getattr(self.function, "higher_is_better", True))

    @property
    def needs_labels(self) -> bool:
        """True unless the function says otherwise."""
        return bool(getattr(self.function, "needs_labels", True))

    def per_sample(
        self, outputs: Mapping[str, Array], labels: Array | None, reference: Mapping[str, Array] | None = None
    ) -> NDArray[np.float64]:
        """What the function answers, checked: one finite number for each row."""
        del reference
        if labels is None and self.needs_labels:
            raise DataError(
                f"metric {self.name} needs labels and the data has none: add an array 'labels', "
                "or set needs_labels = False on the function."
            )
        if not outputs:
            raise DataError(
                f"metric {self.name} has nothing to read: no output of the model has one row for each sample. "
                "Export the model with an output whose first axis is the batch."
            )
        n = len(next(iter(outputs.values())))
        try:
            rows = np.asarray(self.function(dict(outputs), labels), np.float64)
        except Exception as error:
            raise DataError(f"metric {self.name} raised {type(error).__name__}: {error}") from error
        if rows.shape != (n,):
            raise DataError(
                f"metric {self.name} gave shape {rows.shape} for {n} rows: return one number for each row, shape ({n},)."
            )
        if bad := int((~np.isfinite(rows)).sum()):
            raise DataError(
                f"metric {self.name} gave {bad} NaN or infinite values for {n} rows: return a finite number for each row."
            )
        return rows

    def value(self, per_sample: NDArray[np.float64]) -> float:
        """Mean over samples."""
        return float(per_sample.mean())


def stored_metric(text: str, unit: Unit, higher_is_better: bool) -> Metric:
    """The metric of stored rows. Reading a run, perhaps somebody else's, must not import and run the user's function.

    Raises StudyError for a built-in name that this version does not know.
    """
    if not FUNCTION.fullmatch(text.strip()):
        return get_metric(text)

    def unavailable(*_: object) -> NoReturn:
        raise DataError(f"metric {text} is not imported while a run is read: its rows are stored already.")

    vars(unavailable).update(unit=unit, higher_is_better=higher_is_better)
    return FunctionMetric(text.strip(), unavailable)


def get_metric(text: str) -> Metric:
    """The metric a text names: `top1`, `auc{output=probabilities}`, `package.module:function`.

    Raises StudyError with the near matches, DataError when the user's function cannot be imported or is a class.
    """
    if FUNCTION.fullmatch(text.strip()):
        function = import_function(text.strip(), "metric")
        if inspect.isclass(function):
            raise DataError(
                f"metric '{text.strip()}' is a class, and calling it with outputs and labels would only make an instance: name a "
                "function, or an instance of the class that can be called."
            )
        return FunctionMetric(text.strip(), function)
    spec = parse(text)
    if spec.name not in METRICS:
        raise unknown("metric", spec.name, METRICS, hint="Or package.module:function for your own.")
    module, _, class_name = METRICS[spec.name].partition(":")
    metric_class: Any = getattr(importlib.import_module(module), class_name)
    hints = get_type_hints(metric_class)
    known = {item.name: hints[item.name] for item in dataclasses.fields(metric_class)}
    values: dict[str, object] = {}
    for key, value in spec.options.items():
        if key not in known:
            raise unknown(f"option of metric {spec.name}", key, known)
        values[key] = _converted(spec.name, key, value, known[key])
    metric: Metric = metric_class(**values)
    return metric


LabelKind = Literal["class", "one-hot", "tags", "values"]
"""A class for each row, a row of zeros with a one at the class, a flag for each of several tags, or target values."""


def label_kind(labels: Array) -> LabelKind:
    """What the labels, one row for each sample, look like. Floats that are whole numbers may be classes: the outputs decide."""
    if is_text(labels):
        return "class"
    numbers = labels.astype(np.float64)
    if labels.ndim == 1:
        whole = bool(((numbers == np.floor(numbers)) & np.isfinite(numbers)).all())
        return "class" if whole else "values"
    # All of one kind would be constant targets; a single column of flags is a class a row.
    flags = set(np.unique(numbers).tolist()) == {0.0, 1.0} and labels[0].size > 1
    if not flags or (labels.ndim > 2 and labels.dtype.kind == "f"):
        return "values"
    return "one-hot" if labels.ndim == 2 and bool((numbers.sum(axis=1) == 1).all()) else "tags"


def default_metric(labels: Array | None, outputs: Mapping[str, Array], *, kind: LabelKind | None = None) -> Metric:
    """The metric that labels and outputs ask for; outputs have a row for each label; `kind` is that of all labels.

    `agreement` without labels, `top1` for classes (also one-hot), `auc` for labels 0 and 1 of a single column, `micro-f1` for
    several flags a row, `rmse` for target values. Raises `choice.Unclear` when several outputs fit, DataError when none does.
    """
    if labels is None:
        return get_metric("agreement")
    kind = kind or label_kind(labels)
    sizes = [array.size for array in outputs.values() if array.dtype.kind in "biuf"]
    if kind == "one-hot":
        classes = labels.argmax(axis=1)
        if any(
            array.ndim == 2 and array.dtype.kind == "f" and array.shape == labels.shape for array in outputs.values()
        ):
            return get_metric("top1")
        fitting, _ = matching(outputs, np.asarray(classes), ("class", "ranked"))
        return get_metric("top1" if fitting else "micro-f1" if labels.size in sizes else "rmse")
    if kind == "tags":
        return get_metric("micro-f1" if labels.size in sizes else "rmse")
    return _of_classes(labels, outputs) if kind == "class" else get_metric("rmse")


def _of_classes(labels: Array, outputs: Mapping[str, Array]) -> Metric:
    fitting, out = matching(outputs, labels, ("class", "ranked", "columns", "column"))
    exact = labels.dtype.kind != "f"
    # Floats for classes: not beside outputs that say whole numbers themselves, which may be anything.
    fitting = fitting if exact else [item for item in fitting if item.form in ("columns", "column")]
    targets = [
        Candidate(name, "column", array, "one number")
        for name, array in outputs.items()
        if array.dtype.kind == "f" and array.size == labels.size and name not in {item.name for item in fitting}
    ]
    if not fitting:
        if is_text(labels):
            shown = "; ".join(out) or "there are none"
            raise DataError(
                f"the labels are texts, and no output of the model says a class by its name: {shown}. "
                "Number the classes from 0 in the order of the model's columns."
            )
        return get_metric("rmse" if targets or not exact else "top1")
    if targets and min(by_chance(item, class_codes(labels)) for item in fitting) >= SURELY:
        # Whole numbers may be counts or ages, and the other output features: then nothing is a class.
        fitting = [*fitting, *targets]
    chosen = decide(fitting, labels, outputs, "top1")
    if chosen.form != "column":
        return get_metric("top1")
    # One column and labels 0 and 1: a detector, whose threshold nobody has told.
    return get_metric("auc" if set(np.unique(labels).tolist()) == {0, 1} else "rmse")


def _converted(metric: str, key: str, value: str, kind: object) -> object:
    if kind in (float, float | None):
        try:
            return float(value)
        except ValueError as error:
            raise StudyError(
                f"option {key}={value} of metric {metric} is no number: give one like {key}=0.5."
            ) from error
    return value
