"""Renderers: each a function of an Analysis. They compute no statistics of their own."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from profiler import advice

if TYPE_CHECKING:
    from profiler.analysis import Analysis, CaseResult
    from profiler.records import Figure
    from profiler.report.words import Story

    Share = Callable[[CaseResult], Figure]

__all__ = ["Written", "write_files", "write_report"]

_BESIDE = ("cases.csv", "run.json", "frontier.png")


@dataclass(frozen=True)
class Written:
    """What became of a report's files."""

    page: Path | None
    """None when the page could not be written."""
    files: tuple[Path, ...]
    problems: tuple[str, ...]
    """A line for each file that could not be made or written, with the next command."""


def write_report(analysis: Analysis, path: Path, share: Share | None = None) -> Path:
    """As `write_files`. Returns `path`; raises StoreError when the page itself could not be written."""
    from profiler.errors import StoreError

    written = write_files(analysis, path, share)
    if written.page is None:
        raise StoreError(" ".join(written.problems))
    return path


def write_files(analysis: Analysis, path: Path, share: Share | None = None) -> Written:
    """Write the HTML report to `path`, and beside it frontier.png, cases.csv and run.json, each by itself.

    `share` tells how much of what its device allows a case reached (`profiler.roofline`); None: the report is silent on it.
    Each file appears whole or not at all, and one that cannot be made or written stops no other; the page comes last. Pictures
    are drawn in a process of their own: where that fails, the page stands without them and says so. Raises StoreError when `path`
    has the name of a file beside it.
    """
    from profiler.errors import StoreError
    from profiler.report import export, page
    from profiler.report.words import Story

    if path.name in _BESIDE:
        raise StoreError(
            f"{path.name} is the name of a file beside the report: give the page another name, such as report.html."
        )
    story = Story.of(analysis)
    files: list[Path] = []
    problems: list[str] = []

    def put(place: Path, make: Callable[[], bytes]) -> bool:
        """Whether the file is there now."""
        try:
            content = make()
        except Exception as error:  # noqa: BLE001 (any)
            # One renderer's fault must not take the others with it.
            problems.append(f"{place.name} could not be made: {type(error).__name__}: {_first_line(error)}.")
            return False
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            _replace(place, content)
        except OSError as error:
            problems.append(
                f"cannot write the report to {place}: {error.strerror or error}. Free space or choose another place: "
                f"{advice.of_run('report', analysis.run.id, '--to', 'FILE.html')}"
            )
            return False
        files.append(place)
        return True

    put(path.with_name("cases.csv"), lambda: export.to_csv(analysis).encode("utf-8"))
    put(path.with_name("run.json"), lambda: export.to_json(analysis).encode("utf-8"))
    pictures, png, script, undrawn = _drawn(story)
    if undrawn is None:
        put(path.with_name("frontier.png"), lambda: png)
    else:
        problems.append(f"the pictures could not be drawn, everything else stands: {undrawn}.")
    html = put(
        path,
        lambda: page.html(story, share, pictures=pictures, script=script, undrawn=undrawn).encode("utf-8", "replace"),
    )
    # A folder that cannot be written to is one reason, however many files it concerns.
    return Written(path if html else None, tuple(files), tuple(_distinct(problems)))


def _drawn(story: Story) -> tuple[list[Any], bytes, str, str | None]:
    """The page's pictures, the frontier as PNG and the page's script; or why there are none, in a line."""
    from profiler.report import drawing

    try:
        from profiler.report import figures

        pictures = figures.page_figures(story)
        drawn = drawing.draw(figures.picture(story), script=bool(pictures), vl_version=figures.vegalite_version())
    except drawing.DrawingError as error:
        return [], b"", "", str(error)
    except Exception as error:  # noqa: BLE001 (whatever altair raises)
        hint = " (python -OO takes docstrings away, which altair reads)" if sys.flags.optimize >= 2 else ""
        return [], b"", "", f"{type(error).__name__}: {_first_line(error)}{hint}"
    return pictures, drawn.png, drawn.script, None


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0][:300]


def _distinct(problems: list[str]) -> list[str]:
    """Without those of the companions where the page has the same trouble: the first of a kind tells it."""
    seen: dict[str, str] = {}
    for problem in problems:
        head, _, tail = problem.partition(": ")
        seen.setdefault(tail if head.startswith("cannot write") else problem, problem)
    return list(seen.values())


def _replace(path: Path, content: bytes) -> None:
    """Write beside the target and move it there, so that no half file is ever seen."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        mask = os.umask(0)
        os.umask(mask)
        Path(name).chmod(0o666 & ~mask)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
