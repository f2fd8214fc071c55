"""Groups of channels that can be removed, and why the others cannot."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from profiler.pruning.axes import Axes, Use
from profiler.pruning.units import Ids

SMALLEST = 2
"""Units a group needs: of one channel nothing can be removed."""


@dataclass(frozen=True)
class Member:
    """A weight's axis in which a group's units lie."""

    use: Use
    axis: int
    """The weight's axis."""
    places: tuple[Ids, ...]
    """Positions on that axis, by unit of the group."""


@dataclass(frozen=True)
class Group:
    """Units that occur in the same weights; each can be removed on its own, from all of them at once."""

    name: str
    """The first weight that makes these channels."""
    roots: tuple[int, ...]
    """One id for each unit."""
    producers: tuple[Member, ...]
    consumers: tuple[Member, ...]
    followers: tuple[Member, ...]
    """Depthwise and grouped convolutions on the way."""
    width: int
    """Channels of the first producer in each unit: 1, or a head's width."""
    tied: bool
    """Whether an addition of two computed tensors (a residual) runs over these channels."""

    @property
    def size(self) -> int:
        """Number of units."""
        return len(self.roots)


def find_groups(axes: Axes) -> tuple[list[Group], Counter[str]]:
    """`(groups, left)`: what can be pruned, in graph order; and reasons why other weights' outputs cannot, counted by op."""
    signature: dict[int, list[tuple[int, str]]] = defaultdict(list)
    roots: dict[tuple[int, str], Ids] = {}
    for number, use in enumerate(axes.uses):
        for role, axis in (("out", use.out_axis), ("in", use.in_axis)):
            ids = axes.ids.get((use.weight, axis)) if axis is not None else None
            if ids is None:
                continue
            roots[number, role] = axes.units.roots(ids)
            for root in dict.fromkeys(roots[number, role].tolist()):
                signature[root].append((number, role))
    joined = {axes.units.root(channel) for channel in axes.joins}
    classes: dict[tuple[tuple[int, str], ...], list[int]] = defaultdict(list)
    left: Counter[str] = Counter()
    blamed: set[tuple[tuple[tuple[int, str], ...], str]] = set()
    for root, roles in sorted(signature.items()):
        key = tuple(roles)
        reason = axes.units.reason(root) or _useless(axes, key)
        if reason is None:
            classes[key].append(root)
        elif any(role == "out" for _, role in key) and (key, reason) not in blamed:
            blamed.add((key, reason))
            left[reason] += 1
    groups = [_group(axes, key, members, roots, joined) for key, members in classes.items()]
    for group in groups:
        if group.size < SMALLEST:
            left["has one channel"] += 1
    kept = [group for group in groups if group.size >= SMALLEST]
    return sorted(kept, key=lambda group: min(member.use.node for member in group.producers)), left


def _useless(axes: Axes, key: tuple[tuple[int, str], ...]) -> str | None:
    dense = [(axes.uses[number], role) for number, role in key if axes.uses[number].in_axis is not None]
    if not any(role == "out" for _, role in dense):
        return "is not made by a stored weight"
    if not any(role == "in" for _, role in dense):
        return "is not summed over by a stored weight"
    return None


def _group(
    axes: Axes,
    key: tuple[tuple[int, str], ...],
    members: list[int],
    roots: Mapping[tuple[int, str], Ids],
    joined: set[int],
) -> Group:
    unit_of = {root: unit for unit, root in enumerate(members)}
    producers: list[Member] = []
    consumers: list[Member] = []
    followers: list[Member] = []
    for number, role in key:
        use = axes.uses[number]
        axis = use.out_axis if role == "out" else use.in_axis
        assert axis is not None
        found: list[list[int]] = [[] for _ in members]
        for place, root in enumerate(roots[number, role].tolist()):
            if root in unit_of:
                found[unit_of[root]].append(place)
        member = Member(use, axis, tuple(np.array(places, np.int64) for places in found))
        if use.in_axis is None:
            followers.append(member)
        else:
            (producers if role == "out" else consumers).append(member)
    return Group(
        name=producers[0].use.weight,
        roots=tuple(members),
        producers=tuple(producers),
        consumers=tuple(consumers),
        followers=tuple(followers),
        width=max(1, len(producers[0].places[0])),
        tied=any(root in joined for root in members),
    )


def removed_mask(axes: Axes, ids: Ids, removed: set[int]) -> NDArray[np.bool_]:
    """Which positions of an axis go."""
    return np.isin(axes.units.roots(ids), list(removed))
