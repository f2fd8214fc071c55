"""Putting a worker on a target, looking whether it works, and taking it away again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from profiler.errors import TargetError
from profiler.records import Environment
from profiler.targets import base, bundle, config
from profiler.targets.process import WorkerFailure, WorkerProcess
from profiler.targets.remote import Agent, clean

_ROOM = 4
"""Free bytes wanted on the device for each byte of the archives: the archive itself and what it unpacks to."""
_CHECK_S = 120.0

Told = Callable[[str, int, int], None]
"""Progress: what is being sent, bytes so far, bytes in all."""


@dataclass(frozen=True)
class SetUp:
    """What `set_up` did."""

    spec: config.TargetSpec
    """With the bundles that are there now."""
    sent: tuple[str, ...]
    """Bundles that were not there before."""
    packages: Mapping[str, str]
    """Wheels that were put there, with versions."""
    own: Mapping[str, str]
    """Packages of the device's own that are used."""
    left_out: Mapping[str, str]
    """Runtimes that could not be had, with the reason."""


@dataclass(frozen=True)
class Check:
    """Whether a worker starts there, and which backends it has."""

    worker: Mapping[str, Any]
    """What it says of itself."""
    backends: Mapping[str, tuple[bool, str]]
    """By name: whether it can run, and its version or the reason."""


@dataclass(frozen=True)
class Place:
    """What a run keeps of a target that it measured on."""

    environment: Environment
    emulated: bool
    device: str | None
    """Its device profile."""


def set_up(
    spec: config.TargetSpec, runtimes: Sequence[str] | None, cache: Path, told: Told, *, fresh: bool = False
) -> SetUp:
    """Make the bundles for the target and bring them there; what it has already is not sent again.

    `runtimes` are names of backends; None takes every one that has wheels for the device. Raises TargetError with what is
    missing: no Python, too old a C library, no wheel, no room. `fresh` throws away what is there and sends everything.
    """
    unknown = sorted(set(runtimes or ()) - set(bundle.RUNTIMES))
    if unknown:
        raise TargetError(f"no runtime '{unknown[0]}' can be put on a device; there are: {', '.join(bundle.RUNTIMES)}.")
    with _alone(spec), Agent(spec) as agent:
        if fresh:
            agent.ask("keep", timeout_s=300.0, names=[])
        found = agent.ask("look")
        there = bundle.device(spec.name, found)
        wheels, left_out = _wheels(there, runtimes, cache)
        parts = [bundle.modules(cache), *([wheels] if wheels else [])]
        present = found.get("bundles")
        present = {str(name) for name in present} if isinstance(present, list) else set()
        missing = [part for part in parts if part.name not in present]
        need, free = _ROOM * sum(part.archive.stat().st_size for part in missing), found.get("free_bytes")
        if not found.get("writable"):
            raise TargetError(
                f"'{spec.name}': {clean(str(found.get('folder')))[:200]} cannot be written: choose another place with --folder."
            )
        if missing and isinstance(free, int) and free < need:
            raise TargetError(
                f"'{spec.name}' has {free / 1e6:.0f} MB free where {spec.folder} is, {need / 1e6:.0f} MB are needed: free some, "
                "choose another place with --folder, or put fewer runtimes there with --runtimes."
            )
        for part in missing:
            agent.send_bundle(
                part.name,
                part.archive,
                part.sha256,
                lambda sent, size, name=part.name: told(name, sent, size),  # type: ignore[misc]
            )
        agent.ask("keep", names=[part.name for part in parts])
        if not config.same_place(config.get(spec.name), spec):
            raise TargetError(f"'{spec.name}' was given another command or folder meanwhile: set it up again.")
        ready = config.update(spec.name, bundles=tuple(part.name for part in parts))
    return SetUp(
        ready, tuple(part.name for part in missing), {} if wheels is None else wheels.packages,
        {name: there.modules[name] for name in there.modules if wheels is None or name not in wheels.packages}, left_out,
    )  # fmt: skip


def check(spec: config.TargetSpec) -> Check:
    """Start a worker there and ask it. Raises TargetError when none starts."""
    with WorkerProcess(base.remote(spec)) as worker:
        hello = worker.greet()
        backends = {}
        for name in ("ort", "ov", "trt"):
            try:
                reply, _ = worker.request("availability", backend=name, timeout_s=_CHECK_S)
            except WorkerFailure as failure:
                backends[name] = False, str(failure)
                continue
            good = reply["available"]
            backends[name] = good, (reply["version" if good else "reason"] or "")[:300]
        return Check(hello, backends)


def place(name: str) -> Place:
    """The machine behind a target, as its worker sees it. Raises TargetError, StudyError for an unknown name."""
    spec = config.get(name)
    with WorkerProcess(base.remote(spec)) as worker:
        worker.greet()
        reply, _ = worker.request("environment", timeout_s=_CHECK_S)
    try:
        environment = TypeAdapter(Environment).validate_python(reply["environment"])
    except ValidationError as error:
        raise TargetError(f"'{name}' tells facts about itself that cannot be: {clean(str(error))[:300]}.") from None
    return Place(environment, spec.emulated, spec.device)


def remove(spec: config.TargetSpec) -> bool:
    """Take everything of ours off the target; False when nothing was there. Raises TargetError when it cannot be reached."""
    with _alone(spec), Agent(spec) as agent:
        removed = agent.ask("remove", timeout_s=300.0).get("removed") is True
        config.update(spec.name, bundles=())
    return removed


def _alone(spec: config.TargetSpec) -> AbstractContextManager[None]:
    """Nobody else puts something there or takes it away meanwhile."""
    return config.lock(
        f"setup-{spec.name}", f"'{spec.name}' is being set up by another process: wait for it, or stop it."
    )


def _wheels(
    there: bundle.Device, runtimes: Sequence[str] | None, cache: Path
) -> tuple[bundle.Bundle | None, dict[str, str]]:
    """One bundle with all runtimes that were asked for; unasked ones that have no wheel are left out with the reason."""
    if runtimes is not None:
        return _made(there, runtimes, cache), {}
    left_out: dict[str, str] = {}
    names = list(bundle.RUNTIMES)
    try:
        return _made(there, names, cache), {}
    except TargetError:
        # Which of them it is, only each alone can tell; where there is nothing to tell, one bundle is made and not three.
        pass
    for name in list(names):
        try:
            _made(there, [name], cache)
        except TargetError as error:
            left_out[name] = str(error)
            names.remove(name)
    if not names and "tensorrt" not in there.modules:
        raise TargetError(next(iter(left_out.values())))
    return _made(there, names, cache), left_out


def _made(there: bundle.Device, runtimes: Sequence[str], cache: Path) -> bundle.Bundle | None:
    """None where the device brings all of them itself."""
    packages = bundle.wanted(there, runtimes)
    return bundle.wheels(there, packages, cache) if packages else None
