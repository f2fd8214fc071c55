"""How long a run may still take, and how much measurement fits into that. Pure but for the clock, which comes in."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from profiler.errors import BudgetError


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

    def require(self, seconds: float, asked_s: float | None, resume: str) -> None:
        """Raise BudgetError when what takes so many seconds cannot end in time.

        `asked_s` is the budget as it was given, of which this one may be a part; `resume` the command that goes on.
        """
        if self.left_s <= 0 or self.left_s < seconds:
            raise BudgetError(
                f"the time budget of {asked_s or self.seconds or 0.0:.3g} s was used up after {self.spent_s:.0f} s. "
                "Give more time with --time-budget, or fewer variants, rows (--limit) or runs; "
                f"`{resume}` goes on from what is stored."
            )

    def share_s(self, units: int) -> float:
        """An equal part of what is left for each of `units` pieces of work."""
        return self.left_s / max(units, 1)
