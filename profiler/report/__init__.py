"""Renderers: each a function of an Analysis. They compute no statistics of their own."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from profiler.analysis import Analysis, CaseResult
    from profiler.records import Figure

    Share = Callable[[CaseResult], Figure]

__all__ = ["write_report"]

_BESIDE = ("cases.csv", "run.json", "frontier.png")


def write_report(analysis: Analysis, path: Path, share: Share | None = None) -> Path:
    """Write the HTML report to `path`, and beside it frontier.png, cases.csv and run.json. Returns `path`.

    `share` tells how much of what its device allows a case reached (`profiler.roofline`); None: the report is silent on it.
    Each file appears whole or not at all; the page comes last, so a page that is there has its companions. Raises StoreError
    when the folder cannot be written.
    """
    from profiler.errors import StoreError
    from profiler.report import export, figures, page
    from profiler.report.words import Story

    if path.name in _BESIDE:
        raise StoreError(
            f"{path.name} is the name of a file beside the report: give the page another name, such as report.html."
        )
    story = Story.of(analysis)
    files = {
        path.with_name("cases.csv"): export.to_csv(analysis).encode("utf-8"),
        path.with_name("run.json"): export.to_json(analysis).encode("utf-8"),
        path.with_name("frontier.png"): figures.frontier_png_bytes(story),
    }
    files[path] = page.html(story, share).encode("utf-8")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for place, content in files.items():
            _replace(place, content)
    except OSError as error:
        raise StoreError(
            f"cannot write the report to {path}: {error.strerror or error}. Free space or choose another place: "
            f"edgeprof report {analysis.run.id} --to FILE.html."
        ) from error
    return path


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
