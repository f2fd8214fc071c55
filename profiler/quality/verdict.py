"""The verdict on a drop: non-inferiority against a margin that was set before the run.

INCONCLUSIVE is a verdict of its own, with the number of samples that would decide: taking it for PASS is the usual mistake.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from profiler.errors import StudyError
from profiler.quality import unseen
from profiler.quality.compare import Flips, PairedChange, Rows, clustered, count_flips, paired_change, worst_drop
from profiler.quality.metrics import Metric, get_metric
from profiler.records import Estimate
from profiler.stats.paired import clopper_pearson, ni_power, ni_sample_size, tango_interval, tango_noninferior_p

Verdict = Literal["PASS", "FAIL", "INCONCLUSIVE"]

ALPHA = 0.05
"""One-sided error of a verdict: about this chance to pass a variant whose true drop is the margin. To fail one that is just below
it may happen in up to 7 % where fewer than ten answers changed (docs/method.md)."""

POWER = 0.8
"""Chance of a decision that a number of needed samples is planned for."""

_EXACT_POWER_FLIPS = 200
"""Planned sizes are checked exactly up to this many expected flips; beyond, the normal approximation holds."""


@dataclass(frozen=True)
class DropVerdict:
    """Whether the drop is shown to stay within the margin, why, and what would decide it."""

    verdict: Verdict
    reason: str
    needed_n: int | None = None
    """Samples that would probably (80 %) decide an INCONCLUSIVE one, if the change stays as it looks now: a guess."""
    low: float | None = None
    """The one-sided bound that decided: the change is at least this. None where nothing bounds it."""


@dataclass(frozen=True)
class Comparison:
    """One variant against the reference on one metric."""

    change: Estimate
    """`accuracy_change`, negative is worse."""
    flips: Flips | None
    """None unless the metric is a mean of 1 and 0."""
    verdict: DropVerdict | None
    """None without a margin."""


def compare(
    metric: Metric,
    reference: Rows,
    variant: Rows,
    *,
    max_drop: float | None = None,
    ids: NDArray[np.str_] | None = None,
    level: float = 0.95,
    alpha: float = ALPHA,
    seed: int = 0,
    itself: bool = False,
) -> Comparison:
    """Change, flips and verdict from the per-sample arrays of both; see `paired_drop` and `drop_verdict`."""
    change = paired_change(metric, reference, variant, ids=ids, seed=seed, itself=itself).at(level)
    flips = count_flips(reference, variant, higher_is_better=metric.higher_is_better) if metric.mean_reduced else None
    if max_drop is None:
        return Comparison(change, flips, None)
    # Tango's test takes every sample for independent; views of one source are not.
    tested = None if clustered(ids) or itself else flips
    return Comparison(change, flips, drop_verdict(change, max_drop, flips=tested, samples=len(reference), alpha=alpha))


def drop_verdict(
    change: Estimate, max_drop: float, *, flips: Flips | None = None, samples: int | None = None, alpha: float = ALPHA
) -> DropVerdict:
    """Non-inferiority: PASS when a drop of `max_drop` or more is ruled out, FAIL when a smaller one is, else INCONCLUSIVE.

    `max_drop` is in the metric's unit, 0 or more. Give `flips` for means of 1 and 0 over independent samples: Tango's
    one-sided test at `alpha` decides then. Otherwise the ends of `change`'s two-sided interval do, which is a one-sided error
    of (1 − level) / 2. `samples` (or the flips) lets an INCONCLUSIVE verdict say how many samples would decide.
    """
    if not 0 <= max_drop < math.inf:
        raise StudyError(
            f"the largest accepted drop is {max_drop}: give 0 or more, in the metric's unit (0.01 is one point)."
        )
    low, high = _bounds(change, max_drop, flips, alpha)
    text, signed = _amount(change.unit), _signed_amount(change.unit)
    one_sided = f"one-sided {100 * (1 - alpha if flips is not None else (1 + change.level) / 2):g} %"
    limit = f"limit {text(max_drop)}"
    if low is not None and low >= -max_drop:
        if low >= 0:
            told = f"not less accurate: {signed(change.value)} ({one_sided}: at least {signed(low)}), {limit}"
        else:
            told = f"loses at most {text(-low)} ({one_sided}), {limit}"
        return DropVerdict("PASS", told, low=low)
    if high is not None and high < -max_drop:
        return DropVerdict("FAIL", f"loses at least {text(-high)} ({one_sided}), {limit}", low=low)
    if low is None or high is None:
        why = f": {change.note}" if change.note else ""
        return DropVerdict("INCONCLUSIVE", f"the data do not bound the drop, {limit}{why}")
    needed = _needed(change, low, high, max_drop, flips, flips.n if flips else samples, alpha)
    level = 1 - 2 * alpha if flips is not None else change.level
    reason = f"the change lies between {signed(low)} and {signed(high)} ({100 * level:g} % interval), {limit}"
    if needed is not None and needed > (flips.n if flips else samples or 0):
        guess = f"roughly {_rounded(needed):,} samples may decide (a guess from this estimate)"
        return DropVerdict("INCONCLUSIVE", f"{reason}: {guess}", needed, low)
    if needed is not None:
        # The spread of the rows alone would decide; what widens the interval is that few of them changed.
        return DropVerdict("INCONCLUSIVE", f"{reason}{f': {change.note}' if change.note else ''}", low=low)
    if samples is not None or flips is not None:
        reason += ": it looks so close to the limit that no practical number of samples would decide"
    return DropVerdict("INCONCLUSIVE", reason, low=low)


def _bounds(change: Estimate, max_drop: float, flips: Flips | None, alpha: float) -> tuple[float | None, float | None]:
    """What decides: the ends of Tango's interval for its one-sided test at `alpha`, else those of the change.

    Where no answer turned, the exact bound of changes that so many rows do not show.
    """
    low, high = change.low, change.high
    exact = change.low == change.high == change.value == 0
    if flips is not None and not exact and flips.bad == flips.good == 0:
        # All that is known is how many rows showed no change, and of that there is an exact bound. Tango's would say less at 5 %
        # than the share that could have gone unseen.
        high = clopper_pearson(0, flips.n, 1 - alpha, "upper")[1]
        low = -high
    elif flips is not None and not exact:
        low, high = tango_interval(flips.bad, flips.good, flips.n, 1 - 2 * alpha)
        if 0 < max_drop < 1:
            passed = tango_noninferior_p(flips.bad, flips.good, flips.n, max_drop) < alpha
            # The test and the inverted interval agree but for rounding; the test is the definition.
            low = max(low, -max_drop) if passed else min(low, math.nextafter(-max_drop, -1))
    return low, high


def lower_bound(change: PairedChange, max_drop: float, alpha: float = ALPHA) -> float | None:
    """The bound that a verdict at `alpha` is decided by: a PASS where it is at least -`max_drop`. Falls when alpha does.

    One-sided at `alpha` for means of 1 and 0, at `alpha` / 2 where rows are resampled, as `drop_verdict`.
    """
    return _bounds(change.at(1 - alpha), max_drop, change.flips, alpha)[0]


def agreement_low(agreement: Rows, *, ids: NDArray[np.str_] | None = None, alpha: float = ALPHA) -> float | None:
    """Without labels, what agreement (1 or 0, or a similarity) says of the change at least: all that differs may be worse.

    One-sided at `alpha`; None where nothing bounds it.
    """
    if bool(((agreement == 0) | (agreement == 1)).all()):
        bound = worst_drop(agreement, ids=ids, level=1 - alpha).high
        return None if bound is None else -bound
    change = paired_change(get_metric("cosine"), np.ones_like(agreement), agreement, ids=ids)
    return change.at(1 - 2 * alpha).low


def change_verdict(change: PairedChange, max_drop: float, alpha: float = ALPHA) -> DropVerdict:
    """`drop_verdict` of a change whose rows are at hand."""
    found = drop_verdict(change.at(1 - alpha), max_drop, flips=change.flips, samples=change.n, alpha=alpha)
    if found.verdict != "PASS" or change.draws is None or unseen.bounded(change.metric):
        return found
    # An error has no upper end: no number of rows excludes a rare failure that none of them showed.
    share = clopper_pearson(0, change.n, 1 - alpha, "upper")[1]
    return replace(found, reason=f"{found.reason}; failures in fewer than {share:.2%} of rows would not have shown")


def label_free_verdict(
    agreement: Rows, max_drop: float, *, ids: NDArray[np.str_] | None = None, alpha: float = ALPHA
) -> DropVerdict:
    """PASS when even all changed answers together stay within `max_drop`; else INCONCLUSIVE: without labels nothing can FAIL."""
    low = agreement_low(agreement, ids=ids, alpha=alpha)
    if low is None or not bool(((agreement == 0) | (agreement == 1)).all()):
        return _similarity_verdict(low, max_drop)
    bound = -low
    if bound <= max_drop:
        return DropVerdict(
            "PASS", f"at most {bound:.2%} of answers change, so accuracy drops by no more; no labels were needed",
            low=-bound,
        )  # fmt: skip
    return DropVerdict(
        "INCONCLUSIVE",
        f"up to {bound:.2%} of answers may change, more than {max_drop:.2%}: labels would tell whether they got worse",
        low=-bound,
    )


def _similarity_verdict(low: float | None, max_drop: float) -> DropVerdict:
    """Answers that are no classes: how alike they are on average."""
    if low is None:
        return DropVerdict("INCONCLUSIVE", "the rows are too few to bound how alike the answers are")
    told = f"the mean similarity to the reference's answers is at least {1 + low:.4f}, {1 - max_drop:.4g} is asked for"
    return DropVerdict("PASS" if low >= -max_drop else "INCONCLUSIVE", told, low=low)


def _needed(
    change: Estimate, low: float, high: float, max_drop: float, flips: Flips | None, n: int | None, alpha: float
) -> int | None:
    """Samples for a decision with 80 % power, if the true change is the one seen; None when unknown or beyond 10 million."""
    gap = change.value + max_drop
    if n is None or gap == 0:
        return None
    if flips is not None and 0 < max_drop < 1 and gap > 0:
        # At least half a flip: seeing none does not mean that there are none.
        psi = min(0.999, max((flips.bad + flips.good) / n, 0.5 / n, abs(change.value)))
        drop = max(0.0, -change.value)
        estimate = ni_sample_size(psi, max_drop, drop, alpha, POWER)
        # The normal approximation promises too much with few flips.
        while (
            estimate < 10_000_000
            and estimate * psi < _EXACT_POWER_FLIPS
            and ni_power(estimate, psi, max_drop, drop=drop, alpha=alpha) < POWER - 0.01
        ):
            estimate = math.ceil(estimate * 1.1)
    else:
        # Half-widths shrink with the square root of n; 80 % power puts the limit further away than the test does.
        half = change.value - low if gap > 0 else high - change.value
        if half <= 0:
            return None
        normal = NormalDist()
        z_test = normal.inv_cdf(1 - alpha if flips is not None else (1 + change.level) / 2)
        z_power = normal.inv_cdf(POWER)
        estimate = math.ceil(n * (half / abs(gap) * (1 + z_power / z_test)) ** 2)
    return max(estimate, n + 1) if estimate < 10_000_000 else None


def _rounded(count: int) -> int:
    """One digit of a guess."""
    step = int(10 ** max(0, len(str(count)) - 1))
    return max(step, round(count / step) * step)


def _signed_amount(unit: str) -> Callable[[float], str]:
    if unit == "proportion":
        return lambda value: f"{value * 100:+.2f} points"
    return lambda value: f"{value:+.4g}"


def _amount(unit: str) -> Callable[[float], str]:
    if unit == "proportion":
        return lambda value: f"{value * 100:.2f} points"
    return lambda value: f"{value:.4g}"
