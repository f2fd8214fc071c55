"""The page, made from the JSON alone, so that one model can be measured again without the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from profiler import units
from scripts.studies_lib import tables

NAME = "bench_variants"
BEGIN, END = tables.markers(NAME)


def between(page: str, content: str) -> str:
    """`page` with `content` between the markers. Raises ValueError when they are missing."""
    return tables.between(page, NAME, f"{content.strip()}\n")


def document(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Summary, then one section for each model."""
    return "\n\n".join([summary(results), *(section(result) for result in results.values())])


def summary(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Who has the fastest variant at the limit and the larger hypervolume, model by model, and where a peer wins."""
    lines = [
        _cells(
            "model",
            "best of ours, at most 1 point worse",
            "best of theirs",
            "time ours / theirs",
            "",
            "hypervolume ours",
            "theirs",
            "with gains: ours",
            "theirs",
        ),
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, result in results.items():
        out = result["outcome"]
        volumes = [f"{value:.3f}" for value in (*out["volume"], *out["volume_raw"])]
        who = (_who(out["ours"]), _who(out["peer"]))
        lines.append(_cells(name, *who, _three(out["ratio"], 3), out["word"], *volumes))
    lost = [name for name, result in results.items() if result["outcome"]["word"] in ("slower", "only theirs")]
    open_ = [name for name, result in results.items() if result["outcome"]["word"] == "undecided"]
    larger = [
        name for name, result in results.items() if result["outcome"]["volume"][0] > result["outcome"]["volume"][1]
    ]
    told = [
        f"A peer's variant is faster on: {', '.join(lost)}." if lost else "No peer's variant is shown to be faster.",
        f"Not decided on: {', '.join(open_)}." if open_ else "",
        f"Our hypervolume is larger on {len(larger)} of {len(results)}{': ' if larger else ''}{', '.join(larger)}.",
    ]
    return "\n".join([*lines, "", " ".join(filter(None, told))])


def section(result: Mapping[str, Any]) -> str:
    """One model: where from, the table, what failed."""
    facts = "\n".join(f"- {fact}" for fact in result["facts"])
    tools = "\n".join(
        f"- `{peer['label']}`: {peer['about']}; {peer['seconds']:.0f} s"
        + (f"; made nothing: {peer['why']}." if peer["why"] else ".")
        for peer in result["peers"]
    )
    failed = [row for row in result["rows"] if row["ratio"] is None]
    measured = sorted((row for row in result["rows"] if row["ratio"]), key=lambda row: row["ratio"][0])
    table = "\n".join(_line(row) for row in measured)
    return f"""### {result["title"]}

{facts}
{tools}

`{result["command"]}` · {result["date"]} · {result["machine"]} · {result["effort"]}

| whose | variant | backend | time / fp32 on ort | drop, points | size |
|---|---|---|---|---|---|
{table}

{_failures(failed, result["not_made"])}"""


def _line(row: Mapping[str, Any]) -> str:
    drop = "not measured" if row["drop"] is None else _three([_points(value) for value in row["drop"]], 2, sign=True)
    size = "?" if row["size_bytes"] is None else units.size(row["size_bytes"])
    who = (row["side"], f"`{_cell(row['variant'])}`", f"`{row['backend']}`")
    return _cells(*who, _three(row["ratio"], 3), drop, size)


def _failures(failed: Sequence[Mapping[str, Any]], not_made: Mapping[str, str]) -> str:
    reasons: dict[str, list[str]] = {}
    for row in failed:
        reasons.setdefault((row["why"] or "not finished")[:300], []).append(f"`{row['variant']}` on `{row['backend']}`")
    for label, why in not_made.items():
        reasons.setdefault(why[:300], []).append(f"`{label}`")
    if not reasons:
        return "Nothing failed."
    return "Failed:\n\n" + "\n".join(f"- {', '.join(who)}: {why}" for why, who in reasons.items())


def _who(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return "none"
    return f"`{_cell(row['variant'])}` on `{row['backend']}`, {row['ratio'][0]:.3f}, {_signed(_points(row['drop'][0]))}"


def _cells(*texts: str) -> str:
    return f"| {' | '.join(texts)} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _points(value: float | None) -> float | None:
    return None if value is None else 100 * value


def _three(values: Sequence[float | None] | None, digits: int, *, sign: bool = False) -> str:
    if values is None:
        return "–"
    form = f"+.{digits}f" if sign else f".{digits}f"
    value, low, high = ("?" if part is None else f"{part + 0.0:{form}}" for part in values)
    return f"{value} [{low}, {high}]"


def _signed(value: float | None) -> str:
    return "?" if value is None else f"{value + 0.0:+.2f} points lost"
