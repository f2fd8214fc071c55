"""One rule per op: which axes of its inputs and outputs are the same channels. An axis no rule mentions stays whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np
from onnx import NodeProto

from profiler.pruning.graph import Shape, attribute
from profiler.pruning.reshaping import flatten, reshape

if TYPE_CHECKING:
    from profiler.pruning.axes import Axes

Rule = Callable[["Axes", int, NodeProto], None]

MAX = np.iinfo(np.int32).max


def _known(axes: Axes, node: NodeProto, names: list[str]) -> list[Shape] | None:
    """Shapes of `names`; None (and everything of the node fixed) when a rank is unknown."""
    shapes = [axes.shape(name) for name in names]
    if any(shape is None for shape in shapes):
        for name in (*node.input, *node.output):
            if name:
                axes.fix_all(name, f"meets a tensor of unknown rank at {node.op_type}")
        return None
    return [shape for shape in shapes if shape is not None]


def elementwise(axes: Axes, _: int, node: NodeProto) -> None:
    """Numpy broadcasting of all inputs to one output: axes of equal size are tied, those of size 1 are not."""
    names = [name for name in node.input if name]
    out = node.output[0]
    shapes = _known(axes, node, [out, *names])
    if shapes is None:
        return
    rank = len(shapes[0])
    for name, shape in zip(names, shapes[1:], strict=True):
        for axis, size in enumerate(shape):
            target = axis + rank - len(shape)
            whole = shapes[0][target]
            if size == 1 and whole != 1:
                axes.of((name, axis))
            elif size is None and whole is None:
                continue
            else:
                axes.tie((name, axis), (out, target), node)
    for axis in range(rank):
        axes.of((out, axis))
    if node.op_type in ("Add", "Sum"):
        _note_residual(axes, out, [name for name in names if not axes.view.stored(name)])


def _note_residual(axes: Axes, out: str, computed: list[str]) -> None:
    if (
        len({axes.view.maker.get(name, name) for name in computed}) > 1
        and len({axes.shape(name) for name in computed}) == 1
    ):
        for axis in range(len(axes.shape(out) or ())):
            ids = axes.of((out, axis))
            if ids is not None:
                axes.joins.update(int(channel) for channel in ids)


def same_shape(axes: Axes, _: int, node: NodeProto) -> None:
    """First input and first output are tied on all axes; other inputs are scalars or settings."""
    shapes = _known(axes, node, [node.input[0], node.output[0]])
    for axis in range(len(shapes[0]) if shapes else 0):
        axes.tie((node.input[0], axis), (node.output[0], axis), node)


def _passing(axes: Axes, node: NodeProto, passing: set[int]) -> None:
    for axis in passing:
        axes.tie((node.input[0], axis), (node.output[0], axis), node)


def spatial(axes: Axes, _: int, node: NodeProto) -> None:
    """Pooling and the like: batch and channel axes pass."""
    if _known(axes, node, [node.input[0], node.output[0]]):
        _passing(axes, node, {0, 1})


def batch_norm(axes: Axes, _: int, node: NodeProto) -> None:
    """Everything passes; the vectors lie along axis 1."""
    shapes = _known(axes, node, [node.input[0], node.output[0]])
    if not shapes or len(shapes[0]) < 2:
        return
    instance = node.op_type == "InstanceNormalization"
    _passing(axes, node, {0, 1} if instance else set(range(len(shapes[0]))))
    for name in node.input[1:]:
        if name:
            axes.tie((node.output[0], 1), (name, 0), node)


def along_axis(axes: Axes, _: int, node: NodeProto) -> None:
    """Softmax, layer normalization: all axes pass except those that are computed over."""
    shapes = _known(axes, node, [node.input[0], node.output[0]])
    if not shapes:
        return
    rank = len(shapes[0])
    old = axes.view.opset < 13 and node.op_type != "LayerNormalization"
    axis = attribute(node, "axis", 1 if old else -1) % max(rank, 1)
    rest = old or node.op_type == "LayerNormalization"
    _passing(axes, node, set(range(axis)) if rest else set(range(rank)) - {axis})


def conv(axes: Axes, index: int, node: NodeProto) -> None:
    """Filters [O, I/g, …] (transposed: [I, O/g, …]); a depthwise one follows its input; other groups go whole."""
    from profiler.pruning.axes import SizeEdit, Use

    data, weight, out = node.input[0], node.input[1], node.output[0]
    shapes = _known(axes, node, [data, weight, out])
    if not shapes or not axes.view.stored(weight) or len(shapes[0]) < 3:
        return
    transposed = node.op_type == "ConvTranspose"
    groups = attribute(node, "group", 1)
    out_axis, in_axis = (1, 0) if transposed else (0, 1)
    axes.tie((data, 0), (out, 0), node)
    read, made = axes.of((data, 1)), axes.of((out, 1))
    whole = read is not None and made is not None and not (len(read) % groups or len(made) % groups)
    if read is None or made is None or not whole:
        for axis in ((data, 1), (out, 1)):
            axes.fix(axis, "has a channel count that is unknown or does not fit the convolution")
        return
    if axes.view.given(node, 2):
        axes.tie((out, 1), (node.input[2], 0), node)
    if groups == 1:
        axes.put((weight, in_axis), read, "meets a filter of another size")
        axes.put((weight, out_axis), made, "meets a filter of another size")
        axes.uses.append(Use(index, data, 1, weight, out_axis, in_axis))
        return
    per_in, per_out = len(read) // groups, len(made) // groups
    # The first channel of each group stands for it.
    leaders = read.reshape(groups, per_in)[:, 0]
    axes.merge(leaders, read.reshape(groups, per_in))
    axes.merge(leaders, made.reshape(groups, per_out))
    axes.put((weight, 0), read if transposed else made, "meets a filter of another size")
    axes.edits.append(SizeEdit(index, None, 0, (data, 1), per_in))
    if not transposed:
        axes.uses.append(Use(index, data, 1, weight, 0, None, groups))


def gemm(axes: Axes, index: int, node: NodeProto) -> None:
    """[M, K] × [K, N], each possibly transposed, plus a bias that is broadcast."""
    from profiler.pruning.axes import Use

    first, second, out = node.input[0], node.input[1], node.output[0]
    shapes = _known(axes, node, [first, second, out])
    if not shapes:
        return
    trans_a, trans_b = attribute(node, "transA", 0), attribute(node, "transB", 0)
    axes.tie((first, 1 if trans_a else 0), (out, 0), node)
    axes.tie((first, 0 if trans_a else 1), (second, 1 if trans_b else 0), node)
    axes.tie((out, 1), (second, 0 if trans_b else 1), node)
    if axes.view.given(node, 2):
        bias = node.input[2]
        shape = axes.shape(bias)
        for axis, size in enumerate(shape or ()):
            if size != 1:
                axes.tie((out, axis + 2 - len(shape or ())), (bias, axis), node)
            else:
                axes.of((bias, axis))
    if axes.view.stored(second):
        axes.uses.append(
            Use(index, first, 0 if trans_a else 1, second, 0 if trans_b else 1, 1 if trans_b else 0)
        )  # fmt: skip


def matmul(axes: Axes, index: int, node: NodeProto) -> None:
    """[…, M, K] × […, K, N]; leading axes broadcast."""
    from profiler.pruning.axes import Use

    first, second, out = node.input[0], node.input[1], node.output[0]
    shapes = _known(axes, node, [first, second, out])
    if not shapes or min(len(shapes[0]), len(shapes[1])) < 2:
        return
    a, b, c = (len(shape) for shape in (shapes[0], shapes[1], shapes[2]))
    axes.tie((first, a - 2), (out, c - 2), node)
    axes.tie((second, b - 1), (out, c - 1), node)
    axes.tie((first, a - 1), (second, b - 2), node)
    for name, shape in ((first, shapes[0]), (second, shapes[1])):
        for axis, size in enumerate(shape[:-2]):
            target = axis + c - len(shape)
            if size == 1 and shapes[2][target] != 1:
                axes.of((name, axis))
            elif size is not None or shapes[2][target] is not None:
                axes.tie((name, axis), (out, target), node)
    if axes.view.stored(second) and b == 2:
        axes.uses.append(Use(index, first, a - 1, second, 1, 0))


def concat(axes: Axes, _: int, node: NodeProto) -> None:
    """Along the axis the parts follow each other; elsewhere they are tied."""
    out = node.output[0]
    shapes = _known(axes, node, [out, *node.input])
    if not shapes:
        return
    rank = len(shapes[0])
    where = attribute(node, "axis", 0) % max(rank, 1)
    for axis in range(rank):
        if axis == where:
            parts = [axes.of((name, axis)) for name in node.input]
            known = [part for part in parts if part is not None]
            if len(known) == len(parts):
                axes.put((out, axis), np.concatenate(known), "is joined to an axis of unknown size")
            else:
                for name in node.input:
                    axes.fix((name, axis), "is joined to an axis of unknown size")
            continue
        for name in node.input:
            axes.tie((name, axis), (out, axis), node)


def split(axes: Axes, index: int, node: NodeProto) -> None:
    """The reverse of Concat; stored sizes follow. Sizes that are not written down stay equal, so that axis stays whole."""
    from profiler.pruning.axes import SizeEdit

    data = node.input[0]
    shapes = _known(axes, node, [data, *node.output])
    if not shapes:
        return
    where = attribute(node, "axis", 0) % max(len(shapes[0]), 1)
    for axis in range(len(shapes[0])):
        if axis != where:
            for out in node.output:
                axes.tie((data, axis), (out, axis), node)
    sizes = axes.view.vector(node, 1)
    ids = axes.of((data, where))
    if sizes is None or ids is None or sum(sizes) != len(ids):
        axes.fix((data, where), "is split in parts whose sizes are not stored beside the op")
        return
    starts = np.cumsum([0, *sizes])
    for place, out in enumerate(node.output):
        axes.put((out, where), ids[starts[place] : starts[place + 1]], "is split at other places")
        axes.edits.append(SizeEdit(index, 1, place, (out, where)))


def transpose(axes: Axes, _: int, node: NodeProto) -> None:
    """Axes change places."""
    shapes = _known(axes, node, [node.input[0], node.output[0]])
    if not shapes:
        return
    order = attribute(node, "perm") or list(range(len(shapes[0])))[::-1]
    for target, source in enumerate(order):
        axes.tie((node.input[0], source), (node.output[0], target), node)


def squeeze(axes: Axes, _: int, node: NodeProto) -> None:
    """Axes of size 1 come or go; the others keep their order."""
    data, out = node.input[0], node.output[0]
    shapes = _known(axes, node, [data, out])
    where = axes.view.vector(node, 1, "axes")
    if not shapes or (where is None and axes.view.given(node, 1)):
        return
    longer = max(shapes, key=len)
    if where is None:
        if any(size is None for size in shapes[0]):
            return
        where = [axis for axis, size in enumerate(shapes[0]) if size == 1]
    dropped = {axis % len(longer) for axis in where}
    kept = [axis for axis in range(len(longer)) if axis not in dropped]
    for short, long in enumerate(kept):
        source, target = (long, short) if node.op_type == "Squeeze" else (short, long)
        axes.tie((data, source), (out, target), node)


def reduce(axes: Axes, _: int, node: NodeProto) -> None:
    """Axes that are not reduced pass."""
    data, out = node.input[0], node.output[0]
    shapes = _known(axes, node, [data, out])
    where = axes.view.vector(node, 1, "axes")
    if not shapes or where is None:
        return
    if not where:
        if attribute(node, "noop_with_empty_axes", 0):
            _passing(axes, node, set(range(len(shapes[0]))))
        return
    rank = len(shapes[0])
    reduced = {axis % rank for axis in where}
    keep = attribute(node, "keepdims", 1)
    target = 0
    for axis in range(rank):
        if axis not in reduced:
            axes.tie((data, axis), (out, target), node)
        target += int(bool(keep) or axis not in reduced)


def pad(axes: Axes, _: int, node: NodeProto) -> None:
    """Axes without padding pass."""
    shapes = _known(axes, node, [node.input[0], node.output[0]])
    pads = axes.view.vector(node, 1, "pads")
    if not shapes or pads is None:
        return
    rank = len(shapes[0])
    where = axes.view.vector(node, 3) if axes.view.given(node, 3) else list(range(rank))
    if where is None or len(pads) != 2 * len(where):
        return
    padded = {axis % rank for place, axis in enumerate(where) if pads[place] or pads[place + len(where)]}
    _passing(axes, node, set(range(rank)) - padded)


def resize(axes: Axes, index: int, node: NodeProto) -> None:
    """Batch and channels pass where they keep their size; a stored size follows."""
    from profiler.pruning.axes import SizeEdit

    shapes = _known(axes, node, [node.input[0], node.output[0]])
    if (
        not shapes
        or attribute(node, "axes") is not None
        or "crop" in attribute(node, "coordinate_transformation_mode", "")
    ):
        return
    same = {axis for axis in (0, 1) if axis < len(shapes[0]) and shapes[0][axis] == shapes[1][axis]}
    if axes.view.given(node, 3):
        if not axes.view.stored(node.input[3]):
            return
        axes.edits.extend(SizeEdit(index, 3, axis, (node.output[0], axis)) for axis in same)
    _passing(axes, node, {axis for axis in same if shapes[0][axis] is not None})


def slice_(axes: Axes, _: int, node: NodeProto) -> None:
    """Axes that are not sliced pass."""
    shapes = _known(axes, node, [node.input[0], node.output[0]])
    if not shapes:
        return
    starts = axes.view.vector(node, 1, "starts")
    ends = axes.view.vector(node, 2, "ends")
    where = axes.view.vector(node, 3, "axes")
    steps = axes.view.vector(node, 4)
    if where is None and not axes.view.given(node, 3) and starts is not None:
        where = list(range(len(starts)))
    if where is None:
        return
    rank = len(shapes[0])
    unread = starts is None or ends is None or (steps is None and axes.view.given(node, 4))
    cut = set()
    for place, axis in enumerate(where):
        whole = (
            not unread
            and starts
            and ends
            and starts[place] == 0
            and ends[place] >= MAX
            and (steps or {place: 1})[place] == 1
        )
        if not whole:
            cut.add(axis % rank)
    _passing(axes, node, set(range(rank)) - cut)


def gather(axes: Axes, _: int, node: NodeProto) -> None:
    """Looking up rows: the other axes of the table pass."""
    table, index, out = node.input[0], node.input[1], node.output[0]
    shapes = _known(axes, node, [table, index, out])
    if not shapes or not shapes[0]:
        return
    where = attribute(node, "axis", 0) % len(shapes[0])
    for axis in range(len(shapes[0])):
        if axis != where:
            axes.tie((table, axis), (out, axis if axis < where else axis + len(shapes[1]) - 1), node)


def shape_of(axes: Axes, _: int, node: NodeProto) -> None:
    """Reading a size does no harm where the size stays; each reader is asked which sizes it takes."""
    data, out = node.input[0], node.output[0]
    rank = len(axes.shape(data) or ())
    start = attribute(node, "start", 0)
    stop = attribute(node, "end", rank)
    span = list(range(rank))[start:stop]
    wanted: set[int] = set()
    for reader, position in axes.view.readers[out]:
        other = axes.view.nodes[reader]
        picked = axes.view.vector(other, 1) if other.op_type == "Gather" and position == 0 else None
        wanted |= set(span) if picked is None else {span[place] for place in picked if -len(span) <= place < len(span)}
    if out in axes.view.outputs or out in axes.view.captured:
        wanted |= set(span)
    for axis in range(rank):
        axes.of((data, axis))
        if axis in wanted:
            axes.fix((data, axis), "has its size computed with")


def nothing(_axes: Axes, _: int, _node: NodeProto) -> None:
    """All axes stay whole."""


_ELEMENTWISE = (
    "Add", "Sub", "Mul", "Div", "Pow", "Min", "Max", "Sum", "Mean", "PRelu", "Where", "Equal", "Greater", "GreaterOrEqual",
    "Less", "LessOrEqual", "And", "Or", "Xor", "Mod",
)  # fmt: skip
_SAME_SHAPE = (
    "Relu", "LeakyRelu", "Elu", "Selu", "Celu", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Softplus", "Softsign",
    "Mish", "Gelu", "Swish", "ThresholdedRelu", "Erf", "Exp", "Log", "Sqrt", "Reciprocal", "Neg", "Abs", "Sign", "Floor",
    "Ceil", "Round", "Sin", "Cos", "Not", "IsNaN", "IsInf", "Clip", "Cast", "Identity", "Dropout",
)  # fmt: skip
_SPATIAL = ("MaxPool", "AveragePool", "LpPool", "GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")
_REDUCE = (
    "ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSum",
    "ReduceLogSumExp",
)  # fmt: skip

RULES: Mapping[str, Rule] = {
    **dict.fromkeys(_ELEMENTWISE, elementwise),
    **dict.fromkeys(_SAME_SHAPE, same_shape),
    **dict.fromkeys(_SPATIAL, spatial),
    **dict.fromkeys(_REDUCE, reduce),
    "BatchNormalization": batch_norm,
    "InstanceNormalization": batch_norm,
    "Softmax": along_axis,
    "LogSoftmax": along_axis,
    "LayerNormalization": along_axis,
    "Conv": conv,
    "ConvTranspose": conv,
    "Gemm": gemm,
    "MatMul": matmul,
    "Concat": concat,
    "Split": split,
    "Transpose": transpose,
    "Squeeze": squeeze,
    "Unsqueeze": squeeze,
    "Pad": pad,
    "Resize": resize,
    "Slice": slice_,
    "Gather": gather,
    "Shape": shape_of,
    "Flatten": flatten,
    "Reshape": reshape,
    "Constant": nothing,
    "ConstantOfShape": nothing,
}
