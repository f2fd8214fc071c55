"""`edgeprof explain`."""

from __future__ import annotations

from typing import Annotated

import typer

from profiler.cli import options as o
from profiler.cli import permission as p


def command(
    run: o.Run,
    case: Annotated[str, typer.Argument(help="The case to explain: its number, name, or the beginning of one.")],
    against: Annotated[
        str | None, typer.Option("--against", help="The case to compare with; default: fp32 on the same backend.")
    ] = None,
    show_ops: Annotated[bool, typer.Option("--show-ops", help="Both cases op by op, side by side.")] = False,
    goes: Annotated[int, typer.Option("--goes", help="How often both are profiled, in turns.")] = 5,
    allow_code: p.AllowCode = False,
    json: o.Json = False,
    out: o.Out = o.OUT_DEFAULT,
    database: o.Database = None,
) -> None:
    """Load a case of a run and its reference, profile what really runs, and rank the reasons why it is not faster."""
    from profiler import api
    from profiler.cli import console
    from profiler.explain import collect, words
    from profiler.store import open_store

    result = api.open_run(run, out=out, database=database)
    console.refuse_load(result)
    analysis = result.analysis
    found = analysis.case(case)
    other = collect.own_reference(analysis, found) if against is None else analysis.case(against)
    store = open_store(database or out, create=False)
    try:
        with console.bars() as progress:
            evidence = collect.collect(
                analysis, found, other, store, out, goes=goes, progress=progress, allow_code=allow_code
            )
    finally:
        store.close()
    if json:
        console.print_json(words.to_json(evidence))
    else:
        console.out.print(words.text(evidence, show_ops=show_ops), markup=False, soft_wrap=True)
