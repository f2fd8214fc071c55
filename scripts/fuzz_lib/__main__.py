"""The command: `python -m scripts.fuzz_lib`."""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import sys
import tempfile
from collections import Counter
from enum import Enum
from pathlib import Path
from typing import Any

from scripts.fuzz_lib.attempts import COMMANDS, Attempt, Ending, attempt
from scripts.fuzz_lib.bases import ROOT, bases
from scripts.fuzz_lib.mutants import Mutant, make

BAD = (Ending.CRASH, Ending.HANG, Ending.BUG)


def main() -> int:
    """Try the mutants, print the table, write `fuzz.json`, keep the folders of those that ended badly. Exit code 1 if any did."""
    parser = argparse.ArgumentParser(prog="scripts/fuzz_models", description=__doc__)
    parser.add_argument("--count", type=int, default=500, help="mutants to try")
    parser.add_argument("--first", type=int, default=0, help="number of the first one")
    parser.add_argument("--seed", type=int, default=0, help="the same seed and number make the same mutant")
    parser.add_argument("--only", nargs="+", default=[], help="names of base models")
    parser.add_argument(
        "--steps", nargs="+", choices=tuple(COMMANDS), default=["variants", "profile"], help="commands to run"
    )
    parser.add_argument("--limit-s", type=float, default=180.0, help="longest time for one command")
    parser.add_argument("--memory-gb", type=float, default=12.0, help="address space of each process")
    parser.add_argument("--out", type=Path, default=ROOT / ".cache" / "fuzz", help="folder of results and bad mutants")
    asked = parser.parse_args()
    known = bases(asked.only)
    if not known:
        parser.error(
            f"no base model is called {' or '.join(asked.only)}: known are {', '.join(b.name for b in bases())}."
        )
    asked.out.mkdir(parents=True, exist_ok=True)
    results = []
    for number in range(asked.first, asked.first + asked.count):
        with tempfile.TemporaryDirectory(prefix="edgeprof.fuzz.") as name:
            mutant = make(number, asked.seed, known, Path(name))
            for step in asked.steps:
                # The bytes as they are: a command may not change them for the next.
                found = attempt(step, Path(name), asked.limit_s, int(asked.memory_gb * 1e9))
                results.append(_row(mutant, found))
                print(
                    f"{number} {mutant.base} {mutant.damage} {step}: {found.ending.value}", file=sys.stderr, flush=True
                )
                if found.ending in BAD:
                    keep = asked.out / f"seed{asked.seed}-{number}"
                    shutil.rmtree(keep, ignore_errors=True)
                    shutil.copytree(name, keep, ignore=shutil.ignore_patterns("runs*"), symlinks=True)
        (asked.out / "fuzz.json").write_text(json.dumps({"seed": asked.seed, "attempts": results}, indent=1))
    print(table(results))
    return int(any(Ending(row["ending"]) in BAD for row in results))


def _row(mutant: Mutant, found: Attempt) -> dict[str, Any]:
    fields = {**dataclasses.asdict(mutant), **dataclasses.asdict(found)}
    return {key: value.value if isinstance(value, Enum) else value for key, value in fields.items()}


def table(results: list[dict[str, Any]]) -> str:
    """Counts by command, the largest peak of the controller, and each bad ending."""
    lines = [f"{'command':<10}" + "".join(f"{ending.value:>9}" for ending in Ending) + f"{'peak MB':>9}"]
    for step in dict.fromkeys(row["step"] for row in results):
        rows = [row for row in results if row["step"] == step]
        counts = Counter(row["ending"] for row in rows)
        peak = max((row["peak_bytes"] or 0 for row in rows), default=0)
        lines.append(f"{step:<10}" + "".join(f"{counts[ending.value]:>9}" for ending in Ending) + f"{peak / 1e6:>9.0f}")
    lines += [
        f"{row['ending']}: mutant {row['number']} ({row['base']}, {row['damage']}), {row['step']}, exit {row['exit_code']}: "
        f"{row['tail'][-200:]}"
        for row in results
        if Ending(row["ending"]) in BAD
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
