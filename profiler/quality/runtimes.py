"""Whether two runtimes compute the same function from one file.

They never agree to the last bit: they add in other orders and fuse other ops. What they may differ by follows from the precision
that the file is computed in; beyond it, one of them has a fault, and neither is to be trusted before it is known which.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from profiler.quality.similarity import Array, Difference, Precision, Unlike, compare


@dataclass(frozen=True)
class RuntimeComparison:
    """One artifact's outputs on two runtimes."""

    outputs: tuple[Difference, ...]
    """Each output that either has; the second runtime's beside the first's."""
    different: tuple[str, ...]
    """Names of those that differ by more than the precision explains."""

    @property
    def differs(self) -> bool:
        """Whether the two count as different functions."""
        return bool(self.different)

    @property
    def worst(self) -> Difference | None:
        """The output that differs most, among the different ones when there are any; None without outputs."""
        among = [item for item in self.outputs if item.output in self.different] or self.outputs
        return max(among, key=lambda item: max(item.relative_error, item.column_error), default=None)


def compare_runtimes(
    first: Mapping[str, Array], second: Mapping[str, Array], precision: Precision
) -> RuntimeComparison:
    """Compare the outputs, by name, of two runtimes for the same artifact on the same rows; each array has all rows.

    An output that only one has, one of another shape, and NaN on one side alone are differences at any precision.
    """
    found = []
    for name in dict.fromkeys((*first, *second)):
        if name in first and name in second:
            forth, back = compare(name, second[name], first[name]), compare(name, first[name], second[name])
            # Where the first has NaN nothing counts, so whether the second has numbers there is seen from the other side.
            found.append(forth if back.unlike is None else back)
        else:
            found.append(Difference(name, -1.0, float("inf"), unlike=Unlike.SHAPE))
    names = tuple(item.output for item in found if item.beyond(precision))
    return RuntimeComparison(tuple(found), names)
