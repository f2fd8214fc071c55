"""Which device a target's text means, and which devices are one machine under several names."""

from __future__ import annotations

import io
import platform
import re
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress

from profiler import leases
from profiler.machines import device_of
from profiler.study import Case
from profiler.targets import config
from profiler.targets.pipe import Pipe

LOCAL = config.LOCAL
_BOOT_ID = re.compile(rb"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\s*")
_ASK = 'import sys;sys.stdout.write(open("/proc/sys/kernel/random/boot_id").read())'
_ASK_S = 20.0


def devices(cases: Iterable[Case]) -> tuple[str, ...]:
    """The devices of these cases, in their order."""
    return tuple(dict.fromkeys(device_of(case.target) for case in cases))


def lease_name(device: str) -> str:
    """What its lease is called. Every controller has a `local`, so that gets the machine's name; the name of another target
    means the same device to all who share a database."""
    return f"{LOCAL}@{platform.node()}"[:200] if device == LOCAL else device


def machine_of(device: str) -> str | None:
    """What tells that machine from every other one until it boots again; None where it does not tell or cannot be reached.

    Containers and emulators on one machine give the same, and so does a board that was added under two names.
    """
    if device == LOCAL:
        return leases.boot_id()
    with suppress(OSError):
        return _asked(config.words(config.get(device), "-c", _ASK))
    return None


def lanes(names: Sequence[str], machines: Mapping[str, str | None]) -> tuple[list[tuple[str, ...]], tuple[str, ...]]:
    """What may be measured at the same time: lanes of devices that are one machine, and the lane of this machine.

    Inside a lane one device follows the other. This machine's lane is apart, since everything that the others need from here
    (sending models, making inputs) would be in its timings: it runs when they are done. Empty when nothing is measured here.
    """
    here = machines.get(LOCAL) or leases.boot_id()
    beside: dict[str, list[str]] = {}
    alone: list[str] = []
    for name in names:
        machine = machines.get(name)
        if name == LOCAL or (machine is not None and machine == here):
            alone.append(name)
        else:
            beside.setdefault(machine or f"name {name}", []).append(name)
    return [tuple(lane) for lane in beside.values()], tuple(alone)


def _asked(command: Sequence[str], clock: Callable[[], float] = time.monotonic) -> str | None:
    """One short line of a device, which is not trusted to write only that, or anything, or to end."""
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        bufsize=0,
        start_new_session=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            pipe = Pipe(process.stdout.fileno(), process.stdin.fileno())
            pipe.until = clock() + _ASK_S
            answer = io.BufferedReader(pipe, 128).read(64)
        except TimeoutError:
            return None
        finally:
            process.kill()
    return answer.decode().strip() if _BOOT_ID.fullmatch(answer) else None
