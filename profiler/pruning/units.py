"""Channels that stand or fall together, as disjoint sets."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]


class Units:
    """Disjoint sets of channel ids (union-find), each set possibly fixed: it may not be removed, and this is why."""

    def __init__(self) -> None:
        """No channels yet."""
        self._parent: list[int] = []
        self._fixed: dict[int, str] = {}

    def new(self, count: int) -> Ids:
        """`count` channels that belong to nothing yet, int64 [count]."""
        start = len(self._parent)
        self._parent.extend(range(start, start + count))
        return np.arange(start, start + count, dtype=np.int64)

    def root(self, channel: int) -> int:
        """The id that stands for the channel's set."""
        parent = self._parent
        while parent[channel] != channel:
            parent[channel] = parent[parent[channel]]
            channel = parent[channel]
        return channel

    def roots(self, ids: Ids) -> Ids:
        """`root` of each."""
        return np.fromiter((self.root(int(channel)) for channel in ids), np.int64, len(ids))

    def join(self, first: Ids, second: Ids) -> None:
        """Tie `first[i]` to `second[i]`; lengths are equal."""
        for one, other in zip(first, second, strict=True):
            a, b = self.root(int(one)), self.root(int(other))
            if a != b:
                # The smaller id stands for the set, so that the result does not depend on chance.
                a, b = min(a, b), max(a, b)
                self._parent[b] = a
                reason = self._fixed.pop(b, None)
                if reason is not None:
                    self._fixed.setdefault(a, reason)

    def fix(self, ids: Ids, reason: str) -> None:
        """None of these may be removed; the first reason given stays."""
        for channel in ids:
            self._fixed.setdefault(self.root(int(channel)), reason)

    def reason(self, channel: int) -> str | None:
        """Why the channel's set may not be removed; None when it may."""
        return self._fixed.get(self.root(channel))
