"""`edgeprof profile`."""

from __future__ import annotations

import typer

from profiler.cli import cluster_command as c
from profiler.cli import options as o


def command(
    model: o.Model,
    data: o.Data = None,
    calibration: o.Calibration = None,
    variants: o.Variants = None,
    backends: o.Backends = "ort,ov",
    target: o.Target = "local",
    cores: o.Cores = None,
    power_mode: o.PowerMode = None,
    limit_memory: o.LimitMemory = None,
    limit_cpus: o.LimitCpus = None,
    yes: o.Yes = False,
    batch: o.Batch = "1",
    threads: o.Threads = "1",
    metric: o.MetricOption = None,
    max_drop: o.MaxDrop = None,
    slo_p99: o.SloP99 = None,
    max_memory: o.MaxMemory = None,
    max_cost: o.MaxCost = None,
    machine: o.Machine = None,
    utilisation: o.Utilisation = 0.6,
    prices: o.Prices = None,
    quick: o.Quick = False,
    thorough: o.Thorough = False,
    precision: o.Precision = None,
    time_budget: o.TimeBudget = None,
    energy: o.Energy = False,
    energy_csv: o.EnergyCsv = None,
    energy_command: o.EnergyCommand = None,
    limit: o.Limit = None,
    calibration_samples: o.CalibrationSamples = 256,
    shape: o.Shapes = None,
    set_: o.Settings = None,
    seed: o.Seed = 0,
    time_limit: o.TimeLimit = "300s",
    memory_limit: o.MemoryLimit = None,
    out: o.Out = o.OUT_DEFAULT,
    database: o.Database = None,
    cluster: c.Address = None,
    cluster_keys: c.Keys = None,
    cluster_insecure: c.Insecure = False,
    json: o.Json = False,
) -> None:
    """Profile a model: variants, measurement, frontier, recommendation, report."""
    settings = o.study_settings(
        variants=variants, backends=backends, batch=batch, threads=threads, max_drop=max_drop, slo_p99=slo_p99,
        max_memory=max_memory, max_cost=max_cost, machine=machine, utilisation=utilisation, prices=prices, quick=quick,
        thorough=thorough, time_limit=time_limit, memory_limit=memory_limit, shape=shape, model=model, data=data,
        precision=precision, time_budget=time_budget, energy=energy, energy_csv=energy_csv, energy_command=energy_command,
        calibration=calibration, metric=metric, limit=limit, seed=seed, calibration_samples=calibration_samples,
        target=target, cores=cores, power_mode=power_mode, limit_memory=limit_memory, limit_cpus=limit_cpus,
    )  # fmt: skip
    from profiler import api
    from profiler.cli.console import bars, show_result
    from profiler.run import execute
    from profiler.study import make_study

    study = make_study(**o.with_settings(settings, set_))
    o.confirm_changes(study.targets, yes=yes)
    with c.connected(cluster, cluster_keys, insecure=cluster_insecure) as place, bars() as progress:
        run_id = execute(study, out=out, progress=progress, database=database, cluster=place)
    raise typer.Exit(show_result(api.open_run(run_id, out=out, database=database), json=json))
