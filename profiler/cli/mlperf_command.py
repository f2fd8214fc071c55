"""`edgeprof mlperf`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from profiler.cli import options as o

if TYPE_CHECKING:
    from profiler.mlperf import Comparison, Figure


def command(
    model: o.Model,
    backend: Annotated[str, typer.Option("--backend", help="One backend, e.g. ort or ov:GPU.")] = "ort",
    scenario: Annotated[
        str, typer.Option("--scenario", help="SingleStream, MultiStream, Server or Offline.")
    ] = "SingleStream",
    variant: Annotated[str, typer.Option("--variant", help="What is run of the model, e.g. int8-static.")] = "fp32",
    qps: Annotated[
        float | None, typer.Option("--qps", help="Server: requests per second. Offline: expected samples per second.")
    ] = None,
    slo_p99: o.SloP99 = None,
    min_duration: Annotated[
        str, typer.Option("--min-duration", help="Shortest LoadGen run; ours takes as long.")
    ] = "10s",
    samples: Annotated[int, typer.Option("--samples", help="MultiStream: samples in one query.")] = 8,
    batch: Annotated[int, typer.Option("--batch", help="Samples put together into one inference, at most.")] = 1,
    threads: Annotated[int, typer.Option("--threads", help="Threads inside an inference.")] = 1,
    data: o.Data = None,
    shape: o.Shapes = None,
    logs: Annotated[Path | None, typer.Option("--logs", help="Folder for LoadGen's log files.")] = None,
    seed: o.Seed = 0,
    time_limit: o.TimeLimit = "300s",
    json: o.Json = False,
) -> None:
    """Run MLPerf LoadGen and our own engine on the same worker, and show both."""
    import json as json_module

    from profiler import mlperf
    from profiler.cli import console
    from profiler.cli.app import EXIT_NO_CASE, EXIT_OK
    from profiler.study import make_study
    from profiler.units import parse_seconds

    asked = mlperf.Asked(
        scenario=scenario, min_duration_s=parse_seconds(min_duration), qps=qps,
        slo_s=None if slo_p99 is None else parse_seconds(slo_p99), samples=samples, max_batch=batch,
    )  # fmt: skip
    mlperf.require_loadgen()
    study = make_study(
        model=model, data=data, variants=(variant,), backends=(backend,), batches=(batch,), threads=(threads,),
        input_shapes=o.shapes(shape), seed=seed, time_limit_s=parse_seconds(time_limit),
    )  # fmt: skip
    with console.bars() as progress:
        found = mlperf.compare(study, asked, progress)
    paths = [] if logs is None else mlperf.write_logs(found, logs)
    if json:
        console.print_json(json_module.dumps(found.to_json() | {"logs": [str(path) for path in paths]}, indent=2))
    else:
        _show(found, paths)
    raise typer.Exit(EXIT_OK if found.summary.valid else EXIT_NO_CASE)


def _show(found: Comparison, paths: list[Path]) -> None:
    from rich.table import Table

    from profiler.cli import console

    summary = found.summary
    console.out.print(
        f"{found.case} · {summary.scenario} · LoadGen {'VALID' if summary.valid else 'INVALID'}, "
        f"{found.loadgen_samples:,} samples; ours {found.our_samples:,}, half before and half after\n",
        markup=False,
    )
    table = Table(box=None, pad_edge=False)
    for title in ("", "LoadGen", "ours", "95 %", "LoadGen − ours"):
        table.add_column(title, justify="left" if not title else "right")
    for figure in found.figures:
        table.add_row(*_cells(figure))
    console.out.print(table)
    for p, value in summary.early_stopping_s.items():
        console.out.print(
            f"LoadGen's early-stopping bound of p{100 * p:g}: {_shown('p', value)}", markup=False, soft_wrap=True
        )
    if not summary.valid:
        for words in summary.words:
            console.out.print(f"LoadGen says: {words}", markup=False, soft_wrap=True)
    for note in found.notes:
        console.out.print(f"note: {note}", markup=False, soft_wrap=True)
    for path in paths:
        console.out.print(f"log: {path}", markup=False, soft_wrap=True)


def _shown(name: str, value: float) -> str:
    from profiler import units

    return f"{units.significant(value)}/s" if name == "throughput" else units.seconds(value)


def _cells(figure: Figure) -> tuple[str, str, str, str, str]:
    bounds = [None if bound is None else _shown(figure.name, bound) for bound in (figure.low, figure.high)]
    interval = "not resolved" if bounds == [None, None] else f"[{bounds[0] or '?'}, {bounds[1] or '?'}]"
    difference = "—" if figure.difference is None else f"{100 * figure.difference:+.1f} %".replace("-", "−")
    theirs = "not given" if figure.loadgen is None else _shown(figure.name, figure.loadgen)
    return figure.name, theirs, _shown(figure.name, figure.ours), interval, difference
