"""What the rows of an output hold, which outputs answer alike, and what an output of a known form says.

Which of them is meant is for `choice` to say.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from profiler.errors import DataError
from profiler.quality.outputs import NO_CLASS, Array, named_output
from profiler.quality.similarity import similarity

Form = Literal["class", "ranked", "columns", "column", "values"]
"""What a row of an output holds: the class itself (a whole number or a text), classes with the best first (TopK), a float for
each class, one float, or anything else."""

_SAME_ANSWERS = 0.999
"""Share of equal answers at which logits and their rounded probabilities count as one."""
FEW_ROWS = 20
"""Below, a largest column that is always the same can be chance."""
_TEXT_BYTES = 6
"""Codes of text classes fit a float64 exactly; two of a million names share one with a chance of 0.2 %."""


@dataclass(frozen=True)
class Candidate:
    """An output that could be meant."""

    name: str
    form: Form
    array: Array
    fits: str
    """Why, in a few words for people."""

    @property
    def classes(self) -> NDArray[np.int64]:
        """The class that each row says, shape (n,); `NO_CLASS` where scores hold NaN."""
        if self.form == "class":
            return class_codes(self.array.reshape(-1))
        if self.form == "ranked":
            return self.array[:, 0].astype(np.int64)
        # argmax answers with the position of a NaN, which would count as an answer. Ties go to the lower class.
        return np.where(np.isnan(self.array).any(axis=1), NO_CLASS, self.array.argmax(axis=1)).astype(np.int64)

    @property
    def adds_to_one(self) -> bool:
        """Whether its rows are probabilities of classes."""
        if self.form != "columns" or not len(self.array):
            return False
        values = self.array.astype(np.float64)
        return bool(((values >= 0) & (values <= 1.001)).all() and (np.abs(values.sum(axis=1) - 1) < 0.01).all())


def is_text(array: Array) -> bool:
    """Whether an array holds texts: of a text dtype, or objects that are all of them texts."""
    return array.dtype.kind in "US" or (
        array.dtype.kind == "O" and array.size > 0 and all(isinstance(item, (str, bytes)) for item in array.reshape(-1))
    )


def class_codes(classes: Array) -> NDArray[np.int64]:
    """Classes as whole numbers, shape as given: numbers as they are, texts by a hash of 48 bits, always the same."""
    if not is_text(classes):
        return classes.astype(np.int64)
    flat = [item.decode("utf-8", "replace") if isinstance(item, bytes) else str(item) for item in classes.reshape(-1)]
    names, inverse = np.unique(np.array(flat, dtype=np.str_), return_inverse=True)
    codes = [
        int.from_bytes(hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=_TEXT_BYTES).digest(), "big")
        for name in names.tolist()
    ]
    return np.array(codes, np.int64)[inverse.reshape(-1)].reshape(classes.shape)


def with_rows(outputs: Mapping[str, Array], rows: int) -> dict[str, Array]:
    """The outputs whose first axis has `rows` entries: one for each sample. Detections, scalars and constants have not."""
    return {name: array for name, array in outputs.items() if array.ndim and len(array) == rows}


def forms(outputs: Mapping[str, Array]) -> dict[str, Form]:
    """What a row of each output holds. Sorted floats beside whole numbers of the same shape are the values of a TopK."""
    found: dict[str, Form] = {name: _form(array) for name, array in outputs.items()}
    for name, array in outputs.items():
        if array.dtype.kind in "iu" and array.ndim == 2 and array.shape[1] > 1 and _distinct(array):
            same = {other: values for other, values in outputs.items() if values.shape == array.shape}
            partners = [other for other, values in same.items() if values.dtype.kind == "f" and _falling(values)]
            if partners:
                found[name] = "ranked"
                found.update(dict.fromkeys(partners, "values"))
    return found


def _form(array: Array) -> Form:
    single = array.ndim == 1 or array.shape[1:] == (1,)
    if single and (array.dtype.kind in "iub" or is_text(array)):
        return "class"
    if array.dtype.kind == "f" and single:
        return "column"
    return "columns" if array.dtype.kind == "f" and array.ndim == 2 and array.shape[1] > 1 else "values"


def _falling(array: Array) -> bool:
    return bool((np.diff(array.astype(np.float64), axis=1) <= 0).all())


def _distinct(array: Array) -> bool:
    ordered = np.sort(array.astype(np.int64), axis=1)
    return bool((ordered[:, :1] >= 0).all() and (np.diff(ordered, axis=1) > 0).all())


def compared(reference: Mapping[str, Array]) -> list[str]:
    """The outputs whose values are compared where none of them says a class: the floats, or without any all."""
    floats = [name for name, array in reference.items() if array.dtype.kind == "f"]
    return floats or list(reference)


def same_classes(
    outputs: Mapping[str, Array], reference: Mapping[str, Array], candidate: Candidate
) -> NDArray[np.float64]:
    """1 where both say the same class, else 0, shape (n,). Raises DataError unless both hold the same output and rows."""
    mine, theirs = (read(arrays, candidate.name, candidate.form) for arrays in (outputs, reference))
    if mine.array.shape != theirs.array.shape:
        # `similarity` has the words for it.
        similarity(mine.array, theirs.array)
    return np.asarray(mine.classes == theirs.classes, np.float64)


def read(outputs: Mapping[str, Array], name: str, form: Form) -> Candidate:
    """The output of that name, to be read in the form that was chosen for it. Raises DataError where it cannot be."""
    array = named_output(outputs, name)
    own = _form(array)
    if form not in (own, "values") and not (form == "ranked" and array.ndim == 2 and array.shape[1] > 1):
        raise DataError(
            f"output '{name}' is {array.dtype.name} of shape {array.shape}, that of the reference holds {_WORDS[form]}: "
            "both must come from the same samples and output."
        )
    return Candidate(name, form, array, "")


def values_alike(
    outputs: Mapping[str, Array], reference: Mapping[str, Array], names: Sequence[str]
) -> NDArray[np.float64]:
    """Similarity of each row to the reference's over all these outputs: that of the output that differs most, shape (n,)."""
    rows = []
    for name in names:
        mine, theirs = named_output(outputs, name), named_output(reference, name)
        if mine.dtype.kind == "f" or mine.shape != theirs.shape:
            rows.append(similarity(mine, theirs))
        else:
            # Whole numbers, flags and texts are the same or are not.
            rows.append((mine == theirs).reshape(len(mine), -1).all(axis=1).astype(np.float64))
    return np.asarray(np.min(rows, axis=0), np.float64)


def alike(candidates: Sequence[Candidate], *, by_value: bool) -> list[list[Candidate]]:
    """Groups of outputs that give the same answers: logits and their probabilities, a label and its scores.

    `by_value`: whether the classes have to be the same numbers; without labels their order is enough.
    """
    groups: list[list[Candidate]] = []
    for candidate in candidates:
        home = next((group for group in groups if same_answers(group[0], candidate, by_value=by_value)), None)
        groups.append([candidate]) if home is None else home.append(candidate)
    return groups


def same_answers(one: Candidate, other: Candidate, *, by_value: bool) -> bool:
    """Whether two outputs say the same class in each row, but for rounding."""
    if "column" in (one.form, other.form):
        if one.form == other.form:
            return np.array_equal(one.array.reshape(-1), other.array.reshape(-1))
        column, said = (one, other) if one.form == "column" else (other, one)
        return _split_by(column, said)
    if one.form == other.form == "columns" and one.array.shape != other.array.shape:
        return False
    a, b = one.classes, other.classes
    equal = bool((a == b).mean() >= _SAME_ANSWERS) if len(a) else False
    if equal and (len(np.unique(a)) > 1 or len(a) < FEW_ROWS or "class" in (one.form, other.form)):
        return True
    if by_value or one.form == other.form:
        return False
    return _one_to_one(a, b)


def _one_to_one(a: NDArray[np.int64], b: NDArray[np.int64]) -> bool:
    """Whether each class of one is one class of the other, but for a few rows."""
    pairs, counts = np.unique(np.stack([a, b], axis=1), axis=0, return_counts=True)
    matched = []
    for column in (0, 1):
        _, inverse = np.unique(pairs[:, column], return_inverse=True)
        largest = np.zeros(int(inverse.max()) + 1, np.int64)
        np.maximum.at(largest, inverse.reshape(-1), counts)
        matched.append(int(largest.sum()))
    return min(matched) >= _SAME_ANSWERS * len(a)


def _split_by(column: Candidate, said: Candidate) -> bool:
    """Whether a threshold on the column gives the two classes (an outlier detector's label, the second of two probabilities)."""
    classes, values = said.classes, column.array.reshape(-1).astype(np.float64)
    kinds = np.unique(classes)
    if len(kinds) != 2 or np.isnan(values).any() or (said.form == "columns" and said.array.shape[1] != 2):
        return False
    low, high = values[classes == kinds[0]], values[classes == kinds[1]]
    return bool(low.max() <= high.min() or (said.form == "class" and high.max() <= low.min()))


def preferred(group: Sequence[Candidate]) -> Candidate:
    """Of outputs that answer alike: the one that says the class, then probabilities, which need no conversion."""
    order = ("class", "ranked", "columns", "column", "values")
    chosen = min(group, key=lambda candidate: (order.index(candidate.form), not candidate.adds_to_one))
    if len(group) == 1:
        return chosen
    others = ", ".join(f"'{other.name}'" for other in group if other is not chosen)
    return Candidate(chosen.name, chosen.form, chosen.array, f"{chosen.fits}; {others} answers alike")


_WORDS: Mapping[Form, str] = {
    "class": "the class itself", "ranked": "classes, the best first", "columns": "a column for each class",
    "column": "one number", "values": "values",
}  # fmt: skip


def described(form: Form, array: Array) -> str:
    """What an output holds, in a few words."""
    if form == "columns":
        return f"{array.shape[1]} columns"
    if form == "values":
        return f"{array.dtype.name} of shape {('n', *array.shape[1:])}".replace("'n'", "n")
    return _WORDS[form]


def shapes(outputs: Mapping[str, Array]) -> str:
    """All outputs with what they are, for a message."""
    return ", ".join(f"'{name}' {array.dtype.name} {array.shape}" for name, array in outputs.items())
