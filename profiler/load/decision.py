"""What a load stage says to a person who has to choose: one sentence first, the comparisons after it. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from profiler.load.figures import LoadFigures, MaxRate
from profiler.load.scenario import Setting, parse_setting
from profiler.records import Estimate
from profiler.units import seconds, significant

Comparison = Literal["more", "less", "not told apart"]


def limit_text(p: float, slo_s: float) -> str:
    """`p99 ≤ 5 ms`."""
    return f"p{100 * p:g} ≤ {slo_s * 1e3:g} ms"


def where(case: str, setting: Setting) -> str:
    """`fp32@ort/b1/t1, 2 workers`."""
    return f"{case}, {setting.workers} worker{'s' if setting.workers > 1 else ''}"


def found(rate: MaxRate) -> bool:
    """Whether a highest rate was found."""
    return rate.estimate is not None and rate.estimate.attainable and rate.rate_per_s is not None


def compare(one: MaxRate, other: MaxRate) -> Comparison:
    """Told apart only where the intervals do not overlap; an end that is not known may lie anywhere."""
    a, b = one.estimate, other.estimate
    if a is None or b is None or a.rate_per_s is None or b.rate_per_s is None:
        return "not told apart"
    # The rate of a late generator is a lower bound: nothing is less than it for that.
    if a.low is not None and b.high is not None and a.low > b.high and other.inflated is None:
        return "more"
    if b.low is not None and a.high is not None and b.low > a.high and one.inflated is None:
        return "less"
    return "not told apart"


def strategies(rates: Sequence[MaxRate]) -> list[str]:
    """Every batching strategy against no batching, same case and workers: one sentence each, the largest rate first."""
    lines = []
    for plain in rates:
        if plain.parsed.max_batch > 1:
            continue
        same = [r for r in rates if r.case == plain.case and r.parsed.workers == plain.parsed.workers]
        same = [r for r in same if r.parsed.max_batch > 1 and r.parsed.arrivals == plain.parsed.arrivals]
        same = sorted(same, key=lambda r: -(r.rate_per_s or 0.0))
        lines += [_against(other, plain) for other in same]
    return lines


def _against(batching: MaxRate, plain: MaxRate) -> str:
    place = f" ({where(plain.case, plain.parsed)})"
    limit = limit_text(plain.p, plain.slo_s)
    name = batching.parsed.batching
    if found(batching) and found(plain) and batching.rate_per_s and plain.rate_per_s:
        ratio = f"{significant(batching.rate_per_s / plain.rate_per_s, 2)}×"
        verdict = compare(batching, plain)
        if verdict == "not told apart":
            late = batching.inflated or plain.inflated
            why = "a late generator gives lower bounds only" if late else "their intervals overlap"
            return f"{name} and no batching are not told apart under {limit}: {why} ({ratio}){place}"
        return f"{name} carries {ratio} the rate of no batching under {limit}{place}"
    if found(batching) and plain.estimate is not None and not plain.estimate.attainable:
        return f"{name} holds {limit}, no batching does not at any rate tried{place}"
    if found(plain) and batching.estimate is not None and not batching.estimate.attainable:
        return f"no batching holds {limit}, {name} does not at any rate tried{place}"
    return f"{name} and no batching cannot be compared under {limit}: {batching.reason or plain.reason}{place}"


def decide_max_rate(rates: Sequence[MaxRate]) -> list[str]:
    """The decision of a search, most important sentence first."""
    if not rates:
        return []
    limit = limit_text(rates[0].p, rates[0].slo_s)
    usable = [rate for rate in rates if found(rate)]
    if not usable:
        reasons = dict.fromkeys(rate.reason or "no rate tried held it" for rate in rates)
        return [f"no setting was found to hold {limit}: " + "; ".join(reasons)]
    best = max(usable, key=lambda rate: rate.rate_per_s or 0.0)
    tied = [rate for rate in usable if rate is not best and compare(best, rate) == "not told apart"]
    lead = f"{best.parsed.batching} carries {rate_text(best)} under {limit} ({where(best.case, best.parsed)})"
    if tied:
        names = "; ".join(f"{rate.parsed.batching}, {where(rate.case, rate.parsed)}" for rate in tied)
        lead += f"; not told apart from: {names}"
    compared = strategies(rates)
    first = [
        line
        for line in compared
        if line.startswith(best.parsed.batching) and line.endswith(f"({where(best.case, best.parsed)})")
    ]
    return [*first, lead, *(line for line in compared if line not in first)]


def rate_text(rate: MaxRate) -> str:
    """`1,180 requests/s (the lower end of 95 %: 1,180–1,300; best estimate 1,240), confirmed`.

    The lower end stands first: bursts that these minutes did not show can only lower the true rate.
    """
    estimate = rate.estimate
    if estimate is None or estimate.rate_per_s is None:
        return "no rate"
    if estimate.at_ceiling:
        text = f"{significant(estimate.rate_per_s)} requests/s or more"
    else:
        low, high = (("unknown" if end is None else significant(end)) for end in (estimate.low, estimate.high))
        best = significant(estimate.rate_per_s)
        text = (
            f"{best} requests/s (95 % of what these runs showed: {low}–{high})" if estimate.low is None or low == best
            else f"{low} requests/s (the lower end of 95 % of what these runs showed: {low}–{high}; best estimate {best})"
        )  # fmt: skip
    if 2 * estimate.invalid_runs > len(estimate.runs):
        text += f", from {len(estimate.runs) - estimate.invalid_runs} of {len(estimate.runs)} runs only"
    return f"{text}, {confirmation_text(rate)}"


def confirmation_text(rate: MaxRate) -> str:
    """What the last run with a fresh schedule said."""
    estimate = rate.estimate
    if estimate is None or estimate.confirmation is None:
        return "not confirmed: no run of its own"
    at = estimate.confirmation.rate_per_s
    place = "" if at == estimate.rate_per_s else f" at {significant(at)}/s"
    if estimate.confirmed is None:
        return f"not confirmed: the run{place} was too short to tell"
    return f"confirmed{place}" if estimate.confirmed else f"not confirmed: a fresh run{place} missed it"


def decide_scenarios(figures: Sequence[LoadFigures], slo_s: float | None) -> list[str]:
    """The decision of runs at given rates: which settings hold the limit, or which has the lowest p99."""
    lines = []
    offered = dict.fromkeys(item.rate_per_s for item in figures if item.rate_per_s is not None)
    for asked in offered:
        here = [item for item in figures if item.rate_per_s == asked]
        lines.append(_at_rate(asked, here, slo_s))
    closed = [item for item in figures if item.rate_per_s is None and isinstance(item.achieved_per_s, Estimate)]
    if closed:
        best = max(closed, key=_value)
        rate = significant(_value(best))
        lines.append(f"the highest throughput of the closed scenarios is {rate} requests/s: {best.case} {best.setting}")
    return lines


def _value(item: LoadFigures) -> float:
    return item.achieved_per_s.value if isinstance(item.achieved_per_s, Estimate) else 0.0


def _at_rate(rate: float, here: Sequence[LoadFigures], slo_s: float | None) -> str:
    usable = [item for item in here if item.valid and isinstance(item.p99, Estimate)]
    begin = f"at {significant(rate)} requests/s"
    if not usable:
        reasons = dict.fromkeys(reason for item in here for reason in item.reasons)
        return f"{begin} no run is valid: " + "; ".join(list(reasons)[:2])
    best = min(usable, key=lambda item: item.p99.value if isinstance(item.p99, Estimate) else 0.0)
    assert isinstance(best.p99, Estimate)
    runs = "" if best.valid_runs == best.runs else f" in {best.valid_runs} valid of {best.runs} runs"
    lowest = "the lowest p99" if len(usable) > 1 else "p99"
    text = f"{begin} {lowest} is {seconds(best.p99.value)}{runs} ({_named(best)})"
    lost = [item for item in here if not item.valid]
    if lost:
        text += "; no valid run of: " + "; ".join(map(_named, lost))
    others = [item for item in usable if item is not best and not _apart(best, item)]
    if others:
        text += "; not told apart from: " + "; ".join(map(_named, others))
    if slo_s is not None:
        held = best.p99.high is not None and best.p99.high <= slo_s
        missed = best.p99.low is not None and best.p99.low > slo_s
        word = "held" if held else "missed" if missed else "not decided"
        text += f"; the limit of {seconds(slo_s)} is {word}"
    return text


def _named(item: LoadFigures) -> str:
    setting = parse_setting(item.setting)
    return f"{setting.batching}, {where(item.case, setting)}"


def _apart(best: LoadFigures, other: LoadFigures) -> bool:
    a, b = best.p99, other.p99
    if not isinstance(a, Estimate) or not isinstance(b, Estimate):
        return False
    return a.high is not None and b.low is not None and a.high < b.low
