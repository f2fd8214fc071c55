"""The order in which units can go so that least squares can best make up for them.

A unit whose activations the others can imitate costs little, however large it is. Removing column block c from a least-squares
problem with second moments H and weights W costs W_cᵀ [(H⁻¹)_cc]⁻¹ W_c and moves the other weights by a known amount: the surgeon
of B. Hassibi, D. Stork, "Second order derivatives for network pruning: Optimal Brain Surgeon", NIPS 1992, by blocks and by layers
(E. Frantar, D. Alistarh, "Optimal Brain Compression", NeurIPS 2022). Units go one by one, the cheapest first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from profiler.pruning.axes import Axes, Use
from profiler.pruning.groups import Group, Member
from profiler.pruning.observe import Feeds, Open, watched
from profiler.pruning.patches import input_rows, sampled
from profiler.pruning.plan import Ranking

Array = NDArray[np.float64]
MAX_COLUMNS = 4608
"""Larger consumers are ranked by their diagonal alone."""
DAMPING = 1e-3
"""Least share of H that is replaced by its mean diagonal, so that it can be inverted."""
STEPS = 128
"""A group goes in at most so many steps; of larger groups several units go at once, which changes little and saves minutes."""
MOMENTS_BYTES = 1 << 29
"""Moments kept at once; beyond that the calibration rows are run again."""


@dataclass
class Moments:
    """Running second moments of what a node reads, at sampled output positions."""

    square: Array
    """XᵀX, [K, K]; only its diagonal, [K], when K is large."""
    total: Array
    count: int = 0

    def add(self, x: Array) -> None:
        """Take in rows [n, K]."""
        x = np.nan_to_num(x, posinf=0.0, neginf=0.0)
        self.square += x.T @ x if self.square.ndim == 2 else np.square(x).sum(axis=0)
        self.total += x.sum(axis=0)
        self.count += len(x)

    @property
    def covariance(self) -> Array:
        """Central second moments: the mean is the bias' business."""
        mean = self.total / max(1, self.count)
        if self.square.ndim == 1:
            return np.maximum(self.square / max(1, self.count) - np.square(mean), 0.0)
        return np.asarray(self.square / max(1, self.count) - np.outer(mean, mean))


def moments(
    axes: Axes, uses: Sequence[Use], open_model: Open, feeds: Callable[[], Iterable[Feeds]], rows: int
) -> dict[Use, Moments]:
    """Moments of each (dense) use's input in the analysed model."""
    found: dict[Use, Moments] = {}
    pending = list(uses)
    while pending:
        batch: list[Use] = []
        size = 0
        while pending and (not batch or size + _bytes(axes, pending[0]) <= MOMENTS_BYTES):
            size += _bytes(axes, pending[0])
            batch.append(pending.pop(0))
        found |= _pass(axes, batch, open_model, feeds, rows)
    return found


def _columns(axes: Axes, use: Use) -> int:
    assert use.in_axis is not None
    dims = list(axes.view.tensors[use.weight].dims)
    return int(dims[use.in_axis] * np.prod(_kernel(axes, use)))


def _kernel(axes: Axes, use: Use) -> tuple[int, ...]:
    convolution = axes.view.nodes[use.node].op_type == "Conv"
    return tuple(axes.view.tensors[use.weight].dims[2:]) if convolution else ()


def _bytes(axes: Axes, use: Use) -> int:
    columns = _columns(axes, use)
    return 8 * columns * (columns if columns <= MAX_COLUMNS else 1)


def _pass(
    axes: Axes, uses: Sequence[Use], open_model: Open, feeds: Callable[[], Iterable[Feeds]], rows: int
) -> dict[Use, Moments]:
    found = {}
    for use in uses:
        columns = _columns(axes, use)
        square = np.zeros((columns, columns) if columns <= MAX_COLUMNS else columns)
        found[use] = Moments(square, np.zeros(columns))
    outputs = {use: axes.view.nodes[use.node].output[0] for use in uses}
    names = list(dict.fromkeys([*(use.data for use in uses), *outputs.values()]))
    runner = open_model(watched(axes.view.model, names))
    for number, row in enumerate(feeds()):
        seen = dict(zip(names, runner.run(names, row), strict=True))
        for use in uses:
            node = axes.view.nodes[use.node]
            kernel, made = _kernel(axes, use), seen[outputs[use]]
            spatial = made.shape[2:] if node.op_type == "Conv" else made.shape[1:-1]
            where = sampled(int(np.prod(spatial)), _columns(axes, use), rows, (number, use.node))
            x = input_rows(node, seen[use.data], use.data_axis, kernel, spatial, where)
            found[use].add(x.reshape(-1, _columns(axes, use)))
    return found


def rank(
    axes: Axes,
    group: Group,
    seen: Mapping[Use, Moments],
    most: int | None = None,
    weights: Mapping[Use, float] | None = None,
) -> Ranking:
    """The order of the group's units, and for each what its consumers lose when it goes after those before it.

    That is the part of their output variance that is beyond repair, added up over consumers, with `weights` where they differ in
    importance. Beyond the first `most` units the order is by the cost of going next.
    """
    readers = [member for member in group.consumers if member.use in seen]
    problems = [_problem(axes, member, seen[member.use]) for member in readers]
    shares = [1.0 if weights is None else weights.get(member.use, 1.0) for member in readers]
    alive = np.arange(group.size)
    most = group.size if most is None else min(most, group.size)
    together = -(-group.size // STEPS)
    order: list[int] = []
    loss: list[float] = []
    while len(alive):
        costs = np.zeros(len(alive))
        for share, problem in zip(shares, problems, strict=True):
            costs += share * np.maximum(problem.costs(alive), 0.0)
        # Of equal cost the later unit goes first.
        cheapest = np.lexsort((-alive, costs))
        count = len(alive) if len(order) >= most else min(together, len(alive))
        gone = alive[cheapest[:count]]
        order.extend(gone.tolist())
        loss.extend(costs[cheapest[:count]].tolist())
        if count == len(alive):
            break
        alive = np.sort(alive[cheapest[count:]])
        for problem in problems:
            problem.remove(gone)
    return Ranking(tuple(order), tuple(loss))


def shrinkage(covariance: Array, count: int) -> float:
    """How far a sample covariance of `count` rows should move to a multiple of the identity, 0 to 1.

    Without it, fewer rows than columns make everything seem imitable. Oracle approximating shrinkage, Y. Chen, A. Wiesel,
    Y. Eldar, A. Hero, "Shrinkage Algorithms for MMSE Covariance Estimation", IEEE Trans. Signal Process. 58 (2010), eq. 23.
    """
    size = len(covariance)
    square, trace = float(np.square(covariance).sum()), float(np.trace(covariance))
    upper = (1 - 2 / size) * square + trace**2
    lower = (count + 1 - 2 / size) * (square - trace**2 / size)
    return 1.0 if lower <= 0 else min(1.0, upper / lower)


class _Eliminate:
    """One consumer's least squares, shrinking; all of it divided by the variance of its output."""

    def __init__(self, weight: Array, covariance: Array, blocks: Sequence[NDArray[np.int64]], count: int) -> None:
        share = max(DAMPING, shrinkage(covariance, count))
        mean = max(float(np.trace(covariance)) / len(covariance), np.finfo(np.float64).tiny)
        damped = (1 - share) * covariance + share * mean * np.eye(len(covariance))
        self.weight = weight / np.sqrt(max(float((weight * (damped @ weight)).sum()), np.finfo(np.float64).tiny))
        self.inverse = np.linalg.inv(damped)
        self.blocks = blocks

    def costs(self, units: NDArray[np.int64]) -> Array:
        lengths = {len(self.blocks[unit]) for unit in units}
        if len(lengths) == 1 and lengths != {0}:
            where = np.stack([self.blocks[unit] for unit in units])
            inner = self.inverse[where[:, :, None], where[:, None, :]]
            rows = self.weight[where]
            return np.asarray((rows * np.linalg.solve(inner, rows)).sum(axis=(1, 2)))
        return np.array([self._cost(self.blocks[unit]) for unit in units])

    def _cost(self, where: NDArray[np.int64]) -> float:
        if not len(where):
            return 0.0
        rows = self.weight[where]
        return float((rows * np.linalg.solve(self.inverse[np.ix_(where, where)], rows)).sum())

    def remove(self, units: NDArray[np.int64]) -> None:
        where = np.concatenate([self.blocks[unit] for unit in units])
        if not len(where):
            return
        inner = self.inverse[np.ix_(where, where)]
        across = np.linalg.solve(inner, self.inverse[where]).T
        self.weight = self.weight - across @ self.weight[where]
        self.inverse = self.inverse - across @ self.inverse[where]
        self.weight[where] = 0.0
        # Rows that are gone must stay out of later updates, and their blocks are not asked for again.
        self.inverse[where] = 0.0
        self.inverse[:, where] = 0.0


class _Diagonal:
    """A consumer too large for its whole matrix: units are taken as independent."""

    def __init__(self, weight: Array, variance: Array, blocks: Sequence[NDArray[np.int64]]) -> None:
        energy = variance * np.square(weight).sum(axis=1)
        share = energy / max(float(energy.sum()), np.finfo(np.float64).tiny)
        self._costs = np.array([share[where].sum() for where in blocks])

    def costs(self, units: NDArray[np.int64]) -> Array:
        return np.asarray(self._costs[units])

    def remove(self, _: NDArray[np.int64]) -> None:
        pass


def _problem(axes: Axes, member: Member, seen: Moments) -> _Eliminate | _Diagonal:
    weight = axes.view.array(member.use.weight)
    assert weight is not None
    assert member.use.in_axis is not None
    taps = int(np.prod(_kernel(axes, member.use)))
    arranged = np.moveaxis(weight.astype(np.float64), member.use.out_axis, -1)
    arranged = arranged.reshape(-1, arranged.shape[-1])
    blocks = [(places[:, None] * taps + np.arange(taps)).ravel() for places in member.places]
    covariance = seen.covariance
    if covariance.ndim == 1:
        return _Diagonal(arranged, covariance, blocks)
    return _Eliminate(arranged, covariance, blocks, seen.count)
