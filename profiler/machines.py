"""The machines of a run: which one a case ran on, and what its timings stand for. Pure.

A case's target is `NAME` or `NAME{option=value,…}`: a device, and under which conditions it was measured. What a run knows of its
targets other than this machine stands in its plan, which is untrusted: what does not look like it is not known.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from pydantic import TypeAdapter, ValidationError

from profiler.errors import EdgeprofError
from profiler.records import Environment, Source
from profiler.store import RunData
from profiler.study import Case, Study
from profiler.targets import conditions
from profiler.targets.config import LOCAL

EMULATED = "timings of an emulator say nothing about the device"
EMULATED_MEMORY = "the memory of an emulated process holds the emulator's own"
ENVELOPE = "timings inside an envelope are not that device's"


@dataclass(frozen=True)
class Machine:
    """One target of a run."""

    target: str
    """As in the cases: `local`, `jetson`, `jetson{power=15W}`."""
    environment: Environment | None
    """None where the run does not tell."""
    emulated: bool = False
    profile: str | None = None
    """Device profile, by id; None where it is not known."""
    envelope: str | None = None
    """What an envelope's figures are and are not, in words; None for a machine as it is."""
    priced_as: str | None = None
    """`aws:c7i.large` or `device:ID`; None when neither declared nor detected."""

    @property
    def name(self) -> str:
        """The device: `jetson` of `jetson{power=15W}`."""
        return device_of(self.target)

    @property
    def here(self) -> bool:
        """Whether it is the machine that ran edgeprof."""
        return self.name == LOCAL

    @property
    def power(self) -> str | None:
        """The power mode that was asked for; None for the one it was found in."""
        try:
            return conditions.parse(self.target)[1].power
        except EdgeprofError:
            return None

    @property
    def told(self) -> str:
        """In words: `jetson, power mode 15W`."""
        try:
            return conditions.describe(self.target)
        except EdgeprofError:
            return self.target

    @property
    def real(self) -> bool:
        """Whether its timings are those of a device that one can have: no emulator, no envelope."""
        return not self.emulated and self.envelope is None

    @property
    def group(self) -> str:
        """Cases of one group may be told apart by their latency: those of one device, or of one envelope."""
        return self.target if self.envelope is not None else self.name

    @property
    def source(self) -> Source:
        """What is said beside its timings."""
        return "emulated" if self.emulated else "measured here" if self.envelope is None else "envelope"

    @property
    def why_not_real(self) -> str | None:
        """Why its timings decide nothing about a device; None where they do."""
        return EMULATED if self.emulated else None if self.envelope is None else ENVELOPE


def machines(run: RunData) -> dict[str, Machine]:
    """The machines of a run by the target of their cases, in the order of the plan; one at least, this machine."""
    targets = [Case(**fields).target for fields in run.plan.get("cases", [])] or [*run.study.targets]
    return {target: machine(run, target) for target in dict.fromkeys(targets)}


def machine(run: RunData, target: str) -> Machine:
    """The machine behind one target of the run."""
    known = run.plan.get("targets")
    found = known.get(target, known.get(device_of(target))) if isinstance(known, Mapping) else None
    if not isinstance(found, Mapping):
        here = run.environment if device_of(target) == LOCAL else None
        return Machine(target, here, envelope=envelope(target))
    device = found.get("device")
    return Machine(
        target, _environment(found.get("environment")), found.get("emulated") is True,
        device if isinstance(device, str) else None, envelope(target),
    )  # fmt: skip


def device_of(target: str) -> str:
    """The device of a target's text: `jetson` of `jetson{power=15W}`. It has one queue, whatever its conditions."""
    return target.partition("{")[0]


def devices_of(study: Study) -> list[str]:
    """The devices of a study's targets, each once, in its order."""
    return list(dict.fromkeys(map(device_of, study.targets)))


def envelope(target: str) -> str | None:
    """What an envelope is and is not, in words; None for a machine that is used whole, in whatever power mode."""
    try:
        return conditions.label(target)
    except EdgeprofError:
        return f"under conditions that this edgeprof does not know: {target}"


@cache
def _reader() -> TypeAdapter[Environment]:
    return TypeAdapter(Environment)


def _environment(stored: Any) -> Environment | None:
    try:
        return _reader().validate_python(stored)
    except ValidationError:
        return None
