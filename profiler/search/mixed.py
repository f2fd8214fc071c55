"""Mixed precision by measurement: which ops stay in float, chosen by what each costs in error and brings in time. Pure.

An op's error is what the output loses when it alone is quantized; its gain is its time in float less its time in int8, both
measured on the target. Ops whose int8 form is not faster stay in float for nothing. The others are given up in the order of
error per second gained, the greedy rule of the fractional knapsack, whose prefixes are each the best for their own gain.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from backends import spec

SHARES = (0.0, 0.3, 0.5, 0.7, 0.85, 0.95)
"""Shares of the summed error that the variants take back, the first for nothing."""


class Sensitive(Protocol):
    """What is known of the error of an op, or of neighbours quantized together: profiler.variants.sensitivity.Sensitivity."""

    @property
    def nodes(self) -> tuple[str, ...]:
        """As the option `skip` names them."""
        ...

    @property
    def op_types(self) -> tuple[str, ...]:
        """Their kinds."""
        ...

    @property
    def error(self) -> float:
        """Output error when only they are quantized, 0 or more; any unit, the same for all."""
        ...


@dataclass(frozen=True)
class NodeGain:
    """Ops that are quantized together, mostly one."""

    nodes: tuple[str, ...]
    op_types: tuple[str, ...]
    error: float
    gain_s: float | None
    """Seconds per inference that int8 saves; negative where it is slower, None where it could not be measured."""


@dataclass(frozen=True)
class Mix:
    """One set of ops that stay in float."""

    keep_float: tuple[str, ...]
    error_left: float
    """Share of the summed error that stays."""
    gain_left: float | None
    """Share of the possible gain that stays; None when no gain is known."""


def gains(
    sensitivities: Sequence[Sensitive], float_s: Mapping[str, float], int8_s: Mapping[str, float]
) -> list[NodeGain]:
    """Join errors with times by node name, seconds per inference in float and in int8.

    A group of which one node is missing in either table has no gain. Raises ValueError for an error that is negative or
    not finite.
    """
    found = []
    for one in sensitivities:
        if not (math.isfinite(one.error) and one.error >= 0):
            names = "|".join(one.nodes)
            raise ValueError(f"the error of '{names}' is {one.error}: expected a finite number, 0 or more")
        known = all(node in float_s and node in int8_s for node in one.nodes)
        gain = sum(float_s[node] - int8_s[node] for node in one.nodes) if known else None
        found.append(NodeGain(one.nodes, one.op_types, one.error, gain))
    return found


def mixes(nodes: Sequence[NodeGain], *, most: int = 6) -> list[Mix]:
    """At most `most` different sets along the trade-off, the fewest ops in float first; never all ops, and never none.

    A gain that is unknown counts as the median of its op types, or of all; when nothing is known, errors alone decide.
    Ops with names that cannot stand in a variant's text are never kept in float.
    """
    # Equal input in another order gives equal variants, to the last digit of the sums.
    ordered = sorted(nodes, key=lambda node: node.nodes)
    gain = _filled(ordered)
    usable = [node for node in ordered if all(map(spec.listable, node.nodes))]
    total_error = sum(node.error for node in ordered)
    total_gain = sum(value for value in gain.values() if value > 0)
    free = [node for node in usable if gain[node] <= 0]
    paid = sorted(
        (node for node in usable if gain[node] > 0 and node.error > 0), key=lambda node: -node.error / gain[node]
    )
    known = any(node.gain_s is not None for node in ordered)
    found: list[Mix] = []
    for share in SHARES:
        kept, taken = list(free), sum(node.error for node in free)
        for node in paid:
            if taken >= share * total_error - 1e-12:
                break
            kept.append(node)
            taken += node.error
        names = tuple(sorted(name for node in kept for name in node.nodes))
        if not kept or len(kept) == len(ordered) or any(mix.keep_float == names for mix in found):
            continue
        given_up = sum(max(0.0, gain[node]) for node in kept)
        found.append(
            Mix(
                names,
                max(0.0, 1 - taken / total_error) if total_error > 0 else 0.0,
                1 - given_up / total_gain if known and total_gain > 0 else None,
            )
        )
    return found[:most]


def text(recipe: str, mix: Mix) -> str:
    """The recipe with the mix's ops left in float: `int8-static{per_channel=true,skip=a|b}`. Earlier skips stay."""
    parsed = spec.parse(recipe)
    skipped = [name for name in parsed.options.get("skip", "").split("|") if name]
    names = sorted({*skipped, *mix.keep_float})
    return str(spec.Spec(parsed.name, parsed.device, {**parsed.options, "skip": "|".join(names)}))


def _filled(nodes: Sequence[NodeGain]) -> dict[NodeGain, float]:
    known = [node for node in nodes if node.gain_s is not None]
    everywhere = float(np.median([node.gain_s for node in known if node.gain_s is not None])) if known else 1.0
    filled = {}
    for node in nodes:
        alike = [other.gain_s for other in known if other.op_types == node.op_types and other.gain_s is not None]
        guess = float(np.median(alike)) if alike else everywhere
        # A guess may rank a node; it may not make it free.
        filled[node] = node.gain_s if node.gain_s is not None else max(guess, 1e-12)
    return filled
