"""`edgeprof frontier`."""

from __future__ import annotations

from typing import Annotated

import typer

from profiler.cli import options as o
from profiler.errors import StudyError


def command(
    run: o.Run = "latest",
    x: Annotated[
        str,
        typer.Option("--x", help="latency_p50, latency_p99, throughput, usd_per_million, energy, peak_rss or size."),
    ] = "latency_p50",
    y: Annotated[str, typer.Option("--y", help="accuracy or agreement.")] = "accuracy",
    pool: Annotated[
        bool | None,
        typer.Option(
            "--pool/--per-machine",
            help="Several machines: one frontier over all, or one for each (usual, but for usd_per_million).",
            show_default=False,
        ),
    ] = None,
    json: o.Json = False,
    csv: Annotated[bool, typer.Option("--csv", help="CSV instead of a table.")] = False,
    out: o.Out = o.OUT_DEFAULT,
    database: o.Database = None,
) -> None:
    """The frontier of a run, over any two figures."""
    if json and csv:
        raise StudyError("--json and --csv exclude each other.")
    from profiler import api, decide
    from profiler.cli import console
    from profiler.report import export, table

    result = api.open_run(run, out=out, database=database)
    console.refuse_load(result)
    analysis = result.analysis
    view = decide.view(analysis, x, y, pool=pool)
    if json:
        console.print_json(export.frontier_json(analysis, view))
    elif csv:
        console.print_raw(export.frontier_csv(analysis, view))
    else:
        table.frontier_table(analysis, view, console.out)
