"""edgeprof from Python: the same job as the command line, typed, in a notebook too."""

from __future__ import annotations

import html
import warnings
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from profiler import advice
from profiler.analysis import Analysis, CaseResult, analyse
from profiler.decide import FrontierView, Recommendation
from profiler.progress import Progress
from profiler.run import CACHE_NAME, execute
from profiler.store import RunData, open_store
from profiler.study import Study, make_study

if TYPE_CHECKING:
    from profiler.report import Written
    from profiler.report.words import Story

DEFAULT_OUT = Path("runs")


@dataclass(frozen=True, repr=False)
class Result:
    """A run, read back and understood. Printing it gives the terminal's table."""

    run: RunData
    folder: Path
    """Where the run's database and files lie."""

    @cached_property
    def analysis(self) -> Analysis:
        """Every estimate."""
        return analyse(self.run, today=datetime.now(timezone.utc).date())

    def frontier(self, x: str = "latency_p50", y: str = "accuracy", *, pool: bool | None = None) -> FrontierView:
        """The frontier over two axes (`profiler.analysis.AXES` names them); `pool` as in `profiler.decide.view`."""
        return self._story(x, y, pool=pool).view

    @cached_property
    def recommendation(self) -> Recommendation:
        """What to ship."""
        return self._story().recommendation

    def _story(self, x: str = "latency_p50", y: str = "accuracy", *, pool: bool | None = None) -> Story:
        from profiler.report.words import Story

        return Story.of(self.analysis, x, y, pool=pool)

    @property
    def cases(self) -> tuple[CaseResult, ...]:
        """Every case, failed and left-out ones too."""
        return self.analysis.cases

    def report(self, path: str | Path | None = None) -> Path:
        """Write the report, one HTML file that needs no network; returns its path.

        What could not be written beside it is warned of. Raises StoreError when the page itself could not be written.
        """
        from profiler.errors import StoreError

        written = self.write_files(path)
        if written.page is None:
            raise StoreError(" ".join(written.problems))
        for problem in written.problems:
            warnings.warn(problem, stacklevel=2)
        return written.page

    def write_files(self, path: str | Path | None = None) -> Written:
        """Write the report and its companions, each by itself (`profiler.report.write_files`)."""
        from profiler.report import write_files
        from profiler.roofline.artifact import Limits

        place = Path(path) if path is not None else self.folder / self.run.id / "report.html"
        return write_files(self.analysis, place, Limits.of(self.analysis, self.folder / CACHE_NAME).share)

    def __repr__(self) -> str:
        """One line; `print` shows the table."""
        return f"<edgeprof run {self.run.id}: {self.recommendation.headline}>"

    def __str__(self) -> str:
        """The decision, then the numbers, as on the terminal."""
        from profiler.report.table import text

        return text(self.analysis)

    def _repr_html_(self) -> str:
        """The table in a notebook."""
        return f"<pre>{html.escape(str(self))}</pre>"


def profile(
    model: str | Path,
    data: str | Path | None = None,
    *,
    out: str | Path = DEFAULT_OUT,
    progress: Progress | None = None,
    **settings: Any,
) -> Result:
    """Profile a model: make variants, measure them, and read the result.

    `model` and `data` as on the command line; `settings` are the fields of `Study` (`variants`, `backends`, `batches`,
    `constraints={"max_drop": 0.01}`, `effort="quick"`, …). Raises EdgeprofError when the study is not possible.
    """
    study = make_study(model=str(model), data=None if data is None else str(data), **settings)
    return open_run(execute(study, out=Path(out), progress=progress), out=out)


def run_study(study: Study, *, out: str | Path = DEFAULT_OUT, progress: Progress | None = None) -> Result:
    """Do a study that was read or made before."""
    return open_run(execute(study, out=Path(out), progress=progress), out=out)


def open_run(run: str = "latest", *, out: str | Path = DEFAULT_OUT, database: str | None = None) -> Result:
    """Read a stored run by id, unique prefix or `latest`; `out` is a run's folder or its database. Raises StoreError."""
    advice.runs_lie_in(out, database)
    folder = Path(out)
    store = open_store(database or folder, create=False)
    try:
        return Result(store.run(store.resolve(run)), folder.parent if folder.is_file() else folder)
    finally:
        store.close()
