"""How a measured throughput becomes money in one run: what each machine is priced as, the price book, the options. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Literal

from profiler import units
from profiler.cost import detect, fit, prices
from profiler.cost import model as cost_model
from profiler.errors import EdgeprofError
from profiler.machines import Machine
from profiler.machines import machines as machines_of
from profiler.records import Estimate, Figure, NotMeasured, ProcessRecord
from profiler.store import RunData
from profiler.study import CostOptions

Energy = Literal["in the price", "measured", "declared", "left out"]
"""Where the cost of energy comes from: a cloud's price holds it, joules were measured here, watts are the profile's or yours."""


@dataclass(frozen=True)
class PriceTerms:
    """What a cost per million rests on, for whoever compares two of them."""

    priced_as: str
    whole: Estimate
    """With nothing but this worker on the machine."""
    share: float
    """Of the machine that this worker takes, in (0, 1]: the cost that is shown is that share of the whole."""
    of: str
    """What it is a share of, in words: `2 vCPUs`; empty where the worker takes all or the number is not known."""
    threads: int | None
    date: str | None
    """Of the price."""
    energy: Energy
    doubts: tuple[str, ...]
    """What the price leaves out or rests on."""


@dataclass(frozen=True)
class Priced:
    """A cost, or why there is none, and what it rests on."""

    figure: Figure
    terms: PriceTerms | None = None


@dataclass(frozen=True)
class Pricing:
    """How throughput becomes money in this run."""

    machines: Mapping[str, Machine]
    """By the target of the cases, with what each is priced as."""
    several: bool
    """Whether there is more than one device, so that no declaration can mean all of them."""
    book: prices.PriceBook
    options: cost_model.CostOptions
    today: date
    detected: detect.DetectedMachine | None
    """What this machine was detected to be; no other."""
    notes: tuple[str, ...]

    @classmethod
    def of(cls, run: RunData, today: date) -> Pricing:
        """What the study declared where it measured on one device, else each machine as what it was detected to be."""
        asked = run.study.cost
        stored = run.plan.get("detected")
        detected = None if stored is None else detect.DetectedMachine(stored["target"], stored["evidence"])
        machines = machines_of(run)
        devices = list(dict.fromkeys(machine.name for machine in machines.values() if machine.real))
        notes = [note] if (note := undecided(asked, devices)) is not None else []
        try:
            book = prices.load_prices(None if asked.prices is None else Path(asked.prices))
        except EdgeprofError as error:
            # The file may be gone, or on another machine: what was measured can still be told.
            book = prices.load_prices()
            notes.append(f"your own prices are left out: {error}")
        priced = {}
        for target, machine in machines.items():
            kind = asked.declared_for(machine.name, devices)
            priced[target] = replace(machine, priced_as=kind or _own(machine, detected)) if machine.real else machine
            whose = "" if len(devices) < 2 else f"{machine.name} is "
            if kind is None and (own := priced[target].priced_as) is not None:
                why = detected.evidence if machine.here and detected is not None else "the target's device profile"
                notes.append(f"{whose}priced as {own}: {why}")
            elif kind is not None and (doubt := _doubt(kind, machine, book)) is not None:
                notes.append(f"{whose}declared as {kind}, although {doubt}: is it that machine?")
        options = cost_model.CostOptions(
            utilisation=asked.utilisation,
            lifetime_years=asked.lifetime_years,
            usd_per_kwh=asked.electricity_usd_per_kwh,
        )
        return cls(priced, len(devices) > 1, book, options, today, detected, tuple(dict.fromkeys(notes)))

    def price(
        self, machine: Machine, throughput: Figure, processes: Sequence[ProcessRecord], energy_j: Figure, batch: int
    ) -> Priced:
        """USD per million inferences on that machine, or why not. `energy_j` is of one inference of the whole batch.

        A worker that leaves processors free takes its share of the machine and of its price: one thread beside another would
        otherwise cost as much as both. That the others serve as well is assumed, and `PriceTerms.whole` is the cost if none does.
        """
        why = self._unpriced(machine, processes)
        if why is not None or machine.environment is None:
            return Priced(NotMeasured(why or f"the run does not tell what machine '{machine.target}' is"))
        joules = energy_j.value / batch if isinstance(energy_j, Estimate) else None
        facts = processes[-1].facts
        try:
            found = cost_model.price_case(
                throughput, machine.priced_as, environment=machine.environment, facts=facts, today=self.today,
                options=replace(self.options, joules_per_inference=joules), book=self.book,
                detected=self.detected if machine.here else None,
            )  # fmt: skip
            place = None if machine.priced_as is None else cost_model.parse_deployment(machine.priced_as, self.book)
        except EdgeprofError as error:
            return Priced(NotMeasured(str(error)))
        if isinstance(found, NotMeasured) or place is None:
            return Priced(found)
        doubts = list(cost_model.doubts(place, self.options, self.today))
        if machine.power is not None:
            # A profile has the power of a device in its default mode only.
            doubts.append(f"measured in power mode {machine.power}, power as in the profile's default mode")
            found = replace(found, note=f"{found.note}; {doubts[-1]}" if found.note else doubts[-1])
        count, of = fit.processors(place.price, place.profile, machine.environment)
        used = facts.threads
        share = 1.0
        if count is not None and used is not None and used < count and not fit.runs_accelerated(facts):
            share = used / count
        terms = PriceTerms(
            place.text, found, share, of if share < 1 else "", used, cost_model.price_date(place, self.options),
            cost_model.energy_source(place, self.options, joules), tuple(doubts),
        )  # fmt: skip
        if share < 1:
            low, high = (None if end is None else end * share for end in (found.low, found.high))
            note = f"{found.note}; the share of {_threads(used)} of {of}, {units.usd(found.value)} if nothing else runs there"
            found = replace(found, value=found.value * share, low=low, high=high, note=note)
        return Priced(found, terms)

    def _unpriced(self, machine: Machine, processes: Sequence[ProcessRecord]) -> str | None:
        """Why there is no price, before anything is computed."""
        if machine.why_not_real is not None:
            return f"not priced: {machine.why_not_real}"
        if not processes:
            return "nothing was measured"
        if machine.priced_as is None and not machine.here:
            return (
                f"target '{machine.name}' has no device profile, so there is no price for it: `edgeprof target probe "
                f"{machine.name}` looks for one, and --as {machine.name}=TYPE says what it is sold as"
            )
        if machine.priced_as is None and self.several:
            return (
                "what this machine is sold as was not recognised, so there is no price for it; --as local=TYPE says it"
            )
        return None


def _threads(count: int | None) -> str:
    return f"{count} worker thread{'s' if count != 1 else ''}"


def undecided(asked: CostOptions, devices: Sequence[str]) -> str | None:
    """What to say where one type was declared and several devices are measured; None where every declaration has its device."""
    if "" not in asked.declared or len(devices) < 2:
        return None
    example = ",".join(f"{device}=TYPE" for device in devices)
    return (
        f"--as {asked.machine} names one machine, and there are {len(devices)} ({', '.join(devices)}): each is priced as its "
        f"own. Say which is which: --as {example}"
    )


def _doubt(kind: str, machine: Machine, book: prices.PriceBook) -> str | None:
    if machine.environment is None or not machine.real:
        return None
    try:
        place = cost_model.parse_deployment(kind, book)
    except EdgeprofError:  # told where the price would stand
        return None
    return fit.doubt(place.price, place.profile, machine.environment)


def _own(machine: Machine, detected: detect.DetectedMachine | None) -> str | None:
    """What a machine is by itself: by its firmware for this one, by its device profile for others."""
    if machine.profile is not None:
        return machine.profile if ":" in machine.profile else f"device:{machine.profile}"
    return detected.target if machine.here and detected is not None else None
