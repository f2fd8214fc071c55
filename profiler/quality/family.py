"""What holds of the one that is chosen among many: every limit is decided at an error rate over all of them together. Pure.

Each variant alone passes a limit that it breaks once in twenty times; the best of twenty such does so nearly every second time.
What is recommended is therefore held against a bound for all that it was chosen among. Members with the same answers are one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from profiler.quality.verdict import ALPHA


@dataclass(frozen=True)
class Member:
    """One that could be chosen."""

    rows: Sequence[NDArray[np.generic] | None]
    """All that is stored of its answers: who has the same is the same. What a joint resampling of the family would draw from."""
    lower: Callable[[float], float | None]
    """The change is at least this, with one-sided error `alpha`; None where nothing bounds it. Falls when alpha does."""


@dataclass(frozen=True)
class Shared:
    """What holds of one member while all of its family are looked at."""

    count: int
    """Members with answers of their own that could have been chosen."""
    passed: bool
    """Whether it keeps the limit, at one error rate for all of them."""
    low: float | None
    """The change is at least this, for all of them at once; None where nothing bounds it."""
    finalist: bool = True
    """False: it was left out before its answers here were looked at, by what other rows told."""


def simultaneous(members: Mapping[str, Member], max_drop: float, *, alpha: float = ALPHA) -> dict[str, Shared]:
    """Which members keep `max_drop`, with a chance of at most `alpha` that any of those does not.

    Holm's step-down method over the distinct ones, on bounds instead of p-values: with k left, all that pass at `alpha` / k
    pass. `low` is Bonferroni's, at `alpha` over their number.
    """
    same = {key: _digest(member.rows) for key, member in members.items()}
    distinct = {digest: members[key] for key, digest in same.items()}
    passed: set[str] = set()
    left = set(distinct)
    while left:
        fresh = {digest for digest in left if _keeps(distinct[digest].lower(alpha / len(left)), max_drop)}
        if not fresh:
            break
        passed |= fresh
        left -= fresh
    low = {digest: member.lower(alpha / len(distinct)) for digest, member in distinct.items()}
    return {key: Shared(len(distinct), digest in passed, low[digest]) for key, digest in same.items()}


def _keeps(low: float | None, max_drop: float) -> bool:
    return low is not None and low >= -max_drop


def _digest(rows: Sequence[NDArray[np.generic] | None]) -> str:
    found = hashlib.sha256()
    for part in rows:
        found.update(
            b"none" if part is None else f"{part.shape}{part.dtype}".encode() + np.ascontiguousarray(part).tobytes()
        )
    return found.hexdigest()
