"""From throughput to US dollars per million inferences: rented machine, owned device, serverless function.

Pure functions of estimates: the throughput's interval is carried through, low throughput giving high cost. Prices and
lifetimes enter as exact numbers, so the interval says how sure the measurement is, not how sure the price is; the note
tells price, date, utilisation and what is left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import date as Date  # noqa: N812 (matches profiler.cost.prices)
from typing import Literal

from backends.base import SessionFacts
from profiler.cost.detect import DetectedMachine
from profiler.cost.devices import DeviceProfile, find_profile
from profiler.cost.fit import Fit, contradicts, fit_device, fit_instance
from profiler.cost.prices import Price, PriceBook, load_prices, stale_warning
from profiler.errors import StudyError
from profiler.records import Environment, Estimate, Figure, NotMeasured
from profiler.units import usd

UNIT = "USD/1M"
HOURS_PER_YEAR = 8766.0
"""365.25 days."""
SECONDS_PER_HOUR = 3600.0
JOULES_PER_KWH = 3.6e6
DEFAULT_ELECTRICITY = "grid:US average commercial"

UNDECLARED = (
    "no price without a machine: declare the machine with --as aws:c7i.large or --as device:ID; "
    "`edgeprof devices` lists them"
)


_OWN_POWER = "--energy measures it, a profile of your own says it (docs/adding-a-device.md)"


@dataclass(frozen=True)
class CostOptions:
    """What the user may say about paying. Device figures left None come from the device profile."""

    utilisation: float = 0.6
    """Share of the time that the machine serves requests, in (0, 1]."""
    lifetime_years: float = 3.0
    discount_rate: float = 0.08
    """Yearly cost of capital."""
    spares: float = 0.05
    """Share of the devices bought in addition, as spares and replacements."""
    device_usd: float | None = None
    idle_w: float | None = None
    load_w: float | None = None
    usd_per_kwh: float | None = None
    joules_per_inference: float | None = None
    """Measured here, of one sample; takes the place of `load_w` on owned devices."""
    fixed_usd_per_year: float = 0.0
    """Fleet software, connectivity and visits per device; no public source gives them, so nothing is assumed."""

    def __post_init__(self) -> None:
        """Raise StudyError for values that no deployment can have."""
        _check("utilisation", self.utilisation, "above 0, at most 1", 0 < self.utilisation <= 1)
        _check("lifetime_years", self.lifetime_years, "above 0", self.lifetime_years > 0)
        for name in ("discount_rate", "spares", "fixed_usd_per_year"):
            _check(name, getattr(self, name), "0 or more", getattr(self, name) >= 0)
        for name in ("device_usd", "idle_w", "load_w", "usd_per_kwh", "joules_per_inference"):
            value = getattr(self, name)
            _check(name, 1.0 if value is None else value, "above 0", value is None or value > 0)


@dataclass(frozen=True)
class Deployment:
    """A declared place to run: a priced cloud machine, or a device of one's own. Exactly one of the two is given."""

    text: str
    price: Price | None = None
    profile: DeviceProfile | None = None


def parse_deployment(text: str, book: PriceBook) -> Deployment:
    """Read an `--as` text: `aws:c7i.large`, `azure:D4s_v5@eastus`, `device:raspberry-pi-5-8gb`.

    Raises StudyError for another form, an unknown device or a machine without an hourly price.
    """
    kind, colon, name = text.strip().partition(":")
    if not colon or not name.strip():
        raise StudyError(f"cannot read '{text}': expected provider:machine or device:ID, e.g. --as aws:c7i.large.")
    if kind.casefold() == "device":
        profile = find_profile(name)
        return Deployment(f"device:{profile.id}", profile=profile)
    price = book.find(text)
    _ = price.usd_per_hour  # a price of something else than a machine is refused here
    return Deployment(price.name, price=price)


def cloud_usd_per_million(throughput: Estimate, usd_per_hour: float, utilisation: float = 0.6) -> Estimate:
    """Cost of a million inferences on a rented machine that is paid by the hour, busy or idle.

    `throughput` is in inferences (samples) per second; `utilisation` is the share of it that is used.
    """
    _check("utilisation", utilisation, "above 0, at most 1", 0 < utilisation <= 1)
    _check("usd_per_hour", usd_per_hour, "above 0", usd_per_hour > 0)
    return _decreasing(throughput, lambda rate: 1e6 * usd_per_hour / (SECONDS_PER_HOUR * rate * utilisation))


def owned_usd_per_million(
    throughput: Estimate,
    device_usd: float,
    *,
    utilisation: float = 0.6,
    lifetime_years: float = 3.0,
    discount_rate: float = 0.08,
    spares: float = 0.05,
    idle_w: float | None = None,
    load_w: float | None = None,
    usd_per_kwh: float | None = None,
    fixed_usd_per_year: float = 0.0,
) -> Estimate:
    """Cost of a million inferences on a device that is bought, written off over its life and fed with electricity.

    Yearly cost = device_usd · CRF · (1 + spares) + energy + fixed, with the capital recovery factor
    CRF = r(1+r)^L / ((1+r)^L − 1). Energy is the idle power all year plus the difference to the load power while busy; what
    of it is unknown is left out and the note says so.
    """
    _check("utilisation", utilisation, "above 0, at most 1", 0 < utilisation <= 1)
    _check("device_usd", device_usd, "above 0", device_usd > 0)
    _check("lifetime_years", lifetime_years, "above 0", lifetime_years > 0)
    _check("discount_rate", discount_rate, "0 or more", discount_rate >= 0)
    watts, note = _mean_power(idle_w, load_w, usd_per_kwh, utilisation)
    energy = watts / 1000 * HOURS_PER_YEAR * (usd_per_kwh or 0.0)
    per_year = device_usd * capital_recovery(discount_rate, lifetime_years) * (1 + spares) + energy + fixed_usd_per_year
    seconds = HOURS_PER_YEAR * SECONDS_PER_HOUR * utilisation
    cost = _decreasing(throughput, lambda rate: 1e6 * per_year / (rate * seconds))
    return _with_notes(cost, note)


def capital_recovery(rate: float, years: float) -> float:
    """Share of the price to pay each year so that price and interest are paid after `years`; 1/years without interest."""
    # Below this the interest vanishes in a double, and the quotient of two tiny numbers would only be noise.
    if rate < 1e-12:
        return 1 / years
    # expm1 and log1p keep tiny rates exact; the formula is r / (1 − (1+r)^−L).
    return rate / -math.expm1(-years * math.log1p(rate))


def serverless_usd_per_million(
    latency: Estimate, memory_gb: float, *, usd_per_gb_s: float, usd_per_million_requests: float
) -> Estimate:
    """Cost of a million invocations of a function that is billed by memory × duration, rounded up to the millisecond.

    `latency` in seconds is the billed duration of one invocation that serves one inference.
    """
    if latency.unit != "s":
        raise StudyError(f"the duration of an invocation is in '{latency.unit}', expected 's'.")
    for name, value in (("memory_gb", memory_gb), ("usd_per_gb_s", usd_per_gb_s)):
        _check(name, value, "above 0", value > 0)
    _check("usd_per_million_requests", usd_per_million_requests, "0 or more", usd_per_million_requests >= 0)

    def cost(seconds: float) -> float:
        # 0.023 s is 23 ms although its binary form lies a hair above: rounding first keeps the ceiling honest.
        return usd_per_million_requests + 1e6 * memory_gb * math.ceil(round(seconds * 1000, 9)) / 1000 * usd_per_gb_s

    _check("latency", latency.value, "above 0", latency.value > 0)
    low = None if latency.low is None else cost(max(latency.low, 0.0))
    high = None if latency.high is None else cost(latency.high)
    return _with_notes(
        replace(latency, value=cost(latency.value), low=low, high=high, unit=UNIT),
        "cold starts and free tiers left out",
    )


def price_case(
    throughput: Figure,
    where: str | Deployment | None,
    *,
    environment: Environment,
    facts: SessionFacts,
    today: Date,
    options: CostOptions | None = None,
    book: PriceBook | None = None,
    detected: DetectedMachine | None = None,
) -> Figure:
    """Cost per million inferences of one case on the declared machine, or why there is none.

    `throughput` is in samples per second, `environment` and `facts` are what the run recorded, `detected` is what the
    measured machine's firmware says. A declaration that contradicts them gives NotMeasured. Raises StudyError when `where`
    names nothing known.
    """
    if where is None:
        return NotMeasured(UNDECLARED)
    book = load_prices() if book is None else book
    options = CostOptions() if options is None else options
    place = parse_deployment(where, book) if isinstance(where, str) else where
    if isinstance(throughput, NotMeasured):
        return NotMeasured(f"no cost without throughput: {throughput.reason}")
    if detected is not None and (contradiction := contradicts(place.text, detected)) is not None:
        return NotMeasured(f"not priced: {contradiction}")
    if place.price is not None:
        return _priced_instance(throughput, place.price, fit_instance(place.price, environment, facts), today, options)
    if place.profile is not None:
        return _priced_device(
            throughput, place.profile, fit_device(place.profile, environment, facts), today, options, book
        )
    raise StudyError(f"deployment '{place.text}' has neither price nor device profile: make it with parse_deployment.")


def _priced_instance(throughput: Estimate, price: Price, fit: Fit, today: Date, options: CostOptions) -> Figure:
    if fit.refusal is not None:
        return NotMeasured(f"not priced: {fit.refusal}")
    cost = cloud_usd_per_million(throughput, price.usd_per_hour, options.utilisation)
    return _with_notes(
        cost,
        f"{price.name} at {usd(price.usd_per_hour)}/h of {price.date}, {_percent(options.utilisation)} use",
        None if price.verified else "unverified price",
        price.notes,
        *fit.remarks,
        price.stale_warning(today),
    )


def _priced_device(
    throughput: Estimate, profile: DeviceProfile, fit: Fit, today: Date, options: CostOptions, book: PriceBook
) -> Figure:
    if fit.refusal is not None:
        return NotMeasured(f"not priced: {fit.refusal}")
    listed = profile.price
    if options.device_usd is not None:
        device_usd, notes = options.device_usd, [f"{profile.id} at {usd(options.device_usd)} as you gave it"]
    elif listed is not None:
        device_usd = listed.usd
        notes = [f"{profile.id} at {usd(listed.usd)} of {listed.date} ({listed.covers})"]
        notes += [] if listed.verified else ["unverified list price: a profile of your own says what you pay"]
        notes += [warning] if (warning := stale_warning(profile.id, listed.date, today)) else []
    else:
        return NotMeasured(
            f"no sourced price for {profile.id}, and no option says what you pay for one: add `usd` to a profile of your own "
            "(docs/adding-a-device.md), or declare another device with --as"
        )
    kwh = options.usd_per_kwh
    electricity_note = None
    joules = options.joules_per_inference
    idle_w, load_w, power_note = _power(profile, options)
    if kwh is None and (idle_w is not None or load_w is not None or joules is not None):
        electricity = book.find(DEFAULT_ELECTRICITY)
        told = f"electricity at ${electricity.price}/kWh ({electricity.sku}, {electricity.date})"
        stale = stale_warning(electricity.name, electricity.date, today)
        kwh, electricity_note = electricity.price, told if stale is None else f"{told}; {stale}"
    if joules is not None:
        # What was measured replaces the work's share of the power; the idle machine's goes on all year.
        load_w = idle_w
    cost = owned_usd_per_million(
        throughput,
        device_usd,
        utilisation=options.utilisation,
        lifetime_years=options.lifetime_years,
        discount_rate=options.discount_rate,
        spares=options.spares,
        idle_w=idle_w,
        load_w=load_w,
        usd_per_kwh=kwh,
        fixed_usd_per_year=options.fixed_usd_per_year,
    )
    if joules is not None and kwh is not None:
        spent = joules / JOULES_PER_KWH * 1e6 * kwh
        low, high = (None if end is None else end + spent for end in (cost.low, cost.high))
        notes.append(f"{joules:.3g} J per inference as measured" + ("" if idle_w else ", idle power left out"))
        cost = replace(cost, value=cost.value + spent, low=low, high=high, note=None if idle_w is None else cost.note)
    elif power_note is not None:
        notes.append(f"{power_note} ({profile.source.spec})")
    terms = (
        f"{options.lifetime_years:g} years at {_percent(options.discount_rate)} interest, "
        f"{_percent(options.spares)} spares, {_percent(options.utilisation)} use"
    )
    return _with_notes(cost, *notes, terms, electricity_note, *fit.remarks)


def _power(profile: DeviceProfile, options: CostOptions) -> tuple[float | None, float | None, str | None]:
    """Idle and load power in W as far as known, and what is declared rather than sourced as such."""
    idle_w, load_w = options.idle_w or profile.power.idle_w, options.load_w or profile.power.load_w
    if load_w is None and profile.power.tdp_w is not None and not profile.needs_host:
        # A design limit, no measurement: closer to a year's energy than nothing at all.
        tdp = max(profile.power.tdp_w, idle_w or 0.0)
        return idle_w, tdp, f"load power declared: TDP {profile.power.tdp_w:g} W"
    return idle_w, load_w, None


def energy_source(
    place: Deployment, options: CostOptions, joules: float | None
) -> Literal["in the price", "measured", "declared", "left out"]:
    """Where the energy of a place's cost comes from."""
    if place.profile is None:
        return "in the price"
    if joules is not None:
        return "measured"
    idle_w, load_w, _ = _power(place.profile, options)
    return "left out" if idle_w is None and load_w is None else "declared"


def price_date(place: Deployment, options: CostOptions) -> str | None:
    """When the price was true; None where you gave it."""
    if place.price is not None:
        return place.price.date
    listed = None if place.profile is None or options.device_usd is not None else place.profile.price
    return None if listed is None else listed.date


def doubts(place: Deployment, options: CostOptions, today: Date) -> list[str]:
    """What whoever compares prices has to know of this one: unverified, stale, incomplete."""
    found: list[str | None] = []
    if place.price is not None:
        found = [None if place.price.verified else "unverified price", place.price.stale_warning(today)]
    elif place.profile is not None:
        listed = place.profile.price
        if options.device_usd is None and listed is not None:
            found += [None if listed.verified else "unverified list price: a profile of your own says what you pay"]
            found += [stale_warning(place.profile.id, listed.date, today)]
        if place.profile.needs_host:
            found.append("the price is for the card or chip only, without the machine around it")
        idle_w, load_w, declared = _power(place.profile, options)
        if options.joules_per_inference is None:
            found.append(declared)
            if idle_w is None:
                found.append("energy left out" if load_w is None else "energy while idle left out")
    return [text for text in found if text]


def _mean_power(
    idle_w: float | None, load_w: float | None, usd_per_kwh: float | None, utilisation: float
) -> tuple[float, str | None]:
    """Mean power in W over the year as far as known, and what is left out."""
    if idle_w is None and load_w is None:
        return 0.0, f"energy left out: no sourced power figure; {_OWN_POWER}"
    if usd_per_kwh is None:
        return 0.0, "energy left out: no electricity price; --set cost.electricity_usd_per_kwh=0.3 gives one"
    if idle_w is None:
        return utilisation * (load_w or 0.0), f"energy while idle left out: no sourced idle power; {_OWN_POWER}"
    if load_w is None:
        return idle_w, f"energy of the work itself left out: no sourced load power; {_OWN_POWER}"
    _check("load_w", load_w, f"at least idle_w ({idle_w:g})", load_w >= idle_w)
    return idle_w + utilisation * (load_w - idle_w), None


def _decreasing(throughput: Estimate, cost: Callable[[float], float]) -> Estimate:
    """Carry an estimate through a decreasing function: its low bound becomes the high one."""
    if not throughput.unit.endswith("/s"):
        raise StudyError(
            f"a throughput is in '{throughput.unit}', expected inferences per second, such as 'samples/s'."
        )
    _check("throughput", throughput.value, "above 0", throughput.value > 0)
    low = None if throughput.high is None else cost(throughput.high)
    high = None if throughput.low is None or throughput.low <= 0 else cost(throughput.low)
    return replace(throughput, value=cost(throughput.value), low=low, high=high, unit=UNIT)


def _with_notes(estimate: Estimate, *notes: str | None) -> Estimate:
    parts = [part for part in (estimate.note, *notes) if part]
    return replace(estimate, note="; ".join(parts) or None)


def _percent(share: float) -> str:
    return f"{share * 100:g} %"


def _check(name: str, value: float, expected: str, fine: bool) -> None:
    if not (math.isfinite(value) and fine):
        raise StudyError(f"{name} is {value:g}, expected a number {expected}.")
