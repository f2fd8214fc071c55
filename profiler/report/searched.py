"""What a search tried, dropped and kept: lines for the terminal, rows for the page. Pure.

Decisions are read from the run's plan, which is untrusted: what does not look like one is left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from profiler.report import words
from profiler.store import RunData

_STAGES = ("make", "screen", "race", "finish")


def lines(run: RunData) -> list[str]:
    """How many candidates ended where, whether one was enough, how much calibration rows mattered; empty for other runs."""
    search = run.plan.get("search")
    if not isinstance(search, Mapping):
        return []
    counted = Counter((item["stage"], item["outcome"]) for item in rows(run))
    parts = [
        f"{number} {outcome}{'' if outcome == 'contender' else f' at {stage}'}"
        for stage in _STAGES
        for outcome in ("dropped", "failed", "not tried", "contender")
        if (number := counted[stage, outcome])
    ]
    asked = search.get("asked")
    alpha = asked.get("alpha") if isinstance(asked, Mapping) else None
    sure = (
        f"; a candidate was left out wrongly with at most {alpha:.0%}, over all of them"
        if isinstance(alpha, float)
        else ""
    )
    head = f"search: {', '.join(parts) or 'nothing decided yet'}{sure}. Each with its reason: report.html"
    spreads, enough = search.get("seed_spreads"), search.get("enough")
    return [
        head,
        *([f"enough: {words.one_line(enough)}"] if isinstance(enough, str) else []),
        *(_spread(item) for item in (spreads if isinstance(spreads, list) else []) if isinstance(item, Mapping)),
    ]


def rows(run: RunData) -> list[dict[str, str]]:
    """Every decision as words: subject, stage, outcome, reason."""
    search = run.plan.get("search")
    decisions = search.get("decisions") if isinstance(search, Mapping) else None
    keys = ("subject", "stage", "outcome", "reason")
    return [
        {key: words.one_line(str(item.get(key, ""))) for key in keys}
        for item in (decisions if isinstance(decisions, list) else [])
        if isinstance(item, Mapping)
    ]


def _spread(item: Mapping[str, Any]) -> str:
    values = item.get("values")
    found = [value for value in values.values() if isinstance(value, float)] if isinstance(values, Mapping) else []
    name = words.one_line(str(item.get("case", "")))
    if len(found) < 2:
        missing = item.get("missing")
        why = next(iter(missing.values()), "") if isinstance(missing, Mapping) else ""
        return f"calibration seeds of {name}: not repeated{f', {words.one_line(str(why))}' if why else ''}"
    return f"calibration seeds of {name}: {len(found)} draws of rows give {min(found):.4g} to {max(found):.4g}"
