"""What a self-test says about each thing it looked at: here, wanted, and a verdict in words. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from profiler.selftest.known import P50_FLOOR_S, P50_SHARE, Known, worst_error_s, wrong
from profiler.selftest.omission import Omission
from profiler.selftest.truth import Found
from profiler.stats.ratios import RatioEstimate, compare_verdict

Verdict = Literal["as wanted", "not as wanted", "not resolved", "not measured"]

MARGIN = 0.02
RECALL, FALSE_SHARE = 0.95, 0.02
FEWEST_FOUND = 5
"""Disturbances below which a recall is an anecdote."""
IN_SAMPLE_S, LABELLED_S = 0.1e-6, 2.5e-6


@dataclass(frozen=True)
class Check:
    """One row of the self-test."""

    title: str
    here: str
    wanted: str
    verdict: Verdict
    figures: Mapping[str, float | None] = field(default_factory=dict)
    note: str | None = None
    decisive: bool = False
    """Whether the self-test is passed only if this is as wanted."""


def missing(title: str, wanted: str, names: Sequence[str], why: str, *, decisive: bool = False) -> Check:
    """A check that could not be made."""
    return Check(title, "—", wanted, "not measured", dict.fromkeys(names), why, decisive)


KNOWN, KNOWN_WANTED = "known latencies", "p50 within 1 µs or 0.5 %, steady state called right"
KNOWN_FIGURES = ("known_worst_p50_error_s",)


def known(found: Sequence[Known]) -> Check:
    """Programmed sessions."""
    worst, complaints = worst_error_s(found), wrong(found)
    here = f"worst p50 error {worst * 1e6:+.2f} µs over {len(found)} sessions"
    limit = max(P50_FLOOR_S, P50_SHARE * found[0].programmed_p50_s)
    return Check(
        KNOWN, here, KNOWN_WANTED, "not as wanted" if complaints else "as wanted",
        {"known_worst_p50_error_s": worst, "known_p50_error_limit_s": limit}, "; ".join(complaints) or None, decisive=True,
    )  # fmt: skip


AA, AA_WANTED = "two identical models", "not told apart, or within ±2 %"


def identical(ratio: RatioEstimate) -> Check:
    """A/A. Only a difference that is claimed is wrong; too wide an interval claims nothing."""
    decided = compare_verdict(ratio, MARGIN)
    verdict: Verdict = "not as wanted" if decided == "differs" else "as wanted"
    if ratio.low is None:
        verdict = "not resolved"
    note = "the interval is too wide to call them equivalent" if decided == "inconclusive" else None
    return Check(AA, _ratio(ratio), AA_WANTED, verdict, _figures("aa", ratio), ratio.note or note, decisive=True)


def slowed_title(slow: float) -> str:
    """`a model slowed by 5 %`."""
    return f"a model slowed by {slow:.0%}"


def slowed(ratio: RatioEstimate, slow: float, *, decisive: bool) -> Check:
    """An injected difference: the interval has to lie above 1 and hold the truth."""
    low, high = ratio.low, ratio.high
    if low is None or high is None:
        verdict: Verdict = "not resolved"
    else:
        verdict = "as wanted" if low > 1 else "not resolved" if high > 1 else "not as wanted"
    note = ratio.note
    if low is not None and high is not None and not low <= 1 + slow <= high:
        note = f"the true ratio {1 + slow:g} lies outside the interval"
    elif verdict == "not resolved" and note is None:
        note = "the interval holds 1: more processes are needed to see this difference here"
    return Check(
        slowed_title(slow), _ratio(ratio), f"found, near {1 + slow:g}", verdict, _figures(slow_name(slow), ratio), note, decisive
    )  # fmt: skip


def slow_name(slow: float) -> str:
    """`slow_5_percent`, the beginning of its figures' names."""
    return f"slow_{round(100 * slow)}_percent"


PULSES = "stops of 50 ms (SIGSTOP)"
PULSES_WANTED = f"labelled at least {RECALL:.0%}"


def recall(title: str, what: str, name: str, found: Found, *, false_name: str | None = None) -> Check:
    """Injected interference: whether what was disturbed carries a label."""
    figures: dict[str, float | None] = {f"{name}_recall": found.recall}
    if false_name is not None:
        figures[false_name] = found.false_share
    share = found.recall
    if share is None:
        return Check(title, "—", PULSES_WANTED, "not measured", figures, f"no {what} was hit, or nothing here tells")
    verdict: Verdict = "as wanted" if share >= RECALL else "not as wanted"
    if found.disturbed < FEWEST_FOUND:
        verdict = "not resolved"
    here = f"{found.labelled} of {found.disturbed} {what} labelled"
    return Check(title, here, PULSES_WANTED, verdict, figures)


QUIET, QUIET_WANTED = "labels while nothing is injected", f"at most {FALSE_SHARE:.0%} of samples"


def quiet(share: float | None) -> Check:
    """Labels without injected interference: false ones, or those of real interference; this cannot tell which."""
    if share is None:
        return missing(QUIET, QUIET_WANTED, ["quiet_labelled_share"], "nothing on this system tells interference")
    verdict: Verdict = "as wanted" if share <= FALSE_SHARE else "not resolved"
    note = None if verdict == "as wanted" else "false labels or a machine that is not quiet: repeat when it is idle"
    return Check(QUIET, f"{share:.2%} of samples", QUIET_WANTED, verdict, {"quiet_labelled_share": share}, note)


HARNESS_FIGURES = ("harness_in_sample_s", "harness_labels_s")
HARNESS, HARNESS_WANTED = (
    "what the harness costs",
    f"{IN_SAMPLE_S * 1e6:g} µs inside a sample, {LABELLED_S * 1e6:g} µs beside it",
)


def harness(in_sample_s: float | None, labels_s: float | None) -> Check:
    """Clock inside each sample, counters between two inferences."""
    if in_sample_s is None or labels_s is None:
        return missing(HARNESS, HARNESS_WANTED, HARNESS_FIGURES, "no process was measured")
    good = in_sample_s <= IN_SAMPLE_S and labels_s <= LABELLED_S
    here = f"{in_sample_s * 1e6:.2f} µs inside, {labels_s * 1e6:.2f} µs beside"
    figures = {"harness_in_sample_s": in_sample_s, "harness_labels_s": labels_s}
    return Check(HARNESS, here, HARNESS_WANTED, "as wanted" if good else "not as wanted", figures)


OMISSION, OMISSION_WANTED = "a stall of 0.5 s in a service", "seen at p99 of the open loop only"
OMISSION_FIGURES = ("stall_open_p99_s", "stall_closed_p99_s")


def omission(found: Omission) -> Check:
    """Coordinated omission."""
    here = f"p99 {found.open_p99_s * 1e3:.0f} ms open, {found.closed_p99_s * 1e3:.1f} ms closed"
    figures = {"stall_open_p99_s": found.open_p99_s, "stall_closed_p99_s": found.closed_p99_s}
    return Check(OMISSION, here, OMISSION_WANTED, "as wanted" if found.right else "not as wanted", figures)


def passed(checks: Sequence[Check]) -> bool:
    """Whether everything decisive was measured and is as wanted."""
    decisive = [check for check in checks if check.decisive]
    return bool(decisive) and all(check.verdict == "as wanted" for check in decisive)


def sentence(checks: Sequence[Check]) -> str:
    """The verdict for people."""
    if passed(checks):
        return "Measurements on this machine can be trusted: known latencies and an injected difference are found, no other is."
    failed = [check for check in checks if check.decisive and check.verdict != "as wanted"]
    words = "; ".join(f"{check.title}: {check.verdict}" for check in failed) or "nothing was measured"
    return f"Nothing shows that measurements on this machine can be trusted: {words}."


def _ratio(ratio: RatioEstimate) -> str:
    if ratio.low is None or ratio.high is None:
        return f"{ratio.value:.4f} from {ratio.pairs} process pairs"
    return f"{ratio.value:.4f} [{ratio.low:.4f}, {ratio.high:.4f}]"


def _figures(name: str, ratio: RatioEstimate) -> dict[str, float | None]:
    return {
        f"{name}_ratio": ratio.value,
        f"{name}_ratio_low": ratio.low,
        f"{name}_ratio_high": ratio.high,
        f"{name}_pairs": float(ratio.pairs),
    }
