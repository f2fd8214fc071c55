"""Whether two runtimes compute the same function from one file.

They never agree to the last bit: they add in other orders and fuse other ops. What they may differ by follows from the precision
that the file is computed in; beyond it, one of them has a fault, and neither is to be trusted before it is known which.

What few bits cost depends on the model: two runtimes that round int8 differently are as far from each other as both are from the
unmodified model, however far that is. So a difference counts only where it is also several times what the better one of them is
off by: a fault is on one side.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from profiler.quality.similarity import Array, Difference, Precision, Unlike, compare

EXPLAINED = 3.0
"""Times the distance from the unmodified model that two sound runtimes may differ by. √2 for errors that have nothing to do with
each other; up to 1.2 over whole outputs and 1.7 in one column on real models (docs/method.md)."""


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
    first: Mapping[str, Array],
    second: Mapping[str, Array],
    precision: Precision,
    unmodified: Mapping[str, Array] | None = None,
) -> RuntimeComparison:
    """Compare the outputs, by name, of two runtimes for the same artifact on the same rows; each array has all rows.

    `unmodified` are the reference's outputs on these rows, for an artifact of reduced precision. An output that only one has,
    one of another shape, and NaN on one side alone are differences at any precision.
    """
    found = []
    for name in dict.fromkeys((*first, *second)):
        if name in first and name in second:
            forth, back = compare(name, second[name], first[name]), compare(name, first[name], second[name])
            # Where the first has NaN nothing counts, so whether the second has numbers there is seen from the other side.
            found.append(forth if back.unlike is None else back)
        else:
            found.append(Difference(name, -1.0, float("inf"), unlike=Unlike.SHAPE))
    known = unmodified if unmodified is not None and precision is Precision.REDUCED else {}
    names = tuple(
        item.output
        for item in found
        if item.beyond(precision) and not (item.output in known and _explained(item, first, second, known))
    )
    return RuntimeComparison(tuple(found), names)


def _explained(
    item: Difference, first: Mapping[str, Array], second: Mapping[str, Array], unmodified: Mapping[str, Array]
) -> bool:
    """Whether the better of both is about as far from the unmodified model as they are from each other."""
    if item.unlike is not None:
        return False
    name = item.output
    own = [compare(name, outputs[name], unmodified[name]) for outputs in (first, second)]
    if any(each.unlike is not None for each in own):
        return False
    whole, column = (min(each.relative_error for each in own), min(each.column_error for each in own))
    # What is within a limit by itself needs no explanation.
    return not replace(
        item,
        relative_error=0.0 if item.relative_error <= EXPLAINED * whole else item.relative_error,
        column_error=0.0 if item.column_error <= EXPLAINED * column else item.column_error,
    ).beyond(Precision.REDUCED)
