"""Processes that try recipes on models: one that dies or hangs costs one attempt, not the suite."""

from __future__ import annotations

import json
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scripts.op_suite_lib.subjects import Subject

Task = tuple[Subject, list[str]]
MEMORY_BYTES = 8_000_000_000
ROOT = Path(__file__).resolve().parents[2]


def run_chunk(tasks: list[Task], limit_s: float, keep: Callable[[dict[str, Any]], None]) -> None:
    """Try all tasks, each attempt within `limit_s`; `keep` is given one result for every subject and recipe."""
    left = [(subject, list(recipes)) for subject, recipes in tasks if recipes]
    while left:
        died = _process(left, limit_s, keep)
        left = [(subject, recipes) for subject, recipes in left if recipes]
        if died is None or not left:
            return
        subject, recipes = left[0]
        # In the original model itself: then no recipe of it can be judged.
        lost = [died["recipe"]] if died["recipe"] in recipes else list(recipes)
        for recipe in lost:
            made = died["made"] if died["recipe"] else f"original: {died['made']}"
            keep({"subject": subject.key, "recipe": recipe, "made": made, "why": died["why"]})
            recipes.remove(recipe)
        left = [task for task in left if task[1]]


def _process(left: list[Task], limit_s: float, keep: Callable[[dict[str, Any]], None]) -> dict[str, str] | None:
    """One process over the tasks, whose recipes are taken off as they are done; what was begun when it died, or None."""
    with tempfile.TemporaryDirectory(prefix="edgeprof.ops.") as folder:
        plan = Path(folder) / "tasks.json"
        plan.write_text(json.dumps([[str(subject.folder), subject.form, recipes] for subject, recipes in left]))
        command = [sys.executable, "-m", "scripts.op_suite_lib.attempt", str(MEMORY_BYTES), str(plan)]
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL, text=True
        )
        assert process.stdout is not None
        lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=_pump, args=(process.stdout, lines), daemon=True).start()
        recipes_of = {subject.key: recipes for subject, recipes in left}
        begun: dict[str, str] | None = None
        while True:
            try:
                line = lines.get(timeout=limit_s)
            except queue.Empty:
                process.kill()
                process.wait()
                return {"recipe": (begun or {}).get("recipe", ""), "made": "hang", "why": f"no end after {limit_s:g} s"}
            if line is None:
                break
            said = json.loads(line)
            if "begin" in said:
                begun = said
                continue
            recipes_of[said["subject"]].remove(said["recipe"])
            keep(said)
        code = process.wait()
        if code == 0:
            return None
        why = signal.Signals(-code).name if code < 0 else f"exit status {code}"
        return {"recipe": (begun or {}).get("recipe", ""), "made": "crash", "why": why}


def _pump(stream: Any, lines: queue.Queue[str | None]) -> None:
    for line in stream:
        lines.put(line)
    lines.put(None)
