"""Fitting the weights that read pruned channels again, from input to output, on calibration rows.

For each node in turn: its inputs are what the pruned model, fitted so far, gives it; its target is what the original model
has there before the activation function. So a layer repairs the errors of those before it instead of adding to them. Channel
pruning with least-squares reconstruction: Y. He, X. Zhang, J. Sun, "Channel Pruning for Accelerating Very Deep Neural
Networks", ICCV 2017; here in closed form for all kept channels at once, with a penalty on the change of the weights whose
strength is cross-validated. A node in front of a residual addition also takes over the error of the other side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from profiler.pruning.axes import Axes, Use
from profiler.pruning.graph import attribute
from profiler.pruning.groups import removed_mask
from profiler.pruning.observe import Feeds, Open, prefix
from profiler.pruning.patches import input_rows, sampled
from profiler.pruning.ridge import Sums, fit

MAX_COLUMNS = 4608
"""Weights of one output that are fitted at once; XᵀX of more takes over 170 MB and minutes. 512 channels × 3 × 3."""
FITTED = ("Conv", "Gemm", "MatMul")


@dataclass
class Report:
    """What was fitted."""

    fitted: int = 0
    unhelped: int = 0
    """Nodes whose held-out residual no correction reduced: left as they were."""
    too_large: list[str] = field(default_factory=list)
    unfit: list[str] = field(default_factory=list)
    """Nodes that cannot be fitted: weights read twice, or an op without a rule."""
    residual_before: float = 0.0
    residual_after: float = 0.0


@dataclass(frozen=True)
class _Task:
    use: Use
    node: NodeProto
    weight: str
    bias: str | None
    """Stored bias that may be changed."""
    other: str | None
    """The other side of a residual addition, whose error this node takes over; None without."""
    target: str
    """Name of the target in the original model."""
    own: str
    """Output of the node with its bias; the bias of a MatMul is an Add behind it."""


class _Problem:
    """The least squares of one node: running sums, and where a correction goes."""

    def __init__(self, axes: Axes, task: _Task, pruned: ModelProto, removed: set[int]) -> None:
        """Sizes from the pruned model's weight."""
        self.task = task
        shape = tuple(_stored(pruned, task.weight).dims)
        self.convolution = task.node.op_type == "Conv"
        self.kernel = shape[2:] if self.convolution else ()
        taps = int(np.prod(self.kernel))
        self.depthwise = task.use.in_axis is None
        outputs = shape[task.use.out_axis]
        # A Conv or Gemm without bias can be given one; a MatMul cannot.
        self.intercept = task.bias is not None or (task.node.op_type != "MatMul" and len(task.node.input) < 3)
        if self.depthwise:
            count = int((~removed_mask(axes, axes.ids[task.use.data, 1], removed)).sum())
            self.problems, width, targets = count, taps, outputs // count
        else:
            assert task.use.in_axis is not None
            self.problems, width, targets = 1, shape[task.use.in_axis] * taps, outputs
        self.columns = width + int(self.intercept)
        output = task.node.output[0]
        self.out_axis = 1 if self.convolution else len(axes.view.shapes[output]) - 1
        self.kept = ~removed_mask(axes, axes.ids[output, self.out_axis], removed)
        self._targets = targets
        self._halves: tuple[Sums, Sums] | None = None

    @property
    def halves(self) -> tuple[Sums, Sums]:
        """Sums over even and over odd rows of data."""
        if self._halves is None:
            one, two = (Sums.empty(self.problems, self.columns, self._targets) for _ in range(2))
            self._halves = one, two
        return self._halves

    def add(self, data: NDArray[Any], residual: NDArray[np.float64], number: int, rows: int) -> None:
        """Take in batch `number`, at sampled positions."""
        if self.convolution:
            flat = residual.reshape(*residual.shape[:2], -1).transpose(0, 2, 1)
        else:
            flat = residual.reshape(residual.shape[0], -1, residual.shape[-1])
        use = self.task.use
        where = sampled(flat.shape[1], self.columns, rows, (number, use.node))
        x = input_rows(self.task.node, data, use.data_axis, self.kernel, residual.shape[2:], where)
        y = flat[:, where]
        batch = x.shape[0]
        for half, sums in enumerate(self.halves):
            mine = (number * batch + np.arange(batch)) % 2 == half
            if mine.any():
                sums.add(*self._arranged(x[mine], y[mine]))

    def _arranged(
        self, x: NDArray[np.float64], y: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """[N, P, C, taps] and [N, P, O] as problems × rows × columns."""
        rows = x.shape[0] * x.shape[1]
        if self.depthwise:
            columns = x.reshape(rows, self.problems, -1).transpose(1, 0, 2)
            targets = y.reshape(rows, self.problems, -1).transpose(1, 0, 2)
        else:
            columns, targets = x.reshape(1, rows, -1), y.reshape(1, rows, -1)
        if self.intercept:
            columns = np.concatenate([columns, np.ones((*columns.shape[:2], 1))], axis=2)
        # What overflowed teaches nothing.
        good = np.isfinite(columns).all(axis=2, keepdims=True) & np.isfinite(targets).all(axis=2, keepdims=True)
        return np.where(good, columns, 0.0), np.where(good, targets, 0.0)

    def write(self, delta: NDArray[np.float64], pruned: ModelProto) -> None:
        """Add the correction [problems, columns, targets] to weight and bias."""
        weights = delta[:, :-1] if self.intercept else delta
        tensor = _stored(pruned, self.task.weight)
        if self.depthwise or self.convolution:
            change = weights.transpose(0, 2, 1).reshape(tuple(tensor.dims))
        else:
            change = weights[0].T if self.task.use.out_axis == 0 else weights[0]
        _add(tensor, change)
        if not self.intercept:
            return
        # Depthwise: outputs of one input channel follow each other, as the problems do.
        shift = delta[:, -1].reshape(-1)
        if self.task.bias is not None:
            bias = _stored(pruned, self.task.bias)
            _add(bias, shift.reshape(tuple(bias.dims)))
            return
        name = f"{self.task.weight}_refit_bias"
        pruned.graph.initializer.append(numpy_helper.from_array(shift.astype(np.float32), name))
        node = next(node for node in pruned.graph.node if self.task.node.output[0] in node.output)
        node.input.append(name)


def _stored(model: ModelProto, name: str) -> TensorProto:
    found: TensorProto = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    return found


def _add(tensor: TensorProto, change: NDArray[np.float64]) -> None:
    array = numpy_helper.to_array(tensor)
    tensor.CopyFrom(numpy_helper.from_array((array + change).astype(array.dtype), tensor.name))


def refit(
    axes: Axes,
    pruned: ModelProto,
    removed: set[int],
    open_model: Open,
    feeds: Callable[[], Iterable[Feeds]],
    rows: int,
    *,
    everything: bool = False,
) -> Report:
    """Fit in place the weights of `pruned` (made by `cut` from the analysed model) that read what changed.

    `feeds` gives the calibration rows, again for every node; `rows` is how many there are. With `everything`, nodes whose
    inputs are what they were are fitted too.
    """
    report = Report()
    done: set[int] = set()
    pending = sorted(axes.uses, key=lambda use: use.node) if everything else list(_affected(axes, removed))
    waiting = {use.node for use in pending}
    for use in pending:
        if use.node in done:
            continue
        batch = [other for other in pending if other.data == use.data and other.node not in done]
        tasks = []
        for one in batch:
            task = _task(axes, one, waiting - done, pruned)
            if task is None:
                report.unfit.append(axes.view.nodes[one.node].name or one.weight)
            else:
                tasks.append(task)
        if tasks:
            _fit_batch(axes, pruned, removed, tasks, open_model, feeds, rows, report)
        done |= {one.node for one in batch}
    return report


def _affected(axes: Axes, removed: set[int]) -> Iterator[Use]:
    """Uses whose input is no longer what it was, in graph order: channels are missing, or were computed from such."""
    by_node = {use.node: use for use in axes.uses}
    changed: set[str] = set()
    for index, node in enumerate(axes.view.nodes):
        use = by_node.get(index)
        summed = False
        if use is not None and use.in_axis is not None:
            summed = bool(removed_mask(axes, axes.ids[use.weight, use.in_axis], removed).any())
        touched = any(name in changed for name in node.input)
        if summed or touched:
            changed |= {name for name in node.output if name}
            if use is not None:
                yield use


def _task(axes: Axes, use: Use, open_nodes: set[int], pruned: ModelProto) -> _Task | None:
    view = axes.view
    node = view.nodes[use.node]
    single = len(view.readers[use.weight]) == 1
    plain = attribute(node, "alpha", 1.0) == 1.0 and attribute(node, "beta", 1.0) == 1.0
    square = use.in_axis is not None or view.shapes[use.weight][1] == 1
    if node.op_type not in FITTED or not single or not plain or not square or attribute(node, "transA", 0):
        return None
    if _stored(pruned, use.weight).data_type != TensorProto.FLOAT:
        return None
    bias = node.input[2] if len(node.input) > 2 and node.input[2] else None
    target, other, output = node.output[0], None, node.output[0]
    following = _only_reader(axes, output)
    if node.op_type == "MatMul" and following is not None and following.op_type == "Add":
        side = next((name for name in following.input if name != output), None)
        if side is not None and view.stored(side) and view.shapes[side] == view.shapes[use.weight][-1:]:
            bias, target, output = side, following.output[0], following.output[0]
            following = _only_reader(axes, target)
    shared_bias = bias is not None and not (
        len(view.readers[bias]) == 1 and view.stored(bias) and _elements(axes, bias) == _outputs(axes, use)
    )
    if shared_bias:
        bias = None
    if following is not None and following.op_type == "Add":
        side = next((name for name in following.input if name != target), None)
        same = side is not None and view.shapes.get(side) == view.shapes.get(target) is not None
        if side is not None and same and not view.stored(side) and not (_ancestors(axes, side) & open_nodes):
            other, target = side, following.output[0]
    return _Task(use, node, use.weight, bias, other, target, output)


def _elements(axes: Axes, name: str) -> int:
    return int(np.prod(list(axes.view.tensors[name].dims)))


def _outputs(axes: Axes, use: Use) -> int:
    return int(axes.view.shapes[use.weight][use.out_axis] or 0)


def _only_reader(axes: Axes, name: str) -> NodeProto | None:
    readers = axes.view.readers[name]
    if len(readers) != 1 or name in axes.view.outputs or name in axes.view.captured:
        return None
    return axes.view.nodes[readers[0][0]]


def _ancestors(axes: Axes, name: str) -> set[int]:
    found: set[int] = set()
    pending = [name]
    while pending:
        maker = axes.view.maker.get(pending.pop())
        if maker is not None and maker not in found:
            found.add(maker)
            pending.extend(axes.view.nodes[maker].input)
    return found


def _fit_batch(
    axes: Axes,
    pruned: ModelProto,
    removed: set[int],
    tasks: Sequence[_Task],
    open_model: Open,
    feeds: Callable[[], Iterable[Feeds]],
    rows: int,
    report: Report,
) -> None:
    problems: list[tuple[_Task, _Problem]] = []
    for task in tasks:
        problem = _Problem(axes, task, pruned, removed)
        if problem.columns > MAX_COLUMNS:
            report.too_large.append(task.node.name or task.weight)
        else:
            problems.append((task, problem))
    if not problems:
        return
    # The node's own output is read as well: with nothing removed the residual is exactly 0, whatever order a runtime adds in.
    others = [task.other for task, _ in problems if task.other is not None]
    names = list(dict.fromkeys([tasks[0].use.data, *others, *(task.own for task, _ in problems)]))
    there = list(dict.fromkeys(task.target for task, _ in problems))
    now, before = open_model(prefix(pruned, names)), open_model(prefix(axes.view.model, there))
    for number, row in enumerate(feeds()):
        seen = dict(zip(names, now.run(names, row), strict=True))
        wanted = dict(zip(there, before.run(there, row), strict=True))
        for task, problem in problems:
            residual = (
                np.compress(problem.kept, wanted[task.target], problem.out_axis).astype(np.float64) - seen[task.own]
            )
            if task.other is not None:
                residual = residual - seen[task.other]
            problem.add(seen[task.use.data], residual, number, rows)
    for _, problem in problems:
        found = fit(*problem.halves)
        report.residual_before += float(sum(half.power.sum() for half in problem.halves))
        if found is None:
            report.unhelped += 1
            report.residual_after += float(sum(half.power.sum() for half in problem.halves))
            continue
        report.fitted += 1
        report.residual_after += found.after
        problem.write(found.delta, pruned)
