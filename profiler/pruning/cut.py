"""Cutting units out of a graph: stored tensors, stored sizes, declared shapes."""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, numpy_helper

from profiler.errors import VariantError
from profiler.onnx_io import clone
from profiler.pruning.axes import Axes, SizeEdit
from profiler.pruning.groups import removed_mask


def cut(axes: Axes, removed: set[int]) -> ModelProto:
    """A copy of the analysed model without the `removed` units (ids of sets, `Group.roots`). The model is not modified.

    Names stay, so a tensor of the result is the original's with fewer channels. Raises VariantError when a size that is
    stored in the graph cannot follow.
    """
    result = clone(axes.view.model)
    keep: dict[str, dict[int, NDArray[np.int64]]] = {}
    for (name, axis), ids in axes.ids.items():
        gone = removed_mask(axes, ids, removed) if removed else np.zeros(0, bool)
        if gone.any():
            keep.setdefault(name, {})[axis] = np.flatnonzero(~gone)
    if not keep:
        return result
    for tensor in result.graph.initializer:
        if tensor.name in keep:
            array = numpy_helper.to_array(tensor)
            for axis, places in keep[tensor.name].items():
                array = np.take(array, places, axis)
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), tensor.name))
    _edit_sizes(axes, result, keep)
    for value in (*result.graph.value_info, *result.graph.output):
        for axis, places in keep.get(value.name, {}).items():
            if value.type.tensor_type.shape.dim[axis].HasField("dim_value"):
                value.type.tensor_type.shape.dim[axis].dim_value = len(places)
    return result


def _edit_sizes(axes: Axes, result: ModelProto, keep: dict[str, dict[int, NDArray[np.int64]]]) -> None:
    changes: dict[int, list[tuple[SizeEdit, int]]] = {}
    for edit in axes.edits:
        places = keep.get(edit.axis[0], {}).get(edit.axis[1])
        if places is not None:
            changes.setdefault(edit.node, []).append((edit, len(places) // edit.divisor))
    nodes = [NodeProto.FromString(node.SerializeToString()) for node in result.graph.node]
    before: dict[int, NodeProto] = {}
    taken = {name for node in nodes for name in (*node.input, *node.output)} | {
        t.name for t in result.graph.initializer
    }
    for index, edits in changes.items():
        node = nodes[index]
        for edit, size in edits:
            if edit.position is None:
                next(entry for entry in node.attribute if entry.name == "group").i = size
        numbered = [(edit.entry, size) for edit, size in edits if edit.position is not None]
        position = next((edit.position for edit, _ in edits if edit.position is not None), None)
        if position is None:
            continue
        source = node.input[position]
        fresh = _fresh(f"{source}_pruned", taken)
        stored = axes.view.array(source)
        if stored is not None:
            numbers = stored.copy()
            for entry, size in numbered:
                numbers.reshape(-1)[entry] = size
            result.graph.initializer.append(numpy_helper.from_array(numbers, fresh))
        else:
            before[index] = _joined(axes, result, source, fresh, dict(numbered), taken)
        node.input[position] = fresh
    result.graph.ClearField("node")
    for index, node in enumerate(nodes):
        if index in before:
            result.graph.node.append(before[index])
        result.graph.node.append(node)


def _joined(
    axes: Axes, result: ModelProto, source: str, fresh: str, sizes: dict[int, int], taken: set[str]
) -> NodeProto:
    """A Concat of its own for one reader, with other stored pieces: other readers of the first one keep theirs."""
    node = NodeProto()
    node.CopyFrom(axes.view.nodes[axes.view.maker[source]])
    start = 0
    for place, name in enumerate(node.input):
        array = axes.view.array(name)
        shape = axes.shape(name) or (1,)
        length = int(array.size) if array is not None else int(shape[0] or 1)
        wanted = {entry - start: size for entry, size in sizes.items() if start <= entry < start + length}
        if wanted:
            if array is None:
                raise VariantError(
                    f"size {wanted} of '{source}' is computed in the graph and cannot follow the pruning."
                )
            numbers = array.copy()
            for entry, size in wanted.items():
                numbers.reshape(-1)[entry] = size
            piece = _fresh(f"{name}_pruned", taken)
            result.graph.initializer.append(numpy_helper.from_array(numbers, piece))
            node.input[place] = piece
        start += length
    node.output[0] = fresh
    node.name = _fresh(f"{node.name}_pruned", taken)
    return node


def _fresh(wanted: str, taken: set[str]) -> str:
    name, number = wanted, 2
    while name in taken:
        name, number = f"{wanted}_{number}", number + 1
    taken.add(name)
    return name


def check(model: ModelProto, original: ModelProto) -> None:
    """Raise VariantError unless the pruned model is valid and its outputs keep their declared shapes.

    What the checker dislikes in the original already (outputs without shapes, for one) is not held against pruning.
    """
    try:
        onnx.checker.check_model(original)
        known = True
    except onnx.checker.ValidationError:
        known = False
    try:
        if known:
            onnx.checker.check_model(model)
        onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    except Exception as error:
        text = " ".join(str(error).split())[:300]
        raise VariantError(f"the pruned graph is not valid: {text}. Please report the model.") from error
    if [value.SerializeToString() for value in model.graph.output] != [
        value.SerializeToString() for value in original.graph.output
    ]:
        raise VariantError("the pruned graph would have other outputs than the model. Please report the model.")
