"""`edgeprof soak`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from profiler import advice
from profiler.cli import options as o
from profiler.errors import StudyError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from profiler.records import Figure
    from profiler.soak_result import Course, Soak

_WIDTH = 48
_PLURAL = {"process": "processes", "round": "rounds"}
_BARS = "▁▂▃▄▅▆▇█"


def command(
    model: Annotated[
        str | None, typer.Argument(help="An .onnx file, or package.module:factory giving a torch module or estimator.")
    ] = None,
    data: o.Data = None,
    shape: o.Shapes = None,
    inputs: o.Inputs = None,
    variants: o.Variants = "fp32",
    backends: o.Backends = "ort,ov",
    target: o.Target = "local",
    cores: o.Cores = None,
    power_mode: o.PowerMode = None,
    limit_memory: o.LimitMemory = None,
    limit_cpus: o.LimitCpus = None,
    yes: o.Yes = False,
    batch: o.Batch = "1",
    threads: o.Threads = "1",
    longest: Annotated[
        str, typer.Option("--max", help="Longest load before the sustained phase, e.g. 20min.")
    ] = "20min",
    cool_to: Annotated[float, typer.Option("--cool-to", help="A start is cool at so many °C above idle.")] = 5.0,
    cool_max: Annotated[str, typer.Option("--cool-max", help="Longest wait for a cool start.")] = "10min",
    burst: Annotated[str, typer.Option("--burst", help="How long after a cool start counts as burst.")] = "10s",
    sustained: Annotated[str, typer.Option("--sustained", help="How long is measured once steady.")] = "30s",
    each: Annotated[bool, typer.Option("--each", help="One soak per case, so that cases do not share heat.")] = False,
    processes: Annotated[
        int,
        typer.Option("--processes", help="Whole soaks, each with fresh processes: from 2 on, intervals are over them."),
    ] = 1,
    show: Annotated[
        str | None, typer.Option("--show", help="Show the soak of a stored run instead: its id, or latest.")
    ] = None,
    limit: o.Limit = None,
    seed: o.Seed = 0,
    time_limit: o.TimeLimit = "300s",
    memory_limit: o.MemoryLimit = None,
    out: o.Out = o.OUT_DEFAULT,
    database: o.Database = None,
    json: o.Json = False,
) -> None:
    """Heat the device up: burst from a cool start, sustained once hot, and the ratio of both."""
    if (model is None) == (show is None):
        raise StudyError(f"give either a model to soak, or --show RUN (`{advice.of_run('runs')}` lists them).")
    from backends.spec import split_list
    from profiler import api
    from profiler.cli.app import EXIT_NO_CASE, EXIT_OK
    from profiler.cli.console import bars, print_json
    from profiler.cli.console import out as console
    from profiler.repeat import study_command
    from profiler.run import execute
    from profiler.soak_result import read_soak
    from profiler.study import EFFORTS, SoakPlan, make_study
    from profiler.units import parse_bytes, parse_seconds

    run_id = show
    if model is not None:
        effort = {**EFFORTS["default"].model_dump(), "processes": processes}
        plan = {
            "max_s": parse_seconds(longest), "cool_to_c": cool_to, "cool_max_s": parse_seconds(cool_max),
            "burst_s": parse_seconds(burst), "sustained_s": parse_seconds(sustained), "each": each,
        }  # fmt: skip
        study = make_study(
            targets=o.targets(
                target, limit_memory=limit_memory, limit_cpus=limit_cpus, cores=cores, power_mode=power_mode
            ),
            model=model, data=data, input_shapes=o.shapes(shape), inputs=o.inputs(inputs),
            variants=tuple(split_list(variants or "")),
            backends=tuple(split_list(backends)), batches=o.numbers(batch, "--batch"),
            threads=o.numbers(threads, "--threads"), effort=effort, soak=plan, limit=limit, seed=seed,
            time_limit_s=parse_seconds(time_limit),
            memory_limit_bytes=None if memory_limit is None else parse_bytes(memory_limit),
        )  # fmt: skip
        o.confirm_changes(study.targets, yes=yes)
        with bars() as progress:
            run_id = execute(study, out=out, progress=progress, database=database)
    assert run_id is not None
    run = api.open_run(run_id, out=out, database=database).run
    soak = read_soak(run)
    failures = [f"{record.case}: {record.message}" for record in run.failures if record.kind != "skipped"]
    if run.study.soak is None:
        asked = run.study.model_copy(update={"soak": SoakPlan(), "load": None, "energy": None})
        raise StudyError(f"run {run.id} holds no soak: `{study_command(asked, place=True)}` makes one.")
    if json:
        print_json(_json(run.id, soak))
    else:
        for line in [*_table(soak), *(f"failed: {failure}" for failure in failures)]:
            console.print(line, markup=False, soft_wrap=True)
        again = advice.of_run("soak", "--show", run.id)
        console.print(f"\nrun {run.id}; again with: {again}", markup=False, soft_wrap=True)
    from profiler.stats.thermal import SustainedRatio

    measured = any(isinstance(case.ratio, SustainedRatio) for case in soak.cases)
    raise typer.Exit(EXIT_OK if measured else EXIT_NO_CASE)


def _table(soak: Soak) -> list[str]:
    """The ratios, then how each soak went, in words and small charts."""
    from profiler.stats.thermal import SustainedRatio

    width = max([len(case.case) for case in soak.cases] + [4])
    lines = [f"{'case':<{width}}  {'burst p50':>24}  {'sustained p50':>24}  sustained / burst"]
    notes: dict[str, None] = {}
    for case in soak.cases:
        ratio = "not measured"
        if isinstance(case.ratio, SustainedRatio):
            ratio = f"{case.ratio.value:.3f}"
            if case.ratio.low is not None and case.ratio.high is not None:
                ratio += (
                    f" [{case.ratio.low:.3f}, {case.ratio.high:.3f}] over {case.ratio.count} {_PLURAL[case.ratio.unit]}"
                )
            if case.ratio.note:
                notes[case.ratio.note] = None
        else:
            notes[f"{case.case}: {case.ratio.reason}"] = None
        lines.append(
            f"{case.case:<{width}}  {_figure(case.burst_p50_s):>24}  {_figure(case.sustained_p50_s):>24}  {ratio}"
        )
    lines += [f"  {note}" for note in notes]
    for course in soak.courses:
        lines += ["", *_course(course)]
    return lines


def _figure(figure: Figure) -> str:
    from profiler.records import Estimate
    from profiler.units import seconds

    if not isinstance(figure, Estimate):
        return "not reached"
    bounds = [seconds(bound) if bound is not None else "?" for bound in (figure.low, figure.high)]
    return f"{seconds(figure.value)} [{bounds[0].split()[0]}, {bounds[1]}]"


def _course(course: Course) -> list[str]:
    heated = course.heated_s
    load = f"{heated / 60:.1f} min of load" if heated is not None else "ended before the sustained phase"
    lines = [
        f"soak {course.replicate + 1}, {len(course.cases)} cases: {load}; {course.state.state}, {course.state.reason}"
    ]
    if course.start_c is None:
        lines.append("  start: whether it was cool cannot be known, there is no temperature sensor")
    elif course.cool is None or course.idle_c is None:
        lines.append(
            f"  start: {course.start_c:.1f} °C after waiting {course.waited_s:.0f} s; idle was not seen, so cool is not known"
        )
    else:
        word = "cool" if course.cool else "WARM"
        lines.append(
            f"  start: {word}, {course.start_c:.1f} °C after waiting {course.waited_s:.0f} s, idle {course.idle_c:.1f} °C"
        )
    lines.append(_chart("temperature", course, course.temperatures_c, 1.0, "°C", 1))
    lines.append(_chart("clock", course, course.clocks_hz, 1e-9, "GHz", 2))
    lines.append(_chart("time, burst = 1", course, course.slowdown, 1.0, "", 2))
    lines.append(f"  throttling: {_throttling(course)}")
    return lines


def _throttling(course: Course) -> str:
    import numpy as np

    told = course.held[np.isfinite(course.held)]
    if course.throttles is None and not len(told):
        return "nothing here tells"
    parts = [] if course.throttles is None else [f"{course.throttles} events counted"]
    if len(told):
        parts.append(f"said to be held back in {int(told.sum())} of {len(told)} rounds")
    if course.first_throttle_s is not None:
        parts.append(f"first after {course.first_throttle_s:.0f} s of load")
    return ", ".join(parts)


def _chart(name: str, course: Course, values: NDArray[Any], scale: float, unit: str, digits: int) -> str:
    """One line: first, lowest to highest and last value in words, and bars over time of equal width."""
    import numpy as np

    known = np.isfinite(values)
    if not known.any():
        return f"  {name:<16} not told here"
    times, told = course.times_s[known], values[known] * scale
    places = np.minimum((times / max(float(times[-1]), 1e-9) * _WIDTH).astype(int), _WIDTH - 1)
    low, high = float(told.min()), float(told.max())
    bars = ""
    for place in range(_WIDTH):
        inside = told[places == place]
        level = 0.0 if high == low else (float(inside.mean()) - low) / (high - low) if len(inside) else float("nan")
        bars += " " if np.isnan(level) else _BARS[min(int(level * len(_BARS)), len(_BARS) - 1)]
    words = f"{told[0]:.{digits}f} → {told[-1]:.{digits}f} {unit}".rstrip()
    return f"  {name:<16} {words:<20} {bars}  lowest {low:.{digits}f}, highest {high:.{digits}f}"


def _json(run_id: str, soak: Soak) -> str:
    import json
    from dataclasses import asdict

    import numpy as np

    def plain(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            return [None if np.isnan(item) else item for item in value.astype(float).tolist()]
        raise TypeError(f"{type(value).__name__} in a soak")

    return json.dumps({"run": run_id, **asdict(soak)}, indent=2, default=plain)
