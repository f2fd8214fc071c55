"""Which output of a model the answers stand in: the one rule, for every metric, for agreement, predictions and stored rows.

Outputs are matched to the labels: by their rows, by what a row holds, by the range of the labels, and where several fit by
whether they say the labels more often than chance. Nothing is taken because it comes first: where two still fit, `Unclear`
names them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from profiler.errors import DataError
from profiler.quality.candidates import (
    FEW_ROWS,
    Candidate,
    Form,
    alike,
    class_codes,
    compared,
    described,
    forms,
    is_text,
    preferred,
    same_answers,
    same_classes,
    shapes,
    values_alike,
)
from profiler.quality.chance import independent_share, share_above, trend_above
from profiler.quality.outputs import Array, named_output

Purpose = Literal["class", "top", "scores", "values", "answers"]
"""What a metric reads: which class a row says, its best classes, how rows rank a class, values as many as the labels', or,
without labels, whatever the model answers."""
_WANTED: Mapping[Purpose, tuple[Form, ...]] = {
    "class": ("class", "ranked", "columns", "column"), "top": ("ranked", "columns"), "scores": ("columns", "column"),
}  # fmt: skip

SURELY = 1e-4
"""Chance that an output without relation to the labels says them as often: below it, the output is the one that is meant."""
NO_RELATION = 1e-3
"""Above it, nothing speaks for an output. With both conditions an output is chosen in error in one of some 10,000 models."""


class Unclear(DataError):  # noqa: N818 (a question, no mistake)
    """Which output (or threshold) is meant only the user knows: nothing is measured over a guess."""

    def __init__(self, message: str, candidates: Sequence[str] = ()) -> None:
        """`candidates` are the names of the outputs that fit."""
        super().__init__(message)
        self.candidates = tuple(candidates)


def pick(
    outputs: Mapping[str, Array], labels: Array | None, purpose: Purpose, *, metric: str, output: str | None = None
) -> Candidate:
    """The output that `metric` is over. Every array has one row for each sample; `labels` are as many, or None.

    `output` is what the user named. Raises DataError when nothing fits, `Unclear` when more than one does.
    """
    found = forms(outputs)
    if output is not None:
        return Candidate(output, found.get(output, "values"), named_output(outputs, output), "named by the user")
    if not outputs:
        raise DataError(
            f"metric {metric} has nothing to read: no output of the model has one row for each sample. "
            "Export the model with an output whose first axis is the batch."
        )
    if purpose == "answers":
        candidate = answering(outputs, metric=metric)
        if candidate is None:
            raise DataError(f"metric {metric} needs an output that says a class, the outputs are {shapes(outputs)}.")
        return candidate
    if purpose == "values":
        return _of_values(outputs, labels, metric)
    return _of_classes(outputs, labels, purpose, metric)


# ---- with labels


def _of_classes(outputs: Mapping[str, Array], labels: Array | None, purpose: Purpose, metric: str) -> Candidate:
    found = forms(outputs)
    wanted = _WANTED[purpose]
    possible = [name for name in outputs if found[name] in wanted]
    if len(outputs) == 1 or labels is None or labels.ndim != 1:
        # One output is no choice; without labels that fit the metric refuses, in its own words.
        possible = possible or list(outputs)
        if len(possible) > 1 and labels is None:
            candidate = answering({name: outputs[name] for name in possible}, metric=metric)
            if candidate is not None:
                return candidate
        return Candidate(possible[0], found[possible[0]], outputs[possible[0]], "the only output that could be meant")
    fitting, out = matching(outputs, labels, wanted)
    if not fitting:
        if len(possible) == 1:
            return Candidate(
                possible[0], found[possible[0]], outputs[possible[0]], "the only output that could be meant"
            )
        raise DataError(
            f"the labels fit no output of the model as metric {metric} reads them: {'; '.join(out) or shapes(outputs)}. "
            f"Give labels for one of them, or name it: --metric '{metric}{{output=NAME}}'."
        )
    return decide(fitting, labels, outputs, metric)


def matching(outputs: Mapping[str, Array], labels: Array, wanted: Sequence[Form]) -> tuple[list[Candidate], list[str]]:
    """The outputs of these forms that the classes in `labels`, shape (n,), fit, and why each other one is out."""
    fitting: list[Candidate] = []
    out: list[str] = []
    found = forms(outputs)
    text = is_text(labels)
    numbers = None if text else labels.astype(np.float64)
    for name, array in outputs.items():
        form = found[name]
        reason: str | None
        fits = described(form, array)
        if form not in wanted:
            reason = f"holds {fits}"
        elif text:
            reason = None if form == "class" and is_text(array) else "says no class by its name, as the labels do"
        elif numbers is None or (form == "class" and is_text(array)):
            reason = "says classes by name, the labels are numbers"
        elif form == "columns" and not (numbers.min() >= 0 and numbers.max() < array.shape[1]):
            reason = f"has {array.shape[1]} columns, the labels go from {numbers.min():g} to {numbers.max():g}"
        elif form == "column" and set(np.unique(numbers).tolist()) != {0.0, 1.0}:
            reason = "has one column, the labels are not 0 and 1"
        else:
            reason = None
        if reason is None:
            fitting.append(Candidate(name, form, array, fits))
        else:
            out.append(f"'{name}' {reason}")
    return fitting, out


def decide(candidates: Sequence[Candidate], labels: Array, outputs: Mapping[str, Array], metric: str) -> Candidate:
    """One of the candidates, which all fit. Raises `Unclear` unless they answer alike or one alone says the labels."""
    groups = alike(candidates, by_value=True)
    if len(groups) == 1 and (len(candidates) > 1 or _supported(candidates[0], outputs)):
        return preferred(groups[0])
    codes = class_codes(labels)
    chance = [by_chance(group[0], codes) for group in groups]
    sure = [place for place, p in enumerate(chance) if p < SURELY]
    open_ = [place for place, p in enumerate(chance) if p <= NO_RELATION]
    if len(sure) == 1 and open_ == sure:
        chosen = preferred(groups[sure[0]])
        why = "it says the labels far more often than chance"
        return Candidate(
            chosen.name, chosen.form, chosen.array, why if len(groups) == 1 else f"{why}, and no other output does"
        )
    raise _unclear([group[0] for group in groups], metric, [f"{_right(group[0], codes)}" for group in groups])


def by_chance(candidate: Candidate, codes: NDArray[np.int64]) -> float:
    """Probability that an output without relation to the labels says them as often (exact binomial), or ranks them so."""
    if candidate.form == "column":
        return trend_above(candidate.array.reshape(-1).astype(np.float64), codes)
    said = candidate.classes
    return share_above(int((said == codes).sum()), len(codes), independent_share(said, codes))


def _right(candidate: Candidate, codes: NDArray[np.int64]) -> str:
    return "" if candidate.form == "column" else f"{(candidate.classes == codes).mean():.1%} right"


def _of_values(outputs: Mapping[str, Array], labels: Array | None, metric: str) -> Candidate:
    numeric = {name: array for name, array in outputs.items() if array.dtype.kind in "biuf"}
    if not numeric:
        kinds = {name: array.dtype.name for name, array in outputs.items()}
        raise DataError(f"no output of the model is numeric: {kinds}. Export the model with tensor outputs.")
    found = forms(outputs)
    fitting = (
        numeric if labels is None else {name: array for name, array in numeric.items() if array.size == labels.size}
    )
    floats = {name: array for name, array in fitting.items() if array.dtype.kind == "f"}
    candidates = [
        Candidate(name, found[name], array, described(found[name], array))
        for name, array in (floats or fitting).items()
    ]
    if not candidates:
        if len(numeric) == 1:
            name, array = next(iter(numeric.items()))
            return Candidate(name, found[name], array, "the only output that could be meant")
        raise DataError(
            f"metric {metric} needs the same number of values in each row of the labels {getattr(labels, 'shape', ())} and of an "
            f"output, the outputs are {shapes(outputs)}: give labels for one of them."
        )
    same = all(
        np.array_equal(candidates[0].array, other.array, equal_nan=other.array.dtype.kind == "f")
        for other in candidates[1:]
    )
    if not same:
        raise _unclear(candidates, metric)
    return candidates[0]


# ---- without labels


def answering(
    outputs: Mapping[str, Array], *, metric: str = "agreement", output: str | None = None
) -> Candidate | None:
    """The output that says a class; None when none does, so that all values count. Raises `Unclear` when several might.

    Columns are taken for the scores of classes where they are all that the model gives, or add up to one; but not where its rows
    have length 1 (an embedding) or the largest column is always the same one (boxes): then they are values.
    """
    found = forms(outputs)
    if output is not None:
        named = Candidate(output, found.get(output, "values"), named_output(outputs, output), "named by the user")
        return named if named.form not in ("values", "column") and _says_classes(named) else None
    candidates = [
        Candidate(name, form, outputs[name], described(form, outputs[name]))
        for name, form in found.items()
        if form in ("class", "ranked", "columns")
    ]
    if not candidates:
        return None
    groups = alike(candidates, by_value=False)
    if len(groups) == 1 and (len(candidates) > 1 or _supported(candidates[0], outputs)):
        chosen = preferred(groups[0])
        if len(candidates) > 1 or len(outputs) == 1 or chosen.form != "columns" or chosen.adds_to_one:
            return None if len(candidates) == 1 and not _says_classes(chosen) else chosen
        if not _says_classes(chosen):
            return None
    rest = [
        Candidate(name, form, outputs[name], described(form, outputs[name]))
        for name, form in found.items() if form == "column" or (form == "values" and len(candidates) == 1)
    ]  # fmt: skip
    raise _unclear([*(group[0] for group in groups), *rest], metric)


def _says_classes(candidate: Candidate) -> bool:
    if candidate.form != "columns" or candidate.adds_to_one:
        return True
    values = candidate.array.astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        lengths = np.sqrt((values * values).sum(axis=1))
    if len(values) > 1 and bool((np.abs(lengths - 1) < 1e-3).all()):
        return False
    return len(values) < FEW_ROWS or len(np.unique(candidate.classes)) > 1


def predictions(outputs: Mapping[str, Array], *, output: str | None = None) -> NDArray[np.int64] | None:
    """The class each row says without labels to ask, shape (n,), or None when the model is no classifier.

    A single float column is None: whether it is a probability, a logit or a target value only the user knows.
    """
    candidate = answering(outputs, output=output)
    return None if candidate is None else candidate.classes


def agreement(
    outputs: Mapping[str, Array], reference: Mapping[str, Array], *, output: str | None = None
) -> NDArray[np.float64]:
    """Agreement with the reference for each row without labels, shape (n,): 1 or 0 for classes, else `values_alike`."""
    candidate = answering(reference, output=output)
    if candidate is not None:
        return same_classes(outputs, reference, candidate)
    return values_alike(outputs, reference, compared(reference) if output is None else [output])


def _unclear(candidates: Sequence[Candidate], metric: str, told: Sequence[str] = ()) -> Unclear:
    shares = [f", {share}" if share else "" for share in told] or [""] * len(candidates)
    named = "; ".join(f"'{item.name}' ({item.fits}{share})" for item, share in zip(candidates, shares, strict=True))
    these = "these could" if len(candidates) > 1 else "only this one could, and nothing shows that it does"
    return Unclear(
        f"which output holds the answers? Of the model's outputs {these}: {named}. "
        f"Name it: --metric '{metric}{{output=NAME}}'.",
        [item.name for item in candidates],
    )


def _supported(candidate: Candidate, outputs: Mapping[str, Array]) -> bool:
    """Whether an output that is the only candidate is one: whole numbers beside other outputs may be lengths or counts."""
    if candidate.form != "class" or len(outputs) == 1:
        return True
    found = forms(outputs)
    others = [
        Candidate(name, found[name], array, "") for name, array in outputs.items()
        if name != candidate.name and found[name] in ("columns", "column", "ranked")
    ]  # fmt: skip
    return any(same_answers(candidate, other, by_value=False) for other in others)
