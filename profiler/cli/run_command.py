"""`edgeprof run`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from profiler.cli import cluster_command as c
from profiler.cli import options as o
from profiler.cli import permission as p


def command(
    study: Annotated[Path | None, typer.Argument(help="A study file; `edgeprof init MODEL` writes one.")] = None,
    resume: Annotated[
        str | None, typer.Option("--resume", help="Go on with an interrupted run: its id, or latest.")
    ] = None,
    yes: o.Yes = False,
    allow_code: p.AllowCode = False,
    out: o.Out = o.OUT_DEFAULT,
    database: o.Database = None,
    cluster: c.Address = None,
    cluster_keys: c.Keys = None,
    cluster_insecure: c.Insecure = False,
    json: o.Json = False,
) -> None:
    """Do a study file, or resume an interrupted run."""
    from profiler import api
    from profiler.cli.console import bars, show_result
    from profiler.run import execute

    asked = o.asked_study(study, resume, out=out, database=database, yes=yes, allow_code=allow_code)
    with c.connected(cluster, cluster_keys, insecure=cluster_insecure) as place, bars() as progress:
        run_id = execute(asked, out=out, resume=resume, progress=progress, database=database, cluster=place)
    raise typer.Exit(show_result(api.open_run(run_id, out=out, database=database), json=json))
