"""Which channels of which tensors are tied together: one pass over the graph, op by op.

Every axis of known size of every tensor has one id per position. An op's rule ties ids of its inputs and outputs that must be
removed together, and an axis that the rule does not mention is fixed: what is not understood is left alone. Removing a set of
tied ids everywhere then leaves a graph that is valid, by construction.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from onnx import NodeProto

from profiler.onnx_io import op_name
from profiler.pruning.graph import GraphView, Shape
from profiler.pruning.units import Ids, Units

Axis = tuple[str, int]
"""A tensor's name and the axis, counted from 0."""


@dataclass(frozen=True)
class Use:
    """A node that multiplies by a stored weight along channels."""

    node: int
    data: str
    """The tensor that is multiplied."""
    data_axis: int
    """Its channel axis."""
    weight: str
    out_axis: int
    """The weight's axis along which outputs lie."""
    in_axis: int | None
    """The weight's axis that is summed over; None for a depthwise or grouped convolution, which sums within groups."""
    groups: int = 1


@dataclass(frozen=True)
class SizeEdit:
    """A stored number that says how long an axis is, and has to follow it."""

    node: int
    position: int | None
    """Input that holds the numbers; None for the attribute `group`."""
    entry: int
    axis: Axis
    divisor: int = 1
    """Positions of the axis per unit of the number."""


class Axes:
    """The ties of one graph. `ids` holds what was reached; `units` which ids are tied."""

    def __init__(self, view: GraphView) -> None:
        """Walk the graph."""
        from profiler.pruning.rules import RULES

        self.view = view
        self.units = Units()
        self.ids: dict[Axis, Ids] = {}
        self.uses: list[Use] = []
        self.edits: list[SizeEdit] = []
        self.joins: set[int] = set()
        """Units (ids; take their roots) that an addition of two computed tensors ties: residuals."""
        self._touched: set[Axis] = set()
        for name in (*view.inputs, *sorted(view.captured)):
            self.fix_all(name, "is an input of the model" if name in view.inputs else "is read inside a subgraph")
        for index, node in enumerate(view.nodes):
            rule = RULES.get(op_name(node))
            self._touched = set()
            names = [name for name in (*node.input, *node.output) if name]
            many = node.op_type != "Split" and sum(bool(name) for name in node.output) > 1
            if rule is None or many:
                for name in names:
                    what = "of which more than one output is used" if rule is not None else "which has no pruning rule"
                    self.fix_all(name, f"is read or made by {op_name(node)}, {what}")
                continue
            rule(self, index, node)
            for name in names:
                for axis in range(len(view.shapes.get(name, ()))):
                    if (name, axis) not in self._touched:
                        self.fix((name, axis), f"is an axis that {op_name(node)} does not keep apart by channel")
        for name in view.outputs:
            self.fix_all(name, "reaches an output of the model")

    def shape(self, name: str) -> Shape | None:
        """Static sizes; None when not even the rank is known."""
        return self.view.shapes.get(name)

    def size(self, axis: Axis) -> int | None:
        """The axis' size, None when dynamic or unknown."""
        shape = self.shape(axis[0])
        return None if shape is None else shape[axis[1]]

    def of(self, axis: Axis) -> Ids | None:
        """Ids of an axis, made on first use; None when its size is not static."""
        self._touched.add(axis)
        if axis not in self.ids:
            size = self.size(axis)
            if size is None:
                return None
            self.ids[axis] = self.units.new(size)
        return self.ids[axis]

    def put(self, axis: Axis, ids: Ids | None, why: str) -> None:
        """Say that `axis` holds exactly these channels; fixes both sides when sizes are unknown or differ."""
        self._touched.add(axis)
        size = self.size(axis)
        if ids is None or size != len(ids):
            if ids is not None:
                self.units.fix(ids, why)
            self.fix(axis, why)
        elif axis in self.ids:
            self.units.join(self.ids[axis], ids)
        else:
            self.ids[axis] = ids

    def tie(self, first: Axis, second: Axis, node: NodeProto) -> None:
        """Two axes of equal meaning."""
        why = f"meets an axis of unknown or other size at {op_name(node)}"
        if second in self.ids and first not in self.ids:
            first, second = second, first
        ids = self.of(first)
        self.put(second, ids, why)

    def fix(self, axis: Axis, reason: str) -> None:
        """Nothing of this axis may go."""
        ids = self.of(axis)
        if ids is not None:
            self.units.fix(ids, reason)

    def fix_all(self, name: str, reason: str) -> None:
        """Nothing of this tensor may go."""
        for axis in range(len(self.shape(name) or ())):
            self.fix((name, axis), reason)

    def merge(self, ids: Ids, blocks: Iterable[Ids]) -> None:
        """Tie `ids[i]` to everything in the i-th block."""
        for one, block in zip(ids, blocks, strict=True):
            self.units.join(np.full(len(block), one, np.int64), block)
