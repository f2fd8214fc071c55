"""`edgeprof report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from profiler.cli import options as o


def command(
    run: o.Run = "latest",
    to: Annotated[
        Path | None, typer.Option("--to", help="The HTML file to write; the other files go beside it.")
    ] = None,
    json: o.Json = False,
    out: o.Out = o.OUT_DEFAULT,
    database: o.Database = None,
) -> None:
    """Write a run's report: one HTML file that needs no network; beside it a picture of the frontier, CSV and JSON."""
    from profiler import api
    from profiler.cli import console
    from profiler.cli.app import EXIT_ERROR
    from profiler.report import export

    result = api.open_run(run, out=out, database=database)
    console.refuse_load(result)
    if json:
        console.print_json(export.to_json(result.analysis))
    else:
        page = console.write_files(result, to)
        if page is None:
            raise typer.Exit(EXIT_ERROR)
        console.line(str(page))
