"""`edgeprof fleet …`: many devices at once."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from profiler import advice
from profiler.cli import cluster_command as c
from profiler.cli import options as o
from profiler.cli import permission as p

if TYPE_CHECKING:
    from profiler.store import Store

RunArgument = Annotated[
    str | None, typer.Argument(help="A run's id, the beginning of one, or latest; none: all devices.")
]


def status(
    run: RunArgument = None,
    out: o.Out = o.OUT_DEFAULT,
    database: o.Database = None,
    json: o.Json = False,
) -> None:
    """What each device does now; of a run, also how many of its cases are measured, and why others are not."""
    from profiler.store import open_store

    store = open_store(database or out, create=False)
    try:
        if run is None:
            _show_devices(store, json=json)
        else:
            _show_run(store, store.resolve(run), json=json)
    finally:
        store.close()


def run(
    study: Annotated[
        Path | None, typer.Argument(help='A study file with `targets = ["…", "…"]`; `edgeprof init` writes one.')
    ] = None,
    resume: Annotated[
        str | None, typer.Option("--resume", help="Go on with a run that was interrupted: its id, or latest.")
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
    """Measure a study on all its targets, machines beside each other; a device that is lost is tried again, no other instead."""
    from profiler import api
    from profiler.cli.app import EXIT_ERROR
    from profiler.cli.console import bars, err, show_result
    from profiler.fleet.queues import DevicesLeft
    from profiler.run import execute
    from profiler.store import open_store

    asked = o.asked_study(study, resume, out=out, database=database, yes=yes, allow_code=allow_code)
    left: DevicesLeft | None = None
    with c.connected(cluster, cluster_keys, insecure=cluster_insecure) as place, bars() as progress:
        try:
            run_id = execute(asked, out=out, resume=resume, progress=progress, database=database, cluster=place)
        except DevicesLeft as error:
            left, run_id = error, error.run_id
    if not json:
        store = open_store(database or out, create=False)
        try:
            _show_run(store, run_id, json=False)
        finally:
            store.close()
    code = show_result(api.open_run(run_id, out=out, database=database), json=json)
    if left is not None:
        err.print(f"edgeprof: {left}", markup=False, soft_wrap=True)
        code = EXIT_ERROR
    raise typer.Exit(code)


COMMANDS = {"status": status, "run": run}


def _show_devices(store: Store, *, json: bool) -> None:
    import json as json_module

    from rich.table import Table

    from profiler.cli import console
    from profiler.fleet.status import words_of
    from profiler.targets import config

    leases = store.leases()
    if json:
        content = [{**vars(state), "owner": None if state.owner is None else str(state.owner)} for state in leases]
        console.print_json(json_module.dumps(content, indent=2))
        return
    table = Table(box=None, pad_edge=False)
    for title in ("device", "now", "leases", "late results refused"):
        table.add_column(title, overflow="fold")
    for state in leases:
        table.add_row(state.device, words_of(state), str(state.attempt + 1), str(state.refused))
    for name in sorted(set(config.load()) - {state.device for state in leases}):
        table.add_row(name, "idle: nothing was measured on it for this database", "0", "0")
    console.out.print(table)


def _show_run(store: Store, run_id: str, *, json: bool) -> None:
    import json as json_module

    from rich.table import Table

    from profiler.cli import console
    from profiler.fleet.status import as_json, of_run

    found = of_run(store, run_id)
    if json:
        console.print_json(json_module.dumps(as_json(found), indent=2))
        return
    table = Table(box=None, pad_edge=False, title=f"run {run_id}", title_justify="left")
    for title in ("device", "state", "since (UTC)", "measured", "failed"):
        table.add_column(title, overflow="fold")
    for one in found:
        state = one.state if one.reason is None else f"{one.state}: {one.reason}"
        table.add_row(one.device, state, _time(one.since_unix_s), f"{one.measured} of {one.cases}", str(one.failed))
    console.out.print(table)
    at_work = any(one.state.startswith("measuring") for one in found)
    if not at_work and any(one.measured + one.failed < one.cases for one in found):
        words = ["search"] if "search" in store.plan(run_id) else ["fleet", "run"]
        console.line(f"go on with: {advice.of_run(*words, '--resume', run_id)}")


def _time(unix_s: float | None) -> str:
    return "" if unix_s is None else f"{datetime.fromtimestamp(unix_s, timezone.utc):%Y-%m-%d %H:%M:%S}"
