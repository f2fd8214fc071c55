"""Results of a study as a Markdown table and as JSON, with what they were measured on."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import betaincinv

from profiler.environment import describe


def parser(text: str | None, *, processes: int) -> argparse.ArgumentParser:
    """The options that all studies have."""
    made = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument(
        "--processes", type=int, default=processes, help=f"process pairs or processes (default {processes})"
    )
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--json", type=Path, metavar="FILE", help="write everything to FILE as well")
    return made


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    here = describe()
    return {
        "cpu_model": here.cpu_model, "usable_cores": here.usable_cores, "hypervisor": here.hypervisor,
        "system": here.system, "python": here.python, "versions": dict(here.versions), "load_1min": here.load_1min,
    }  # fmt: skip


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def finish(options: argparse.Namespace, text: str, content: Mapping[str, Any]) -> None:
    """Print the tables; write the JSON where it is wanted."""
    print(text)
    if options.json is not None:
        whole = {"machine": machine(), "seed": options.seed, **content}
        options.json.write_text(json.dumps(whole, indent=2, default=_plain) + "\n", encoding="utf-8")


def share(hits: int, count: int) -> dict[str, float | int | None]:
    """A share of independent experiments with its 95 % interval (Clopper and Pearson)."""
    if not count:
        return {"hits": hits, "count": count, "share": None, "low": None, "high": None}
    low = float(betaincinv(hits, count - hits + 1, 0.025)) if hits else 0.0
    high = float(betaincinv(hits + 1, count - hits, 0.975)) if hits < count else 1.0
    return {"hits": hits, "count": count, "share": hits / count, "low": low, "high": high}


def percent(value: float | None, digits: int = 1) -> str:
    """`3.4 %`, or a dash."""
    return "—" if value is None else f"{100 * value:.{digits}f} %"


def share_text(found: Mapping[str, Any]) -> str:
    """`2 of 12 = 16.7 % (2.1–48.4)`."""
    if found["share"] is None:
        return "—"
    return f"{found['hits']} of {found['count']} = {percent(found['share'])} ({100 * found['low']:.1f}–{100 * found['high']:.1f})"


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, (np.floating, np.integer)):
        return value.item()
    return str(value)


def between(page: str, name: str, content: str) -> str:
    """`page` with `content` between the markers of `name`. Raises ValueError when they are missing."""
    begin, end = markers(name)
    if begin not in page or end not in page:
        raise ValueError(f"the page has no markers {begin} … {end}")
    before, _, rest = page.partition(begin)
    return f"{before}{begin}\n{content}{end}{rest.partition(end)[2]}"


def markers(name: str) -> tuple[str, str]:
    """What a page has around a part that a script writes."""
    return f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
