"""`edgeprof show`."""

from __future__ import annotations

from typing import Annotated

import typer

from profiler.cli import options as o


def command(
    run: o.Run = "latest",
    case: Annotated[
        str | None, typer.Argument(help="A case's number, name, or the beginning of one; none lists all.")
    ] = None,
    json: o.Json = False,
    out: o.Out = o.OUT_DEFAULT,
    database: o.Database = None,
) -> None:
    """Everything known about one case of a run; without a case, a line for each."""
    from profiler import api
    from profiler.cli import console
    from profiler.report import export, table
    from profiler.roofline.artifact import Limits
    from profiler.run import CACHE_NAME

    result = api.open_run(run, out=out, database=database)
    if case is None and console.is_load(result):
        raise typer.Exit(console.show_load(result, json=json))
    analysis = result.analysis
    if case is None:
        if json:
            console.print_json(export.to_json(analysis))
        else:
            table.cases_table(analysis, console.out)
        return
    found = analysis.case(case)
    limit = Limits.of(analysis, result.folder / CACHE_NAME).share(found)
    if json:
        console.print_json(export.case_json(analysis, found, limit=limit))
    else:
        table.case_details(analysis, found, console.out, limit=limit)
