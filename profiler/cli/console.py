"""The terminal: what is shown while a run works, and how its result ends up on the screen."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.segment import Segment
from rich.text import Text

from profiler import advice
from profiler.errors import StudyError
from profiler.plain import ascii_only, clean, json_text

if TYPE_CHECKING:
    from pathlib import Path

    from profiler.api import Result

TOLD_EVERY_S = 30.0
"""On a pipe a log should show that the run lives, and not every step of it."""


class CleanConsole(Console):
    """A console that no text steers, whoever wrote it: a model, a database, a device. Only rich's own codes reach the terminal.

    Where the encoding is not one of Unicode's, signs are written as what looks like them in ASCII.
    """

    def render_str(self, text: str, **styles: Any) -> Text:
        """A text as a renderable, cleaned before it is measured: a sign that steers has no width, what stands for it has one."""
        return super().render_str(clean(text), **styles)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """The segments of a renderable, cleaned."""
        narrow = not self.encoding.lower().startswith("utf")
        for segment in super().render(renderable, options):
            if segment.control is not None:
                yield segment
                continue
            text = clean(segment.text)
            yield Segment(ascii_only(text) if narrow else text, segment.style)


def _terminal(stream: Any) -> bool:
    return bool(stream is not None and stream.isatty())


# On a pipe there is no width to ask for; tables are written for a wide page then.
out = CleanConsole(
    highlight=False, markup=False, width=None if _terminal(sys.stdout) or "COLUMNS" in os.environ else 120
)
err = CleanConsole(stderr=True, highlight=False, markup=False)


def tell(text: str) -> None:
    """A line of edgeprof's own on stderr."""
    err.print(f"edgeprof: {text}", markup=False, soft_wrap=True)


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
    if not _terminal(sys.stderr):
        yield Bars(None)
        return
    columns = (
        TextColumn("{task.description:<24}", markup=False), BarColumn(bar_width=28), MofNCompleteColumn(), TimeElapsedColumn(),
        TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[detail]}", style="dim", markup=False),
    )  # fmt: skip
    with Progress(*columns, console=err, auto_refresh=False) as progress:
        shown = Bars(progress)
        yield shown
        shown.finish()


def show_result(result: Result, *, report: bool = True, json: bool = False) -> int:
    """Print the decision and the frontier, then write the report; returns the exit code.

    What was measured is shown whatever becomes of the files: each that cannot be made or written is told in a line.
    """
    from profiler.cli.app import EXIT_NO_CASE, EXIT_OK
    from profiler.report import export, table

    if is_load(result):
        return show_load(result, json=json)
    if json:
        print_json(export.to_json(result.analysis))
    else:
        table.render(result.analysis, out)
        if result.run.study.load is not None:
            out.print()
            show_load(result)
        if result.run.study.soak is not None:
            line(f"\nburst against sustained: {advice.of_run('soak', '--show', result.run.id)}")
    # Seen by the user before anything else is tried.
    out.file.flush()
    written = write_files(result) if report else None
    if not json:
        page = "" if written is None else f"report: {written}   "
        case = result.recommendation.case
        shown = advice.of_run("show", result.run.id, 1 if case is None else case.number)
        line(f"\n{page}details: {shown}")
    # Without a reference nothing was compared, whatever is recommended.
    decided = result.recommendation
    useful = decided.case is not None and result.analysis.reference is not None
    # Who set no limit and gave no data asked for figures, and has them.
    asked = any(limit is not None for _, limit in result.run.study.constraints)
    return EXIT_OK if useful or (decided.outcome == "unchecked" and not asked) else EXIT_NO_CASE


def write_files(result: Result, to: Path | None = None) -> Path | None:
    """Write the report and its companions; what cannot be written is told, a line each. The page, if that was."""
    written = result.write_files(to)
    for problem in written.problems:
        tell(problem)
    return written.page


def line(text: str) -> None:
    """A line that is not wrapped, so that it can be copied."""
    out.print(text, markup=False, soft_wrap=True)


def is_load(result: Result) -> bool:
    """Whether a run only served, so that it has neither timings nor a frontier."""
    load = result.run.study.load
    return load is not None and load.only


def refuse_load(result: Result) -> None:
    """Raise StudyError for such a run, with the command that shows it."""
    if is_load(result):
        run_id = result.run.id
        again = advice.of_run("load", "--show", run_id)
        raise StudyError(f"run {run_id} only served under load, it has no frontier: {again}")


def show_load(result: Result, *, json: bool = False) -> int:
    """Print what a load stage found; returns the exit code."""
    from profiler.cli.app import EXIT_NO_CASE, EXIT_OK
    from profiler.report import load as report

    found = report.read_result(result.run)
    if json:
        print_json(report.to_json(found))
    else:
        report.render(found, out)
    return EXIT_OK if found.useful else EXIT_NO_CASE


def print_json(text: str) -> None:
    """JSON for another program, the same values in any encoding; escaped where a terminal would be steered."""
    encoding = str(getattr(sys.stdout, "encoding", None) or "utf-8")
    print_raw(json_text(text, narrow=not encoding.lower().startswith("utf")))


def print_raw(text: str) -> None:
    """Text for another program: as it is."""
    sys.stdout.write(text if text.endswith("\n") else text + "\n")
