"""A canary: a fixed piece of work, timed between inferences, that slows down when somebody outside slows this core down.

On a virtual machine the other hardware thread of a core may belong to a stranger. While it computes, everything here takes a
fifth to a half longer, and no counter of this system knows: no steal, no waiting, no missing processor time. A loop that does
nothing takes longer too, so it is a witness that is independent of the model (docs/decisions/0010-a-canary.md).
"""

from __future__ import annotations

import time
from collections.abc import Callable

TARGET_NS = 6_000
"""Long beside the clock, short beside the gap between two songs."""
GAP_NS = 1_000_000
_TRIES = 15
_SMALLEST = 64


class Canary:
    """Call it: nanoseconds that 1000 turns of the loop would have taken now."""

    def __init__(self, clock: Callable[[], int] = time.perf_counter_ns, *, turns: int | None = None) -> None:
        """Find how many turns last about `TARGET_NS` on this machine, or take `turns`."""
        self._clock = clock
        self._turns = range(turns or _SMALLEST)
        if turns is None:
            fastest = min(self._time() for _ in range(_TRIES))
            self._turns = range(max(_SMALLEST, int(_SMALLEST * TARGET_NS / max(fastest, 1))))

    def __call__(self) -> int:
        """One song: the faster of two verses, so that a timer interrupt in one of them is no stranger."""
        return min(self._time(), self._time()) * 1000 // len(self._turns)

    def _time(self) -> int:
        clock, turns = self._clock, self._turns
        start = clock()
        for _ in turns:
            pass
        return clock() - start
