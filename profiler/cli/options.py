"""Options that several commands share, and how their texts become a study."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from backends.spec import split_list
from profiler.errors import StudyError
from profiler.units import parse_bytes, parse_drop, parse_seconds, parse_share

if TYPE_CHECKING:
    from profiler.study import Study

OUT_DEFAULT = Path("runs")

Model = Annotated[
    str, typer.Argument(help="An .onnx file, or package.module:factory giving a torch module or sklearn estimator.")
]
Run = Annotated[str, typer.Argument(help="A run's id, the beginning of one, or latest.")]
Out = Annotated[Path, typer.Option("--out", help="Folder of the run database, caches and reports.")]
Database = Annotated[
    str | None, typer.Option("--database", help="SQLAlchemy URL, instead of SQLite in the --out folder.")
]
Json = Annotated[bool, typer.Option("--json", help="JSON instead of a table.")]
Data = Annotated[
    str | None,
    typer.Option("--data", help="An .npz, a folder of images by class, or package.module:function. None: timing only."),
]
Calibration = Annotated[
    str | None, typer.Option("--calibration", help="Calibration data, like --data; else cut from --data.")
]
Variants = Annotated[
    str | None, typer.Option("--variants", help="e.g. fp16,int8-static{per_channel=true}; default: a usual set.")
]
Backends = Annotated[str, typer.Option("--backends", help="e.g. ort,ov,ort:cuda,ov:GPU,trt.")]
Batch = Annotated[str, typer.Option("--batch", help="Batch sizes, e.g. 1,8,32.")]
Threads = Annotated[str, typer.Option("--threads", help="Threads inside an inference, e.g. 1,4.")]
MetricOption = Annotated[
    str | None, typer.Option("--metric", help="top1, top5, f1, auc, rmse, mae, cosine, or package.module:function.")
]
Limit = Annotated[int | None, typer.Option("--limit", help="Use at most so many rows of --data.")]
Shapes = Annotated[
    list[str] | None,
    typer.Option("--shape", help="name=3,224,224 without the batch axis, for random inputs when there is no --data."),
]
MaxDrop = Annotated[str | None, typer.Option("--max-drop", help="Largest accepted accuracy loss, e.g. 1pt.")]
SloP99 = Annotated[str | None, typer.Option("--slo-p99", help="Largest accepted p99 latency, e.g. 5ms.")]
MaxMemory = Annotated[str | None, typer.Option("--max-memory", help="Largest accepted peak RSS, e.g. 512MB.")]
MaxCost = Annotated[float | None, typer.Option("--max-cost", help="Largest accepted USD per million inferences.")]
Machine = Annotated[
    str | None,
    typer.Option(
        "--as",
        help="What the machine is priced as: aws:c7i.large, device:raspberry-pi-5-8gb. Of several: NAME=TYPE,NAME=TYPE.",
    ),
]
Utilisation = Annotated[
    float, typer.Option("--utilisation", help="Share of the time that the machine is used, for costs.")
]
Prices = Annotated[str | None, typer.Option("--prices", help="A CSV of your own prices.")]
Quick = Annotated[bool, typer.Option("--quick", help="Fewer processes and rounds: wider intervals, the same method.")]
Thorough = Annotated[bool, typer.Option("--thorough", help="More processes: narrower intervals.")]
TimeBudget = Annotated[
    str | None,
    typer.Option(
        "--time-budget", help="Longest that the whole run may take, e.g. 10min; it ends earlier when precise enough."
    ),
]
Precision = Annotated[
    str | None,
    typer.Option("--precision", help="Go on with fresh processes until p50 is known to this share, e.g. 2%."),
]
Energy = Annotated[
    bool, typer.Option("--energy", help="Measure energy after the timing, with the meters that this machine has.")
]
EnergyCsv = Annotated[
    str | None,
    typer.Option("--energy-csv", help="An outside meter: the CSV that its logger appends to (docs/energy.md)."),
]
EnergyCommand = Annotated[
    str | None, typer.Option("--energy-command", help="An outside meter: a command that prints watts (docs/energy.md).")
]
Seed = Annotated[int, typer.Option("--seed", help="Seed of every random choice.")]
TimeLimit = Annotated[
    str,
    typer.Option(
        "--time-limit",
        help="Longest that one step of a case may take, e.g. 300s; making a variant may take 3 times that.",
    ),
]
MemoryLimit = Annotated[
    str | None, typer.Option("--memory-limit", help="Memory a case may use before it counts as failed, e.g. 4GB.")
]
Target = Annotated[
    str,
    typer.Option(
        "--target",
        help="Machines to measure on: local, names from `edgeprof target list`; conditions in braces, e.g. pi{cores=big}.",
    ),
]
LimitMemory = Annotated[
    str | None,
    typer.Option("--limit-memory", help="Measure inside so much memory, e.g. 512MB: would it fit? (docs/envelopes.md)"),
]
LimitCpus = Annotated[
    str | None, typer.Option("--limit-cpus", help="Measure on so many processors, e.g. 1 or 0.5 (docs/envelopes.md).")
]
Cores = Annotated[
    str | None,
    typer.Option("--cores", help="Classes of cores, each measured: big,little, or processors such as 0-3."),
]
PowerMode = Annotated[
    str | None,
    typer.Option(
        "--power-mode",
        help="Power modes of a Jetson, each measured: 15W,30W. Changes the machine; restored afterwards.",
    ),
]
Yes = Annotated[bool, typer.Option("--yes", help="Change power modes without asking.")]
CalibrationSamples = Annotated[int, typer.Option("--calibration-samples", help="Rows cut from --data for calibration.")]


def numbers(text: str, what: str) -> tuple[int, ...]:
    """`1,8,32` as numbers. Raises StudyError."""
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise StudyError(f"cannot read {what} '{text}': expected whole numbers such as 1,8,32.") from None


def shapes(texts: list[str] | None) -> dict[str, tuple[int, ...]]:
    """`name=3,224,224` texts as shapes. Raises StudyError."""
    found = {}
    for text in texts or []:
        name, equals, sizes = text.partition("=")
        if not equals or not name:
            raise StudyError(f"cannot read --shape '{text}': expected name=3,224,224.")
        found[name] = numbers(sizes, f"--shape {name}")
    return found


def targets(
    target: str, *, limit_memory: str | None, limit_cpus: str | None, cores: str | None, power_mode: str | None
) -> tuple[str, ...]:
    """Target texts of a study. Raises EdgeprofError for what cannot be."""
    from profiler.targets.conditions import combine

    names = split_list(target)
    if not names:
        raise StudyError("--target is empty: give local, or names from `edgeprof target list`.")
    return combine(names, memory=limit_memory, cpus=limit_cpus, cores=cores, power=power_mode)


def confirm_changes(texts: Sequence[str], *, yes: bool) -> None:
    """Ask before power modes of machines are changed. Raises StudyError when nobody can be asked, Abort for a no."""
    import sys

    from profiler.targets.conditions import parse

    asked: dict[str, list[str]] = {}
    for text in texts:
        name, conditions = parse(text)
        if conditions.power is not None:
            asked.setdefault(name, []).append(conditions.power)
    if not asked or yes:
        return
    what = "; ".join(f"{name}: {', '.join(dict.fromkeys(modes))}" for name, modes in asked.items())
    if not sys.stdin.isatty():
        raise StudyError(f"this sets power modes ({what}), for everything that runs there: agree with --yes.")
    typer.confirm(
        f"This sets power modes ({what}), for everything that runs there, and restores them afterwards. Go on?",
        abort=True,
        err=True,
    )


def asked_study(file: Path | None, resume: str | None, *, out: Path, database: str | None, yes: bool) -> Study | None:
    """The study of a file, or None where a run is to be resumed; what it changes on its targets was agreed to.

    Raises StudyError unless exactly one of the two is given.
    """
    from profiler.study import read_study

    if (file is None) == (resume is None):
        raise StudyError("give either a study file, or --resume RUN (`edgeprof runs` lists them).")
    asked = None if file is None else read_study(file)
    texts = (
        asked.targets if asked is not None else stored_targets(str(resume), out=out, database=database, search=False)
    )
    confirm_changes(texts, yes=yes)
    return asked


def stored_targets(run: str, *, out: Path, database: str | None, search: bool) -> tuple[str, ...]:
    """The targets of a run that is to be resumed; none where it cannot be read, which resuming tells."""
    from profiler.errors import StoreError
    from profiler.store import open_store

    try:
        store = open_store(database or out, create=False)
    except StoreError:
        return ()
    try:
        return store.run(store.resolve(run, search=search, unfinished=True)).study.targets
    except StoreError:
        return ()
    finally:
        store.close()


def study_settings(
    *, variants: str | None, backends: str, batch: str, threads: str, max_drop: str | None, slo_p99: str | None,
    max_memory: str | None, max_cost: float | None, machine: str | None, utilisation: float, prices: str | None, quick: bool,
    thorough: bool, time_budget: str | None, precision: str | None, time_limit: str,
    memory_limit: str | None, shape: list[str] | None, energy: bool, energy_csv: str | None, energy_command: str | None,
    target: str, limit_memory: str | None, limit_cpus: str | None, cores: str | None, power_mode: str | None,
    **others: Any,
) -> dict[str, Any]:  # fmt: skip
    """The options of `profile` as the fields of a study. Raises EdgeprofError for texts that cannot be read."""
    if quick and thorough:
        raise StudyError("--quick and --thorough exclude each other.")
    return {
        **others,
        "variants": tuple(split_list(variants or "")),
        "backends": tuple(split_list(backends)),
        "targets": targets(
            target, limit_memory=limit_memory, limit_cpus=limit_cpus, cores=cores, power_mode=power_mode
        ),
        "batches": numbers(batch, "--batch"),
        "threads": numbers(threads, "--threads"),
        "input_shapes": shapes(shape),
        "constraints": {
            "max_drop": None if max_drop is None else parse_drop(max_drop),
            "slo_p99_s": None if slo_p99 is None else parse_seconds(slo_p99),
            "max_memory_bytes": None if max_memory is None else parse_bytes(max_memory),
            "max_usd_per_million": max_cost,
        },
        "cost": {"machine": machine, "utilisation": utilisation, "prices": prices},
        "effort": _effort("quick" if quick else "thorough" if thorough else "default", precision),
        "time_limit_s": parse_seconds(time_limit),
        "energy": {"csv": energy_csv, "command": energy_command} if energy or energy_csv or energy_command else None,
        "time_budget_s": None if time_budget is None else parse_seconds(time_budget),
        "memory_limit_bytes": None if memory_limit is None else parse_bytes(memory_limit),
    }


def _effort(name: str, precision: str | None) -> Any:
    if precision is None:
        return name
    from profiler.study import EFFORTS

    return {**EFFORTS[name].model_dump(), "precision": parse_share(precision)}
