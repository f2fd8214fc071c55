"""How rows become the inputs of one inference: which axis is the batch, what stays the same, what is carried from step to step.

Rows are kept with the row axis first whatever the model's layout is; only here they are put where the model takes them. A
description is made once, from the model and what the study declares, and everything that feeds a model uses it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from backends.base import TensorInfo, format_shape
from profiler.data.dataset import MAX_BYTES, Array, Dataset
from profiler.errors import DataError, StudyError
from profiler.study import InputOptions

Outputs = dict[str, Array]
Role = Literal["rows", "constant", "state"]
Axis = int | Literal["none", "constant"]
"""Where the rows of an input lie: an axis of it, nowhere (one row is the whole input), or the same for every row."""

_RULES = "feeding:"
"""Begins the name under which a description travels beside rows whose batch axis is not simply the first."""


@dataclass(frozen=True, eq=False)
class InputRule:
    """How one input is fed."""

    info: TensorInfo
    role: Role = "rows"
    axis: int | None = 0
    """Its batch axis; None: it has none. Then a constant is the same for all rows, and one row fills the whole input."""
    source: str | None = None
    """Of a state: the output that is its next value."""
    init: float | Literal["data"] = 0.0
    """Of a state: what a sequence begins with; `data`: the row of that input at the sequence's first step."""
    value: Array | None = None
    """Of a constant: what is fed; None: taken from the data, or random where there is none."""
    declared: bool = False
    """Whether the study says so; else it follows from the model."""

    @property
    def name(self) -> str:
        """The input's name."""
        return self.info.name

    @property
    def from_rows(self) -> bool:
        """Whether the data has one row a sample for it."""
        return self.role == "rows" or (self.role == "state" and self.init == "data")

    @property
    def row_shape(self) -> tuple[int | str | None, ...]:
        """Shape of one row: the input's without its batch axis."""
        shape = self.info.shape
        return shape if self.axis is None else (*shape[: self.axis], *shape[self.axis + 1 :])

    @property
    def size(self) -> int | None:
        """The batch that the input is fixed to; None where any will do."""
        if self.role == "constant":
            return None
        size = 1 if self.axis is None else self.info.shape[self.axis]
        return size if isinstance(size, int) else None


@dataclass(frozen=True, eq=False)
class Feeding:
    """How a model is fed."""

    rules: tuple[InputRule, ...]
    output_axes: Mapping[str, int] = field(default_factory=dict)
    """Batch axes of outputs where it is not the first, as far as the model tells."""
    notes: tuple[str, ...] = ()
    likely_states: Mapping[str, str] = field(default_factory=dict)
    """By input, the output of its type, shape and name: perhaps its next value. Only ever suggested."""

    @classmethod
    def plain(cls, inputs: Sequence[TensorInfo]) -> Feeding:
        """Rows on the first axis of every input; an input without axes is the same for all rows."""
        return cls(
            tuple(
                InputRule(info) if info.shape or not numeric(info) else InputRule(info, "constant", None)
                for info in inputs
            )
        )

    @property
    def is_plain(self) -> bool:
        """Whether every input takes rows on its first axis."""
        return all(rule.role == "rows" and rule.axis == 0 for rule in self.rules)

    @property
    def states(self) -> tuple[InputRule, ...]:
        """Inputs that are carried from step to step."""
        return tuple(rule for rule in self.rules if rule.role == "state")

    @property
    def row_inputs(self) -> tuple[TensorInfo, ...]:
        """What the data has to hold: the inputs that come in rows, with the row axis first."""
        return tuple(replace(rule.info, shape=(None, *rule.row_shape)) for rule in self.rules if rule.from_rows)

    @property
    def fixed_batch(self) -> int | None:
        """The only batch size that the model takes, or None."""
        return next((rule.size for rule in self.rules if rule.size is not None), None)

    @property
    def axes(self) -> dict[str, Axis]:
        """Where the rows of each input lie, for who puts batches together elsewhere."""
        return {
            rule.name: "constant" if rule.role == "constant" else "none" if rule.axis is None else rule.axis
            for rule in self.rules
        }

    def check_batches(self, batches: Sequence[int]) -> None:
        """Raise StudyError for a batch size that the model's fixed axes do not allow."""
        for rule in self.rules:
            wrong = [batch for batch in batches if rule.size is not None and batch != rule.size]
            if wrong and rule.axis is None:
                raise StudyError(
                    f"batch {wrong[0]} is not possible: input '{rule.name}' has no batch axis. Ask for --batch 1."
                )
            if wrong:
                raise StudyError(
                    f"batch {wrong[0]} is not possible: input '{rule.name}' has a fixed batch axis of {rule.size}. "
                    f"Ask for --batch {rule.size}, or export the model with a dynamic batch axis. If the input is the same for "
                    f"all rows, say so with --input '{rule.name}{{value=data}}'."
                )

    def with_constants(self, found: Mapping[str, Array]) -> Feeding:
        """The same with these values, of constants that have none yet."""
        return replace(
            self,
            rules=tuple(
                replace(rule, value=found[rule.name]) if rule.value is None and rule.name in found else rule
                for rule in self.rules
            ),
        )

    def feeds(
        self, rows: Mapping[str, Array], index: Array, states: Mapping[str, Array] | None = None
    ) -> dict[str, Array]:
        """What one inference of the rows at `index` takes, contiguous. `states` are rows too; without them, a beginning."""
        made: dict[str, Array] = {}
        for rule in self.rules:
            if rule.role == "constant":
                assert rule.value is not None, rule.name
                made[rule.name] = rule.value
                continue
            if states is not None and rule.name in states:
                part = states[rule.name]
            elif rule.from_rows:
                part = rows[rule.name][index]
            else:
                part = self._beginning(rule, rows, len(index))
            made[rule.name] = _placed(part, rule.axis)
        return made

    def shapes(self, rows: Mapping[str, Array], batch: int) -> dict[str, list[int]]:
        """Shape of each input in a batch of so many rows."""
        return {
            rule.name: list(rule.value.shape) if rule.value is not None
            else _with_axis(self._row_sizes(rule, rows), rule.axis, batch)
            for rule in self.rules
        }  # fmt: skip

    def pool(self, rows: Mapping[str, Array], index: Array) -> dict[str, Array]:
        """The rows at `index` of every input, row axis first, each by itself: states as they begin, constants repeated."""
        made: dict[str, Array] = {}
        for rule in self.rules:
            if rule.from_rows:
                made[rule.name] = np.ascontiguousarray(rows[rule.name][index])
            elif rule.role == "state":
                made[rule.name] = self._beginning(rule, rows, len(index))
            else:
                assert rule.value is not None, rule.name
                made[rule.name] = np.broadcast_to(rule.value, (len(index), *rule.value.shape))
        return made

    def row_bytes(self, rows: Mapping[str, Array]) -> int:
        """Bytes of one row of all inputs."""
        sizes = (
            math.prod(self._row_sizes(rule, rows)) * np.dtype(rule.info.dtype).itemsize
            for rule in self.rules
            if rule.role != "constant"
        )
        return sum(sizes)

    def travelling(self, rows: Mapping[str, Array], states: Mapping[str, Array]) -> dict[str, Array]:
        """Rows that know how they are fed, as a plain mapping of arrays: `feeds_of` understands them.

        `states` holds what was recorded of the carried inputs, one row a sample. Where every input takes rows on its first
        axis these are the rows alone.
        """
        if self.is_plain:
            return dict(rows)
        count = len(next(iter({**rows, **states}.values())))
        every = np.arange(count)
        made = {**self.pool(rows, every), **states}
        rules = json.dumps(self.axes, sort_keys=True)
        # The row that counts them comes first; what is no array of rows has no axis, so that nobody cuts it.
        first = next(iter({**rows, **states}))
        ordered = {first: made.pop(first), **made}
        return {**ordered, f"{_RULES}{rules}": np.zeros((), np.uint8)}

    def answers(
        self, data: Dataset, batch: int, infer: Callable[[dict[str, Array]], Mapping[str, Array]]
    ) -> Iterator[tuple[Array, Outputs]]:
        """Run all rows in batches: yields the rows' numbers and the outputs of the batch, whose first rows are theirs.

        Without a state rows come in order, and the last batch is filled up from the front. With one, rows that share an id are
        one sequence, in their order; `batch` sequences run side by side, each from its own beginning, and what the model gives
        as `from` is fed in the next step. Outputs have their row axis first; those that are carried are left out when
        there are others. Raises DataError when the data do not say what a sequence is, and what `infer` raises.
        """
        for index, states in self._steps(data, batch):
            count = len(index)
            filled = np.concatenate([index, np.resize(np.arange(len(data)), batch - count)]) if count < batch else index
            outputs = dict(infer(self.feeds(data.inputs, filled, states)))
            for rule in self.states:
                states[rule.name] = self._next(rule, outputs, states[rule.name])
            yield index, self.row_wise(outputs)

    def row_wise(self, outputs: Mapping[str, Array]) -> Outputs:
        """Outputs with the row axis first, as far as the model tells where it is; without those that are carried."""
        carried = {rule.source for rule in self.states}
        kept = {name: array for name, array in outputs.items() if name not in carried} or dict(outputs)
        fed = [rule for rule in self.rules if rule.role != "constant"]
        if fed and all(rule.axis is None for rule in fed):
            return {name: array[np.newaxis] for name, array in kept.items()}
        return {
            name: np.moveaxis(array, self.output_axes[name], 0)
            if array.ndim > self.output_axes.get(name, array.ndim)
            else array
            for name, array in kept.items()
        }

    def _steps(self, data: Dataset, batch: int) -> Iterator[tuple[Array, dict[str, Array]]]:
        """Rows of each step; the states of the batch, which the caller replaces with the next ones in place."""
        if not self.states:
            for start in range(0, len(data), batch):
                yield np.arange(start, min(start + batch, len(data))), {}
            return
        waiting = sequences(data)
        waiting.reverse()
        running: list[list[int]] = []
        states: dict[str, Array] = {}
        while waiting or running:
            # Those that go on stand in front, with their states; the others begin.
            begun = len(running)
            while waiting and len(running) < batch:
                running.append(waiting.pop()[::-1])
            index = np.array([sequence[-1] for sequence in running], np.int64)
            filled = np.concatenate([index, np.zeros(batch - len(index), np.int64)])
            for rule in self.states:
                fresh = (
                    data.inputs[rule.name][filled] if rule.init == "data" else self._beginning(rule, data.inputs, batch)
                )
                fresh = fresh.copy()
                if begun:
                    fresh[:begun] = states[rule.name]
                states[rule.name] = fresh
            yield index, states
            for sequence in running:
                sequence.pop()
            going = [place for place, sequence in enumerate(running) if sequence]
            states = {name: array[going] for name, array in states.items()}
            running = [running[place] for place in going]

    def _next(self, rule: InputRule, outputs: Mapping[str, Array], before: Array) -> Array:
        assert rule.source is not None
        if rule.source not in outputs:
            raise DataError(f"the model gave no output '{rule.source}', which input '{rule.name}' is carried from.")
        given = np.asarray(outputs[rule.source])
        rows = given[np.newaxis] if rule.axis is None else np.moveaxis(given, rule.axis, 0)
        if rows.shape != before.shape or rows.dtype != before.dtype:
            raise DataError(
                f"output '{rule.source}' is {given.dtype} {given.shape}, which input '{rule.name}' "
                f"({rule.info.dtype} {format_shape(rule.info.shape)}) does not take as its next value: set from= to another."
            )
        # Copied: a runtime may write its next outputs into the same memory.
        return rows.copy()

    def _row_sizes(self, rule: InputRule, rows: Mapping[str, Array]) -> tuple[int, ...]:
        if rule.from_rows:
            return rows[rule.name].shape[1:]
        known = {
            symbol: size
            for other in self.rules
            if other.from_rows
            for symbol, size in zip(other.row_shape, rows[other.name].shape[1:], strict=True)
            if isinstance(symbol, str)
        }
        sizes = [size if isinstance(size, int) else known.get(size or "") for size in rule.row_shape]
        if any(size is None for size in sizes):
            raise StudyError(
                f"state '{rule.name}' is {format_shape(rule.info.shape)}: nothing says how large its open axes are. Give its "
                f"beginning with the data, and --input '{text_of(rule.name, {'from': rule.source, 'init': 'data'})}'."
            )
        return tuple(int(size) for size in sizes if size is not None)

    def _beginning(self, rule: InputRule, rows: Mapping[str, Array], count: int) -> Array:
        shape = (count, *self._row_sizes(rule, rows))
        dtype = np.dtype(rule.info.dtype)
        check_size(rule.name, shape, dtype)
        init = 0.0 if rule.init == "data" else rule.init
        return np.full(shape, init, dtype)


def feeds_of(
    inputs: Sequence[TensorInfo], rows: Mapping[str, Array]
) -> tuple[Callable[[int, int], dict[str, Array]], int, int]:
    """For rows from `Feeding.travelling`: what makes the feeds of rows start … stop, how many rows there are, the model's batch.

    A mapping without a description is rows on the first axis, and values without an axis are the same for all rows.
    """
    described = next((name for name in rows if name.startswith(_RULES)), None)
    axes: dict[str, Axis] = {} if described is None else json.loads(described.removeprefix(_RULES))
    arrays = {name: array for name, array in rows.items() if name != described}
    of = {name: axes.get(name, 0 if array.ndim else "constant") for name, array in arrays.items()}
    count = min((len(arrays[name]) for name, axis in of.items() if axis != "constant"), default=0)
    fixed = [1]
    for info in inputs:
        axis = of.get(info.name, 0 if info.shape else "constant")
        size = info.shape[axis] if isinstance(axis, int) and axis < len(info.shape) else None
        fixed += [size] if isinstance(size, int) else []

    def make(start: int, stop: int) -> dict[str, Array]:
        return {name: _fed(array[start:stop] if array.ndim else array, of[name]) for name, array in arrays.items()}

    return make, count, max(fixed)


def rows_fed(rows: Mapping[str, Array], feeds: Mapping[str, Array]) -> int:
    """How many of `rows` (as `feeds_of` takes them) stand in `feeds`."""
    described = next((name for name in rows if name.startswith(_RULES)), None)
    axes: dict[str, Axis] = {} if described is None else json.loads(described.removeprefix(_RULES))
    counts = []
    for name, array in feeds.items():
        axis = axes.get(name, 0 if array.ndim else "constant")
        counts += [array.shape[axis]] if isinstance(axis, int) and axis < array.ndim else []
    return max(counts, default=1)


def _fed(part: Array, axis: Axis) -> Array:
    if axis == "constant":
        return np.asarray(part[0] if part.ndim else part)
    return _placed(part, None if axis == "none" else axis)


def _placed(part: Array, axis: int | None) -> Array:
    """Rows, row axis first, as the model takes them. Not ascontiguousarray, which gives a scalar an axis."""
    return np.asarray(part[0] if axis is None else np.moveaxis(part, 0, axis), order="C")


def _with_axis(row: tuple[int, ...], axis: int | None, batch: int) -> list[int]:
    return list(row) if axis is None else [*row[:axis], batch, *row[axis:]]


def numeric(info: TensorInfo) -> bool:
    """Whether its values are numbers of numpy's own; sequences, maps and texts are not."""
    try:
        return np.dtype(info.dtype).kind in "biuf"
    except TypeError:
        return False


def sequences(data: Dataset) -> list[list[int]]:
    """Rows that share an id, in order; sequences in the order of their first rows. Raises DataError without ids."""
    if data.ids is None:
        raise DataError(
            f"an input is carried from step to step, but data '{data.name}' does not say which rows are one sequence: give an "
            "array `ids`, equal for the rows of one sequence, which are taken in their order (np.zeros(rows, int): all are one)."
        )
    found: dict[str, list[int]] = {}
    for row, name in enumerate(data.ids.tolist()):
        found.setdefault(name, []).append(row)
    return list(found.values())


def check_size(name: str, shape: Sequence[int], dtype: np.dtype[np.generic], most: int = MAX_BYTES) -> None:
    """Raise StudyError before an array of that shape is made that would be absurdly large."""
    size = math.prod(shape) * dtype.itemsize
    if size > most:
        raise StudyError(
            f"input '{name}' would take {size / 1e9:,.1f} GB for {shape[0] if shape else 1} rows (shape {tuple(shape)}), at "
            f"most {most / 1e9:,.1f} GB are made: the model's shape is larger than any data, or give real rows with --data."
        )


def text_of(name: str, options: Mapping[str, object]) -> str:
    """`name{option=value,…}`, as --input takes it."""
    return InputOptions.model_validate(options).text(name)
