"""Which units go: the least important ones, in numbers that fill SIMD lanes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from profiler.pruning.axes import Axes, Use
from profiler.pruning.groups import Group


@dataclass(frozen=True)
class Ranking:
    """In which order a group's units go, and what each costs in accuracy, in a unit comparable between groups."""

    order: tuple[int, ...]
    """Units, the first to go first."""
    loss: tuple[float, ...]
    """What going costs, in that order."""


def ranked(importance: NDArray[np.float64]) -> Ranking:
    """The least important first; of equal importance the later ones."""
    order = np.lexsort((-np.arange(len(importance)), importance))
    return Ranking(tuple(order.tolist()), tuple(importance[order].tolist()))


@dataclass(frozen=True)
class Cost:
    """Multiply-adds of the nodes with stored weights, as a function of how many channels are left."""

    fixed: Mapping[int, float]
    """Multiply-adds of each use (by its place in `Axes.uses`) as it is, per batch row."""

    def total(self, axes: Axes, groups: Sequence[Group], kept: Sequence[int]) -> float:
        """Multiply-adds when each group keeps so many units."""
        share_out: dict[Use, float] = {}
        share_in: dict[Use, float] = {}
        for group, count in zip(groups, kept, strict=True):
            gone = 1 - count / group.size
            for member in (*group.producers, *group.followers):
                length = _length(axes, member.use, member.axis)
                lost = gone * sum(map(len, member.places)) / length
                share_out[member.use] = share_out.get(member.use, 1.0) - lost
            for member in group.consumers:
                length = _length(axes, member.use, member.axis)
                lost = gone * sum(map(len, member.places)) / length
                share_in[member.use] = share_in.get(member.use, 1.0) - lost
        return sum(
            self.fixed[place] * share_out.get(use, 1.0) * share_in.get(use, 1.0) for place, use in enumerate(axes.uses)
        )


def cost_of(axes: Axes, positions: Mapping[int, int]) -> Cost:
    """Cost from weights and output positions per row (by node); a node of unknown size counts as one position."""
    fixed = {}
    for place, use in enumerate(axes.uses):
        size = int(np.prod(list(axes.view.tensors[use.weight].dims)))
        fixed[place] = float(size * positions.get(use.node, 1))
    return Cost(fixed)


def _length(axes: Axes, use: Use, axis: int) -> int:
    shape = axes.shape(use.weight)
    size = None if shape is None else shape[axis]
    return size or 1


def step_of(group: Group, round_to: int) -> int:
    """Units that make `round_to` channels."""
    return max(1, -(-round_to // group.width))


def uniform(groups: Sequence[Group], ratio: float, round_to: int) -> list[int]:
    """Units each group keeps when each gives up the same share, rounded to whole blocks, never below one block."""
    kept = []
    for group in groups:
        step = step_of(group, round_to)
        # Half a block more counts as a block: 24 of 48 with blocks of 16 keeps 32.
        blocks = int(np.floor((1 - ratio) * group.size / step + 0.5))
        kept.append(group.size if ratio == 0 else min(group.size, max(1, blocks) * step))
    return kept


def by_cost(
    axes: Axes, groups: Sequence[Group], rankings: Sequence[Ranking], cost: Cost, ratio: float, round_to: int
) -> list[int]:
    """Units each group keeps when `ratio` of the multiply-adds go, block by block where least is lost for each.

    Stops early when every group is down to one block.
    """
    kept = [group.size for group in groups]
    whole = now = cost.total(axes, groups, kept)
    while now > (1 - ratio) * whole:
        best: tuple[float, int, int, float] | None = None
        for place, group in enumerate(groups):
            step = step_of(group, round_to)
            # The first step goes to a whole number of blocks.
            fewer = (kept[place] - 1) // step * step
            if fewer < step:
                continue
            after = cost.total(axes, groups, [*kept[:place], fewer, *kept[place + 1 :]])
            lost = sum(rankings[place].loss[group.size - kept[place] : group.size - fewer])
            price = lost / max(now - after, np.finfo(np.float64).tiny)
            if best is None or price < best[0]:
                best = price, place, fewer, after
        if best is None:
            break
        _, place, kept[place], now = best
    return kept


def removed_units(groups: Sequence[Group], rankings: Sequence[Ranking], kept: Sequence[int]) -> set[int]:
    """Roots of the units that go when each group keeps so many."""
    return {
        group.roots[unit]
        for group, ranking, count in zip(groups, rankings, kept, strict=True)
        for unit in ranking.order[: group.size - count]
    }
