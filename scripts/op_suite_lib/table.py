"""Results by kind, most frequent first."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

FINE = ("yes", "unchanged", "refused", "unfit", "unreadable")


def kinds(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """`(kind, words)` of everything that went wrong in one attempt."""
    made = result["made"]
    bad = [(str(kind), str(words)) for kind, words in result.get("bad", ())]
    return bad if made in FINE else [(made, str(result.get("why", ""))), *bad]


def table(results: Iterable[Mapping[str, Any]], examples: int = 3) -> str:
    """How the attempts ended, then each kind of fault with how often, in which recipes, and some examples."""
    results = list(results)
    ends = Counter(result["made"] for result in results)
    faults: dict[str, list[tuple[Mapping[str, Any], str]]] = defaultdict(list)
    for result in results:
        for kind, words in kinds(result):
            faults[kind].append((result, words))
    models = len({result["subject"].partition("/")[0] for result in results})
    lines = [
        f"{len(results):,} attempts on {models:,} models: " + ", ".join(f"{n:,} {end}" for end, n in ends.most_common())
    ]
    wrong = sum(1 for result in results if kinds(result))
    lines.append(f"{wrong:,} attempts with a fault")
    for kind, found in sorted(faults.items(), key=lambda item: -len(item[1])):
        recipes = Counter(result["recipe"] for result, _ in found)
        lines += [
            "",
            f"{len(found):6,}  {kind}",
            "        " + ", ".join(f"{n} {recipe}" for recipe, n in recipes.most_common()),
        ]
        seen: Counter[str] = Counter(words[:70] for _, words in found)
        for words, count in seen.most_common(examples):
            result, full = next((r, w) for r, w in found if w[:70] == words)
            lines.append(f"        {count}× e.g. {result['subject']}, {result['recipe']}: {full[:160]}")
    return "\n".join(lines)
