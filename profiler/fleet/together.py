"""One progress for several devices that work at the same time."""

from __future__ import annotations

from dataclasses import dataclass, field
from threading import Lock

from profiler.progress import Progress

_UNITS = 100


@dataclass
class Together:
    """Hands out a progress per device, all shown as one stage whose steps are hundredths of each device's stages."""

    progress: Progress
    _lock: Lock = field(default_factory=Lock)

    def begin(self, title: str, devices: int, stages: int) -> None:
        """Begin, with so many devices that go through so many stages each."""
        self.progress.stage(title, _UNITS * devices * stages)

    def of(self, device: str, stages: int) -> Part:
        """One device's progress."""
        return Part(self, device, stages)

    def tell(self, device: str, text: str) -> None:
        """A note of one device, or of all where it is empty."""
        with self._lock:
            self.progress.note(f"{device}: {text}" if device else text)

    def advance(self, count: int, text: str) -> None:
        """So many hundredths are done."""
        with self._lock:
            for _ in range(count):
                self.progress.step(text)


@dataclass
class Part:
    """The progress of one device. Its queue's thread alone calls it."""

    whole: Together
    device: str
    stages: int
    _begun: int = 0
    _steps: int = 1
    _done: int = 0
    _shown: int = 0

    def stage(self, title: str, steps: int) -> None:
        """The next of its stages; one more than were expected takes no room."""
        del title
        self._show(_UNITS * min(self._begun, self.stages), "")
        self._begun, self._steps, self._done = self._begun + 1, max(1, steps), 0

    def step(self, text: str = "") -> None:
        """Advance."""
        self._done = min(self._done + 1, self._steps)
        before = _UNITS * (min(self._begun, self.stages) - 1)
        inside = _UNITS * self._done // self._steps if self._begun <= self.stages else _UNITS
        self._show(max(0, before + inside), text)

    def note(self, text: str) -> None:
        """Told with the device's name."""
        self.whole.tell(self.device, text)

    def finish(self) -> None:
        """Its queue is over, whatever came of it."""
        self._show(_UNITS * self.stages, "")

    def _show(self, upto: int, text: str) -> None:
        more = upto - self._shown
        if more > 0:
            self._shown = upto
            self.whole.advance(more, f"{self.device} {text}".strip())
