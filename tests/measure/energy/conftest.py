"""Trees of sensor files as boards show them, and meters of known truth on clocks that tests move."""

from __future__ import annotations

import pytest

from profiler.measure.energy.base import MeterInfo, MeterLost


@pytest.fixture
def tree(tmp_path):
    """`tree({path: text})` is a root folder with those files."""

    def make(files):
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path

    return make


class Clock:
    """Time that only passes when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def unix(self) -> float:
        return self.now + 1e9

    def pass_(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock():
    return Clock()


class MadeMeter:
    """A meter over a power that is a function of the clock's time; `lost_at` is when it vanishes."""

    def __init__(self, clock, watts, *, kind="power", update_s=0.001, settle_s=0.0, lost_at=None, cost_s=0.0) -> None:
        self.clock, self.watts, self.lost_at, self.cost_s = clock, watts, lost_at, cost_s
        self.reads = 0
        self.info = MeterInfo(
            "made",
            kind,
            ("all", "part"),
            ("all",),
            "everything made up",
            update_s,
            settle_s=settle_s,
            notes=("made up",),
        )

    def read(self):
        self.clock.pass_(self.cost_s)
        self.reads += 1
        if self.lost_at is not None and self.clock.now >= self.lost_at:
            raise MeterLost("the made meter is gone")
        if self.info.kind == "power":
            watts = self.watts(self.clock.now)
            return {"all": watts, "part": watts / 4}
        # The counter shows the energy as it was at its last update.
        updates = int((self.clock.now + 1e-9) / self.info.update_s)
        joules = self.watts(None) * updates * self.info.update_s
        return {"all": joules, "part": joules / 4}


@pytest.fixture
def made_meter():
    return MadeMeter
