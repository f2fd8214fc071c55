"""How long a run may still take, and how much measurement fits into that. Pure but for the clock, which comes in."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Budget:
    """Time from now on. `seconds` None: as long as it takes."""

    seconds: float | None = None
    clock: Callable[[], float] = time.monotonic
    began: float = field(default=-1.0)

    def __post_init__(self) -> None:
        """Begin now, unless told when."""
        if self.began < 0:
            object.__setattr__(self, "began", self.clock())

    @property
    def spent_s(self) -> float:
        """Time since it began."""
        return self.clock() - self.began

    @property
    def left_s(self) -> float:
        """Time left, infinite without a budget; negative when it is overdrawn."""
        return math.inf if self.seconds is None else self.seconds - self.spent_s

    def share_s(self, units: int) -> float:
        """An equal part of what is left for each of `units` pieces of work."""
        return self.left_s / max(units, 1)
