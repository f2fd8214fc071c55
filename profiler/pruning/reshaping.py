"""Rules for ops that regroup elements in row-major order: Flatten and Reshape."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from onnx import NodeProto

from profiler.pruning.graph import Shape

if TYPE_CHECKING:
    from profiler.pruning.axes import Axes

Segment = tuple[list[int], list[int]]
"""Axes of the input and of the output that hold the same elements in the same order."""


def segments(before: Shape, after: Shape) -> list[Segment]:
    """Runs of axes with equal products, from the last axis on; ends at the first axis of unknown size.

    What lies to the right of equal products lines up in row-major order whatever the leading axes are.
    """
    found: list[Segment] = []
    i, j = len(before), len(after)
    while i and j:
        left, right = [i - 1], [j - 1]
        a, b = before[i - 1], after[j - 1]
        while a is not None and b is not None and a != b:
            if a < b:
                if left[0] == 0:
                    return found
                left.insert(0, left[0] - 1)
                size = before[left[0]]
                a = None if size is None else a * size
            else:
                if right[0] == 0:
                    return found
                right.insert(0, right[0] - 1)
                size = after[right[0]]
                b = None if size is None else b * size
        if a is None or b is None:
            return found
        found.append((left, right))
        i, j = left[0], right[0]
    return found


def flatten(axes: Axes, index: int, node: NodeProto) -> None:
    """[N, C, H, W] to [N, C·H·W]: H·W positions for each channel."""
    _regroup(axes, index, node, None, set())


def reshape(axes: Axes, index: int, node: NodeProto) -> None:
    """As Flatten, and apart again: heads·width to [heads, width] ties each head's channels. A stored shape follows; one that
    is put together by Concat follows piece by piece; where the numbers are computed the sizes cannot follow.
    """
    from profiler.pruning.axes import SizeEdit

    out = node.output[0]
    shape = axes.shape(out)
    if shape is None:
        return
    numbers = _numbers(axes, node)
    if numbers is None:
        return
    for axis, number in enumerate(numbers[: len(shape)]):
        if number is not None and number > 0:
            axes.edits.append(SizeEdit(index, 1, axis, (out, axis)))
    movable = {axis for axis, number in enumerate(numbers) if number}
    # A 0 copies the input's size at the same place, so there it follows by itself.
    copied = {axis for axis, number in enumerate(numbers) if number == 0}
    _regroup(axes, index, node, movable, copied)


def _numbers(axes: Axes, node: NodeProto) -> list[int | None] | None:
    """The target shape, None for a number that is computed; None when its length is unknown."""
    stored = axes.view.vector(node, 1, "shape")
    if stored is not None:
        # Before opset 5 an attribute, which nobody edits.
        return list(stored) if len(node.input) > 1 else [None] * len(stored)
    maker = axes.view.maker.get(node.input[1]) if len(node.input) > 1 else None
    if maker is None or axes.view.nodes[maker].op_type != "Concat":
        return None
    numbers: list[int | None] = []
    for name in axes.view.nodes[maker].input:
        array = axes.view.array(name)
        shape = axes.shape(name)
        if array is not None:
            numbers.extend(int(number) for number in array.ravel())
        elif shape is not None and len(shape) == 1 and shape[0] is not None:
            numbers.extend([None] * shape[0])
        else:
            return None
    return numbers


def _regroup(axes: Axes, _: int, node: NodeProto, movable: set[int] | None, copied: set[int]) -> None:
    """Tie the first axis of each segment that is larger than 1 on both sides; further axes stay whole."""
    data, out = node.input[0], node.output[0]
    before, after = axes.shape(data), axes.shape(out)
    if before is None or after is None:
        return
    for left, right in segments(before, after):
        source = next((axis for axis in left if before[axis] != 1), None)
        target = next((axis for axis in right if after[axis] != 1), None)
        if source is None or target is None:
            continue
        if movable is not None and target not in movable and not (target in copied and source == target):
            continue
        inner_source = int(np.prod([before[axis] or 1 for axis in left if axis > source]))
        inner_target = int(np.prod([after[axis] or 1 for axis in right if axis > target]))
        ids, made = axes.of((data, source)), axes.of((out, target))
        if ids is None or made is None:  # segments() only returns known sizes
            raise AssertionError(f"{data} or {out} has a segment of unknown size")
        if inner_target == 1:
            axes.put((out, target), np.repeat(ids, inner_source), "is regrouped with another axis")
        elif inner_source == 1:
            axes.merge(made, ids.reshape(len(made), inner_target))
        elif len(ids) == len(made):
            axes.units.join(ids, made)
        else:
            axes.fix((data, source), "is regrouped across its channels")
            axes.fix((out, target), "is regrouped across its channels")
