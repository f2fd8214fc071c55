"""`edgeprof search`."""

from __future__ import annotations

from typing import Annotated

import typer

from backends.spec import split_list
from profiler import advice
from profiler.cli import cluster_command as c
from profiler.cli import options as o
from profiler.cli import permission as p
from profiler.errors import StudyError

DEFAULT_MAX_DROP = "1pt"


def command(
    model: Annotated[
        str | None, typer.Argument(help="An .onnx file, or package.module:factory; not with --resume.")
    ] = None,
    data: o.Data = None,
    time_budget: Annotated[
        str | None, typer.Option("--time-budget", help="Longest that everything together may take, e.g. 20min.")
    ] = None,
    objective: Annotated[
        str, typer.Option("--objective", help="What is raced against accuracy: latency, throughput, cost or memory.")
    ] = "latency",
    max_drop: Annotated[
        str, typer.Option("--max-drop", help="Drop beyond which a candidate is out, e.g. 1pt.")
    ] = DEFAULT_MAX_DROP,
    variants: Annotated[
        str | None,
        typer.Option("--variants", help="Candidates, e.g. fp16,graph+int8-dynamic; default: the whole ladder."),
    ] = None,
    backends: o.Backends = "ort,ov",
    target: o.Target = "local",
    cores: o.Cores = None,
    power_mode: o.PowerMode = None,
    limit_memory: o.LimitMemory = None,
    limit_cpus: o.LimitCpus = None,
    yes: o.Yes = False,
    allow_code: p.AllowCode = False,
    batches: Annotated[str, typer.Option("--batch", "--batches", help="Batch sizes, e.g. 1,8,32.")] = "1",
    threads: o.Threads = "1",
    calibration: o.Calibration = None,
    metric: o.MetricOption = None,
    slo_p99: o.SloP99 = None,
    machine: o.Machine = None,
    prices: o.Prices = None,
    utilisation: o.Utilisation = 0.6,
    quick: o.Quick = False,
    thorough: o.Thorough = False,
    precision: o.Precision = None,
    alpha: Annotated[
        float, typer.Option("--alpha", help="Chance that the search drops anything that it should have kept.")
    ] = 0.05,
    enough: Annotated[
        str | None,
        typer.Option(
            "--enough",
            help="Climb the ladder rung by rung and stop when a candidate is surely so many times faster, e.g. 1.5x.",
        ),
    ] = None,
    seeds: Annotated[
        bool,
        typer.Option("--seeds/--no-seeds", help="Repeat the calibration of frontier variants with two other seeds."),
    ] = True,
    limit: o.Limit = None,
    calibration_samples: o.CalibrationSamples = 256,
    shape: o.Shapes = None,
    set_: o.Settings = None,
    seed: o.Seed = 0,
    time_limit: o.TimeLimit = "300s",
    memory_limit: o.MemoryLimit = None,
    resume: Annotated[
        str | None, typer.Option("--resume", help="Go on with an interrupted search: its id, or latest.")
    ] = None,
    out: o.Out = o.OUT_DEFAULT,
    database: o.Database = None,
    cluster: c.Address = None,
    cluster_keys: c.Keys = None,
    cluster_insecure: c.Insecure = False,
    json: o.Json = False,
) -> None:
    """Find the frontier of variants, backends, batches and threads within a time budget."""
    if (model is None) == (resume is None):
        raise StudyError(f"give either a model, or --resume RUN (`{advice.of_run('runs')}` lists them).")
    from profiler import api
    from profiler.cli.console import bars, show_result
    from profiler.search.run import Asked, execute_search
    from profiler.study import make_study

    study = None
    if model is not None:
        # Without data no drop can be shown: the limit that nobody asked for would rule everything out.
        drop = max_drop if data is not None or max_drop != DEFAULT_MAX_DROP else None
        settings = o.study_settings(
            variants=None, backends=backends, batch=batches, threads=threads, max_drop=drop, slo_p99=slo_p99,
            max_memory=None, max_cost=None, machine=machine, utilisation=utilisation, prices=prices, quick=quick,
            thorough=thorough, time_limit=time_limit, memory_limit=memory_limit, shape=shape, model=model, data=data,
            precision=precision, time_budget=time_budget, energy=False, energy_csv=None, energy_command=None,
            calibration=calibration, metric=metric, limit=limit, seed=seed, calibration_samples=calibration_samples,
            target=target, cores=cores, power_mode=power_mode, limit_memory=limit_memory, limit_cpus=limit_cpus,
        )  # fmt: skip
        named = {**settings, "variants": tuple(split_list(variants or ""))}
        study = make_study(**o.with_settings(named, set_))
        if len(study.targets) > 1:
            raise StudyError(
                f"a search races on one machine under one set of conditions, got {len(study.targets)}: "
                f"{', '.join(study.targets)}."
            )
    if study is not None:
        o.confirm_changes(study.targets, yes=yes)
    else:
        o.confirm_resumed(str(resume), out=out, database=database, search=True, yes=yes, allow_code=allow_code)
    # Who names the candidates gets those.
    asked = Asked(objective, alpha, seeds, enough=_share(enough), mixed=variants is None)  # type: ignore[arg-type]  # checked there, with the known ones
    with c.connected(cluster, cluster_keys, insecure=cluster_insecure) as place, bars() as progress:
        run_id = execute_search(
            study,
            None if resume is not None else asked,
            out=out,
            resume=resume,
            progress=progress,
            database=database,
            cluster=place,
        )
    raise typer.Exit(show_result(api.open_run(run_id, out=out, database=database), json=json))


def _share(times_faster: str | None) -> float | None:
    """`1.5x` as a share of the reference's time."""
    if times_faster is None:
        return None
    try:
        times = float(times_faster.lower().removesuffix("x").removesuffix("×"))
    except ValueError:
        times = 0.0
    if not 1 < times < 1e6:
        raise StudyError(f"--enough says how many times faster, e.g. 1.5x, got '{times_faster}'.")
    return 1 / times
