"""What is asked of a load stage: settings with a text form that parses back, and the plan that holds them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from backends import spec
from profiler.errors import StudyError, unknown

Scenario = Literal["single", "multi", "offline", "server", "concurrency"]
Arrivals = Literal["poisson", "constant", "trace"]

SCENARIOS: tuple[str, ...] = get_args(Scenario)
MAX_WORKERS = 256
MAX_SERVED_BATCH = 1024
MAX_IN_FLIGHT = 65_536
MAX_DELAY_S = 10.0
MAX_RATE_PER_S = 1e6

_MEANT_FOR = {"samples": "multi", "in_flight": "concurrency", "arrivals": "server"}


@dataclass(frozen=True)
class Setting:
    """One way to load a case. Its text form is the record's `setting`: `server{max_batch=8,max_delay_s=0.002,workers=2}`."""

    scenario: Scenario
    workers: int = 1
    """Inferences at the same time, each on its own lane of the model."""
    max_batch: int = 1
    max_delay_s: float = 0.0
    """A batch waits for company until its oldest request has waited so long."""
    samples: int = 1
    """multi: requests in one query."""
    in_flight: int = 1
    """concurrency: requests under way at any moment."""
    arrivals: Arrivals = "poisson"
    """server: how requests come."""

    def __post_init__(self) -> None:
        """Raises StudyError for numbers that are not possible, and for options of another scenario."""
        if self.scenario not in SCENARIOS:
            raise unknown("load scenario", self.scenario, SCENARIOS)
        if self.arrivals not in get_args(Arrivals):
            raise unknown("kind of arrivals", self.arrivals, get_args(Arrivals))
        limits = {
            "workers": MAX_WORKERS, "max_batch": MAX_SERVED_BATCH, "samples": MAX_IN_FLIGHT, "in_flight": MAX_IN_FLIGHT,
        }  # fmt: skip
        for name, highest in limits.items():
            if not 1 <= getattr(self, name) <= highest:
                raise StudyError(
                    f"load setting {name}={getattr(self, name)}: expected a whole number from 1 to {highest}."
                )
        if not 0 <= self.max_delay_s <= MAX_DELAY_S:
            raise StudyError(f"load setting max_delay_s={self.max_delay_s}: expected 0 to {MAX_DELAY_S:g} seconds.")
        if self.max_delay_s and self.max_batch == 1:
            raise StudyError("a batching delay without batches only delays: give max_batch from 2 on, or no delay.")
        for name, scenario in _MEANT_FOR.items():
            if self.scenario != scenario and getattr(self, name) != _DEFAULTS[name]:
                raise StudyError(f"load setting {name} belongs to the scenario '{scenario}', not to '{self.scenario}'.")

    def __str__(self) -> str:
        """The canonical text; `parse_setting` takes it back."""
        options = {
            name: f"{getattr(self, name)!r}" if name == "max_delay_s" else f"{getattr(self, name)}"
            for name, default in _DEFAULTS.items()
            if getattr(self, name) != default
        }
        return str(spec.Spec(self.scenario, None, options))

    @property
    def open_loop(self) -> bool:
        """Whether requests come by a schedule, whatever the model does."""
        return self.scenario == "server"

    @property
    def batching(self) -> str:
        """For people: `no batching`, `batch up to 8 within 2 ms`."""
        if self.max_batch == 1:
            return "no batching"
        return f"batch up to {self.max_batch}" + (f" within {self.max_delay_s * 1e3:g} ms" if self.max_delay_s else "")


_DEFAULTS = {item.name: item.default for item in fields(Setting) if item.name != "scenario"}
_KINDS: dict[str, Callable[[str], int | float | str]] = {
    name: {"max_delay_s": float, "arrivals": str}.get(name, int) for name in _DEFAULTS
}


def parse_setting(text: str) -> Setting:
    """The setting of a text. Raises StudyError (or the spec's own error) that shows what came and what was expected."""
    parsed = spec.parse(text)
    if parsed.name not in SCENARIOS:
        raise unknown("load scenario", parsed.name, SCENARIOS)
    if parsed.device is not None:
        raise StudyError(f"cannot read load setting '{text}': a scenario has no ':{parsed.device}'.")
    found: dict[str, int | float | str] = {}
    for name, value in parsed.options.items():
        if name not in _DEFAULTS:
            raise unknown(f"option of load scenario '{parsed.name}'", name, _DEFAULTS)
        try:
            found[name] = _KINDS[name](value)
        except ValueError:
            raise StudyError(f"cannot read {name}={value} in load setting '{text}': expected a number.") from None
    return Setting(parsed.name, **found)  # type: ignore[arg-type]


class LoadPlan(BaseModel):
    """The load stage of a study: every setting on every case, at every rate where rates are offered."""

    model_config = ConfigDict(frozen=True, extra="forbid", str_strip_whitespace=True)

    settings: tuple[str, ...]
    """Texts of `Setting`."""
    rates_per_s: tuple[float, ...] = ()
    """server: offered rates; with a trace, the mean rates that it is stretched to."""
    trace: str | None = None
    """A file of arrival times; see profiler/load/schedule.py."""
    find_max_rate: bool = False
    """server: look for the highest rate that holds `slo_s` instead of offering given rates."""
    slo_s: float | None = Field(default=None, gt=0, le=3600, allow_inf_nan=False)
    """Latency that `p` of all requests shall keep."""
    p: float = Field(default=0.99, ge=0.5, le=0.9999)
    duration_s: float = Field(default=5.0, gt=0, le=86_400)
    """Length of one run; of a trace, the time after which it is cut."""
    repeats: int = Field(default=3, ge=1, le=100)
    """Runs of each setting, each in a fresh process, all settings in random order within a repeat."""
    budget_queries: int | None = Field(default=None, ge=2_000, le=10_000_000)
    """Requests that one search for the highest rate may spend; None: as many as `profiler.load.figures.budget` says."""
    only: bool = False
    """Leave out accuracy and the timing campaign, as `edgeprof load` does."""

    @field_validator("settings")
    @classmethod
    def _canonical(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise ValueError("at least one setting is needed, such as single or server{workers=2}")
        try:
            return tuple(dict.fromkeys(str(parse_setting(text)) for text in value))
        except (StudyError, spec.SpecError) as error:
            raise ValueError(str(error)) from None

    @field_validator("rates_per_s")
    @classmethod
    def _possible(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        wrong = [rate for rate in value if not (math.isfinite(rate) and 0 < rate <= MAX_RATE_PER_S)]
        if wrong:
            raise ValueError(f"a rate of {wrong[0]:g} per second is not possible: above 0, at most {MAX_RATE_PER_S:g}")
        return tuple(dict.fromkeys(value))

    @model_validator(mode="after")
    def _complete(self) -> LoadPlan:
        parsed = [parse_setting(text) for text in self.settings]
        served = [setting for setting in parsed if setting.open_loop]
        if self.find_max_rate and (self.slo_s is None or not served):
            raise ValueError("looking for the highest rate needs slo_s and a server setting")
        if self.find_max_rate and (self.rates_per_s or self.trace):
            raise ValueError("the highest rate is looked for, so give no rates and no trace")
        if served and not (self.find_max_rate or self.rates_per_s or self.trace):
            raise ValueError("a server setting needs rates_per_s, a trace, or find_max_rate with slo_s")
        if any((setting.arrivals == "trace") != (self.trace is not None) for setting in served):
            raise ValueError("arrivals=trace and a trace file go together")
        return self

    @property
    def parsed(self) -> tuple[Setting, ...]:
        """The settings."""
        return tuple(parse_setting(text) for text in self.settings)
