"""Conditions in a target's text: `local{cpus=1,memory=512MB}`, `jetson{power=15W}`, `phone{cores=little}`.

The text is a machine and how much of it is used, so conditions are an axis of cases like machines are. `cpus` and `memory` make
an envelope: this machine with less of it. That answers whether something fits, and never how fast a device of that size is.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from backends import spec
from profiler.errors import EdgeprofError, StudyError, unknown
from profiler.measure.conditions import format_cores, parse_cores
from profiler.targets.config import LOCAL
from profiler.units import parse_bytes, size

OPTIONS = ("cores", "cpus", "memory", "power")
_UNITS = (("GB", 10**9), ("GiB", 2**30), ("MB", 10**6), ("MiB", 2**20), ("kB", 10**3), ("KiB", 2**10), ("", 1))
_MIN_MEMORY, _MAX_MEMORY = 1 << 24, 1 << 50
_MIN_CPUS, _MAX_CPUS = 0.05, 1024
_CASE = re.compile(r"/b\d+(?:/t\d+)?@([^@]+)$")
_CLASS = re.compile(r"[a-z][a-z0-9_-]{0,19}")
CLASS_OF_TARGETS = "class"
"""`class:edge`: any one target of that class (profiler.fleet.classes)."""
_MODE = re.compile(r"[A-Z0-9][A-Z0-9_.+-]{0,39}")


@dataclass(frozen=True)
class Conditions:
    """What is asked of a machine; None where it is used as it is."""

    cpus: float | None = None
    """Processors; a fraction is a share of time."""
    memory_bytes: int | None = None
    cores: str | None = None
    """A class of cores, or processors as `0-3|6`."""
    power: str | None = None
    """A power mode, by its name, watts or number."""

    @property
    def is_envelope(self) -> bool:
        """Whether less of the machine is used than there is."""
        return self.cpus is not None or self.memory_bytes is not None

    @property
    def own_process(self) -> bool:
        """Whether anything is asked of the worker itself, and not of the whole machine."""
        return self.is_envelope or self.cores is not None

    def fields(self) -> dict[str, Any]:
        """As the worker's `hello` takes them."""
        named = {"cpus": self.cpus, "memory_bytes": self.memory_bytes, "cores": self.cores, "power": self.power}
        return {key: value for key, value in named.items() if value is not None}

    def options(self) -> dict[str, str]:
        """As they stand in a target's text."""
        found = {
            "cores": self.cores,
            "cpus": None if self.cpus is None else f"{self.cpus:g}",
            "memory": None if self.memory_bytes is None else _bytes(self.memory_bytes),
            "power": self.power,
        }
        return {key: value for key, value in found.items() if value is not None}


def parse(text: str) -> tuple[str, Conditions]:
    """A target's name and its conditions. Raises StudyError for options that nobody knows, and values that cannot be."""
    read = spec.parse(text)
    machine = read.name
    if read.name == CLASS_OF_TARGETS and read.device is not None:
        machine = f"{read.name}:{read.device}"
    elif read.device is not None:
        raise StudyError(
            f"target '{text}': a target has no device after a colon; conditions stand in braces, such as {read.name}{{cpus=1}}."
        )
    for key in read.options:
        if key not in OPTIONS:
            raise unknown(f"option of target '{read.name}'", key, OPTIONS)
    cpus, memory, cores, power = (read.options.get(key) for key in ("cpus", "memory", "cores", "power"))
    return machine, Conditions(
        None if cpus is None else _cpus(text, cpus),
        None if memory is None else _memory(text, memory),
        None if cores is None else _cores(text, cores),
        None if power is None else _power(text, power),
    )


def canonical(text: str) -> str:
    """The one way to write it: `local{memory=0.5GB, cpus=1.0}` is `local{cpus=1,memory=500MB}`. Raises StudyError."""
    name, conditions = parse(text)
    return str(spec.Spec(name, None, conditions.options()))


def name(text: str) -> str:
    """The machine alone: one queue and one lease, whatever the conditions."""
    return parse(text)[0]


def label(text: str) -> str | None:
    """What must stand beside every figure measured in an envelope; None for a machine that is used whole."""
    machine, asked = parse(text)
    if not asked.is_envelope:
        return None
    parts = []
    if asked.cpus is not None:
        parts.append(f"{asked.cpus:g} cpu{'' if asked.cpus == 1 else 's'}")
    if asked.memory_bytes is not None:
        parts.append(size(asked.memory_bytes))
    place = "this machine" if machine == LOCAL else machine
    return f"envelope: {', '.join(parts)} on {place}, not the latency of a device of that size"


def describe(text: str) -> str:
    """A target in words, for headings: `jetson, power mode 15W, big cores`."""
    machine, asked = parse(text)
    words = ["this machine" if machine == LOCAL else machine]
    if asked.power is not None:
        words.append(f"power mode {asked.power}")
    if asked.cores is not None:
        numbers = parse_cores(asked.cores)
        words.append(f"{asked.cores} cores" if numbers is None else f"processors {asked.cores.replace('|', ',')}")
    if asked.cpus is not None:
        words.append(f"limited to {asked.cpus:g} cpu{'' if asked.cpus == 1 else 's'}")
    if asked.memory_bytes is not None:
        words.append(f"limited to {size(asked.memory_bytes)}")
    return ", ".join(words)


def too_many_threads(text: str, threads: int) -> str | None:
    """Why a number of threads makes no sense under the conditions; None when it does.

    Threads that take turns on a core measure how they get in each other's way, not the model.
    """
    _, asked = parse(text)
    numbers = None if asked.cores is None else parse_cores(asked.cores)
    room = min([count for count in (asked.cpus, None if numbers is None else len(numbers)) if count], default=None)
    if room is None or threads <= max(room, 1):
        return None
    return f"{threads} threads would take turns on {room:g} processor{'' if room == 1 else 's'} ({text})"


def stopped_by_quota(case: str) -> bool:
    """Whether a case, by its key, runs on a fraction of a processor: being stopped is its envelope's own and no interference."""
    match = _CASE.search(case)
    try:
        cpus = None if match is None else parse(match[1])[1].cpus
    except EdgeprofError:
        return False
    return cpus is not None and cpus != int(cpus)


def combine(
    targets: Sequence[str], *, memory: str | None = None, cpus: str | None = None, cores: str | None = None,
    power: str | None = None,
) -> tuple[str, ...]:  # fmt: skip
    """Texts of the targets with the conditions of a command line: limits hold for all of them, `cores` and `power` are axes.

    Raises StudyError for what cannot be, and for a condition that a target's text sets already.
    """
    limits = {key: value for key, value in (("memory", memory), ("cpus", cpus)) if value is not None}
    classes: list[dict[str, str]] = [{"cores": part} for part in _parts(cores, "--cores")] or [{}]
    modes: list[dict[str, str]] = [{"power": part} for part in _parts(power, "--power-mode")] or [{}]
    found: list[str] = []
    for text, mode, kind in itertools.product(targets, modes, classes):
        read = spec.parse(text)
        added = {**limits, **mode, **kind}
        twice = sorted(set(read.options) & set(added))
        if twice:
            raise StudyError(f"target '{text}' sets {twice[0]} itself: leave it out there, or the option here.")
        options = {**read.options, **added}
        # Through the parser, so that what no text can hold is told like everything else.
        inside = ",".join(f"{key}={value}" for key, value in options.items())
        device = f":{read.device}" if read.device else ""
        found.append(canonical(f"{read.name}{device}" + (f"{{{inside}}}" if inside else "")))
    return tuple(dict.fromkeys(found))


def _parts(text: str | None, option: str) -> list[str]:
    if text is None:
        return []
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        raise StudyError(f"{option} is empty: give one or several with commas, or leave it out.")
    return parts


def _cpus(text: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = 0.0
    if not _MIN_CPUS <= number <= _MAX_CPUS:
        raise StudyError(
            f"target '{text}': cpus is a number of processors from {_MIN_CPUS} on, such as 1 or 0.5, got '{value}'."
        )
    return round(number, 3)


def _memory(text: str, value: str) -> int:
    try:
        # Texts of earlier versions hold plain bytes.
        number = parse_bytes(f"{value}B" if value.isdigit() else value)
    except EdgeprofError:
        number = 0
    if not _MIN_MEMORY <= number <= _MAX_MEMORY:
        raise StudyError(
            f"target '{text}': memory is an amount such as 512MB or 2GiB, at least {size(_MIN_MEMORY)}, got '{value}'."
        )
    return number


def _cores(text: str, value: str) -> str:
    numbers = parse_cores(value)
    if numbers is not None:
        return format_cores(numbers)
    if not _CLASS.fullmatch(value):
        raise StudyError(
            f"target '{text}': cores is a class such as big or little, or processors such as 0-3 or 0|2, got '{value}'."
        )
    return value


def _power(text: str, value: str) -> str:
    # Names differ in case between boards and people; they are compared without it.
    if not _MODE.fullmatch(value.upper()):
        raise StudyError(f"target '{text}': power is a mode such as 15W, MAXN or its number, got '{value}'.")
    return value.upper()


def _bytes(number: int) -> str:
    return next(f"{number // scale}{unit}" for unit, scale in _UNITS if number % scale == 0)
