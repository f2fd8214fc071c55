"""`edgeprof runs`."""

from __future__ import annotations

from profiler.cli import options as o


def command(out: o.Out = o.OUT_DEFAULT, database: o.Database = None, json: o.Json = False) -> None:
    """List the runs of a folder, newest first."""
    import json as json_module
    from dataclasses import asdict, replace

    from rich.table import Table

    from profiler.cli import console
    from profiler.run import is_measuring
    from profiler.store import open_store

    store = open_store(database or out, create=False)
    try:
        runs = store.runs()
    finally:
        store.close()
    if database is None and any(run.status == "running" for run in runs) and not is_measuring(out):
        # Nobody measures in this folder: it was killed.
        runs = [replace(run, status="interrupted") if run.status == "running" else run for run in runs]
    if json:
        console.print_json(json_module.dumps([asdict(run) for run in runs], indent=2))
        return
    table = Table(box=None, pad_edge=False)
    for title in ("run", "begun (UTC)", "status", "model", "data", "cases", "failed or skipped"):
        table.add_column(title, overflow="fold")
    for run in runs:
        table.add_row(
            run.id, run.created_at[:19], run.status, run.model, run.data or "none", str(run.cases), str(run.failures)
        )
    console.out.print(table)
