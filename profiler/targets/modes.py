"""Power modes during a run: each device is in the mode that its next case asks for, and in its own again at the end.

One idle worker per device holds the mode. Whatever happens to it or to us, the device restores its mode by itself when that
worker is gone (profiler/measure/power_mode.py), so an interrupt, a lost link or a killed host leave nothing changed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, replace
from types import TracebackType

from profiler.errors import TargetError
from profiler.targets.base import Target
from profiler.targets.conditions import Conditions
from profiler.targets.launch import ConditionedWorker
from profiler.targets.process import WorkerFailure

_HELD_S = 30 * 86_400.0
_RESTORE_S = 90.0


@dataclass
class _Held:
    worker: ConditionedWorker
    mode: str


@dataclass
class Modes:
    """The devices whose power mode is changed now, by name. Use it in a `with` block; threads may share it."""

    start: Callable[[Target], ConditionedWorker] = ConditionedWorker
    _held: dict[str, _Held] = field(default_factory=dict)
    _locks: dict[str, threading.Lock] = field(default_factory=dict)
    """One for each device: setting a mode takes seconds, and more over a slow link."""

    def __enter__(self) -> Modes:  # noqa: PYI034 (typing.Self is 3.11)
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Restore all modes; a failure of that does not hide what went wrong before."""
        with suppress(TargetError) if error is not None else nullcontext():
            self.close()

    def ensure(self, target: Target) -> None:
        """Bring the target's device into the mode that its conditions ask for, or into its own when they ask for none.

        Nothing happens where it is in it. Raises WorkerFailure when the mode cannot be set, and TargetError.
        """
        wanted = target.conditions.power
        with self._locks.setdefault(target.name, threading.Lock()):
            held = self._held.get(target.name)
            if held is not None and not held.worker.alive:
                # It is gone, with its link perhaps: the device has restored its mode, or is about to.
                held.worker.close()
                del self._held[target.name]
                held = None
            if (None if held is None else held.mode) == wanted:
                return
            if wanted is None:
                self._release(target.name)
                return
            self._held[target.name] = self._set(target, held)

    def restore(self, name: str) -> None:
        """Give a device its own mode back, before another may have it. Raises TargetError when that fails."""
        with self._locks.setdefault(name, threading.Lock()):
            if name in self._held:
                self._release(name)

    def close(self) -> None:
        """Restore the mode of every device, and end the workers that held them. Raises TargetError for those that failed."""
        failed: list[str] = []
        for name in list(self._held):
            try:
                self.restore(name)
            except TargetError as error:
                failed.append(f"{name}: {error}")
        if failed:
            raise TargetError(
                f"the power mode was not restored by us ({'; '.join(failed)}); the device tries once more by itself: look with "
                "`nvpmodel -q` there."
            )

    def _set(self, target: Target, held: _Held | None) -> _Held:
        # Only the mode: limits are for the workers that are measured.
        alone = replace(target, conditions=Conditions(power=target.conditions.power))
        if held is not None:
            held.worker.becomes(alone)
            held.worker.apply("set")
            return _Held(held.worker, str(alone.conditions.power))
        worker = self.start(alone)
        try:
            if not target.shares_files:
                worker.greet(idle_s=_HELD_S)
            worker.apply("set")
        except BaseException:
            worker.close()
            raise
        return _Held(worker, str(alone.conditions.power))

    def _release(self, name: str) -> None:
        held = self._held.pop(name)
        try:
            held.worker.request("hello", timeout_s=_RESTORE_S, conditions={"power_step": "restore"})
        finally:
            # Its end is what the device's own restoring waits for.
            with suppress(WorkerFailure):
                held.worker.close()
