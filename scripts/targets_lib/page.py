"""docs/results/targets.md: what the last runs found, between markers."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from typing import Any

from profiler.environment import describe
from scripts.real_models_lib.fetch import ROOT
from scripts.studies_lib import tables
from scripts.targets_lib.product import Checks

PAGE = ROOT / "docs" / "results" / "targets.md"


def write(what: str, found: Mapping[str, Any], checks: Checks, seconds: float, *, quick: bool) -> None:
    """Put a run's findings into the page. Raises ValueError when the page lacks the markers."""
    text = section(what, found, checks, seconds, quick=quick)
    PAGE.write_text(tables.between(PAGE.read_text(encoding="utf-8"), f"e2e_{what}", text), encoding="utf-8")


def section(what: str, found: Mapping[str, Any], checks: Checks, seconds: float, *, quick: bool) -> str:
    """Where and when, the tables, what held, and what was found beside it."""
    here = describe()
    versions = ", ".join(f"{name} {version}" for name, version in sorted(here.versions.items()) if version)
    command = f"scripts/e2e_{what}{' --quick' if quick else ''}"
    machine = f"{here.cpu_model or 'unknown processor'}, {here.usable_cores} cores, {here.system}"
    lines = [
        " · ".join(
            [f"`{command}`", date.today().isoformat(), machine, f"Python {here.python}, {versions}", f"{seconds:.0f} s"]
        ),
        "",
    ]
    for title, head, rows in found.get("tables", ()):
        lines += [f"**{title}**", "", tables.table(head, rows), ""]
    lines += [f"- {text}" for text in checks.good]
    if checks.facts:
        lines += ["", "```", *checks.facts, "```"]
    return "\n".join(lines) + "\n"
