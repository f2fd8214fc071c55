"""Energy: the meters that edgeprof can read. One more meter is its file, its test and one line here.

Everything but `external` runs inside workers, beside the model; `external` is read by the controller.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from profiler.measure.energy import ina3221, nvml, pmic, rapl
from profiler.measure.energy.base import Absent, Meter, MeterInfo, MeterLost, Run, run_command

__all__ = ["READERS", "Absent", "Found", "Meter", "MeterInfo", "MeterLost", "choose", "find", "why_not"]

READERS: Mapping[str, Callable[[Path, Run, int], Meter | Absent]] = {
    # In the order of preference: what sees the whole module before what sees a part.
    ina3221.NAME: lambda root, run, gpu: ina3221.find(root),  # noqa: ARG005
    pmic.NAME: lambda root, run, gpu: pmic.find(root, run=run),  # noqa: ARG005
    nvml.NAME: lambda root, run, gpu: nvml.find(gpu),  # noqa: ARG005
    rapl.NAME: lambda root, run, gpu: rapl.find(root),  # noqa: ARG005
}


@dataclass(frozen=True)
class Found:
    """The meters of a machine, and why each other one is not there."""

    meters: tuple[Meter, ...]
    absent: tuple[Absent, ...]


def find(root: Path = Path("/"), *, run: Run = run_command, gpu: int = 0, names: Sequence[str] | None = None) -> Found:
    """Look for the meters (of those names, or all); `gpu` is the number that CUDA gives the GPU in question."""
    answers = [READERS[name](root, run, gpu) for name in READERS if names is None or name in names]
    return Found(
        tuple(answer for answer in answers if not isinstance(answer, Absent)),
        tuple(answer for answer in answers if isinstance(answer, Absent)),
    )


def choose(meters: Sequence[MeterInfo], device: str) -> MeterInfo | None:
    """The first meter that sees inferences on that kind of device (`cpu`, `nvidia`, `intel`), None when there is none."""
    return next((meter for meter in meters if not meter.powers or device in meter.powers), None)


def why_not(absent: Sequence[Absent]) -> str:
    """ "not measured" in words: every meter with the reason why it is absent, and what is left to do."""
    reasons = "; ".join(f"{item.meter}: {item.reason}" for item in absent)
    return f"no energy meter can be read here ({reasons}). docs/energy.md tells how to attach an external meter."
