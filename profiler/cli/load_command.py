"""`edgeprof load`."""

from __future__ import annotations

import itertools
from typing import Annotated, Any

import typer

from profiler import advice
from profiler.cli import options as o
from profiler.errors import StudyError, unknown
from profiler.units import parse_seconds

Scenario = Annotated[
    str | None,
    typer.Option(
        "--scenario", help="single, multi, offline, server, concurrency; several with commas. Default: server."
    ),
]
Rate = Annotated[
    str | None, typer.Option("--rate", help="Requests per second of server, e.g. 100,500; stretches a --trace.")
]
Trace = Annotated[
    str | None,
    typer.Option(
        "--trace", help="Arrival times in seconds: one per line, or a CSV column time_s. Else Poisson arrivals."
    ),
]
Constant = Annotated[bool, typer.Option("--constant", help="Equal gaps between requests instead of Poisson arrivals.")]
Find = Annotated[bool, typer.Option("--find-max-rate", help="Look for the highest rate that holds --slo-p99.")]
Workers = Annotated[str, typer.Option("--workers", help="Inferences at the same time, each on a lane, e.g. 1,2.")]
Batching = Annotated[
    str,
    typer.Option("--batching", help="none, or SIZE:DELAY: close a batch when full or when so old; none,8:2ms,16:5ms."),
]
Concurrency = Annotated[
    str, typer.Option("--concurrency", help="Requests in flight of the scenario concurrency, e.g. 1,2,4.")
]
Samples = Annotated[str, typer.Option("--samples", help="Requests in one query of the scenario multi, e.g. 8.")]
Duration = Annotated[str, typer.Option("--duration", help="Length of one run, e.g. 5s.")]
Repeats = Annotated[int, typer.Option("--repeats", help="Runs of each setting, each in a fresh process.")]
Budget = Annotated[
    int | None,
    typer.Option(
        "--budget-queries",
        help="Requests that one search for the highest rate may spend; else half a minute's, at most 80,000.",
    ),
]
Batch = Annotated[
    int, typer.Option("--batch", help="Batch axis of a model that fixes it; smaller batches are filled up.")
]


def command(
    model: Annotated[
        str | None, typer.Argument(help="An .onnx file, or package.module:factory giving a torch module or estimator.")
    ] = None,
    data: o.Data = None,
    variants: o.Variants = "fp32",
    backends: o.Backends = "ort,ov",
    target: o.Target = "local",
    cores: o.Cores = None,
    power_mode: o.PowerMode = None,
    limit_memory: o.LimitMemory = None,
    limit_cpus: o.LimitCpus = None,
    yes: o.Yes = False,
    scenario: Scenario = None,
    rate: Rate = None,
    trace: Trace = None,
    constant: Constant = False,
    find_max_rate: Find = False,
    slo_p99: o.SloP99 = None,
    workers: Workers = "1",
    batching: Batching = "none",
    concurrency: Concurrency = "1,2,4",
    samples: Samples = "8",
    duration: Duration = "5s",
    repeats: Repeats = 3,
    budget_queries: Budget = None,
    batch: Batch = 1,
    threads: o.Threads = "1",
    calibration: o.Calibration = None,
    limit: o.Limit = None,
    shape: o.Shapes = None,
    inputs: o.Inputs = None,
    seed: o.Seed = 0,
    time_limit: o.TimeLimit = "300s",
    memory_limit: o.MemoryLimit = None,
    show: Annotated[
        str | None, typer.Option("--show", help="Show the load of a stored run instead: its id, or latest.")
    ] = None,
    out: o.Out = o.OUT_DEFAULT,
    database: o.Database = None,
    json: o.Json = False,
) -> None:
    """Serve a model under load: latency at given rates, or the highest rate that holds a limit. Needs no labels."""
    from backends.spec import split_list
    from profiler import api
    from profiler.cli import console
    from profiler.load.scenario import SCENARIOS, LoadPlan
    from profiler.repeat import study_command
    from profiler.run import execute
    from profiler.study import make_study
    from profiler.units import parse_bytes

    if (model is None) == (show is None):
        raise StudyError(f"give either a model to load, or --show RUN (`{advice.of_run('runs')}` lists them).")
    if show is not None:
        stored = api.open_run(show, out=out, database=database)
        if stored.run.study.load is None:
            plan = LoadPlan(settings=("single",), only=True)
            asked = stored.run.study.model_copy(update={"load": plan, "soak": None, "energy": None})
            raise StudyError(f"run {stored.run.id} holds no load: `{study_command(asked, place=True)}` makes one.")
        raise typer.Exit(console.show_load(stored, json=json))
    names = tuple(part.strip() for part in (scenario or "server").split(",") if part.strip())
    arrivals = "trace" if trace is not None else "constant" if constant else "poisson"
    if trace is not None and constant:
        raise StudyError("--trace and --constant exclude each other: a trace has its own gaps.")
    strange = [name for name in names if name not in SCENARIOS]
    if strange:
        raise unknown("load scenario", strange[0], SCENARIOS)
    served = "server" in names
    if not served and (rate or trace or constant or find_max_rate):
        raise StudyError(
            f"--rate, --trace, --constant and --find-max-rate belong to the scenario server, not to {', '.join(names)}: "
            "add --scenario server."
        )
    if find_max_rate and slo_p99 is None:
        raise StudyError("--find-max-rate needs the limit that is to be held: add --slo-p99 5ms.")
    if served and not (rate or trace or find_max_rate):
        raise StudyError(
            "the scenario server needs a rate: --rate 500, --trace FILE, or --find-max-rate --slo-p99 5ms."
        )
    settings = _settings(names, workers, batching, concurrency, samples, arrivals)
    study = make_study(
        model=model, data=data, calibration=calibration, variants=tuple(split_list(variants or "")),
        backends=tuple(split_list(backends)), batches=(batch,), threads=o.numbers(threads, "--threads"), limit=limit,
        targets=o.targets(target, limit_memory=limit_memory, limit_cpus=limit_cpus, cores=cores, power_mode=power_mode),
        input_shapes=o.shapes(shape), inputs=o.inputs(inputs), seed=seed, time_limit_s=parse_seconds(time_limit),
        memory_limit_bytes=None if memory_limit is None else parse_bytes(memory_limit),
        load={
            "settings": settings, "rates_per_s": _rates(rate), "trace": trace, "find_max_rate": find_max_rate,
            "slo_s": None if slo_p99 is None else parse_seconds(slo_p99), "duration_s": parse_seconds(duration),
            "repeats": repeats, "budget_queries": budget_queries, "only": True,
        },
    )  # fmt: skip
    o.confirm_changes(study.targets, yes=yes)
    with console.bars() as progress:
        run_id = execute(study, out=out, progress=progress, database=database)
    raise typer.Exit(console.show_load(api.open_run(run_id, out=out, database=database), json=json))


def _settings(
    names: tuple[str, ...], workers: str, batching: str, concurrency: str, samples: str, arrivals: str
) -> tuple[str, ...]:
    """Every scenario with every number of workers and batching strategy, and with the numbers that are its own."""
    from profiler.load.scenario import Setting

    texts = []
    own: dict[str, list[dict[str, Any]]] = {
        "concurrency": [{"in_flight": number} for number in o.numbers(concurrency, "--concurrency")],
        "multi": [{"samples": number} for number in o.numbers(samples, "--samples")],
        "server": [{"arrivals": arrivals}],
    }
    for name in names:
        counts, found = o.numbers(workers, "--workers"), _strategies(batching)
        if name == "single":
            # One at a time has no company to wait for, and nothing for a second worker to do.
            counts, found = (1,), [{}]
        if name == "offline":
            found = [{key: value for key, value in strategy.items() if key != "max_delay_s"} for strategy in found]
        for count, strategy, more in itertools.product(counts, found, own.get(name, [{}])):
            texts.append(str(Setting(name, workers=count, **strategy, **more)))  # type: ignore[arg-type]
    return tuple(dict.fromkeys(texts))


def _strategies(text: str) -> list[dict[str, Any]]:
    """`none,8:2ms` as options of a setting. Raises EdgeprofError."""
    found: list[dict[str, Any]] = []
    for part in filter(None, map(str.strip, text.split(","))):
        size, colon, delay = part.partition(":")
        if part == "none":
            found.append({})
        elif size.isdecimal() and int(size) > 1:
            found.append({"max_batch": int(size), "max_delay_s": parse_seconds(delay) if colon else 0.0})
        else:
            raise StudyError(
                f"cannot read --batching '{part}': expected none, or SIZE:DELAY such as 8:2ms (a size from 2 on)."
            )
    if not found:
        raise StudyError("--batching is empty: expected none, or SIZE:DELAY such as 8:2ms.")
    return found


def _rates(text: str | None) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in (text or "").split(",") if part.strip())
    except ValueError:
        raise StudyError(
            f"cannot read --rate '{text}': expected requests per second, such as 500 or 100,500."
        ) from None
