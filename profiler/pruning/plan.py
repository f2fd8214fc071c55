"""Which units go: the least important ones, in numbers that fill SIMD lanes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from profiler.pruning.axes import Axes
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
    """Multiply-adds of the nodes with stored weights, as a function of how many units each group keeps."""

    whole: NDArray[np.float64]
    """Of each use as it is, per batch row, [uses]."""
    made: NDArray[np.float64]
    """Share of a use's outputs that lie in each group, [uses, groups]."""
    read: NDArray[np.float64]
    """Share of its inputs, [uses, groups]."""
    sizes: NDArray[np.float64]
    """Units of each group, [groups]."""

    def total(self, kept: Sequence[int]) -> float:
        """Multiply-adds when the groups keep so many units."""
        gone = 1 - np.asarray(kept, np.float64) / self.sizes
        return float((self.whole * (1 - self.made @ gone) * (1 - self.read @ gone)).sum())


def cost_of(axes: Axes, groups: Sequence[Group], positions: Mapping[int, int]) -> Cost:
    """Cost from weights and output positions per row (by node); a node of unknown size counts as one position."""
    place_of = {use: place for place, use in enumerate(axes.uses)}
    whole = [float(np.prod(list(axes.view.tensors[use.weight].dims))) * positions.get(use.node, 1) for use in axes.uses]
    made, read = np.zeros((len(axes.uses), len(groups))), np.zeros((len(axes.uses), len(groups)))
    for number, group in enumerate(groups):
        for shares, members in ((made, (*group.producers, *group.followers)), (read, group.consumers)):
            for member in members:
                length = axes.view.tensors[member.use.weight].dims[member.axis]
                shares[place_of[member.use], number] += sum(map(len, member.places)) / length
    return Cost(np.array(whole), made, read, np.array([group.size for group in groups], np.float64))


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


def by_cost(groups: Sequence[Group], rankings: Sequence[Ranking], cost: Cost, ratio: float, round_to: int) -> list[int]:
    """Units each group keeps when `ratio` of the multiply-adds go, block by block where least is lost for each.

    Stops early when every group is down to one block.
    """
    kept = [group.size for group in groups]
    whole = now = cost.total(kept)
    while now > (1 - ratio) * whole:
        best: tuple[float, int, int, float] | None = None
        for place, group in enumerate(groups):
            step = step_of(group, round_to)
            # The first step goes to a whole number of blocks.
            fewer = (kept[place] - 1) // step * step
            if fewer < step:
                continue
            after = cost.total([*kept[:place], fewer, *kept[place + 1 :]])
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
