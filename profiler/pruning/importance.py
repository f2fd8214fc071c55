"""How much each unit of a group matters."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from profiler.pruning.axes import Axes
from profiler.pruning.groups import Group, Member
from profiler.pruning.observe import ChannelSums


def magnitude(axes: Axes, group: Group) -> NDArray[np.float64]:
    """Share of the squared weights of producers and consumers that lies in each unit, added up; [units].

    Shares, so that a large tensor does not drown a small one.
    """
    total = np.zeros(group.size)
    for member in (*group.producers, *group.consumers):
        squares = _by_unit(member, _squares(axes, member))
        total += squares / max(float(squares.sum()), np.finfo(np.float64).tiny)
    return total


def activation(axes: Axes, group: Group, sums: Mapping[str, ChannelSums]) -> NDArray[np.float64]:
    """Energy each unit brings to its consumers' outputs: mean square of the activation times the squared weights that read
    it, as a share of the consumer's whole, added up over consumers; [units].
    """
    total = np.zeros(group.size)
    for member in group.consumers:
        energy = _squares(axes, member) * np.square(sums[member.use.data].rms)
        total += _by_unit(member, energy) / max(float(energy.sum()), np.finfo(np.float64).tiny)
    return total


def _squares(axes: Axes, member: Member) -> NDArray[np.float64]:
    """Sum of squared weights at each position of the member's axis."""
    weight = axes.view.array(member.use.weight)
    assert weight is not None
    others = tuple(axis for axis in range(weight.ndim) if axis != member.axis)
    return np.asarray(np.square(weight.astype(np.float64)).sum(axis=others))


def _by_unit(member: Member, values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.array([values[places].sum() for places in member.places])
