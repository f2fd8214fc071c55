"""Profiles models of the suite one after the other and writes their pages."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from profiler import open_run, profile
from profiler.cli.console import Bars
from profiler.errors import EdgeprofError
from scripts.real_models_lib import check, suite
from scripts.real_models_lib.fetch import CACHE, ROOT, FetchError
from scripts.real_models_lib.page import page


def main() -> int:
    """0 when every page was written; a model that failed does not stop the others."""
    parser = argparse.ArgumentParser(prog="scripts/real_models", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(suite.MODELS)} (default: all)")
    parser.add_argument(
        "--quick", action="store_true", help="fewer rows, effort quick: all models in about half an hour"
    )
    parser.add_argument(
        "--out", type=Path, default=ROOT / "docs" / "results", help="folder for the pages (default: docs/results)"
    )
    parser.add_argument("--remake", action="store_true", help="measure nothing: write the pages of the last runs again")
    parser.add_argument(
        "--check", action="store_true", help="also work each accuracy out without edgeprof; 1 where they differ"
    )
    parser.add_argument("--list", action="store_true", help="name the models and stop")
    asked = parser.parse_args()
    if asked.list:
        print("\n".join(f"{name:20} {suite.load(name).TITLE}" for name in suite.MODELS))
        return 0
    if strange := [name for name in asked.names if name not in suite.MODELS]:
        parser.error(f"unknown model '{strange[0]}', known: {', '.join(suite.MODELS)}")
    out = asked.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    # Factories and metrics are named as modules of this repository.
    os.chdir(ROOT)
    failed = []
    for name in asked.names or suite.MODELS:
        start = time.perf_counter()
        try:
            written, wrong = _run(name, out, quick=asked.quick, remake=asked.remake, checked=asked.check)
            failed += [name] if wrong else []
        except (EdgeprofError, FetchError) as error:
            print(f"{name}: {error}", file=sys.stderr)
            failed.append(name)
        else:
            print(f"{name}: {written} ({time.perf_counter() - start:.0f} s)", flush=True)
    return 1 if failed else 0


def _run(name: str, out: Path, *, quick: bool, remake: bool, checked: bool) -> tuple[Path, bool]:
    model = suite.load(name)
    job = model.prepare(suite.work_folder(name), quick=quick)
    runs = CACHE / "runs" / name
    if remake:
        result = open_run(out=runs)
    else:
        effort = "quick" if quick else "default"
        result = profile(job.model, job.data, out=runs, progress=Bars(None), effort=effort, **job.settings)
    path = out / f"{name}.md"
    path.write_text(page(name, model, job, result, quick=quick), encoding="utf-8")
    rows = check.compared(model, job, result, runs) if checked else []
    for row in rows:
        print(f"  {row}", flush=True)
    return path, any(row.differs for row in rows)


if __name__ == "__main__":
    sys.exit(main())
