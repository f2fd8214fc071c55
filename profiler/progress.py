"""What a run tells while it works. The command line draws bars from it; a notebook or a test may ignore it."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Hears about the run. Called between measurements only, never while something is being timed."""

    def stage(self, title: str, steps: int) -> None:
        """A stage begins that has so many steps of about equal length."""
        ...

    def step(self, text: str = "") -> None:
        """One step of the stage is done."""
        ...

    def note(self, text: str) -> None:
        """Something a person should know now."""
        ...


class Silent:
    """Says nothing."""

    def stage(self, title: str, steps: int) -> None:
        """Ignore it."""

    def step(self, text: str = "") -> None:
        """Ignore it."""

    def note(self, text: str) -> None:
        """Ignore it."""
