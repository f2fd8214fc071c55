"""`edgeprof selftest`."""

from __future__ import annotations

from typing import Annotated

import typer

from profiler.cli import options as o


def command(
    minutes: Annotated[
        float, typer.Option("--minutes", help="Time to spend; more time sees smaller differences.")
    ] = 3.0,
    backend: Annotated[
        str, typer.Option("--backend", help="Runtime to test with, e.g. ort, ov or ov{device=GPU}.")
    ] = "ort",
    out: o.Out = o.OUT_DEFAULT,
    database: o.Database = None,
    json: o.Json = False,
) -> None:
    """Validate the profiler on this machine: does it find what is there, and nothing else? Later runs are graded by it."""
    import json as json_module
    from dataclasses import asdict

    from rich.table import Table

    from backends import registry, spec
    from profiler.cli import console
    from profiler.cli.app import EXIT_NO_CASE, EXIT_OK
    from profiler.errors import unknown
    from profiler.selftest import run_selftest
    from profiler.selftest.subject import Subject
    from profiler.store import open_store

    asked = spec.parse(backend)
    if asked.name not in registry.names():
        raise unknown("backend", asked.name, registry.names())
    device = {"device": asked.device} if asked.device else {}
    # Opened before anything is measured: a folder that cannot be written to should not be found out at the end.
    store = open_store(database or out)
    try:
        with console.bars() as progress:
            done = run_selftest(
                minutes=minutes, what=Subject(asked.name, {**device, **asked.options}), progress=progress
            )
        store.add_selftest(done.record)
    finally:
        store.close()
    if json:
        rows = [{key: value for key, value in asdict(check).items() if key != "figures"} for check in done.checks]
        console.print_json(
            json_module.dumps({"sentence": done.sentence, **asdict(done.record), "checks": rows}, indent=2)
        )
    else:
        console.out.print(done.sentence + "\n", markup=False)
        table = Table(box=None, pad_edge=False)
        for title in ("figure", "here", "wanted", "verdict"):
            table.add_column(title, overflow="fold")
        for check in done.checks:
            table.add_row(check.title, check.here, check.wanted, check.verdict)
        console.out.print(table)
        for note in done.record.notes:
            console.out.print(f"  {note}", markup=False)
    raise typer.Exit(EXIT_OK if done.record.passed else EXIT_NO_CASE)
