"""`class:edge`, `class:raspberry-pi-5-8gb`: any one of the user's targets of that kind, chosen when a run begins and kept.

What is measured on one device is compared on that device, so a class is not a pool that cases are dealt to: the first of its
devices that is free and answers stands for it from then on, in the plan and on resume. Nothing is reserved: two runs that begin
at the same moment may choose the same device, and take turns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from profiler.cost.devices import load_profiles
from profiler.errors import StudyError, TargetError
from profiler.fleet.devices import lease_name
from profiler.machines import device_of, devices_of
from profiler.progress import Progress
from profiler.store import Store
from profiler.study import Study
from profiler.targets import conditions, config, setup

PREFIX = f"{conditions.CLASS_OF_TARGETS}:"


def settled(study: Study, store: Store, progress: Progress, place: Callable[[str], Any] = setup.place) -> Study:
    """The study with a device in the place of each class; the study itself where it names none.

    `place` asks a target what it is. Raises StudyError for a class that no target is of, TargetError when none of its devices
    answers.
    """
    names = devices_of(study)
    chosen: dict[str, str] = {}
    for name in names:
        if name.startswith(PREFIX):
            taken = {*names, *chosen.values()}
            members = [member for member in _members(name.removeprefix(PREFIX)) if member not in taken]
            if not members:
                raise StudyError(
                    f"every target of '{name}' is named otherwise in this study: leave them out, or the class."
                )
            chosen[name] = _first(name, members, store, progress, place)
    if not chosen:
        return study
    targets = tuple(
        chosen.get(device_of(text), device_of(text)) + text[len(device_of(text)) :] for text in study.targets
    )
    declared = ",".join(
        f"{chosen.get(name, name)}={kind}" if name else kind for name, kind in study.cost.declared.items()
    )
    cost = study.cost.model_copy(update={"machine": declared or None})
    return study.model_copy(update={"targets": tuple(dict.fromkeys(targets)), "cost": cost})


def _members(wanted: str) -> list[str]:
    """Targets whose device profile has that id or class; emulators are none. Raises StudyError when there are none."""
    known = {name: spec.device for name, spec in config.load().items() if spec.device and not spec.emulated}
    kinds = {name: _kinds(device) for name, device in known.items()}
    found = [name for name, own in kinds.items() if wanted in own]
    if not found:
        there = ", ".join(sorted({kind for own in kinds.values() for kind in own})) or "none"
        raise StudyError(
            f"no target is of the class '{wanted[:60]}'; those of your targets: {there}. `edgeprof target probe NAME` finds out "
            "what a target is, `edgeprof target add NAME --device ID` says it."
        )
    return found


def _kinds(device: str) -> tuple[str, ...]:
    profile = load_profiles().get(device.removeprefix("device:"))
    return (device,) if profile is None else (profile.id, profile.device_class)


def _first(
    name: str, members: Sequence[str], store: Store, progress: Progress, place: Callable[[str], Any]
) -> str:  # fmt: skip
    """The first that nobody has and that answers; else the first that somebody has: asking it would disturb that one."""
    held = {state.device for state in store.leases() if state.live}
    busy = [member for member in members if lease_name(member) in held]
    problems: list[str] = []
    for member in (one for one in members if one not in busy):
        try:
            place(member)
        except TargetError as error:
            problems.append(str(error))
            continue
        progress.note(f"'{name}' is {member} in this run.")
        return member
    if busy:
        progress.note(f"'{name}' is {busy[0]} in this run; it is busy, as {len(busy)} of {len(members)} are.")
        return busy[0]
    raise TargetError(f"no target of '{name}' answers: {' '.join(problems)}")
