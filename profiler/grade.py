"""How far the numbers of a run can be trusted, as one letter with its reasons. Pure.

A: a dedicated machine with fixed clocks, self-tested, under 1 % of blocks disturbed. B: a shared one, self-tested, under 10 %.
C: self-tested, but more was disturbed, or over 30 % of a case's samples were left out; limits on absolute figures are not decided
where over 30 % of the blocks were disturbed. D: not self-tested, the self-test failed, or too few processes: what is shown was
measured, but nothing shows that the measuring works here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Letter = Literal["A", "B", "C", "D"]

QUIET, SHARED, WITHHELD = 0.01, 0.10, 0.30
FEWEST_PROCESSES = 3
BUSY_CORES = 0.1
"""Work of others, in cores, above which a machine is shared."""


@dataclass(frozen=True)
class Grade:
    """A letter, and why it is not a better one."""

    letter: Letter
    reasons: tuple[str, ...]
    absolute: bool
    """Whether absolute figures may decide a limit. Ratios may at every grade: they compare neighbours in time."""
    tested: bool = True
    """Whether a self-test ran on this machine at all: without one the D is no judgement."""

    @property
    def told(self) -> str:
        """`grade B: shared machine`, or `no grade: …` where no self-test was there to give one."""
        return f"grade {self}" if self.tested else str(self)

    def __str__(self) -> str:
        """`B: shared machine`; `no grade: …` where no self-test was there to give one."""
        if not self.tested:
            return f"no grade: {'; '.join(self.reasons)}"
        return f"{self.letter}: {'; '.join(self.reasons)}" if self.reasons else self.letter


def dedicated(made: bool | None, labels: Sequence[Mapping[str, float]]) -> bool | None:
    """Whether the machine worked for us alone. `made` is how it is made (no quota, no hypervisor), `labels` are of all blocks."""
    stolen, others = ([found[name] for found in labels if name in found] for name in ("steal_share", "other_cpu_share"))
    if any(share > 0 for share in stolen) or (others and sum(others) / len(others) >= BUSY_CORES):
        return False
    return made if others else None


def grade(
    *, dirty: float | None, processes: int, selftest: Mapping[str, Any] | None, dedicated: bool | None,
    fixed_clocks: bool | None, excluded: float | None = None,
) -> Grade:  # fmt: skip
    """The grade of a run.

    `dirty` is the share of disturbed blocks, None where nothing on this system tells; `excluded` is the largest share of a case's
    samples that was left out of its figures. `selftest` is the stored self-test that the run began with (a SelftestRecord as a
    mapping), None without one. `dedicated` and `fixed_clocks` are None where the system does not tell.
    """
    absolute = dirty is None or dirty <= WITHHELD
    lacking = []
    if selftest is None:
        lacking.append("no self-test on this machine (edgeprof selftest, 3 minutes)")
    elif not selftest.get("passed"):
        lacking.append("the self-test found that measurements on this machine cannot be trusted: edgeprof selftest")
    if processes < FEWEST_PROCESSES:
        lacking.append(f"{processes} processes per case, at least {FEWEST_PROCESSES} are needed")
    disturbed = (
        "nothing on this system tells what disturbs" if dirty is None else f"{dirty:.0%} of the blocks were disturbed"
    )
    if lacking:
        reasons = (*lacking, *([disturbed] if dirty is None or dirty >= SHARED else []))
        return Grade("D", reasons, absolute, tested=selftest is not None)
    if dirty is None or dirty >= SHARED:
        return Grade("C", (disturbed,), absolute)
    if excluded is not None and excluded > WITHHELD:
        return Grade("C", (f"{excluded:.0%} of the samples of a case were left out as disturbed",), absolute)
    short_of_a = []
    if not dedicated:
        short_of_a.append("shared machine" if dedicated is False else "nothing tells whether this machine is shared")
    if not fixed_clocks:
        short_of_a.append("clocks are not fixed" if fixed_clocks is False else "nothing tells how clocks are governed")
    if dirty >= QUIET:
        short_of_a.append(disturbed)
    return Grade("B", tuple(short_of_a), absolute) if short_of_a else Grade("A", (), absolute)
