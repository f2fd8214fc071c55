"""The terminal: what is shown while a run works, and how its result ends up on the screen."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from profiler.errors import StudyError

if TYPE_CHECKING:
    from profiler.api import Result

TOLD_EVERY_S = 30.0
"""On a pipe a log should show that the run lives, and not every step of it."""
# On a pipe there is no width to ask for; tables are written for a wide page then.
out = Console(highlight=False, width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 120)
err = Console(stderr=True, highlight=False)


class Bars:
    """A bar per stage with the time left; on a pipe, a line per stage, and one now and then of how far it is."""

    def __init__(self, progress: Progress | None, clock: Callable[[], float] = time.monotonic) -> None:
        """`progress` is None where there is no terminal."""
        self._progress, self._clock = progress, clock
        self._task: TaskID | None = None
        self._title, self._steps, self._done, self._told_s = "", 0, 0, clock()

    def stage(self, title: str, steps: int) -> None:
        """Begin a stage."""
        self.finish()
        self._title, self._steps, self._done, self._told_s = title, steps, 0, self._clock()
        if self._progress is None:
            err.print(f"edgeprof: {title} ({steps} steps)", markup=False)
        else:
            self._task = self._progress.add_task(title, total=steps, detail="")

    def step(self, text: str = "") -> None:
        """Advance the bar."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, advance=1, detail=text[:40])
            # Drawn here and not by a timer thread: between measurements the parent must sleep.
            self._progress.refresh()
        self._done += 1
        if self._progress is None and self._clock() - self._told_s >= TOLD_EVERY_S:
            self._told_s = self._clock()
            # A search has more steps than it has candidates.
            far = f"{self._done} of {self._steps}" if self._done <= self._steps else str(self._done)
            err.print(f"edgeprof: {self._title}: {far} steps", markup=False)

    def note(self, text: str) -> None:
        """Print a line above the bars."""
        (self._progress.console if self._progress is not None else err).print(f"  note: {text}", markup=False)

    def finish(self) -> None:
        """Fill the current bar."""
        if self._progress is not None and self._task is not None:
            task = self._progress.tasks[self._progress.task_ids.index(self._task)]
            self._progress.update(self._task, completed=task.total, detail="")
            self._progress.refresh()


@contextmanager
def bars() -> Iterator[Bars]:
    """Show progress on stderr while the block runs."""
    if not sys.stderr.isatty():
        yield Bars(None)
        return
    columns = (
        TextColumn("{task.description:<24}"), BarColumn(bar_width=28), MofNCompleteColumn(), TimeElapsedColumn(),
        TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[detail]}", style="dim"),
    )  # fmt: skip
    with Progress(*columns, console=err, auto_refresh=False) as progress:
        shown = Bars(progress)
        yield shown
        shown.finish()


def show_result(result: Result, *, report: bool = True, json: bool = False) -> int:
    """Print the decision and the frontier, write the report; returns the exit code."""
    from profiler.cli.app import EXIT_NO_CASE, EXIT_OK
    from profiler.report import export, table

    if is_load(result):
        return show_load(result, json=json)
    path = result.report() if report else None
    if json:
        print_raw(export.to_json(result.analysis))
    else:
        table.render(result.analysis, out)
        if result.run.study.load is not None:
            out.print()
            show_load(result)
        if result.run.study.soak is not None:
            out.print(f"\nburst against sustained: edgeprof soak --show {result.run.id}", markup=False, soft_wrap=True)
        if path is not None:
            out.print(f"\nreport: {path}   details: edgeprof show {result.run.id} CASE", markup=False, soft_wrap=True)
    decided = result.recommendation
    # Who set no limit and gave no data asked for figures, and has them.
    asked = any(limit is not None for _, limit in result.run.study.constraints)
    measured = decided.outcome == "unchecked" and not asked
    return EXIT_OK if decided.case is not None or measured else EXIT_NO_CASE


def is_load(result: Result) -> bool:
    """Whether a run only served, so that it has neither timings nor a frontier."""
    load = result.run.study.load
    return load is not None and load.only


def refuse_load(result: Result) -> None:
    """Raise StudyError for such a run, with the command that shows it."""
    if is_load(result):
        run_id = result.run.id
        raise StudyError(f"run {run_id} only served under load, it has no frontier: edgeprof load --show {run_id}")


def show_load(result: Result, *, json: bool = False) -> int:
    """Print what a load stage found; returns the exit code."""
    from profiler.cli.app import EXIT_NO_CASE, EXIT_OK
    from profiler.report import load as report

    found = report.read_result(result.run)
    if json:
        print_raw(report.to_json(found))
    else:
        report.render(found, out)
    return EXIT_OK if found.useful else EXIT_NO_CASE


def print_raw(text: str) -> None:
    """Text for another program: as it is."""
    sys.stdout.write(text if text.endswith("\n") else text + "\n")
