"""A backend slowed down on purpose: a difference of known size, to see whether the profiler finds it.

`injected:ort{slow=0.02}` runs `ort` and spins after each inference, so that it lasts 1.02 times as long. The device is the
inner backend's name; options: `slow` (default 0), `copy` (any word: makes a second case that is the same in everything but
its name), `device` (the inner backend's); all others go to the inner backend.

The call around the inner one costs a fraction of a microsecond, slow or not: compare `injected` cases with each other.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from backends import registry
from backends.base import (
    Availability,
    Backend,
    BackendError,
    EdgeprofError,
    Feeds,
    LoadOptions,
    Outputs,
    Session,
    SessionFacts,
    TensorInfo,
)
from backends.options import number

_OWN = ("slow", "copy", "device")
_DEFAULT = "ort"


@dataclass(frozen=True)
class InjectedBackend:
    """Adapter around an adapter. The clock is an argument, so that tests of it need no waiting."""

    clock_ns: Callable[[], int] = time.perf_counter_ns
    get: Callable[[str], Backend] = registry.get
    """Finds the inner backend; tests put one with a clock of their own here."""

    @property
    def name(self) -> str:
        """`injected`."""
        return "injected"

    def devices(self) -> Sequence[str]:
        """The backends that can be slowed down, onnxruntime first."""
        return tuple(name for name in registry.names() if name != self.name)

    def availability(self, device: str | None = None) -> Availability:
        """That of the inner backend on its default device."""
        try:
            return self._inner(device).availability()
        except EdgeprofError as error:
            return Availability(False, reason=str(error), install="name one of its backends, e.g. injected:ort")

    def load(self, artifact: Path, options: LoadOptions) -> Session:
        """Load with the inner backend; its errors pass through."""
        slow = number(self.name, options.options, "slow", 0.0)
        rest = {key: value for key, value in options.options.items() if key not in _OWN}
        inner = self._inner(options.device)
        session = inner.load(artifact, replace(options, device=options.options.get("device"), options=rest))
        return InjectedSession(session, slow, self.clock_ns)

    def _inner(self, device: str | None) -> Backend:
        name = device or _DEFAULT
        if name == self.name or name not in registry.names():
            raise BackendError(
                f"backend '{self.name}' got '{name}' as the backend to slow down, expected one of: "
                f"{', '.join(self.devices())}; e.g. injected:ort{{slow=0.02}}."
            )
        return self.get(name)


class InjectedSession:
    """A session whose inferences last `1 + slow` times as long as the inner one's."""

    def __init__(self, inner: Session, slow: float, clock_ns: Callable[[], int]) -> None:
        """Made by `InjectedBackend.load`."""
        self._inner, self._slow, self._clock_ns = inner, slow, clock_ns

    @property
    def inputs(self) -> Sequence[TensorInfo]:
        """The model's inputs."""
        return self._inner.inputs

    @property
    def outputs(self) -> Sequence[TensorInfo]:
        """The model's outputs."""
        return self._inner.outputs

    @cached_property
    def facts(self) -> SessionFacts:
        """The inner session's, and what was added."""
        facts = self._inner.facts
        return replace(facts, details={**facts.details, "injected_slow": f"{self._slow:g}"})

    def infer(self, feeds: Feeds) -> Outputs:
        """Run the inner session, then spin for `slow` times as long as it took."""
        clock = self._clock_ns
        start = clock()
        outputs = self._inner.infer(feeds)
        end = clock()
        until = end + int((end - start) * self._slow)
        while clock() < until:
            pass
        return outputs

    def close(self) -> None:
        """Close the inner session."""
        self._inner.close()
