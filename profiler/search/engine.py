"""The race, as a table of contents: make, screen, race, confirm, finish. Decides; whoever measures comes in as `Bench`.

Every decision is told as it falls, with its evidence and its error rate. What could not be tried is told with its reason.
The reference, the unmodified model on the first backend, is never dropped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from profiler.frontier import nondominated
from profiler.records import REFERENCE_VARIANT
from profiler.stats import racing
from profiler.study import Case

Floats = NDArray[np.float64]
Stage = Literal["make", "screen", "race", "finish"]
Outcome = Literal["dropped", "failed", "not tried", "raced", "contender"]
"""`raced`: measured in the race, and then no time was left to measure it to the end."""


@dataclass(frozen=True)
class Decision:
    """What became of one candidate, when, and on which evidence."""

    subject: str
    """A case's key; a variant's text while it has no cases."""
    stage: Stage
    outcome: Outcome
    reason: str
    """For people."""
    at_s: float
    """Seconds since the search began."""
    against: str | None = None
    """The case that it was compared with."""
    level: float | None = None
    """Chance that this one comparison is wrong; all of a race together err with `Rules.alpha` at most."""
    look: int | None = None
    ratio: float | None = None
    """Its time over that of `against`."""
    ratio_low: float | None = None


@dataclass(frozen=True)
class Rules:
    """How a search decides."""

    margin: float | None = 0.01
    """Drop of the quality (0 to 1) beyond which a candidate is out; None: none is out for its quality."""
    tolerance: float = 0.01
    """A candidate only beats another one when its quality is surely not lower by more than this."""
    alpha: float = 0.05
    """Chance that a search drops anything it should have kept: half for the margin, half for dominance."""
    looks: tuple[int, ...] = (1, 1, 1, 2)
    """Fresh processes that each look of the race adds, for all that are left."""
    slack: float = math.log(1.02)
    """At the last look a log ratio of this size counts as equal, so that ties do not take the time of the final."""
    enough: float | None = None
    """Climb the ladder rung by rung, and stop when a candidate surely takes at most this share of the reference's time; None:
    everything is raced together."""
    make_until: float = 0.30
    screen_until: float = 0.45
    race_until: float = 0.70
    """Shares of the budget after which a stage begins nothing new: the final gets the rest."""


class Bench(Protocol):
    """Whoever makes and measures. Everything is stored by it when it exists; asked again it answers from there."""

    @property
    def spent_s(self) -> float:
        """Seconds since the search began."""
        ...

    @property
    def budget_s(self) -> float:
        """Seconds the search may take; infinite without a budget."""
        ...

    def make(self, variant: str) -> str | None:
        """Make a variant's file. Returns why it is out, or None."""
        ...

    def cases(self, variant: str) -> Sequence[Case]:
        """The cases of a variant that was made."""
        ...

    def more(self) -> Sequence[str]:
        """Variants that only what was made tells of: mixed precision from measured sensitivities and gains."""
        ...

    def screen(self, case: Case, stop: Callable[[Floats], str | None]) -> Floats | None:
        """Quality (0 to 1, higher is better) of the screening rows in their random order, shape (n,); None when it failed.

        `stop` is asked after growing numbers of rows and says why no more are needed. Empty when the study has no data.
        """
        ...

    def clusters(self) -> NDArray[np.int64] | None:
        """The source of each screening row, where rows share sources."""
        ...

    def race(self, cases: Sequence[Case], look: int, processes: int, since: int = 0) -> Mapping[str, Floats]:
        """Measure so many fresh processes of each case, all in the same rounds.

        Returns, by case, the log objective of the looks from `since` on, shape (processes, rounds); cases that failed are absent.
        """
        ...

    def confirm(self, cases: Sequence[Case]) -> None:
        """Evaluate on the confirmation rows."""
        ...

    def finish(self, cases: Sequence[Case]) -> None:
        """Measure at the full effort; the first ones are the more important ones."""
        ...

    def raced(self, case: Case) -> bool:
        """Whether it has taken part in a race already, before the search was gone on with."""
        ...

    def race_takes_s(self, cases: int, processes: int) -> float:
        """About how long a look takes."""
        ...

    def fits_finish(self) -> int:
        """How many cases the time that is left is enough for at the full effort, or at what can be had of it."""
        ...

    def tell(self, decision: Decision) -> None:
        """Store a decision."""
        ...


@dataclass(frozen=True)
class Found:
    """How a search ended."""

    contenders: tuple[Case, ...]
    """Measured at the full effort, the provisional frontier first."""
    provisional: tuple[Case, ...]
    """What the race took for the frontier, from screening data: only the final figures are to be shown."""
    enough: str | None = None
    """Whether something was enough, and what, in words; None where nothing was asked for."""


@dataclass
class Search:
    """One search. `run` does it."""

    variants: Sequence[str]
    reference: Case
    bench: Bench
    rules: Rules = field(default_factory=Rules)
    rung: Callable[[str], int] = lambda _: 0
    """How far down the ladder a variant stands; only asked with `Rules.enough`."""
    _quality: dict[str, Floats] = field(default_factory=dict)
    _logs: dict[str, Floats] = field(default_factory=dict)
    """Of the race that runs."""
    _times: dict[str, float] = field(default_factory=dict)
    """Log of the time over the reference's, of every case that was raced."""
    _rung: int = 0
    _rungs: int = 1
    _below: float = 0.0
    _part: float = 1.0
    """Shares of the variants that stand below this rung, and on it."""
    _began_s: float = 0.0
    """When it could begin: what came before (waiting for the device, an attempt whose link was lost) is nobody's share."""

    def run(self) -> Found:
        """Make, screen, race, confirm, finish."""
        self._began_s = self.bench.spent_s
        candidates: list[Case] = []
        left: list[Case] = []
        ladder = self._ladder()
        self._rungs = len(ladder)
        winner = None
        known = sum(map(len, ladder))
        for self._rung, variants in enumerate(ladder):
            self._below = sum(map(len, ladder[: self._rung])) / known
            self._part = len(variants) / known
            fresh = self._screened(self._made(variants))
            candidates += [case for case in fresh if case not in candidates]
            left += [case for case in self._raced(fresh) if case not in left]
            if winner := self._enough(left):
                for variant in (text for texts in ladder[self._rung + 1 :] for text in texts):
                    self._tell(variant, "make", "not tried", f"cheaper rungs of the ladder come first, and {winner}")
                break
        front = self._frontier(left)
        rest = sorted((case for case in left if case not in front), key=lambda case: self._behind(case, left))
        ordered = [*front, *rest]
        contenders = self._with_references(self._fitting(ordered), candidates)
        for case in contenders:
            self._tell(
                case.key,
                "finish",
                "contender",
                "in the final: measured as far as time allows, confirmed on other rows",
            )
        self.bench.confirm(contenders)
        self.bench.finish(contenders)
        return Found(tuple(contenders), tuple(front), self._how_it_ended(winner))

    def _ladder(self) -> list[list[str]]:
        """The variants that are raced together, each time with the reference."""
        texts = dict.fromkeys((REFERENCE_VARIANT, *self.variants))
        if self.rules.enough is None:
            return [list(texts)]
        steps = sorted({self.rung(text) for text in texts})
        return [[text for text in texts if self.rung(text) == step] for step in steps]

    def _enough(self, left: Sequence[Case]) -> str | None:
        """The first candidate that surely is as fast as was asked for and does not look worse than accepted, in words.

        That it is surely not worse is not asked: few rows can show it, and then the whole ladder would be climbed for nothing.
        Whether it was shown is told.
        """
        if self.rules.enough is None or self.reference.key not in self._logs:
            return None
        timed = [case for case in left if case.key in self._logs]
        found = racing.separation(np.array([self._logs[case.key] for case in timed]))
        place = timed.index(self.reference)
        level = self.rules.alpha / 2 / self._rungs / len(timed)
        for case, bound in zip(timed, found.upper(level)[:, place], strict=True):
            if bound <= math.log(self.rules.enough) and (quality := self._within_margin(case, level)) is not None:
                return f"{case.key} takes at most {math.exp(bound):.2f} of the reference's time{quality}"
        return None

    def _within_margin(self, case: Case, level: float) -> str | None:
        """How its quality on the screening rows compares, in words; None when it looks worse than accepted."""
        mine, base = (self._quality.get(key, np.zeros(0)) for key in (case.quality_key, self.reference.quality_key))
        count, margin = min(len(mine), len(base)), self.rules.margin
        if margin is None or not count:
            return ""
        change = mine[:count] - base[:count]
        if -change.mean() > margin:
            return None
        bets = racing.cluster_means(change, self._clusters(count), -margin)
        sure = racing.surely_above(bets, 0.0, level=level, low=-1.0 + margin)
        return (
            f"; its quality changed by {100 * change.mean():+.2f} points on {count} screening rows, which "
            f"{'surely is' if sure else 'looks like it is, but they are too few to be sure,'} within {100 * margin:g}"
        )

    def _how_it_ended(self, winner: str | None) -> str | None:
        if self.rules.enough is None:
            return None
        asked = f"{1 / self.rules.enough:.3g} times faster"
        if winner is None:
            return (
                f"{asked} was not shown in the race, by no candidate within the accepted drop, so the ladder was climbed as far "
                "as the time allowed; the final figures are those in the table"
            )
        return f"{asked} was reached: {winner}. Its final figures are those in the table"

    def _made(self, variants: Sequence[str]) -> list[Case]:
        """All cases of the variants that could be made in time; from the second rung on beside the one reference."""
        cases = [self.reference] if self._rung else []
        cases += [case for variant in variants for case in self._cases_of(variant)]
        if self._rung + 1 == self._rungs and not self._past(self.rules.make_until):
            cases += [case for variant in self.bench.more() for case in self._cases_of(variant)]
        return cases

    def _cases_of(self, variant: str) -> Sequence[Case]:
        if variant != REFERENCE_VARIANT and self._past(self.rules.make_until):
            self._tell(variant, "make", "not tried", "the time for making variants was over before its turn")
            return ()
        problem = self.bench.make(variant)
        if problem is not None:
            self._tell(variant, "make", "dropped", problem)
            return ()
        return self.bench.cases(variant)

    def _screened(self, cases: Sequence[Case]) -> list[Case]:
        """The cases whose quality is not surely below the margin."""
        kept: list[Case] = []
        verdicts: dict[str, tuple[Outcome, str] | None] = {}
        units = {case.quality_key for case in cases}
        level = self.rules.alpha / 2 / self._rungs / max(1, len(units) - 1)
        reference = self._reference_quality()
        for case in sorted(cases, key=lambda case: not self._protected(case)):
            key = case.quality_key
            if key not in verdicts:
                verdicts[key] = self._screen(case, reference, level)
            found = verdicts[key]
            if found is None:
                kept.append(case)
            else:
                outcome, reason = found
                known = outcome == "dropped"
                self._tell(
                    case.key, "screen", outcome, reason,
                    against=self.reference.key if known else None, level=level if known else None,
                )  # fmt: skip
        # In the order of the plan again: what is equal later goes by it.
        return [case for case in cases if case in kept]

    def _reference_quality(self) -> Floats:
        known = self._quality.get(self.reference.quality_key)
        rows = self.bench.screen(self.reference, lambda _: None) if known is None else known
        if rows is not None:
            self._quality[self.reference.quality_key] = rows
        return np.zeros(0) if rows is None else rows

    def _screen(self, case: Case, reference: Floats, level: float) -> tuple[Outcome, str] | None:
        if case.quality_key in self._quality:
            return None
        if self._past(self.rules.screen_until):
            return "not tried", "the time for screening was over before its turn"

        def stop(rows: Floats) -> str | None:
            drop = reference[: len(rows)] - rows
            if self.rules.margin is None or case.variant == REFERENCE_VARIANT or not len(drop):
                return None
            bets = racing.cluster_means(drop, self._clusters(len(drop)), self.rules.margin)
            if not racing.surely_above(bets, 0.0, level=level, low=-1.0 - self.rules.margin):
                return None
            return (
                f"loses {100 * drop.mean():.1f} points on {len(drop)} screening rows, "
                f"surely more than the accepted {100 * self.rules.margin:g}"
            )

        rows = self.bench.screen(case, stop)
        if rows is None and self._past(1.0):
            return "not tried", "the time budget ended while it was screened"
        if rows is None:
            return "failed", "it could not be evaluated: see its failure"
        reason = stop(rows)
        if reason is not None:
            return "dropped", reason
        self._quality[case.quality_key] = rows
        return None

    def _raced(self, cases: Sequence[Case]) -> list[Case]:
        """The cases that are left after the looks that fitted into their share of the time."""
        left = list(cases)
        if not left:
            return left
        alpha = self.rules.alpha / 2 / self._rungs
        level = racing.pair_level(alpha, candidates=len(left), looks=len(self.rules.looks))
        fine = self._not_worse(left, alpha / max(1, len(left) * (len(left) - 1)))
        first = self._rung * len(self.rules.looks)
        for look, processes in enumerate(self.rules.looks):
            left = self._affordable(left, look, processes)
            if len(left) < 2:
                break
            self._logs = dict(self.bench.race(left, first + look, processes, first))
            left = self._measured(left)
            self._times |= self._relative()
            last = self._is_last(look, len(left))
            left = self._without_dominated(left, fine, first + look, level, self.rules.slack if last else 0.0)
            front = self._frontier(left)
            if not look:
                self.bench.confirm(front)
            if last or all(case in front or self._protected(case) for case in left):
                break
        return left

    def _is_last(self, look: int, left: int) -> bool:
        """Whether no further look is planned, or fits: ties are settled once, at the end."""
        if look + 1 >= len(self.rules.looks):
            return True
        needed = self.bench.race_takes_s(left, self.rules.looks[look + 1])
        return self.bench.spent_s + needed > self._deadline_s(self.rules.race_until)

    def _affordable(self, left: list[Case], look: int, processes: int) -> list[Case]:
        """All of them, or as many as one look can have: the first look is the only one that a short budget cuts down."""
        room = self._deadline_s(self.rules.race_until) - self.bench.spent_s
        # What was raced before the search went on costs nothing.
        new = [case for case in left if not self.bench.raced(case)]
        fits = left
        while not look and len(fits) > 2 and new and self.bench.race_takes_s(len(new), processes) > room:
            fits = [case for case in fits if case != new[-1]]
            new.pop()
        for case in left:
            if case not in fits and not self._protected(case):
                self._tell(case.key, "race", "not tried", "the time budget is too short to race as many candidates")
        return [case for case in left if case in fits or self._protected(case)]

    def _measured(self, left: Sequence[Case]) -> list[Case]:
        """Those with as many processes as the others have; whoever failed is out."""
        most = max((len(logs) for logs in self._logs.values()), default=0)
        whole = [case for case in left if len(self._logs.get(case.key, ())) == most > 0]
        for case in left:
            if case not in whole and not self._protected(case):
                if self._past(1.0):
                    self._tell(case.key, "race", "not tried", "the time budget ended while it was raced")
                else:
                    self._tell(case.key, "race", "failed", "it could not be measured: see its failure")
        return [case for case in left if case in whole or self._protected(case)]

    def _without_dominated(
        self, left: list[Case], fine: Mapping[tuple[str, str], bool], look: int, level: float, slack: float
    ) -> list[Case]:
        timed = [case for case in left if case.key in self._logs]
        if len(timed) < 2:
            return left
        found = racing.separation(np.array([self._logs[case.key] for case in timed]))
        allowed = np.array([[fine[a.quality_key, b.quality_key] for b in timed] for a in timed])
        protected = np.array([self._protected(case) for case in timed])
        gone = racing.dominated(found, allowed, level=level, slack=slack, protected=protected)
        for item in gone:
            case, by = timed[item.candidate], timed[item.by]
            self._tell(
                case.key, "race", "dropped",
                f"takes {item.ratio:.2f} times as long as {by.key} (at least {item.ratio_low:.2f}"
                f"{'; ties within 2 % are settled at the last look' if item.ratio_low <= 1 else ''}), "
                f"which is not worse by more than {100 * self.rules.tolerance:g} points",
                against=by.key, level=item.level, look=look, ratio=item.ratio, ratio_low=item.ratio_low,
            )  # fmt: skip
        out = {timed[item.candidate] for item in gone}
        return [case for case in left if case not in out]

    def _not_worse(self, cases: Sequence[Case], level: float) -> dict[tuple[str, str], bool]:
        """By quality keys (a, b): whether a is surely not worse than b beyond the tolerance, and does not look worse either."""
        keys = list(dict.fromkeys(case.quality_key for case in cases))
        variants = {case.quality_key: case.variant for case in cases}
        known: dict[tuple[str, str], bool] = {}
        for a in keys:
            for b in keys:
                known[a, b] = a == b or self._shown(variants[a] == variants[b], a, b, level)
        return known

    def _shown(self, same_variant: bool, a: str, b: str, level: float) -> bool:
        mine, other = self._quality.get(a), self._quality.get(b)
        if mine is None or other is None or not min(len(mine), len(other)):
            # Without rows nothing is known of accuracy, but that the same file does the same.
            return same_variant
        count = min(len(mine), len(other))
        change = mine[:count] - other[:count]
        if change.mean() < 0:
            return False
        bets = racing.cluster_means(change, self._clusters(count), -self.rules.tolerance)
        return racing.surely_above(bets, 0.0, level=level, low=-1.0 + self.rules.tolerance)

    def _clusters(self, rows: int) -> NDArray[np.int64] | None:
        clusters = self.bench.clusters()
        return None if clusters is None else clusters[:rows]

    def _frontier(self, left: Sequence[Case]) -> list[Case]:
        """The frontier by point estimates of the screening data, the fastest first; without times, everything."""
        timed = [case for case in left if case.key in self._times]
        if not timed:
            return list(left)
        points = np.array([(self._times[case.key], -self._mean_quality(case)) for case in timed])
        members = np.flatnonzero(nondominated(points))
        return [timed[i] for i in sorted(members, key=lambda i: (points[i, 0], points[i, 1]))]

    def _behind(self, case: Case, left: Sequence[Case]) -> float:
        """Log ratio of its time to that of the fastest that looks at least as good: how far it is from the frontier."""
        if case.key not in self._times:
            return math.inf
        own = self._mean_quality(case)
        rivals = [other for other in left if other.key in self._times and self._mean_quality(other) >= own]
        return self._times[case.key] - min(self._times[other.key] for other in rivals)

    def _relative(self) -> dict[str, float]:
        """Log of each time over the reference's, from the race that runs; 0 where the reference could not be measured."""
        times = {key: float(np.nanmedian(logs, axis=1).mean()) for key, logs in self._logs.items()}
        base = times.get(self.reference.key, 0.0)
        return {key: time - base for key, time in times.items()}

    def _mean_quality(self, case: Case) -> float:
        rows = self._quality.get(case.quality_key, np.zeros(0))
        return float(rows.mean()) if len(rows) else 0.0

    def _fitting(self, ordered: Sequence[Case]) -> list[Case]:
        """As many as the rest of the budget is enough for; one at the least."""
        room = max(1, self.bench.fits_finish())
        for case in ordered[room:]:
            if not self._protected(case):
                self._tell(
                    case.key, "finish", "raced" if case.key in self._times else "not tried",
                    f"the time left is enough for {room} of {len(ordered)} in the final, and others looked better",
                )  # fmt: skip
        return list(ordered[:room])

    def _with_references(self, chosen: Sequence[Case], candidates: Sequence[Case]) -> list[Case]:
        """The chosen ones and, before them, what each is compared with: the unmodified model, all else equal."""
        wanted = [self.reference]
        for case in chosen:
            like = Case(REFERENCE_VARIANT, self.reference.backend, case.target, case.batch, case.threads)
            wanted += [like] if like in candidates else []
        return list(dict.fromkeys((*wanted, *chosen)))

    def _protected(self, case: Case) -> bool:
        """Whether it may never go. The other references only have to be measured again in the final, beside their cases."""
        return case == self.reference

    def _past(self, share: float) -> bool:
        return self.bench.spent_s > self._deadline_s(share)

    def _deadline_s(self, share: float) -> float:
        """Up to when a stage may go, by its share; each rung has, by its variants, a part of what is before the final."""
        race = self.rules.race_until
        until = share if share >= 1 else self._below * race + self._part * share
        return self._began_s + until * (self.bench.budget_s - self._began_s)

    def _tell(
        self, subject: str, stage: Stage, outcome: Outcome, reason: str, *, against: str | None = None,
        level: float | None = None, look: int | None = None, ratio: float | None = None, ratio_low: float | None = None,
    ) -> None:  # fmt: skip
        self.bench.tell(
            Decision(subject, stage, outcome, reason, self.bench.spent_s, against, level, look, ratio, ratio_low)
        )
