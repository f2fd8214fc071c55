"""What to deploy where, at what cost: the best case of each machine side by side, and which machine to take. Pure.

Latencies of different machines are absolute figures side by side, never paired: a factor between two of them has the interval
that the ends of both give, which is wider than either needs. No figure holds the way to a machine: network, queue, operation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from profiler import units
from profiler.analysis import AXES, CaseResult
from profiler.cost.model import HOURS_PER_YEAR, SECONDS_PER_HOUR
from profiler.machines import Machine
from profiler.records import Estimate, Figure, NotMeasured

MONEY = "usd_per_million"
NOT_PAIRED = (
    "latencies of different machines stand side by side, unpaired, and none holds the way to its machine (network)"
)
_SHOWN = {"s": units.seconds, "B": units.size, "USD/1M": units.usd}


@dataclass(frozen=True)
class Place:
    """The best case of one machine, and what it is to have it there."""

    group: str
    machine: Machine
    """The target of the case; without one, the first of the machine."""
    case: CaseResult | None
    """None where no case of this machine is shown to meet what was asked."""
    headline: str
    """The decision for this machine alone."""
    rate_per_s: Figure
    """Samples per second that one such machine serves at the study's utilisation."""
    usd_per_year: Figure
    """What one such machine costs in a year, however little it serves."""


@dataclass(frozen=True)
class Choice:
    """Which of the places to take."""

    place: Place
    axis: str
    """What decided: money where every place has a price, else the axis that was asked for."""
    tied: tuple[Place, ...]
    """Places that the intervals do not tell from it on that axis."""


def place(group: str, machines: Sequence[Machine], case: CaseResult | None, headline: str, utilisation: float) -> Place:
    """The place of a machine's best case. `utilisation` is the share of its throughput that is used, in (0, 1]."""
    if case is None:
        absent = NotMeasured("no case of this machine is recommended")
        return Place(group, machines[0], None, headline, absent, absent)
    # As observed, like the price: what disturbs a machine takes from what it serves.
    rate: Figure = case.observed.get("throughput_per_s", case.throughput_per_s)
    if isinstance(rate, Estimate):
        low, high = (None if end is None else end * utilisation for end in (rate.low, rate.high))
        rate = replace(rate, value=rate.value * utilisation, low=low, high=high, note=f"at {utilisation:.0%} use")
    money = case.usd_per_million
    if isinstance(money, NotMeasured):
        return Place(group, case.machine, case, headline, rate, money)
    if isinstance(rate, NotMeasured):
        return Place(group, case.machine, case, headline, rate, rate)
    # The throughput was divided by and cancels: what is left is price, interest and energy, of the whole machine.
    whole = money.value if case.price is None else case.price.whole.value
    year = whole * rate.value * HOURS_PER_YEAR * SECONDS_PER_HOUR / 1e6
    return Place(
        group, case.machine, case, headline, rate, Estimate(year, year, year, "USD", 1.0, money.source, "one machine")
    )


def choose(places: Sequence[Place], axis: str) -> Choice | None:
    """The cheapest place where every place with a case has a price, else the best on `axis`. None without any case."""
    found = [item for item in places if item.case is not None]
    if not found:
        return None
    if all(isinstance(_figure(item, MONEY), Estimate) for item in found):
        axis = MONEY
    known = [item for item in found if isinstance(_figure(item, axis), Estimate)]
    if not known:
        return None
    sign = -1 if AXES[axis].maximise else 1
    best = min(known, key=lambda item: sign * _value(item, axis))
    return Choice(best, axis, tuple(item for item in known if item is not best and not _apart(best, item, axis)))


def headline(choice: Choice, places: Sequence[Place], ship: str) -> str:
    """The decision over all machines in a sentence. `ship` is that for the case itself, without its full stop."""
    others = [item for item in places if item.case is not None and item is not choice.place]
    title = "cheapest" if choice.axis == MONEY else f"best {AXES[choice.axis].title}"
    if not others:
        return f"{ship}: the only machine with a case that is shown to do."
    if choice.tied:
        names = ", ".join(item.machine.target for item in choice.tied)
        return f"{ship}: {title} by estimate, not told apart from {names}."
    nearest = min(others, key=lambda item: abs(_value(item, choice.axis) - _value(choice.place, choice.axis)))
    return f"{ship}: {_versus(choice.place, nearest, choice.axis) or title}."


def sentences(choice: Choice, places: Sequence[Place]) -> list[str]:
    """What there is to weigh against it, the most important first."""
    best = choice.place
    others = [item for item in places if item.case is not None and item is not best]
    if not others:
        return [_without(item) for item in places if item.case is None]
    told = []
    for other in others:
        axes = [axis for axis in (MONEY, "latency_p50") if axis != choice.axis or choice.tied]
        parts = [text for axis in axes if (text := _versus(best, other, axis, bare=True)) is not None]
        if parts:
            told.append(f"Against {_named(other)}: {'; '.join(parts)}.")
    unpriced = [item for item in (best, *others) if isinstance(_figure(item, MONEY), NotMeasured)]
    if unpriced:
        why = "; ".join(f"{item.machine.target}: {_reason(_figure(item, MONEY))}" for item in unpriced)
        told.append(f"Which machine is cheapest is not known, without a price of each ({why}).")
    yearly = _yearly([best, *others])
    return [
        *told,
        *([yearly] if yearly else []),
        *_doubts([best, *others]),
        *(_without(item) for item in places if item.case is None),
        _said(),
    ]


def _said() -> str:
    return f"{NOT_PAIRED[0].upper()}{NOT_PAIRED[1:]}."


def _without(item: Place) -> str:
    return f"On {item.machine.target}: {item.headline}"


def _named(item: Place) -> str:
    """`cloud (fp16 on ort, batch 8)`."""
    if item.case is None:
        return item.machine.target
    asked = item.case.case
    return f"{item.machine.target} ({asked.variant} on {asked.backend}, batch {asked.batch})"


def _yearly(places: Sequence[Place]) -> str | None:
    """Where one machine is enough, its throughput does not matter, and what it costs in a year does."""
    found = {item.machine.target: item.usd_per_year for item in places}
    known = {name: figure for name, figure in found.items() if isinstance(figure, Estimate)}
    if len(known) < 2:
        return None
    rates = {item.machine.target: item.rate_per_s for item in places}
    told = ", ".join(
        f"{name} {units.usd(known[name].value)} for up to {_rate(rates[name])}"
        for name in sorted(known, key=lambda name: known[name].value)
    )
    return f"Where one machine is enough, a year of it counts: {told}."


def _doubts(places: Sequence[Place]) -> list[str]:
    """What the prices leave out or rest on."""
    told = []
    for item in places:
        terms = None if item.case is None else item.case.price
        if terms is not None and terms.doubts:
            told.append(f"Price of {item.machine.target}: {'; '.join(terms.doubts)}.")
    return told


def _rate(figure: Figure) -> str:
    return "an unknown rate" if isinstance(figure, NotMeasured) else f"{units.significant(figure.value)} inferences/s"


def _versus(one: Place, other: Place, axis: str, *, bare: bool = False) -> str | None:
    """`5.1× cheaper than cloud (at least 4.6×): $0.021 against $0.107 per million`; None where a figure is missing."""
    a, b = _figure(one, axis), _figure(other, axis)
    if isinstance(a, NotMeasured) or isinstance(b, NotMeasured) or not (a.value > 0 and b.value > 0):
        return None
    show = _SHOWN.get(a.unit, units.significant)
    what = "per million" if axis == MONEY else AXES[axis].title.removeprefix("latency ")
    both = f"{show(a.value)} against {show(b.value)} {what}"
    words: Mapping[str, tuple[str, str]] = {MONEY: ("cheaper", "dearer")}
    less, more = words.get(axis, ("faster", "slower") if axis.startswith("latency") else ("less", "more"))
    than = "" if bare else f" than {other.machine.target}"
    low, high = _over(b.low, a.high), _over(b.high, a.low)
    if not _apart(one, other, axis) and not _apart(other, one, axis):
        return f"{both}, not told apart"
    if a.value < b.value:
        return f"{b.value / a.value:.2g}× {less}{than}{_at_least(low)}: {both}"
    return f"{a.value / b.value:.2g}× {more}{than}{_at_least(None if not high else 1 / high)}: {both}"


def _at_least(factor: float | None) -> str:
    return "" if factor is None else f" (at least {factor:.2g}×)"


def _over(one: float | None, other: float | None) -> float | None:
    return None if one is None or not other else one / other


def _apart(better: Place, worse: Place, axis: str) -> bool:
    """Whether the whole interval of one is better than the whole interval of the other."""
    a, b = _figure(better, axis), _figure(worse, axis)
    if isinstance(a, NotMeasured) or isinstance(b, NotMeasured):
        return False
    if AXES[axis].maximise:
        a, b = b, a
    return a.high is not None and b.low is not None and a.high < b.low


def _figure(item: Place, axis: str) -> Figure:
    return NotMeasured("no case") if item.case is None else item.case.figure(axis)


def _value(item: Place, axis: str) -> float:
    figure = _figure(item, axis)
    return figure.value if isinstance(figure, Estimate) else float("inf")


def _reason(figure: Figure) -> str:
    return figure.reason.rstrip(".") if isinstance(figure, NotMeasured) else ""
